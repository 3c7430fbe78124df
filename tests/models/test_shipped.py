"""The model in the box."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from satunet.cli import run
from satunet.geometry import Grid
from satunet.images.image import Image
from satunet.models.choice import ModelChoice, default_model, existing_model
from satunet.models.folder import ModelCard, ModelFolder
from satunet.models.shipped import SHIPPED, resolve_model
from satunet.prediction import Predictor

FOLDER = resolve_model("starter")
MOST_BYTES = 25 * 2**20


def test_a_name_is_a_folder_of_the_package_and_a_path_stays_a_path(tmp_path, monkeypatch) -> None:
    assert resolve_model("starter").parent.name == "models"
    assert resolve_model(Path("starter")) == resolve_model("starter")
    assert resolve_model(tmp_path / "mine") == tmp_path / "mine"
    monkeypatch.chdir(tmp_path)
    (tmp_path / "starter").mkdir()
    assert resolve_model("starter") == Path("starter")


def test_without_a_model_your_own_is_taken_if_there_is_one(tmp_path, monkeypatch, caplog) -> None:
    caplog.set_level("INFO")
    monkeypatch.delenv("nnUNet_results", raising=False)
    assert default_model() == resolve_model("starter")
    assert "'starter'" in caplog.text
    monkeypatch.setenv("nnUNet_results", str(tmp_path))
    assert default_model() == resolve_model("starter")
    own = tmp_path / "Dataset900_Unified" / "SATTrainer__satunetPlans__3d_fullres"
    own.mkdir(parents=True)
    (own / "plans.json").write_text("{}")
    assert default_model() == own
    assert str(own) in caplog.text


def test_commands_take_it_by_name() -> None:
    assert existing_model(Path("starter")) == resolve_model("starter")
    assert ModelChoice(model=(Path("starter"),)).folders == (resolve_model("starter"),)


@pytest.fixture(scope="module")
def starter() -> ModelFolder:
    return ModelFolder.load("starter")


def test_it_is_small_whole_and_says_what_it_is_made_of(starter: ModelFolder) -> None:
    assert sum(f.stat().st_size for f in FOLDER.rglob("*") if f.is_file()) <= MOST_BYTES
    assert {f.name for f in FOLDER.iterdir()} >= {"MODEL_CARD.md", "training_record.json", "trained_scans.json"}
    assert starter.card is not None
    assert starter.card.licence
    assert all(s.licence and s.address for s in starter.card.sources)


def test_it_offers_only_what_it_has_earned(starter: ModelFolder) -> None:
    assert starter.card is not None
    scored = {(s.class_name, s.modality) for s in starter.card.scores}
    assert scored == {(c.name, m) for c in starter.space.classes for m in c.modalities}
    for name, modality in scored:
        rows = [s for s in starter.card.scores if (s.class_name, s.modality) == (name, modality)]
        assert sum(s.dsc * s.scans for s in rows) / sum(s.scans for s in rows) >= 0.5


def test_its_card_is_written_from_its_scores() -> None:
    card = ModelCard.load(FOLDER / "model.json")
    text = (FOLDER / "MODEL_CARD.md").read_text("utf-8")
    for score in card.scores:
        assert f"| {score.class_name} | {score.modality} | {score.dsc:.3f} | {score.nsd:.3f} |" in text


def test_info_shows_class_score_scans_and_source(capsys) -> None:
    assert run(["info", "starter"]) == 0
    shown = capsys.readouterr().out
    assert "hippocampus (mri): DSC 0." in shown
    assert "patients kept out" in shown
    assert "Apache-2.0" in shown


def test_it_segments_by_name_what_it_offers_and_refuses_the_rest(starter: ModelFolder) -> None:
    rng = np.random.default_rng(0)
    image = Image(
        array=rng.normal(100, 20, (36, 50, 36)).astype(np.float32), grid=Grid(shape=(36, 50, 36), affine=np.eye(4))
    )
    masks = Predictor(starter, device="cpu").predict(image, ["hippocampus", "coffee cup"], modality="mri").masks
    assert masks[0].mask is not None
    assert masks[1].mask is None
    assert SHIPPED == ("starter",)
