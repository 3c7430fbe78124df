"""From ``dataset.json`` files to one label space."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from satunet.datasets import MODALITIES, Dataset
from satunet.errors import LabelSpaceError
from satunet.labels.names import NormalizedName, normalize_name
from satunet.labels.space import ClassInfo, LabelSpace

_LESION_WORDS = re.compile(
    r"\b(tumor|lesion|cancer|carcinoma|metastas[ie]s|edema|necro\w*|stroke|infarct\w*|ischemi\w*|hemorrhage|hematoma"
    r"|sarcoma|glioma|cyst|nodule|infection|covid\w*|aneurysm|embol\w*|enhancing|fracture|hypointensities"
    r"|hyperintensit\w*|stenosis|abscess|polyp)\b"
)
_PARTS = (("anterior", "posterior"), ("upper", "lower"), ("superior", "inferior"))
# "upper lobe" and "lower lobe" are not the two halves of one "lobe".
_NO_WHOLE = {
    "process",
    "limb",
    "lobe",
    "division",
    "segment",
    "part",
    "gyrus",
    "horn",
    "wall",
    "border",
    "root",
    "pole",
}


@dataclass
class _Draft:
    name: NormalizedName
    modalities: set[str] = field(default_factory=set)
    datasets: set[str] = field(default_factory=set)
    sources: set[str] = field(default_factory=set)
    rules: set[str] = field(default_factory=set)
    listed: bool = False


def build_label_space(datasets: Iterable[Dataset]) -> LabelSpace:
    """Unite the classes of datasets; the result does not depend on their order.

    Names that normalise to one canonical name are one class. A dataset that annotates both sides of a structure
    also knows their union; so does one that annotates both parts ("anterior", "posterior") of it and nothing else
    of that name.

    Raises:
        LabelSpaceError: No dataset, or one given twice.
    """
    datasets = sorted(datasets, key=lambda d: d.name)
    names = [d.name for d in datasets]
    if not names or len(set(names)) != len(names):
        raise LabelSpaceError(f"a label space needs datasets, each once; got {names}")
    drafts: dict[str, _Draft] = {}
    ids: dict[str, dict[str, tuple[int, ...]]] = {}
    for dataset in datasets:
        listed = _listed(dataset, drafts)
        derived = _unions(listed)
        ids[dataset.name] = dict(listed.items())
        for name, (values, rule) in derived.items():
            if name not in listed:
                ids[dataset.name][name] = values
                draft = drafts.setdefault(name, _Draft(normalize_name(name)))
                draft.rules.add(rule)
        for name in ids[dataset.name]:
            drafts[name].datasets.add(dataset.name)
            drafts[name].modalities.update(dataset.modalities)
    return LabelSpace(classes=tuple(_info(drafts[name]) for name in sorted(drafts)), ids=ids)


def _listed(dataset: Dataset, drafts: dict[str, _Draft]) -> dict[str, tuple[int, ...]]:
    found: dict[str, set[int]] = {}
    for source, values in dataset.labels.items():
        name = normalize_name(source)
        if not name.canonical:
            raise LabelSpaceError(f"{dataset.name}: the label {source!r} (ids {list(values)}) has no name")
        # Two spellings of one structure in one dataset are parts of it: their union is the class.
        found.setdefault(name.canonical, set()).update(values)
        draft = drafts.setdefault(name.canonical, _Draft(name))
        draft.sources.add(source)
        draft.listed = True
    return {name: tuple(sorted(values)) for name, values in found.items()}


def _unions(listed: dict[str, tuple[int, ...]]) -> dict[str, tuple[tuple[int, ...], str]]:
    """Classes that follow from a dataset's own: name → (ids, rule)."""
    unions: dict[str, tuple[tuple[int, ...], str]] = {}

    def unite(name: str, parts: tuple[str, ...], rule: str) -> None:
        if name and name not in listed and all(part in listed for part in parts):
            values = tuple(sorted({i for part in parts for i in listed[part]}))
            unions.setdefault(name, (values, rule))

    for name in sorted(listed):
        parsed = normalize_name(name)
        if parsed.side == "left":
            unite(parsed.base, (name, f"right {parsed.base}"), "union of left and right")
        words = parsed.base.split()
        for first, second in _PARTS:
            if words[0] == first and len(words) > 1 and not _NO_WHOLE & set(words):
                whole = " ".join(words[1:])
                prefix = f"{parsed.side} " if parsed.side else ""
                siblings = {n for n in listed if n.endswith(f" {whole}") and n.startswith(prefix)}
                parts = (name, f"{prefix}{second} {whole}")
                # With a third sibling ("middle"), the two would not be the whole.
                if siblings == set(parts):
                    unite(f"{prefix}{whole}", parts, f"union of {first} and {second}")
    return unions


def _info(draft: _Draft) -> ClassInfo:
    return ClassInfo(
        name=draft.name.canonical,
        base=draft.name.base,
        side=draft.name.side,
        modalities=tuple(m for m in MODALITIES if m in draft.modalities),
        datasets=tuple(sorted(draft.datasets)),
        source_names=tuple(sorted(draft.sources)),
        lesion=bool(_LESION_WORDS.search(draft.name.canonical)),
        inferred=None if draft.listed else "; ".join(sorted(draft.rules)),
    )
