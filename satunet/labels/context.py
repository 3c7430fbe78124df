"""Generic names such as ``cancer``, which means one class in a dataset of livers and another in a dataset of lungs.

A generic name is completed by the organ of its dataset: the organ that the dataset's other classes belong to, else the
one in the dataset's name, else the one in its description. If none of these gives exactly one organ, the name stays as
it is, and the label space gets a note about it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import lru_cache

from satunet.datasets.catalogue import Catalogue, load_catalogue
from satunet.datasets.raw import Dataset
from satunet.labels.names import normalize_name

_TUMORS = frozenset({"cancer", "tumor", "mass", "carcinoma", "neoplasm", "malignancy"})
_LESIONS = _TUMORS | {
    "lesion", "cyst", "nodule", "metastasis", "edema", "infarct", "infarction", "hemorrhage", "hematoma", "abscess",
    "necrosis", "calcification", "polyp", "stone", "infection",
}  # fmt: skip
_PLACES = frozenset({"anterior", "posterior", "superior", "inferior", "medial", "lateral", "proximal", "distal"})
_PARTS = frozenset({
    "vessel", "vein", "artery", "wall", "lumen", "cavity", "parenchyma", "head", "body", "tail", "apex", "base", "core",
    "cortex", "medulla", "capsule", "zone", "peripheral zone", "transition zone", "central zone", "fat",
})  # fmt: skip
_LONG = {
    "pz": "peripheral zone", "tz": "transition zone", "cz": "central zone", "transitional zone": "transition zone",
    "vessels": "vessel", "veins": "vein", "arteries": "artery", "masses": "mass", "cancers": "cancer",
}  # fmt: skip
_ADJECTIVES = {
    "hepatic": "liver", "renal": "kidney", "pulmonary": "lung", "cardiac": "heart", "cerebral": "brain",
    "pancreatic": "pancreas", "splenic": "spleen", "gastric": "stomach", "prostatic": "prostate", "colonic": "colon",
    "hippocampal": "hippocampus", "esophageal": "esophagus", "rectal": "rectum", "breast": "breast",
    "thyroidal": "thyroid", "vertebral": "vertebrae",
}  # fmt: skip


def is_generic(name: str) -> bool:
    """Whether a canonical name leaves open which structure it belongs to."""
    name = _LONG.get(name, name)
    return name in _LESIONS or name in _PLACES or name in _PARTS


def in_context(
    dataset: Dataset, canonical: Mapping[str, str], catalogue: Catalogue | None = None
) -> tuple[dict[str, str], tuple[str, ...]]:
    """Canonical names of a dataset's labels, with generic names completed by the organ of the dataset.

    Args:
        dataset: The dataset.
        canonical: Label name → canonical name.
        catalogue: Catalogue whose names are preferred; SAT-DS if not given.

    Returns:
        Label name → canonical name; and one note, of one sentence, per generic name.
    """
    generic = {source: name for source, name in canonical.items() if is_generic(name)}
    if not generic:
        return dict(canonical), ()
    catalogue = load_catalogue() if catalogue is None else catalogue
    organ, where = _organ(dataset, [name for name in canonical.values() if not is_generic(name)])
    names, notes = dict(canonical), []
    for source, name in generic.items():
        found = None if organ is None else _joined(organ, name, catalogue)
        if found is None or found in names.values():
            notes.append(
                f"{source!r} does not say what it belongs to, and the dataset does not tell: rename it in dataset.json"
            )
        else:
            names[source] = found
            notes.append(f"{source!r} is taken for {found!r}, by {where}")
    return names, tuple(notes)


def _organ(dataset: Dataset, classes: Iterable[str]) -> tuple[str | None, str]:
    """The organ that a dataset is about, or ``None``; and where it was found."""
    bases = {normalize_name(name).base for name in classes} & _structures()
    if len(bases) == 1:
        (organ,) = bases
        return organ, f"its class {organ!r}"
    for text, what in ((dataset.name.partition("_")[2], "its name"), (dataset.description or "", "its description")):
        found = _structures_in(text)
        if len(found) == 1:
            return found.pop(), f"{what}, {text!r}"
    return None, ""


def _joined(organ: str, name: str, catalogue: Catalogue) -> str:
    """Organ and generic name as one name, in the catalogue's wording if there is one."""
    name = _LONG.get(name, name)
    ways = [f"{name} {organ}", f"{organ} {name}"] if name in _PLACES else [f"{organ} {name}", f"{name} of {organ}"]
    if name in _TUMORS:
        ways.append(f"{organ} tumor")
    known = [way for way in ways if normalize_name(way).canonical in catalogue.class_names]
    return normalize_name((known or ways)[0]).canonical


def _structures_in(text: str) -> set[str]:
    """Anatomical structures that a text names; longer names are matched before the names within them."""
    words = re.sub(r"[^A-Za-z]+", " ", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", text)).lower().split()
    words = [_ADJECTIVES.get(word, word) for word in words]
    found: set[str] = set()
    start = 0
    while start < len(words):
        for length in (3, 2, 1):
            name = normalize_name(" ".join(words[start : start + length])).base
            if start + length <= len(words) and name in _structures():
                found.add(name)
                start += length
                break
        else:
            start += 1
    return found


@lru_cache(maxsize=1)
def _structures() -> frozenset[str]:
    """Structures that lesions and parts can belong to: the catalogue's, without sides, lesions and generic names."""
    catalogue = load_catalogue()
    bases = {normalize_name(name).base for name in set(catalogue.class_names) - catalogue.lesions}
    return frozenset(base for base in bases if not any(is_generic(word) for word in base.split()))
