"""The classes that are scored, their label ids, and which of them are lesions: decided here and nowhere else.

A published dataset is scored by the classes of its publication, any other dataset by those in its ``dataset.json``;
unions derived by rules are not scored. There are two conventions for an organ with a lesion in it:

- ``"whole"``: the organ includes the lesion's ids, as in the label space and in SAT. A mask of "kidney" that leaves out
  the tumor is wrong.
- ``"listed"``: the organ has only the ids that ``dataset.json`` gives it, as in nnU-Net's scores. If a competitor
  predicts one mask per class, the lesions' voxels are removed from its mask of the organ.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

from satunet.datasets.catalogue import load_catalogue
from satunet.datasets.raw import Dataset, read_labels
from satunet.errors import UserError
from satunet.labels.build import build_label_space, catalogue_record, class_of_name, listed_ids
from satunet.labels.space import LabelSpace

Organs = Literal["whole", "listed"]


@dataclass(frozen=True, kw_only=True)
class ScoredClass:
    """A class to score.

    Attributes:
        name: Canonical name.
        ids: Label ids whose union is the class; empty for references that are folders of masks.
        lesion: Whether the class is pathological; its lesions are also counted individually.
        regions: Body regions, as far as they are known.
        includes: Classes whose ids are a proper subset of this class's ids.
        excludes: Classes that lie inside this class, but do not count as part of it.
    """

    name: str
    ids: tuple[int, ...] = ()
    lesion: bool = False
    regions: tuple[str, ...] = ()
    includes: tuple[str, ...] = ()
    excludes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class ScoredClasses:
    """The scored classes of one dataset, and the ids allowed in its label maps.

    Attributes:
        classes: The classes, sorted by name.
        allowed_ids: Ids that may occur in a label map; ``None`` allows any.
        ignore_id: Id of unlabelled voxels, which are not scored; ``None`` if there are none.
    """

    classes: tuple[ScoredClass, ...]
    allowed_ids: frozenset[int] | None = None
    ignore_id: int | None = None

    def __post_init__(self) -> None:
        names = [c.name for c in self.classes]
        twice = sorted({n for n in names if names.count(n) > 1})
        if twice:
            raise ValueError(f"each class must be listed once, but {twice} are listed more than once")

    @cached_property
    def by_name(self) -> dict[str, ScoredClass]:
        """Name → class."""
        return {c.name: c for c in self.classes}

    @cached_property
    def ids(self) -> dict[str, tuple[int, ...]]:
        """Name → ids."""
        return {c.name: c.ids for c in self.classes}

    @property
    def names(self) -> tuple[str, ...]:
        """Names, in order."""
        return tuple(c.name for c in self.classes)

    @property
    def lesions(self) -> frozenset[str]:
        """Names of the pathological classes."""
        return frozenset(c.name for c in self.classes if c.lesion)

    def only(self, wanted: Callable[[str], bool]) -> ScoredClasses:
        """Keep only the classes whose names are wanted; the allowed ids stay the same."""
        return replace(self, classes=tuple(c for c in self.classes if wanted(c.name)))

    def with_lesions(self, lesions: Collection[str]) -> ScoredClasses:
        """The same classes, with exactly the given ones as lesions.

        Raises:
            UserError: A lesion is not among the classes.
        """
        unknown = sorted(set(lesions) - set(self.names))
        if unknown:
            raise UserError(f"{', '.join(unknown)}: not a scored class; scored are {', '.join(self.names[:20])}")
        return replace(self, classes=tuple(replace(c, lesion=c.name in lesions) for c in self.classes))

    def parts_of(self, name: str, known: Callable[[str], bool]) -> tuple[str, ...]:
        """Known classes whose union is the class ``name``; empty if they do not cover it completely."""
        own = self.by_name[name]
        parts = tuple(part for part in own.includes if known(part))
        covered = {i for part in parts for i in self.ids[part]}
        return parts if own.ids and covered == set(own.ids) else ()


def classes_of_dataset(dataset: Dataset, *, organs: Organs = "whole", known: LabelSpace | None = None) -> ScoredClasses:
    """Scored classes of a dataset.

    Args:
        dataset: The dataset.
        organs: Convention for organs with lesions in them; see the module.
        known: Label space in which to look up lesions and regions; if not given, names and catalogue decide.
    """
    catalogue = load_catalogue()
    space = build_label_space([dataset], catalogue)
    whole = space.ids[dataset.name]
    if organs == "listed":
        ids = dict(sorted(listed_ids(dataset, catalogue).items()))
    else:
        published = catalogue_record(dataset, catalogue)[0] is not None
        ids = {name: whole[name] for name in sorted(whole) if published or space.info(name).source_names}
    found = []
    for name, own in ids.items():
        info = known.info(name) if known is not None and name in known else class_of_name(name, catalogue)
        inside = set(whole.get(name, ())) - set(own)
        found.append(
            ScoredClass(
                name=name,
                ids=own,
                lesion=info.lesion,
                regions=info.regions,
                includes=tuple(n for n, other in ids.items() if set(other) < set(own)),
                excludes=tuple(n for n, other in ids.items() if inside and set(other) <= inside),
            )
        )
    return ScoredClasses(classes=tuple(found), allowed_ids=dataset.label_ids, ignore_id=dataset.ignore_label)


def classes_of_file(file: Path, *, organs: Organs = "whole") -> ScoredClasses:
    """Scored classes of the dataset that a ``dataset.json`` describes; see :func:`classes_of_dataset`.

    Raises:
        DatasetError: The file is missing or malformed.
    """
    labels, ignore = read_labels(file)
    return classes_of_dataset(labels_alone(file.parent, labels, ignore), organs=organs)


def classes_of_masks(names: Iterable[str], folder: Path) -> ScoredClasses:
    """Scored classes of references that are folders of masks: every class with a mask in at least one of them.

    Args:
        names: Canonical names of the classes.
        folder: Folder of the references; its name may identify a dataset.
    """
    labels = {name: (number,) for number, name in enumerate(sorted(set(names)), start=1)}
    found = classes_of_dataset(labels_alone(folder, labels, None), organs="listed")
    classes = tuple(ScoredClass(name=c.name, lesion=c.lesion, regions=c.regions) for c in found.classes)
    return ScoredClasses(classes=classes)


def labels_alone(folder: Path, labels: Mapping[str, tuple[int, ...]], ignore: int | None) -> Dataset:
    """A dataset of which only the labels are known."""
    return Dataset(
        id=0, name=folder.name, folder=folder, channel_names=(), modalities=(), labels=dict(labels), ignore_label=ignore
    )
