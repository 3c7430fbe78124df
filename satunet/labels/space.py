"""The label space and its file."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from satunet.errors import LabelSpaceError
from satunet.jobs.records import load_record, save_record
from satunet.labels.context import is_generic
from satunet.labels.names import normalize_name


@dataclass(frozen=True, kw_only=True)
class ClassInfo:
    """One class of the unified label space.

    Attributes:
        name: Canonical name.
        base: Name without its side.
        side: ``"left"``, ``"right"`` or ``None``.
        modalities: Modalities of the datasets that annotate the class.
        datasets: Datasets that annotate the class.
        source_names: Names of the class in the datasets.
        lesion: Whether the class is pathological.
        regions: Body regions that the class belongs to, as far as they are known.
        inferred: Rule that derived the class; ``None`` if a dataset lists it.
    """

    name: str
    base: str
    side: str | None
    modalities: tuple[str, ...]
    datasets: tuple[str, ...]
    source_names: tuple[str, ...]
    lesion: bool = False
    regions: tuple[str, ...] = ()
    inferred: str | None = None


@dataclass(frozen=True, kw_only=True)
class LabelSpace:
    """All classes, and the label ids of each class in each dataset.

    A dataset's entry holds only the classes that the dataset annotates. Any other class is unknown there, not absent.

    Attributes:
        classes: All classes, sorted by name.
        ids: Dataset → class → label ids whose union is the class.
        notes: Dataset → notes on its labels, one sentence each.
        ignored: Dataset → id of unlabelled voxels (nnU-Net's ``ignore``), for datasets that have one.
    """

    RECORD_VERSION: ClassVar[int] = 2

    classes: tuple[ClassInfo, ...]
    ids: dict[str, dict[str, tuple[int, ...]]] = field(default_factory=dict)
    notes: dict[str, tuple[str, ...]] = field(default_factory=dict)
    ignored: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        names = [c.name for c in self.classes]
        if names != sorted(set(names)):
            raise LabelSpaceError("the classes of a label space must be sorted by name and unique")
        known = set(names)
        for dataset, classes in self.ids.items():
            unknown = sorted(set(classes) - known)
            if unknown:
                raise LabelSpaceError(f"{dataset}: classes {unknown[:5]} are not in the label space")

    @cached_property
    def class_names(self) -> tuple[str, ...]:
        """Names of all classes, sorted."""
        return tuple(c.name for c in self.classes)

    @cached_property
    def _positions(self) -> dict[str, int]:
        return {name: i for i, name in enumerate(self.class_names)}

    def __contains__(self, name: object) -> bool:
        return name in self._positions

    def index(self, name: str) -> int:
        """Position of a class in :attr:`class_names`.

        Raises:
            LabelSpaceError: There is no such class.
        """
        try:
            return self._positions[name]
        except KeyError:
            raise LabelSpaceError(f"no class {name!r} in the label space of {len(self.classes)} classes") from None

    def info(self, name: str) -> ClassInfo:
        """Side, modalities, names and other facts about a class; raises the same errors as :meth:`index`."""
        return self.classes[self.index(name)]

    def classes_of(self, dataset: str) -> tuple[str, ...]:
        """Classes that a dataset annotates, sorted.

        Raises:
            LabelSpaceError: There is no such dataset.
        """
        if dataset not in self.ids:
            raise LabelSpaceError(f"dataset {dataset!r} is not in the label space; it has {sorted(self.ids)}")
        return tuple(sorted(self.ids[dataset]))

    def ids_of(self, dataset: str, name: str) -> tuple[int, ...]:
        """Label ids of a class in a dataset.

        Raises:
            LabelSpaceError: The dataset is unknown or does not annotate the class.
        """
        if name not in self.classes_of(dataset):
            raise LabelSpaceError(f"{dataset} does not annotate {name!r}")
        return self.ids[dataset][name]

    @property
    def has_sides(self) -> bool:
        """Whether any class has a side, so that mirroring left and right would make labels wrong."""
        return any({"left", "right"} & set(c.name.split()) for c in self.classes)

    def save(self, path: Path) -> None:
        """Write the file atomically."""
        save_record(path, self)

    @classmethod
    def load(cls, path: Path) -> LabelSpace:
        """Read the file.

        Raises:
            LabelSpaceError: There is no such file, or it is not a label space.
        """
        return load_record(path, cls, error=LabelSpaceError)

    @classmethod
    def upgrade(cls, content: dict[str, Any], version: int) -> dict[str, Any]:
        """Refuse a file of another version, which cannot be read."""
        raise LabelSpaceError(f"label space version {version}; this satunet reads version {cls.RECORD_VERSION}")


def text_variants(info: ClassInfo) -> tuple[str, ...]:
    """Names of a class, the canonical one first; training draws from them to make the network robust to wording."""
    variants = [info.name]
    if info.side is not None:
        base, side = info.base, info.side
        variants += [f"{base} {side}", f"{base} on the {side} side", f"{side}-sided {base}", f"{base} ({side})"]
    names = [" ".join(name.replace("_", " ").replace("-", " ").split()).lower() for name in info.source_names]
    # A dataset of livers may call liver tumors "cancer"; outside that dataset, the word does not mean them.
    variants += [name for name in names if name == info.name or not is_generic(normalize_name(name).canonical)]
    return tuple(dict.fromkeys(variants))
