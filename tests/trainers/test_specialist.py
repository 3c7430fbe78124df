"""Specialists of nnU-Net's planners, trained by nnunetv2 itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from satunet.checkpoints import load_checkpoint
from satunet.datasets import load_dataset
from satunet.errors import PlanError
from satunet.files import read_json
from satunet.planners.specialist import plan_specialist, preprocess_specialist
from satunet.trainers.config import TrainingConfig
from satunet.trainers.specialist import SpecialistTrainer, specialist_folder, train_specialist

NAME = "Dataset902_SyntheticMRI"


@pytest.mark.slow
def test_both_planners_train_the_same_steps_and_a_finished_run_is_left_alone(
    planned: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for planner in ("default", "resenc_m"):
        plan_specialist(load_dataset(NAME), spacing_mm=(4, 4, 4), base_features=4, planner=planner)
    preprocess_specialist(NAME)
    recipe = TrainingConfig.from_recipe("short", steps=2)
    for planner in ("default", "resenc_m"):
        folder = train_specialist(NAME, fold="all", recipe=recipe, steps=2, device="cpu", planner=planner)
        assert folder == specialist_folder(NAME, planner)
        assert read_json(folder / "fold_all" / "training_config.json")["steps"] == 2
        weights = load_checkpoint(folder / "fold_all" / "checkpoint_final.pth")["network_weights"]
        assert any("skip" in key or "conv1" in key for key in weights) == (planner == "resenc_m")
    monkeypatch.setattr(SpecialistTrainer, "run_training", lambda self: pytest.fail("it was trained again"))
    train_specialist(NAME, fold="all", recipe=recipe, steps=2, device="cpu", continue_training=True)


def test_a_plan_that_is_not_there_says_how_to_make_it(planned: Path) -> None:
    with pytest.raises(PlanError, match="plan_and_preprocess --specialists"):
        train_specialist(NAME, device="cpu")
    with pytest.raises(PlanError, match=r"nnUNetResEncUNetMPlans\.json.*--specialist_planner resenc_m"):
        train_specialist(NAME, device="cpu", planner="resenc_m")
