"""The catalogue: published datasets with their classes, as data.

``sat_ds.json`` describes the 72 datasets of SAT-DS (arXiv 2312.17183): where each comes from, its modality, the label
ids of the published nnU-Net version and, class by class, the ids whose union it is. A dataset on disk is recognised
by its name *and* its label names; ids are matched by label name, so a different numbering does not matter.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from satunet.errors import CatalogueError
from satunet.jobs.files import read_json
from satunet.jobs.records import MALFORMED

CATALOGUE_VERSION = 1
SAT_DS = Path(__file__).parent / "sat_ds.json"
_MODALITIES = ("ct", "mri", "us", "pet", "other")
_AXES = {"R": 0, "L": 0, "A": 1, "P": 1, "S": 2, "I": 2}


@dataclass(frozen=True, kw_only=True)
class CatalogueRecord:
    """One published dataset.

    Attributes:
        id: Number of its nnU-Net folder.
        name: Name in the publication.
        folder: Name of the nnU-Net folder, ``DatasetNNN_Name``.
        modality: Modality of every channel; in SAT-DS, each sequence of a study is a scan of its own.
        region: Body region that the scans show.
        scans: Number of scans as published.
        weight: Factor of its sampling weight, in addition to 1/sqrt(scans).
        orientation: Orientation of the scans in SAT's training.
        link: Address of the download.
        licence: SPDX name; ``None`` if unknown.
        channel_names: Names of the channels, as in ``dataset.json``.
        labels: Label name → id, as in its ``dataset.json``.
        classes: Class → ids whose union it is.
        patient: Pattern that extracts the patient from a scan's patient id, if the id also names a visit or a frame.
        stored_ids: Id in the publishers' label maps → id in ``labels``, where they differ.
    """

    id: int
    name: str
    folder: str
    modality: str
    region: str
    scans: int
    weight: float = 1.0
    orientation: str = "RAS"
    link: str
    licence: str | None = None
    channel_names: tuple[str, ...] = ()
    labels: Mapping[str, int]
    classes: Mapping[str, tuple[int, ...]]
    patient: str = ".+"
    stored_ids: Mapping[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        def must(right: bool, what: str) -> None:
            if not right:
                raise CatalogueError(f"catalogue record {self.name!r}: {what}")

        must(
            bool(re.match(rf"^Dataset{self.id:03d}_\w+$", self.folder)),
            f"folder {self.folder!r} does not match the id {self.id}",
        )
        must(self.modality in _MODALITIES, f"modality {self.modality!r} is not one of {', '.join(_MODALITIES)}")
        must(self.scans > 0 and self.weight > 0, f"scans and weight must be positive, got {self.scans}, {self.weight}")
        axes = {_AXES.get(letter) for letter in self.orientation}
        must(
            axes == {0, 1, 2} and len(self.orientation) == 3,
            f"orientation {self.orientation!r} is not a code such as RAS",
        )
        ids = list(self.labels.values())
        must(bool(ids) and len(set(ids)) == len(ids) and min(ids) > 0, "label ids must be positive, each once")
        must(bool(self.classes), "no classes")
        must(set(self.stored_ids.values()) <= set(ids), f"stored ids stand for {sorted(set(self.stored_ids.values()))}")
        for name, values in self.classes.items():
            unknown = sorted(set(values) - set(ids))
            must(bool(values) and not unknown, f"class {name!r} has ids {list(values)}; unknown are {unknown}")
        clash = contradictory_classes(self.classes)
        must(clash is None, clash or "")


def contradictory_classes(classes: Mapping[str, Iterable[int]]) -> str | None:
    """Reason why the label ids of a dataset's classes cannot be right; ``None`` if they can.

    Classes may overlap: a lobe and its gyri, a side and a level. But two classes cannot have the same ids, and nothing
    can be both left and right.
    """
    seen: dict[frozenset[int], str] = {}
    for name, ids in sorted(classes.items()):
        values = frozenset(ids)
        if values in seen:
            return f"classes {seen[values]!r} and {name!r} have the same label ids {sorted(values)}"
        seen[values] = name
    return contradictory_sides(classes)


def contradictory_sides(classes: Mapping[str, Iterable[int]]) -> str | None:
    """The check of :func:`contradictory_classes` for left and right alone."""
    for name, ids in sorted(classes.items()):
        if re.search(r"\bleft\b", name):
            common = set(ids) & set(classes.get(re.sub(r"\bleft\b", "right", name), ()))
            if common:
                return f"class {name!r} and its right side share label ids {sorted(common)}"
    return None


@dataclass(frozen=True, kw_only=True)
class Catalogue:
    """All records, and facts about classes that hold in every dataset.

    Attributes:
        name: Name of the collection.
        records: The datasets.
        lesions: Classes that are pathological.
        regions: Body region → classes in it.
    """

    name: str
    records: tuple[CatalogueRecord, ...]
    lesions: frozenset[str] = frozenset()
    regions: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for what, values in (
            ("id", [str(r.id) for r in self.records]),
            ("name", [simple_name(r.name) for r in self.records]),
            ("folder", [r.folder for r in self.records]),
        ):
            twice = sorted({v for v in values if values.count(v) > 1})
            if twice:
                raise CatalogueError(f"catalogue {self.name!r}: records contradict each other, {what} {twice[0]} twice")
        for what, classes in (("lesions", self.lesions), *(self.regions.items())):
            unknown = sorted(set(classes) - set(self.class_names))
            if unknown:
                raise CatalogueError(
                    f"catalogue {self.name!r}: {what} names {unknown[:5]}, which no record has as classes"
                )

    @cached_property
    def class_names(self) -> tuple[str, ...]:
        """Every class, sorted."""
        return tuple(sorted({name for record in self.records for name in record.classes}))

    @cached_property
    def regions_of(self) -> dict[str, tuple[str, ...]]:
        """Class → its body regions."""
        found: dict[str, list[str]] = {}
        for region, classes in self.regions.items():
            for name in classes:
                found.setdefault(name, []).append(region)
        return {name: tuple(regions) for name, regions in found.items()}

    def by_name(self, dataset_name: str) -> CatalogueRecord | None:
        """The record of a dataset's name (``Dataset003_AMOS22CT``, ``AMOS22_CT``); the number is ignored."""
        return self._by_name.get(simple_name(re.sub(r"^Dataset\d{3,}_", "", dataset_name)))

    @cached_property
    def _by_name(self) -> dict[str, CatalogueRecord]:
        return {simple_name(n): r for r in self.records for n in (r.name, r.folder.partition("_")[2])}


def simple_name(name: str) -> str:
    """Only letters and digits, in lower case: ``AMOS22_CT`` and ``amos22-ct`` are the same name."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


@lru_cache(maxsize=8)
def load_catalogue(path: Path = SAT_DS) -> Catalogue:
    """Read and check a catalogue file.

    Raises:
        CatalogueError: The file is not a catalogue, has another version, or has contradictory records.
    """
    try:
        content = read_json(path)
    except (OSError, ValueError) as error:
        raise CatalogueError(f"{path}: cannot be read as a catalogue ({error})") from error
    version = content.get("version") if isinstance(content, dict) else None
    if version != CATALOGUE_VERSION:
        raise CatalogueError(f"{path}: catalogue version {version!r}; this satunet reads version {CATALOGUE_VERSION}")
    try:
        return Catalogue(
            name=content["name"],
            records=tuple(_record(entry) for entry in content["datasets"]),
            lesions=frozenset(content["lesions"]),
            regions={region: tuple(classes) for region, classes in content["regions"].items()},
        )
    except CatalogueError as error:
        raise CatalogueError(f"{path}: {error}") from error
    except MALFORMED as error:
        raise CatalogueError(f"{path}: malformed ({type(error).__name__}: {error})") from error


def _record(entry: dict[str, Any]) -> CatalogueRecord:
    classes = {name: tuple(int(i) for i in ids) for name, ids in entry["classes"].items()}
    stored = {int(before): int(after) for before, after in entry.get("stored_ids", {}).items()}
    return CatalogueRecord(
        **{**entry, "classes": classes, "channel_names": tuple(entry["channel_names"]), "stored_ids": stored}
    )
