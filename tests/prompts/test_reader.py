from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from satunet.knowledge import assemble
from satunet.knowledge.build import Imported
from satunet.knowledge.names import load_names
from satunet.knowledge.sources.labelspace import import_label_space
from satunet.knowledge.tree import Source, Term
from satunet.labels import ClassInfo, LabelSpace, normalize_name
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
        (
            "abdominal organ",
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
