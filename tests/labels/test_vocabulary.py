"""Words that atlases and datasets write, and the word of the reference collection that each stands for.

The right sides are anatomy's usual English names, written down here by hand: a word that drops out of the vocabulary,
or leads elsewhere, fails its line.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from satunet.datasets.raw import Dataset
from satunet.labels import build_label_space, normalize_name
from satunet.labels.context import is_generic

WRITTEN = {
    "amygdalae": "amygdala", "hippocampi": "hippocampus", "thalami": "thalamus", "lungs": "lung", "ventricles": "ventricle",
    "femora": "femur", "femurs": "femur", "eyes": "eye", "ribs": "rib", "lesions": "lesion", "metastases": "metastasis",
    "nodules": "nodule", "cysts": "cyst", "parotid glands": "parotid gland", "lobes": "lobe", "adrenals": "adrenal gland",
    "clavicula": "clavicle", "clavicles": "clavicle", "scapulae": "scapula", "humeri": "humerus", "putamina": "putamen",
    "caudates": "caudate nucleus", "brain haemorrhage": "brain hemorrhage", "haematoma": "hematoma", "gray matter": "grey matter",
    "ischaemic stroke": "ischemic stroke", "oedema": "edema", "tumours": "tumor", "tumors": "tumor",
    "peritumoural edema": "peritumoral edema", "colour vision center": "color vision center", "inf vena cava": "inferior vena cava", "sup colliculus": "superior colliculus",
    "med frontal cortex": "medial frontal cortex", "ant cingulate": "anterior cingulate", "mid cerebellum": "middle cerebellum",
    "post cingulate": "posterior cingulate", "precuneous": "precuneus", "3rd ventricle": "third ventricle",
    "4th ventricle": "fourth ventricle", "cc": "corpus callosum", "ivc": "inferior vena cava", "svc": "superior vena cava",
    "angular": "angular gyrus", "fusiform": "fusiform gyrus", "lingual": "lingual gyrus", "precentral": "precentral gyrus",
    "postcentral": "postcentral gyrus", "supramarginal": "supramarginal gyrus", "supra marginal": "supramarginal gyrus",
    "parahippocampal": "parahippocampal gyrus", "para hippocampal": "parahippocampal gyrus", "insular cortex": "insula",
    "precuneus cortex": "precuneus", "accumbens": "nucleus accumbens", "nucleus caudatus": "caudate nucleus",
    "globus pallidus": "pallidum", "brain stem": "brainstem", "gall bladder": "gallbladder", "wind pipe": "trachea",
    "food pipe": "esophagus", "suprarenal gland": "adrenal gland", "heart myocardium": "myocardium", "lacrimal": "lacrimal gland",
    "submandibular": "submandibular gland", "optic chiasma": "optic chiasm", "cerebellum exterior": "cerebellar cortex",
    "cerebrospinal fluid": "csf", "intervertebral disc": "intervertebral discs", "triangularis": "triangularis",
}  # fmt: skip


@pytest.mark.parametrize("written", WRITTEN)
def test_what_datasets_write_is_what_is_meant(written: str) -> None:
    assert normalize_name(written).canonical == WRITTEN[written]


@pytest.mark.parametrize(
    ("word", "side"),
    [(w, "left") for w in ("left", "lt", "lh", "lft", "sinistra", "sin", "l")]
    + [(w, "right") for w in ("right", "rt", "rh", "rgt", "dextra", "dex", "r")],
)
def test_words_for_a_side(word: str, side: str) -> None:
    for text in (f"{word} putamen", f"putamen {word}", f"putamen_{word}".upper()):
        assert normalize_name(text).canonical == f"{side} putamen", text


GENERIC = [
    "cancer",
    "tumor",
    "mass",
    "carcinoma",
    "neoplasm",
    "malignancy",
    "lesion",
    "cyst",
    "nodule",
    "metastasis",
    "edema",
    "infarct",
    "infarction",
    "hemorrhage",
    "hematoma",
    "abscess",
    "necrosis",
    "calcification",
    "polyp",
    "stone",
    "infection",
    "anterior",
    "posterior",
    "superior",
    "inferior",
    "medial",
    "lateral",
    "proximal",
    "distal",
    "vessel",
    "vein",
    "artery",
    "wall",
    "lumen",
    "cavity",
    "parenchyma",
    "head",
    "body",
    "tail",
    "apex",
    "base",
    "core",
    "cortex",
    "medulla",
    "capsule",
    "zone",
    "fat",
    "pz",
    "tz",
    "cz",
    "vessels",
    "veins",
    "arteries",
    "masses",
    "cancers",
]


@pytest.mark.parametrize("word", GENERIC)
def test_words_that_do_not_say_of_what(word: str) -> None:
    assert is_generic(word)


@pytest.mark.parametrize("word", ["liver", "tumor core", "kidney", "left", "aorta", "zones of liver"])
def test_words_that_do(word: str) -> None:
    assert not is_generic(word)


def made(number: int, labels: list[str], name: str = "X", description: str = "") -> Dataset:
    ids = {label: (k,) for k, label in enumerate(labels, start=1)}
    return Dataset(
        id=number, name=f"Dataset{number:03d}_{name}", folder=Path("nowhere"), channel_names=("0",), modalities=("ct",),
        labels=ids, description=description,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("adjective", "organ"),
    [
        ("Hepatic", "liver"), ("Renal", "kidney"), ("Pulmonary", "lung"), ("Cardiac", "heart"), ("Cerebral", "brain"),
        ("Pancreatic", "pancreas"), ("Splenic", "spleen"), ("Gastric", "stomach"), ("Prostatic", "prostate"),
        ("Colonic", "colon"), ("Esophageal", "esophagus"), ("Rectal", "rectum"), ("Breast", "breast"),
    ],
)  # fmt: skip
def test_an_adjective_in_a_name_says_the_organ(adjective: str, organ: str) -> None:
    names = build_label_space([made(1, ["nodule"], f"{adjective}Trial")]).class_names
    assert names == (f"{organ} nodule",)


def test_whole_spines_and_ribs_are_united_and_gaps_are_not() -> None:
    levels = {"cervical": range(1, 8), "thoracic": range(1, 13), "lumbar": range(1, 6)}
    names = [f"{region[0].upper()}{level}" for region, all_levels in levels.items() for level in all_levels]
    space = build_label_space([made(1, names)])
    ids = space.ids["Dataset001_X"]
    assert ids["cervical vertebrae"] == tuple(range(1, 8))
    assert ids["thoracic vertebrae"] == tuple(range(8, 20))
    assert ids["lumbar vertebrae"] == tuple(range(20, 25))
    assert ids["vertebrae"] == tuple(range(1, 25))
    more = build_label_space([made(1, [*names, "L6", "T13"])]).ids["Dataset001_X"]
    assert more["lumbar vertebrae"] == (*range(20, 25), 25)
    assert more["thoracic vertebrae"] == (*range(8, 20), 26)
    without = build_label_space([made(1, [n for n in names if n != "C7"])])
    assert "cervical vertebrae" not in without and "vertebrae" not in without
    ribs = [f"left rib {k}" for k in range(1, 13)] + [f"right rib {k}" for k in range(1, 12)]
    one = build_label_space([made(1, ribs)])
    assert one.ids["Dataset001_X"]["left rib"] == tuple(range(1, 13))
    assert "right rib" not in one and "rib" not in one


@pytest.mark.parametrize(
    "word",
    ["process", "limb", "lobe", "division", "segment", "part", "gyrus", "horn", "wall", "border", "root", "pole"],
)
def test_two_of_what_may_be_more_are_no_whole(word: str) -> None:
    for first, second in (("anterior", "posterior"), ("upper", "lower"), ("superior", "inferior")):
        names = [f"{first} thing {word}", f"{second} thing {word}"]
        assert set(build_label_space([made(1, names)]).class_names) == set(names)
        halves = build_label_space([made(1, [f"{first} putamen", f"{second} putamen"])])
        assert halves.ids["Dataset001_X"]["putamen"] == (1, 2)


def test_which_spaces_have_sides() -> None:
    assert build_label_space([made(1, ["left kidney", "liver"])]).has_sides
    assert build_label_space([made(1, ["right kidney"])]).has_sides
    assert not build_label_space([made(1, ["liver", "spleen"])]).has_sides


def test_classes_are_found_by_name() -> None:
    space = build_label_space([made(1, ["spleen", "liver"])])
    for place, name in enumerate(space.class_names):
        assert space.index(name) == place
        assert space.info(name).name == name
        assert space.info(name).lesion is False and space.info(name).inferred is None


@pytest.mark.parametrize(
    "name",
    ["hyperintensities", "aorta stenosis", "lung abscess", "colon polyp", "liver tumor", "kidney cyst", "lung nodule"],
)
def test_what_a_lesion_is(name: str) -> None:
    assert build_label_space([made(1, [name, "liver"])]).info(normalize_name(name).canonical).lesion
