"""Specialists of nnU-Net's planners, trained by nnunetv2 itself."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from satunet.datasets.raw import load_dataset
from satunet.errors import PlanError
from satunet.jobs.files import read_json
from satunet.models.checkpoints import load_checkpoint
from satunet.planners.specialist.planner import plan_specialist, preprocess_specialist
from satunet.trainers.config import TrainingConfig
from satunet.trainers.specialist.trainer import SpecialistTrainer, specialist_folder, train_specialist

NAME = "Dataset902_SyntheticMRI"


@pytest.mark.slow
def test_both_planners_train_the_same_steps_and_a_finished_run_is_left_alone(
    planned: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
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
    assert "budget" not in caplog.text
    train_specialist(NAME, fold="all", recipe=recipe, steps=3, device="cpu", continue_training=True)
    assert "was begun with a budget of 2 steps, asked for are 3" in caplog.text
    assert read_json(specialist_folder(NAME) / "fold_all" / "training_config.json")["steps"] == 2


def test_a_plan_that_is_not_there_says_how_to_make_it(planned: Path) -> None:
    with pytest.raises(PlanError, match="plan_and_preprocess --specialists"):
        train_specialist(NAME, device="cpu")
    with pytest.raises(PlanError, match=r"nnUNetResEncUNetMPlans\.json.*--specialist_planner resenc_m"):
        train_specialist(NAME, device="cpu", planner="resenc_m")


@pytest.mark.parametrize("scales", [1, 2, 5])
def test_the_loss_is_finite_for_any_number_of_outputs(scales: int) -> None:
    """nnU-Net's own loss of a network of two stages, which has one output, divides 0 by 0."""
    trainer = object.__new__(SpecialistTrainer)
    trainer.label_manager = SimpleNamespace(has_regions=False, ignore_label=None)
    trainer.configuration_manager = SimpleNamespace(batch_dice=False)
    trainer.is_ddp = False
    trainer.enable_deep_supervision = True
    trainer.device = torch.device("cpu")
    trainer._get_deep_supervision_scales = lambda: [[0.5**i] * 3 for i in range(scales)]
    outputs = [torch.randn(1, 2, 4, 4, 4) for _ in range(scales)]
    targets = [torch.randint(0, 2, (1, 1, 4, 4, 4)) for _ in range(scales)]
    loss = trainer._build_loss()
    assert torch.isfinite(loss(outputs, targets))
    assert sum(loss.weight_factors) == pytest.approx(1)
