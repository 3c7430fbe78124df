from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from satunet.knowledge.build import Imported, assemble
from satunet.knowledge.names import load_names
from satunet.knowledge.sources.labelspace import import_label_space
from satunet.knowledge.tree import Source, Term
from satunet.labels import ClassInfo, LabelSpace, catalogue_space, normalize_name
from satunet.prompts.reader import PromptReader, read_prompts

NAMES = ("left kidney", "right kidney", "left lung", "right lung", "liver", "spleen", "urinary bladder", "left scapula",
         "right scapula", "kidney tumor", "lumbar vertebrae 3 (l3)", "gallbladder", "heart", "pancreas")  # fmt: skip


def space(names: tuple[str, ...] = NAMES) -> LabelSpace:
    def info(name: str) -> ClassInfo:
        parsed = normalize_name(name)
        return ClassInfo(name=name, base=parsed.base, side=parsed.side, modalities=("ct",), datasets=("A",),
                         source_names=(name,))  # fmt: skip

    ids = {name: (i,) for i, name in enumerate(sorted(names), start=1)}
    return LabelSpace(classes=tuple(info(n) for n in sorted(names)), ids={"A": ids})


@pytest.fixture(autouse=True)
def no_tree_of_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SATUNET_CACHE", str(tmp_path))


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("lt kidney", "left kidney"),
        ("shoulder blade, left", "left scapula"),
        ("right shoulder blade", "right scapula"),
        ("renal tumour", "kidney tumor"),
        ("third lumbar vertebra", "lumbar vertebrae 3 (l3)"),
        ("gall bladder", "gallbladder"),
        ("bladder", "urinary bladder"),
        ("hepatic organ", "liver"),
        ("gallblader", "gallbladder"),
        ("left sholder blade", "left scapula"),
    ],
)
def test_synonyms_and_spelling_are_the_class(prompt: str, expected: str) -> None:
    (match,) = PromptReader(space()).read(prompt)
    assert (match.status, match.class_name, match.prompt) == ("known", expected, prompt)


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("kidneys", ["left kidney", "right kidney"]),
        ("kidney", ["left kidney", "right kidney"]),
        ("lungs", ["left lung", "right lung"]),
        ("shoulder blades", ["left scapula", "right scapula"]),
        (
            "Abdominal organs",
            ["liver", "spleen", "left kidney", "right kidney", "pancreas", "gallbladder", "urinary bladder"],
        ),
        ("organs of the thorax", ["left lung", "right lung", "heart"]),
    ],
)
def test_unions_expand_to_what_the_model_knows(prompt: str, expected: list[str]) -> None:
    matches = PromptReader(space()).read(prompt)
    assert [m.class_name for m in matches] == expected
    assert {m.expanded_from for m in matches} == {prompt}
    assert all(m.status == "known" and m.prompt == m.class_name for m in matches)


def test_a_union_that_is_a_class_is_that_class() -> None:
    (match,) = PromptReader(space((*NAMES, "kidney"))).read("kidneys")
    assert (match.class_name, match.expanded_from) == ("kidney", None)


@pytest.mark.parametrize(
    "prompt", ["right kidney and left spleen", "left liver", "left femur", "right spleen", "left kidneys x"]
)
def test_a_side_is_never_answered_by_the_other_or_by_none(prompt: str) -> None:
    for match in PromptReader(space()).read(prompt):
        assert match.status == "unknown"


def test_one_side_alone_is_no_pair() -> None:
    (match,) = PromptReader(space(("left kidney", "liver"))).read("kidneys")
    assert match.status == "unknown"


@pytest.mark.parametrize(
    ("prompt", "near", "words"),
    [
        ("Milz", ["spleen"], "German"),
        ("linke Niere", ["left kidney"], "German"),
        ("reins", ["left kidney", "right kidney"], "French"),
        ("vesícula biliar", ["gallbladder"], "Spanish"),
        ("rene destro", ["right kidney"], "Italian"),
        ("estómago", [], "which the model does not know"),
    ],
)
def test_words_of_other_languages_get_a_suggestion(prompt: str, near: list[str], words: str) -> None:
    (match,) = PromptReader(space()).read(prompt)
    assert (match.status, match.class_name) == ("unknown", None)
    assert [name for name, _ in match.nearest] == near
    assert words in match.note


def test_what_nobody_knows_is_said_with_the_nearest() -> None:
    class Letters:
        def encode(self, texts: object) -> np.ndarray:
            found = np.array([[t.count(c) for c in "abcdefghijklmnopqrstuvwxyz"] for t in texts], dtype=np.float32)  # type: ignore[attr-defined]
            return found / np.linalg.norm(found, axis=1, keepdims=True)

    (match,) = PromptReader(space()).read("zzz")
    assert match.status == "unknown" and len(match.nearest) == 3
    (match,) = PromptReader(space()).read("zzzz", Letters())
    assert (match.status, match.similarity) == ("unknown", 0.0)


def test_the_tree_knows_more_names_than_we_do() -> None:
    extra = Imported(sources=[Source(name="S", version="1", licence="CC0-1.0")])
    extra.add(Term(id="S:1", name="Organum hepaticum", source="S", synonyms=("left filter",)), "here")
    extra.add(Term(id="S:2", name="bean", source="S"), "here")
    extra.relate("class:liver", "same_as", "S:1", "here")
    extra.relate("class:left kidney", "same_as", "S:2", "here")
    tree = assemble([import_label_space(space()), extra]).tree
    found = read_prompts(["organum hepaticum", "bean"], space(), tree=tree)
    assert [m.class_name for m in found] == ["liver", "left kidney"]
    assert "S:1" in found[0].note


def test_a_damaged_tree_of_the_user_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "knowledge.jsonl.gz").write_bytes(b"no tree")
    with caplog.at_level("WARNING"):
        (match,) = PromptReader(space()).read("who knows")
    assert match.status == "unknown"
    assert "prompts are read without it" in caplog.text


def test_the_table_of_names_fits_the_classes() -> None:
    """Its keys are classes of SAT-DS, no synonym means two classes, no foreign word is another class's English name."""
    from satunet.datasets.catalogue import load_catalogue

    names, classes = load_names(), set(load_catalogue().class_names)
    assert {n for n in names.synonyms if not {n, f"left {n}"} & classes} == set()
    assert {n for n in names.foreign if n not in classes} == set()
    for group, members in names.groups.items():
        known = {m for m in members if m in classes or f"left {m}" in classes}
        assert len(known) >= 2, group
    assert set(names.group_words) <= set(names.groups)


@pytest.fixture(scope="module")
def radiology() -> PromptReader:
    return PromptReader(catalogue_space())


@pytest.mark.parametrize(
    ("prompt", "word"),
    [
        ("no left hippocampus", "no"),
        ("everything except the liver", "except"),
        ("status post resection", "status post"),
        ("right nephrectomy", "nephrectomy"),
        ("liver lesion?", "?"),
        ("r/o liver tumor", "r/o"),
        ("liver or spleen", "or"),
        ("contralateral kidney", "contralateral"),
        ("stroke volume", "volume"),
        ("brain dead", "dead"),
        ("IVC filter", "filter"),
        ("left renal cortex", "cortex"),
        ("aortic arch", "arch"),
        ("splenomegaly", "splenomegaly"),
        ("epiglottis", "epiglottis"),
        ("bones of the hand", "hand"),
    ],
)
def test_what_is_refused_is_refused_for_its_word(radiology: PromptReader, prompt: str, word: str) -> None:
    reading = radiology.interpret(prompt)
    assert (reading.status, reading.classes) == ("unknown", ())
    assert repr(word) in reading.reason
    assert reading.nearest


@pytest.mark.parametrize(
    ("prompt", "classes"),
    [
        ("both kidneys", ("left kidney", "right kidney")),
        ("bilateral pleural effusions", ("lung effusion",)),
        ("left and right kidney", ("left kidney", "right kidney")),
        ("liver, spleen and left kidney", ("liver", "spleen", "left kidney")),
        ("left hippocampus and left amygdala", ("left hippocampus", "left amygdala")),
        ("left atrium and ventricle", ("left heart atrium", "left heart ventricle")),
        ("gluteus maximus and medius", ("gluteus maximus", "gluteus medius")),
        ("upper and lower lobe of the left lung", ("left lung upper lobe", "left lung lower lobe")),
        ("cervical, thoracic and lumbar spine", ("cervical vertebrae", "thoracic vertebrae", "lumbar vertebrae")),
        ("left 5th and 6th ribs", ("left rib 5", "left rib 6")),
        ("ribs 3-5 left", ("left rib 3", "left rib 4", "left rib 5")),
        ("L1-L3", ("lumbar vertebrae 1 (l1)", "lumbar vertebrae 2 (l2)", "lumbar vertebrae 3 (l3)")),
        ("portal vein and splenic vein", ("portal vein and splenic vein",)),
        ("left middle and inferior temporal gyrus", ("left middle and inferior temporal gyrus",)),
        (
            "left lateral ventricle",
            ("left lateral ventricle excluding temporal horn", "left lateral ventricle temporal horn"),
        ),
    ],
)
def test_several_things(radiology: PromptReader, prompt: str, classes: tuple[str, ...]) -> None:
    reading = radiology.interpret(prompt)
    assert reading.classes == classes
    assert reading.status == ("several" if len(classes) > 1 else "known")
    assert [m.class_name for m in radiology.read(prompt)] == list(classes)


@pytest.mark.parametrize(
    "prompt",
    [
        "liver and tumor",  # the liver's tumor, or any
        "lung and liver tumor",
        "tumor of the liver and spleen",
        "cartilage of femur and tibia",
        "left hippocampus and amygdala",  # the left amygdala, or both
        "hippocampus and amygdala right",
        "liver and spoon",
        "femoral head and neck",
        "left right kidney",
        "L4-L5",  # two vertebrae, or the disc between them
        "left kidney spleen",
        "salivary gland",
        "abdominal organ",
    ],
)
def test_lists_that_may_mean_two_things_give_no_mask(radiology: PromptReader, prompt: str) -> None:
    reading = radiology.interpret(prompt)
    assert (reading.status, reading.classes) == ("unknown", ())
    assert reading.reason


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("L5-S1 disc", "intervertebral disc between lumbar vertebrae 5 (l5) and sacrum"),
        ("disc L4/5", "intervertebral disc between lumbar vertebrae 4 (l4) and lumbar vertebrae 5 (l5)"),
        ("Th12", "thoracic vertebrae 12 (t12)"),
        ("D12 vertebra", "thoracic vertebrae 12 (t12)"),
        ("L 5", "lumbar vertebrae 5 (l5)"),
        ("third lumbar vertebra", "lumbar vertebrae 3 (l3)"),
        ("LWK 3", "lumbar vertebrae 3 (l3)"),
        ("5th left rib", "left rib 5"),
        ("rib 4 L", "left rib 4"),
        ("left rib XII", "left rib 12"),
        ("segment VIII of the liver", "right anterior superior segment of liver"),
        ("liver segment 1", "caudate lobe"),
        ("Hippokampus links", "left hippocampus"),
        ("A. carotis interna rechts", "right internal carotid artery"),
        ("hepatic mass", "liver tumor"),
        ("cyst of the left kidney", "left kidney cyst"),
        ("LEFT COMMON CAROTID ARTERY", "left common carotid artery"),
        ("splean", "spleen"),
        ("adrenal glnad", "adrenal gland"),  # a gonad is an edit away as well, but no gonad is adrenal
        ("livertumor", "liver tumor"),
        ("hippo campus", "hippocampus"),
        ("lumber vertebrae", "lumbar vertebrae"),
    ],
)
def test_one_thing(radiology: PromptReader, prompt: str, expected: str) -> None:
    reading = radiology.interpret(prompt)
    assert (reading.status, reading.classes) == ("known", (expected,))


@pytest.mark.parametrize("prompt", ["C8", "T13", "S2", "rib 13", "L2/L4 disc", "segment IVb of the liver", "D12"])
def test_levels_that_no_class_is_are_no_other_level(radiology: PromptReader, prompt: str) -> None:
    assert radiology.interpret(prompt).status == "unknown"


@pytest.mark.parametrize("word", ["brainstorm", "cheeky", "ileum", "ureter", "brian", "chord", "skinny", "pnterior"])
def test_other_words_are_no_misspellings(radiology: PromptReader, word: str) -> None:
    assert radiology.interpret(word).status == "unknown"


def test_a_class_with_a_description_is_similar_and_has_the_embedding_of_the_class(radiology: PromptReader) -> None:
    (match,) = radiology.read("large 3.2 cm liver tumor")
    assert (match.status, match.class_name) == ("similar", "liver tumor")
    assert radiology.interpret("polycystic kidney").status == "unknown"


def test_names_that_mean_the_same_stay_two_classes() -> None:
    reader = PromptReader(space(("lung tumor", "lung cancer", "liver")))
    assert reader.interpret("Lung Cancer").classes == ("lung cancer",)
    assert reader.interpret("lung tumors").classes == ("lung tumor",)
    assert reader.interpret("pulmonary mass").status == "unknown"


def test_the_encoder_decides_only_where_no_word_is_known() -> None:
    asked: list[list[str]] = []

    class Same:
        def encode(self, texts: list[str]) -> np.ndarray:
            asked.append(texts)
            return np.ones((len(texts), 1), dtype=np.float32)

    reader = PromptReader(space())
    for prompt in ("no liver", "bladder wall", "liver ablation zone", "C8", "LAD", "coffee"):
        assert reader.interpret(prompt, Same()).status == "unknown"
    assert asked == []
    reading = reader.interpret("left xyzzy", Same)
    assert asked[0] == ["left xyzzy"]
    assert (reading.status, reading.similarity) == ("similar", 1.0)
    assert all(name.startswith("left ") for name, _ in reading.nearest)
    assert reading.matches()[0].class_name is None


PIECES = ["left", "right", "liver", "and", ",", "/", "L4", "-", "ribs", "1", "12", "disc", "?", "segment", "of", "both",
          "(", "T13", "tumor", "range:l1", "vertebra:", "no", "3 cm", "&"]  # fmt: skip


@given(st.text(max_size=60) | st.lists(st.sampled_from(PIECES), max_size=8).map(" ".join))
@settings(max_examples=300)
def test_any_text_is_read_without_an_error(text: str) -> None:
    reading = PromptReader(space()).interpret(text)
    assert (reading.status == "unknown") == (reading.classes == ())
    assert len(reading.matches()) >= 1
