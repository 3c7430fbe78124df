"""What the headers of a dataset's files leave open about where their voxels are, gathered over its cases."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from satunet.datasets.raw import Case, Dataset
from satunet.errors import ScanError
from satunet.images.image import header_doubts
from satunet.labels import normalize_name

SAMPLE = 3
"""Cases that are looked at where an answer is wanted at once."""


def dataset_doubts(dataset: Dataset, cases: Sequence[Case]) -> list[str]:
    """A sentence for each thing that headers leave open, with how many files it is in and one of them.

    Which side is left matters only where classes have sides. Files that cannot be read are other functions' concern.
    """
    sided = any(normalize_name(name).side is not None for name in dataset.labels)
    found: dict[str, list[tuple[Path, str]]] = {}
    files = [path for case in cases for path in (*case.images, case.label) if path is not None]
    for path in files:
        try:
            doubts = header_doubts(path)
        except ScanError:
            continue
        for doubt in doubts:
            if sided or doubt.kind != "sides":
                found.setdefault(doubt.kind, []).append((path, doubt.text))
    return [
        f"{len(those)} of {len(files)} files, such as {those[0][0].name}: {those[0][1]}" for those in found.values()
    ]
