"""Ambiguities in the headers of a dataset's files about the position of voxels, collected over its cases."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from satunet.datasets.raw import Case, Dataset
from satunet.errors import ScanError
from satunet.images.image import header_doubts
from satunet.labels import normalize_name

SAMPLE = 3
"""Number of cases that are checked when a quick answer is needed."""


def dataset_doubts(dataset: Dataset, cases: Sequence[Case]) -> list[str]:
    """One sentence for each ambiguity of headers, with the number of files and one of them as an example.

    An unclear left side only matters if classes have sides. Unreadable files are ignored here.
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
