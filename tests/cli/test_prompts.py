"""``satunet prompts``."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from satunet.cli import run
from satunet.cli.prompts import Prompts
from satunet.labels import ClassInfo, LabelSpace
from satunet.prompts import PromptReader


def test_json_says_what_prediction_would_do(capsys: pytest.CaptureFixture[str]) -> None:
    asked = ("Left Kidney", "both lungs", "large liver tumor", "bladder wall")
    assert Prompts(prompts=asked, json=True).run() == 0
    known, several, similar, unknown = json.loads(capsys.readouterr().out)
    assert known == {"prompt": "Left Kidney", "status": "known", "classes": ["left kidney"], "similarity": 1.0,
                     "nearest": [], "reason": ""}  # fmt: skip
    assert (several["status"], several["classes"]) == ("several", ["left lung", "right lung"])
    assert (similar["status"], similar["classes"]) == ("similar", ["liver tumor"])
    assert (unknown["status"], unknown["classes"]) == ("unknown", [])
    assert unknown["nearest"][0]["class"] == "urinary bladder" and "'wall'" in unknown["reason"]


def test_classes_of_a_model_without_its_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    info = ClassInfo(name="spleen", base="spleen", side=None, modalities=("ct",), datasets=("A",), source_names=())
    space = LabelSpace(classes=(info,), ids={"A": {"spleen": (1,)}})
    space.save(tmp_path / "label_space.json")
    (tmp_path / "words.txt").write_text("splean\n# a comment\nliver\n", encoding="utf-8")
    assert Prompts(prompt_file=tmp_path / "words.txt", model=tmp_path, json=True).run() == 0
    found = json.loads(capsys.readouterr().out)
    assert [r["classes"] for r in found] == [["spleen"], []]
    assert [r["status"] for r in found] == [PromptReader(space).interpret(p).status for p in ("splean", "liver")]


def test_a_table_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    assert Prompts(prompts=("no liver",)).run() == 0
    shown = capsys.readouterr().out
    assert "1 prompt, 451 classes of SAT-DS" in shown and "'no'" in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["prompts"], "say what to read"),
        (["prompts", "-p", "liver", "-m", "nowhere"], "nowhere: there is no such folder"),
        (["prompts", "-p", "liver", "--labels", "nowhere.json"], "nowhere.json"),
    ],
)
def test_wrong_calls_are_one_sentence(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(arguments) == 2
    said = capsys.readouterr().err
    assert message in said and "Traceback" not in said


def test_words_alone_need_no_torch() -> None:
    code = (
        "import sys\nfrom satunet.cli.prompts import Prompts\n"
        "Prompts(prompts=('left kidney', 'hippocampsu', 'no liver', 'liver and spleen', 'renal cortex'), json=True).run()\n"
        "heavy = {'torch', 'transformers', 'nibabel', 'SimpleITK', 'nnunetv2'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)\n"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert [r["status"] for r in json.loads(done.stdout)] == ["known", "known", "unknown", "several", "unknown"]
