"""Codes of a segment: category, type, side and region, for structures and lesions.

``codes.tsv`` lists the classes of SAT-DS without their side. Every code in it is from a context group of the DICOM
standard, as listed by pydicom. A side is added as a modifier. Any other name is tried, in this order, as

1. a structure or tissue of the standard's context groups ("patella", "left femur");
2. a lesion of such a structure or of a class ("adrenal mass"): the word for the lesion gives type and category, and the
   rest of the name gives the region;
3. a device, by the word for it ("portal vein stent");
4. a kind or part of something in the knowledge tree;
5. a part of a structure in its name ("left kidney upper pole"); otherwise it is just an "anatomical structure".

A type is always true of the segment: a part never has the type of its whole; its type is "anatomical structure" and its
region is the whole. No code is made up.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from satunet.knowledge.concepts import split_side
from satunet.knowledge.tree import name_key
from satunet.labels.names import normalize_name

if TYPE_CHECKING:
    from satunet.knowledge.tree import KnowledgeTree


@dataclass(frozen=True)
class Coding:
    """A code of a coding scheme.

    Attributes:
        value: Code.
        meaning: Meaning of the code.
        scheme: Designator of the scheme; ``SCT`` is SNOMED CT.
    """

    value: str
    meaning: str
    scheme: str = "SCT"


STRUCTURE = Coding("91723000", "Anatomical Structure")
TISSUE = Coding("85756007", "Tissue")
LESION = Coding("49755003", "Morphologically Abnormal Structure")
OBJECT = Coding("260787004", "Physical object")
LEFT = Coding("7771000", "Left")
RIGHT = Coding("24028007", "Right")

_CATEGORIES = {"anatomical structure": STRUCTURE, "tissue": TISSUE, "lesion": LESION}
_SIDES = {"left": LEFT, "right": RIGHT}

_LESION_WORDS = {
    "tumor": Coding("108369006", "Neoplasm"),
    "cancer": Coding("108369006", "Neoplasm"),
    "carcinoma": Coding("108369006", "Neoplasm"),
    "neoplasm": Coding("108369006", "Neoplasm"),
    "sarcoma": Coding("108369006", "Neoplasm"),
    "metastasis": Coding("14799000", "Neoplasm, Secondary"),
    "cyst": Coding("367643001", "Cyst"),
    "nodule": Coding("27925004", "Nodule"),
    "mass": Coding("4147007", "Mass"),
    "edema": Coding("79654002", "Edema"),
    "hemorrhage": Coding("50960005", "Hemorrhage"),
    "abscess": Coding("44132006", "Abscess"),
    "embolism": Coding("55584005", "Embolus"),
    "embolus": Coding("55584005", "Embolus"),
    "thrombus": Coding("75753009", "Blood clot"),
    "necrosis": Coding("6574001", "Necrosis"),
    "inflammation": Coding("409774005", "Inflammation"),
    "effusion": Coding("41699000", "Effusion"),
    "scar": Coding("12402003", "Scar tissue"),
    "lesion": Coding("52988006", "Lesion"),
    "infarct": Coding("52988006", "Lesion"),
    "hematoma": Coding("50960005", "Hemorrhage"),
}
"""Word for a lesion → its type, from CID 7194 (CID 12280 for effusions, CID 7191 for scars)."""
_DEVICE_WORDS = {
    "stent",
    "catheter",
    "filter",
    "prosthesis",
    "implant",
    "pacemaker",
    "electrode",
    "clip",
    "screw",
    "table",
}
_CONTEXT_GROUPS = {7192: STRUCTURE, 7191: TISSUE}
_TOO_GENERAL = {"structure", "organ", "tissue", "segment", "region", "part", "normal", "background", "wall"}
"""Regions that are too general to locate a part."""


@dataclass(frozen=True, kw_only=True)
class SegmentCodes:
    """Codes of a segment.

    Attributes:
        category: Anatomical structure, tissue, morphologically abnormal structure or physical object.
        type: Code of the structure, or of the most specific kind of structure that it is and that has a code.
        side: Side of the structure, or of a lesion's region; ``None`` if there is none or the code includes it.
        region: Region of a lesion, or of a structure whose type is more general than its name.
    """

    category: Coding
    type: Coding
    side: Coding | None = None
    region: Coding | None = None

    @property
    def is_lesion(self) -> bool:
        """Whether it is a morphologically abnormal structure."""
        return self.category == LESION


def segment_codes(name: str, tree: KnowledgeTree | None = None) -> SegmentCodes:
    """Codes of a class or prompt.

    Args:
        name: Name in any spelling, with or without a side.
        tree: Knowledge tree, for names that are neither in our table nor in the standard.
    """
    normal = normalize_name(name)
    whole = name_key(normal.canonical)
    side, base = (normal.side, name_key(normal.base)) if normal.side else split_side(whole)
    exact = _known(whole)
    found = (
        exact
        or _known(base)
        or _lesion(base)
        or _device(base)
        or (_by_tree(base, tree) if tree is not None else None)
        or _part(base)
        or SegmentCodes(category=STRUCTURE, type=STRUCTURE)
    )
    named = found.region if found.is_lesion else found.type
    # The code of "left atrium" includes the side, and so does the code of a sided class in the table, unless it is more
    # general than the class.
    says_side = named is not None and re.search(r"\b(left|right)\b", named.meaning.lower())
    if side is None or says_side or (exact is not None and found.type not in (STRUCTURE, TISSUE)):
        return found
    return replace(found, side=_SIDES[side])


def _known(base: str) -> SegmentCodes | None:
    """Codes from our table, or from the standard's context groups."""
    return _table().get(base) or _standard().get(base)


def _lesion(base: str) -> SegmentCodes | None:
    words = base.split()
    kind = next((w for w in reversed(words) if w in _LESION_WORDS), None)
    if kind is None:
        return None
    where = next(_wholes(" ".join(w for w in words if w != kind)), None)
    return SegmentCodes(category=LESION, type=_LESION_WORDS[kind], region=where)


def _device(base: str) -> SegmentCodes | None:
    words = base.split()
    if not _DEVICE_WORDS & set(words):
        return None
    where = next(_wholes(" ".join(w for w in words if w not in _DEVICE_WORDS)), None)
    return SegmentCodes(category=OBJECT, type=OBJECT, region=where)


def _part(base: str) -> SegmentCodes | None:
    where = next(_wholes(base), None)
    return None if where is None else SegmentCodes(category=STRUCTURE, type=STRUCTURE, region=where)


def _wholes(text: str) -> Iterator[Coding]:
    """Regions named by runs of words, the longest first; of equally long ones the last first, the head in English."""
    words = [w for w in text.split() if w not in ("of", "the", "in", "left", "right")]
    for length in range(len(words), 0, -1):
        for start in range(len(words) - length, -1, -1):
            found = _known(" ".join(words[start : start + length]))
            if found is None or found.is_lesion:
                continue
            where = found.region if found.type in (STRUCTURE, TISSUE) else found.type
            if where is not None:
                yield where


def _by_tree(base: str, tree: KnowledgeTree) -> SegmentCodes | None:
    """Codes of the nearest ancestor with a code: as the type if the name is a kind of it, as the region if a part."""
    terms = tree.find(base)
    for same in (i for term in terms for i in tree.same(term.id)):
        found = next((f for n in tree.terms[same].names if (f := _known(name_key(n)))), None)
        if found is not None:
            return found
    for term in terms:
        above = tree.ancestors(term.id)
        kinds = tree.ancestors(term.id, ("is_a", "left_variant_of", "right_variant_of"))
        lesion_of = tree.ancestors(term.id, ("lesion_of",))
        for term_id in above:
            found = next((f for n in tree.terms[term_id].names if (f := _known(_unsided(n))) and not f.is_lesion), None)
            if found is None or found.type in (STRUCTURE, TISSUE):
                continue
            if term_id in lesion_of:
                return SegmentCodes(category=LESION, type=_LESION_WORDS["lesion"], region=found.type)
            if term_id in kinds:
                return found
            return SegmentCodes(category=STRUCTURE, type=STRUCTURE, region=found.type)
    return None


def _unsided(name: str) -> str:
    return split_side(name)[1]


@lru_cache(maxsize=1)
def _table() -> dict[str, SegmentCodes]:
    with (Path(__file__).parent / "codes.tsv").open(encoding="utf-8", newline="") as file:
        return {
            name_key(row["class"]): SegmentCodes(
                category=_CATEGORIES[row["category"]],
                type=Coding(row["code"], row["meaning"], row["scheme"]),
                region=Coding(row["region code"], row["region meaning"]) if row["region code"] else None,
            )
            for row in csv.DictReader(file, delimiter="\t")
        }


@lru_cache(maxsize=1)
def _standard() -> dict[str, SegmentCodes]:
    """Key of a name in the standard's context groups of structures and tissues → codes; empty without pydicom."""
    try:
        from pydicom.sr.codedict import codes
    except ImportError:
        return {}
    found: dict[str, SegmentCodes] = {}
    for number, category in _CONTEXT_GROUPS.items():
        group = getattr(codes, f"cid{number}")
        for keyword in group.dir():
            code = getattr(group, keyword)
            key = name_key(code.meaning)
            if code.scheme_designator == "SCT" and key not in _TOO_GENERAL:
                coding = Coding(code.value, code.meaning)
                found.setdefault(key, SegmentCodes(category=category, type=coding))
    return found
