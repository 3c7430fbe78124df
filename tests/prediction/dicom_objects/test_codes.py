"""Codes of segments; the oracle is pydicom's copy of the standard's context groups."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

import satunet.prediction.dicom_objects.codes as codes_module
from satunet.datasets.catalogue import load_catalogue
from satunet.knowledge.build import Imported, assemble
from satunet.knowledge.tree import Source, Term
from satunet.prediction.dicom_objects.codes import LESION, OBJECT, STRUCTURE, TISSUE, Coding, segment_codes

pytest.importorskip("pydicom")


def standard() -> dict[tuple[str, str], set[str]]:
    """(scheme, code) → meanings, of every concept that pydicom lists."""
    from pydicom.sr._concepts_dict import concepts

    found: dict[tuple[str, str], set[str]] = {}
    for scheme, names in concepts.items():
        for versions in names.values():
            for code, (meaning, _) in versions.items():
                found.setdefault((scheme, code), set()).add(meaning)
    return found


def sat_ds_classes() -> list[str]:
    return sorted(load_catalogue().class_names)


def test_every_code_of_the_table_is_the_standards() -> None:
    known = standard()
    file = Path(codes_module.__file__).parent / "codes.tsv"
    with file.open(encoding="utf-8", newline="") as lines:
        rows = list(csv.DictReader(lines, delimiter="\t"))
    assert len(rows) > 250
    for row in rows:
        assert row["meaning"] in known[row["scheme"], row["code"]], row
        if row["region code"]:
            assert row["region meaning"] in known["SCT", row["region code"]], row
        assert len(row["meaning"]) <= 64


def test_codes_in_the_module_are_the_standards() -> None:
    known = standard()
    single = [v for v in vars(codes_module).values() if isinstance(v, Coding)]
    for coding in [*single, *codes_module._LESION_WORDS.values()]:
        assert coding.meaning in known[coding.scheme, coding.value], coding


def test_every_class_of_sat_ds_has_codes() -> None:
    classes = sat_ds_classes()
    assert len(classes) == 451
    general = [c for c in classes if segment_codes(c).type == STRUCTURE and segment_codes(c).region is None]
    assert general == ["gonad"]  # neither ovary nor testis is said, and they lie in different regions
    lesions = {c for c in classes if segment_codes(c).is_lesion}
    assert lesions >= set(load_catalogue().lesions)
    assert lesions - set(load_catalogue().lesions) == {
        "left kidney cyst", "right kidney cyst", "white matter hyperintensities",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "category", "kind", "side", "region"),
    [
        ("liver", STRUCTURE, "10200004", None, None),
        ("Left_Kidney", STRUCTURE, "64033007", "Left", None),
        ("left heart atrium", STRUCTURE, "82471001", None, None),  # the code says the side
        ("head of left femur", STRUCTURE, "2812003", "Left", None),
        ("right lung middle lobe", STRUCTURE, "72481006", None, None),
        ("right kidney cyst", LESION, "367643001", "Right", "64033007"),
        ("lung nodule", LESION, "27925004", None, "39607008"),
        ("left angular gyrus", STRUCTURE, "91723000", "Left", "16630005"),  # part of the parietal lobe, not a lobe
        ("gluteus_maximus_right", TISSUE, "91727004", "Right", "46862004"),
        ("left lateral superior segment of liver", STRUCTURE, "277956007", None, None),
        ("lumbar vertebrae 3 (l3)", STRUCTURE, "36470004", None, None),
        # none of SAT-DS
        ("left patella", STRUCTURE, "64234005", "Left", None),
        ("left adrenal mass", LESION, "4147007", "Left", "23451007"),
        ("brain metastasis", LESION, "14799000", None, "12738006"),
        ("left kidney upper pole", STRUCTURE, "91723000", "Left", "64033007"),
        ("portal vein stent", OBJECT, "260787004", None, "32764006"),
        ("something", STRUCTURE, "91723000", None, None),
        ("", STRUCTURE, "91723000", None, None),
    ],
)
def test_codes(name: str, category: Coding, kind: str, side: str | None, region: str | None) -> None:
    found = segment_codes(name)
    assert found.category == category
    assert found.type.value == kind
    assert (found.side.meaning if found.side else None) == side
    assert (found.region.value if found.region else None) == region


def test_no_sided_class_loses_its_side() -> None:
    for name in sat_ds_classes():
        found = segment_codes(name)
        meanings = [c.meaning.lower() for c in (found.type, found.side, found.region) if c is not None]
        side = next((w for w in ("left", "right") if w in name.split()), None)
        if side is not None and not any("couinaud" in m for m in meanings):  # these numbers say the side
            assert any(side in m.split() for m in meanings), name
        other = {"left": "right", "right": "left"}.get(side or "")
        assert not any(other in m.split() for m in meanings), name


def test_what_the_knowledge_tree_says_of_a_name() -> None:
    assert segment_codes("reniculus").type == STRUCTURE
    imported = Imported(sources=[Source(name="X", version="1", licence="CC0")])
    for number, name in enumerate(("kidney", "reniculus", "nephron", "ren dexter", "onco")):
        imported.add(Term(id=f"X:{number}", name=name, source="X"), "here")
    imported.relate("X:1", "is_a", "X:0", "here")
    imported.relate("X:2", "part_of", "X:1", "here")
    imported.relate("X:3", "same_as", "X:0", "here")
    imported.relate("X:4", "lesion_of", "X:0", "here")
    tree = assemble([imported]).tree
    assert segment_codes("reniculus", tree).type.meaning == "Kidney"
    assert segment_codes("ren dexter", tree).type.meaning == "Kidney"
    part = segment_codes("left nephron", tree)
    assert (part.type, part.side.meaning, part.region.meaning) == (STRUCTURE, "Left", "Kidney")  # type: ignore[union-attr]
    lesion = segment_codes("onco", tree)
    assert lesion.is_lesion
    assert lesion.region is not None and lesion.region.meaning == "Kidney"
