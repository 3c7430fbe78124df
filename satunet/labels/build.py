"""Building one label space from ``dataset.json`` files."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from satunet.datasets.catalogue import Catalogue, CatalogueRecord, contradictory_sides, load_catalogue
from satunet.datasets.raw import MODALITIES, Dataset
from satunet.errors import LabelSpaceError
from satunet.labels.context import in_context
from satunet.labels.names import NormalizedName, normalize_name
from satunet.labels.space import ClassInfo, LabelSpace
from satunet.labels.unions import Derived, canonical_names, derive

logger = logging.getLogger(__name__)

_LESION_WORDS = re.compile(
    r"\b(tumor|lesion|cancer|carcinoma|metastas[ie]s|edema|necro\w*|stroke|infarct\w*|ischemi\w*|hemorrhage|hematoma"
    r"|sarcoma|glioma|cyst|nodule|infection|covid\w*|aneurysm|embol\w*|enhancing|fracture|hypointensities"
    r"|hyperintensit\w*|stenosis|abscess|polyp)\b"
)


@dataclass
class _Draft:
    name: NormalizedName
    modalities: set[str] = field(default_factory=set)
    datasets: set[str] = field(default_factory=set)
    sources: set[str] = field(default_factory=set)
    rules: set[str] = field(default_factory=set)


def build_label_space(datasets: Iterable[Dataset], catalogue: Catalogue | None = None) -> LabelSpace:
    """Unite the classes of datasets; the result does not depend on the order of the datasets.

    Labels with the same canonical name are one class. A dataset in the catalogue gets the catalogue's classes; any
    other dataset gets its own and those that the rules derive from them (:mod:`satunet.labels.unions`).

    Args:
        datasets: The datasets.
        catalogue: Catalogue of published datasets; SAT-DS if not given.

    Raises:
        LabelSpaceError: No dataset is given, one is given twice, a label has no name, or an id is both left and right.
    """
    catalogue = load_catalogue() if catalogue is None else catalogue
    datasets = sorted(datasets, key=lambda d: d.name)
    names = [d.name for d in datasets]
    if not names or len(set(names)) != len(names):
        raise LabelSpaceError(f"a label space needs at least one dataset, and each only once; got {names}")
    drafts: dict[str, _Draft] = {}
    ids: dict[str, dict[str, tuple[int, ...]]] = {}
    notes: dict[str, tuple[str, ...]] = {}
    for dataset in datasets:
        listed, sources, context = _listed(dataset, catalogue)
        derived = _classes(dataset, listed, catalogue)
        clash = contradictory_sides(derived.ids)
        if clash is not None:
            raise LabelSpaceError(f"{dataset.folder / 'dataset.json'}: {clash}")
        ids[dataset.name] = derived.ids
        if found := (*dataset.remarks, *derived.notes, *context):
            notes[dataset.name] = found
        for name in derived.ids:
            draft = drafts.setdefault(name, _Draft(normalize_name(name)))
            draft.datasets.add(dataset.name)
            draft.modalities.update(dataset.modalities)
            draft.sources.update(sources.get(name, ()))
            if name in derived.rules:
                draft.rules.add(derived.rules[name])
    classes = tuple(_info(drafts[name], catalogue) for name in sorted(drafts))
    ignored = {d.name: d.ignore_label for d in datasets if d.ignore_label is not None}
    return LabelSpace(classes=classes, ids=ids, notes=notes, ignored=ignored)


@lru_cache(maxsize=1)
def catalogue_space() -> LabelSpace:
    """The label space of all 72 datasets of SAT-DS, from the catalogue alone; the datasets need not exist on disk."""
    return build_label_space(
        Dataset(
            id=record.id,
            name=record.folder,
            folder=Path(record.folder),
            channel_names=record.channel_names,
            modalities=(record.modality,) * len(record.channel_names),
            labels={name: (value,) for name, value in record.labels.items()},
        )
        for record in load_catalogue().records
    )


def listed_ids(dataset: Dataset, catalogue: Catalogue) -> dict[str, tuple[int, ...]]:
    """Class → ids as listed by a dataset, before any rule: an organ does not include the ids of its lesions."""
    return _listed(dataset, catalogue)[0]


def class_of_name(name: str, catalogue: Catalogue) -> ClassInfo:
    """Side, lesion flag and regions of a class, from its canonical name alone."""
    return _info(_Draft(normalize_name(name)), catalogue)


def catalogue_record(dataset: Dataset, catalogue: Catalogue) -> tuple[CatalogueRecord | None, str | None]:
    """The catalogue's record of a dataset, or ``None``; and the reason, if a record has the name but other labels."""
    record = catalogue.by_name(dataset.name)
    if record is None:
        return None, None
    own, known = set(canonical_names(dataset.labels).values()), set(canonical_names(record.labels).values())
    if own != known or any(len(values) != 1 for values in dataset.labels.values()):
        other = sorted(own ^ known)[:3] or "regions"
        return None, f"named like {catalogue.name}'s {record.name}, but its labels differ ({other}): rules apply"
    return record, None


def _classes(dataset: Dataset, listed: dict[str, tuple[int, ...]], catalogue: Catalogue) -> Derived:
    record, problem = catalogue_record(dataset, catalogue)
    if record is None:
        derived = derive(listed)
        notes = derived.notes if problem is None else (problem, *derived.notes)
        return Derived(ids=derived.ids, rules=derived.rules, notes=notes)
    # Ids are looked up by name, so that a copy of the dataset with another numbering gets the same classes.
    own_names = canonical_names(record.labels)
    name_of = {label: own_names[source] for source, label in record.labels.items()}
    ids = {
        name: tuple(sorted({i for value in values for i in listed[name_of[value]]}))
        for name, values in record.classes.items()
    }
    rules = {name: f"union in {catalogue.name}" for name in ids if name not in listed}
    single = {values: name for name, values in listed.items()}
    for name in rules:
        if ids[name] in single:
            rules[name] = f"what {catalogue.name} calls {single[ids[name]]!r}"
    found = [f"known to the catalogue as {record.name}"]
    left_out = sorted({i for v in listed.values() for i in v} - {i for v in ids.values() for i in v})
    if left_out:
        found.append(f"label ids {left_out} are of no class in {catalogue.name}")
    return Derived(ids=ids, rules=rules, notes=tuple(found))


def _listed(
    dataset: Dataset, catalogue: Catalogue
) -> tuple[dict[str, tuple[int, ...]], dict[str, set[str]], tuple[str, ...]]:
    """Class → ids and class → names, as the dataset lists them; and notes on its names, one sentence each."""
    found: dict[str, set[int]] = {}
    sources: dict[str, set[str]] = {}
    canonical = canonical_names(dataset.labels)
    notes: tuple[str, ...] = ()
    if catalogue_record(dataset, catalogue)[0] is None:
        canonical, notes = in_context(dataset, canonical, catalogue)
    for source, values in dataset.labels.items():
        name = canonical[source]
        if not name:
            raise LabelSpaceError(
                f"{dataset.folder / 'dataset.json'}: the label {source!r} (ids {list(values)}) has no name"
            )
        # Labels of a dataset with the same canonical name are parts of the structure: their union is the class.
        found.setdefault(name, set()).update(values)
        sources.setdefault(name, set()).add(source)
    return {name: tuple(sorted(values)) for name, values in found.items()}, sources, notes


def _info(draft: _Draft, catalogue: Catalogue) -> ClassInfo:
    name, base = draft.name.canonical, draft.name.base
    regions = catalogue.regions_of.get(name) or catalogue.regions_of.get(base) or ()
    known = name in catalogue.class_names
    return ClassInfo(
        name=name,
        base=base,
        side=draft.name.side,
        modalities=tuple(m for m in MODALITIES if m in draft.modalities),
        datasets=tuple(sorted(draft.datasets)),
        source_names=tuple(sorted(draft.sources)),
        lesion=name in catalogue.lesions if known else bool(_LESION_WORDS.search(name)),
        regions=regions,
        inferred=None if draft.sources else "; ".join(sorted(draft.rules)),
    )
