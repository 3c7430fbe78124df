"""``satunet models``."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from satunet.cli import run
from satunet.jobs.files import read_json
from satunet.models.folder import ModelCard
from satunet.models.shipped import resolve_model


@pytest.fixture(autouse=True)
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SATUNET_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("nnUNet_results", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def listed(capsys: pytest.CaptureFixture[str], code: int = 0) -> dict[str, dict]:
    assert run(["models", "--json"]) == code
    return {row["model"]: row for row in json.loads(capsys.readouterr().out)}


def test_shipped_cached_own_and_known(places: Path, capsys: pytest.CaptureFixture[str]) -> None:
    starter = resolve_model("starter")
    shutil.copytree(starter, places / "cache" / "models" / "me--mine@v1")
    shutil.copytree(starter, places / "trained")
    rows = listed(capsys)
    assert {name: row["kind"] for name, row in rows.items()} == {
        "starter": "shipped", "me--mine@v1": "fetched", "trained": "yours", "sat-nano": "known", "sat-pro": "known",
    }  # fmt: skip
    card = ModelCard.load(starter / "model.json")
    own = {k: v for k, v in rows["starter"].items() if k not in ("model", "kind", "place")}
    assert own["classes"] == len({s.class_name for s in card.scores})
    assert own["licence"] == card.licence
    assert own["MB"] == pytest.approx(sum(f.stat().st_size for f in starter.iterdir()) / 1e6, abs=0.1)
    assert own.items() <= rows["me--mine@v1"].items()
    assert rows["sat-nano"]["classes"] == 451  # names of SAT-DS; 498 with their modality
    assert rows["sat-nano"]["modalities"] == ["ct", "mri", "pet"]


def test_the_mean_is_over_classes(places: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = places / "cache" / "models" / "x"
    shutil.copytree(resolve_model("starter"), folder)
    content = read_json(folder / "model.json")
    score = dict(content["scores"][0])
    content["scores"] = [
        score | {"class_name": "a", "dsc": 0.2, "scans": 1}, score | {"class_name": "a", "dsc": 0.8, "scans": 3},
        score | {"class_name": "b", "dsc": 0.95, "scans": 9},
    ]  # fmt: skip
    (folder / "model.json").write_text(json.dumps(content))
    assert listed(capsys)["x"]["scores"].startswith("mean DSC 0.80 of 2 classes")  # (0.65 + 0.95) / 2


def test_a_damaged_model_does_not_hide_the_others(places: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = places / "cache" / "models" / "broken"
    shutil.copytree(resolve_model("starter"), folder)
    (folder / "label_space.json").write_text("{")
    rows = listed(capsys, code=1)
    assert "label_space.json" in rows["broken"]["problem"]
    assert "classes" in rows["starter"]


def test_a_name_that_is_none(capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["models", "--fetch", "unet"]) == 2
    assert "allowed are sat-nano, sat-pro and hf:owner/name" in capfd.readouterr().err
    assert run(["info", "sat-nano"]) == 2
    assert "'satunet models --fetch sat-nano' fetches it" in capfd.readouterr().err
