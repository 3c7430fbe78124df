"""The label space as an object, and its file."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from satunet.errors import LabelSpaceError
from satunet.jobs.files import read_json, write_json
from satunet.labels.context import is_generic
from satunet.labels.names import normalize_name

LABEL_SPACE_VERSION = 2


@dataclass(frozen=True, kw_only=True)
class ClassInfo:
    """One class of the unified label space.

    Attributes:
        name: Canonical name.
        base: Name without its side.
        side: ``"left"``, ``"right"`` or ``None``.
        modalities: Modalities of the scans that annotate it.
        datasets: Datasets that annotate it.
        source_names: What the datasets call it.
        lesion: Whether it is pathological.
        regions: Body regions it belongs to, as far as they are known.
        inferred: The rule that made it, or ``None`` if a dataset lists it itself.
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
    """Every class, and which label ids of each dataset it is.

    A class that a dataset does not annotate is not in that dataset's entry: there, it is unknown, never absent.

    Attributes:
        classes: All classes, by name.
        ids: Dataset → class → label ids whose union is that class.
        notes: Dataset → what was found out about its labels, a sentence each.
        ignored: Dataset → id of voxels that nobody labelled (nnU-Net's ``ignore``), where it has one.
    """

    classes: tuple[ClassInfo, ...]
    ids: dict[str, dict[str, tuple[int, ...]]] = field(default_factory=dict)
    notes: dict[str, tuple[str, ...]] = field(default_factory=dict)
    ignored: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        names = [c.name for c in self.classes]
        if names != sorted(set(names)):
            raise LabelSpaceError("the classes of a label space are sorted by name, each once")
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
        """Position of a class.

        Raises:
            LabelSpaceError: No such class.
        """
        try:
            return self._positions[name]
        except KeyError:
            raise LabelSpaceError(f"no class {name!r} in the label space of {len(self.classes)} classes") from None

    def info(self, name: str) -> ClassInfo:
        """What is known of a class; raises as :meth:`index`."""
        return self.classes[self.index(name)]

    def classes_of(self, dataset: str) -> tuple[str, ...]:
        """Classes that a dataset annotates, sorted.

        Raises:
            LabelSpaceError: No such dataset.
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
        """Whether any class has a side, so that mirroring left and right would change its meaning."""
        return any({"left", "right"} & set(c.name.split()) for c in self.classes)

    def to_json(self) -> dict[str, Any]:
        """Plain lists, texts and numbers."""
        return {
            "version": LABEL_SPACE_VERSION,
            "classes": [dataclasses.asdict(c) for c in self.classes],
            "ids": {d: {c: list(i) for c, i in sorted(classes.items())} for d, classes in sorted(self.ids.items())},
            "notes": {d: list(notes) for d, notes in sorted(self.notes.items())},
            "ignored": dict(sorted(self.ignored.items())),
        }

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> LabelSpace:
        """The inverse of :meth:`to_json`.

        Raises:
            LabelSpaceError: Another version, or malformed.
        """
        if not isinstance(content, dict) or content.get("version") != LABEL_SPACE_VERSION:
            version = content.get("version") if isinstance(content, dict) else None
            raise LabelSpaceError(f"label space version {version!r}; this satunet reads version {LABEL_SPACE_VERSION}")
        try:
            classes = tuple(_class_info(c) for c in content["classes"])
            ids = {d: {c: tuple(i) for c, i in classes.items()} for d, classes in content["ids"].items()}
            notes = {d: tuple(sentences) for d, sentences in content["notes"].items()}
            ignored = {d: int(i) for d, i in content.get("ignored", {}).items()}
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise LabelSpaceError(f"not a valid label space ({type(error).__name__}: {error})") from error
        return cls(classes=classes, ids=ids, notes=notes, ignored=ignored)

    def save(self, path: Path) -> None:
        """Write the file, whole."""
        write_json(path, self.to_json())

    @classmethod
    def load(cls, path: Path) -> LabelSpace:
        """Read the file.

        Raises:
            LabelSpaceError: No such file, or not a label space.
        """
        try:
            return cls.from_json(read_json(path))
        except (OSError, ValueError) as error:
            raise LabelSpaceError(f"{path}: {error}") from error


def text_variants(info: ClassInfo) -> tuple[str, ...]:
    """Ways to say a class, its canonical name first; training draws from them so that wording matters less."""
    variants = [info.name]
    if info.side is not None:
        base, side = info.base, info.side
        variants += [f"{base} {side}", f"{base} on the {side} side", f"{side}-sided {base}", f"{base} ({side})"]
    names = [" ".join(name.replace("_", " ").replace("-", " ").split()).lower() for name in info.source_names]
    # "cancer" is what a dataset of livers calls liver tumors; to anyone else it is no name of them.
    variants += [name for name in names if name == info.name or not is_generic(normalize_name(name).canonical)]
    return tuple(dict.fromkeys(variants))


def _class_info(content: dict[str, Any]) -> ClassInfo:
    values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in content.items()}
    return ClassInfo(**values)
