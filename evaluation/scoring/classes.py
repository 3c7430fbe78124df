"""Which classes to score, and which of them are lesions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from satunet.datasets.raw import Dataset, read_labels
from satunet.evaluation.scoring.sources import class_names_in
from satunet.labels import build_label_space


@dataclass(frozen=True, kw_only=True)
class ClassList:
    """Classes to score.

    Attributes:
        classes: Class → ids whose union it is; an organ has its lesions' ids too. Empty for folders of masks.
        lesions: Those that are pathological.
        allowed_ids: Ids that a label map may hold.
        ignore_id: Id of voxels that nobody labelled.
    """

    classes: Mapping[str, tuple[int, ...]]
    lesions: frozenset[str]
    allowed_ids: frozenset[int] | None = None
    ignore_id: int | None = None


def classes_in_file(file: Path) -> ClassList:
    """Classes that a ``dataset.json`` lists, by their canonical names.

    Raises:
        DatasetError: The file is missing or malformed.
    """
    labels, ignore = read_labels(file)
    classes, lesions = _listed(file.parent, labels)
    ids = {i for own in labels.values() for i in own} | ({ignore} if ignore is not None else set())
    return ClassList(classes=classes, lesions=lesions, allowed_ids=frozenset(ids), ignore_id=ignore)


def classes_in_folders(references: Mapping[str, Path]) -> ClassList:
    """Classes of references that are folders of masks; what one of them has no mask of is not scored there.

    Raises:
        ScanError: A folder without masks.
    """
    names = sorted({name for folder in references.values() for name in class_names_in(folder)})
    classes, lesions = _listed(next(iter(references.values())), {name: (i,) for i, name in enumerate(names, start=1)})
    return ClassList(classes=dict.fromkeys(classes, ()), lesions=lesions)


def _listed(folder: Path, labels: dict[str, tuple[int, ...]]) -> tuple[dict[str, tuple[int, ...]], frozenset[str]]:
    name = folder.name
    dataset = Dataset(id=0, name=name, folder=folder, channel_names=(), modalities=(), labels=labels)
    space = build_label_space([dataset])
    listed = {n: ids for n, ids in sorted(space.ids[name].items()) if space.info(n).source_names}
    return listed, frozenset(n for n in listed if space.info(n).lesion)
