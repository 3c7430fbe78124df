"""Specialists of nnU-Net's planners, trained by nnunetv2 itself."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from satunet.datasets.raw import load_dataset
from satunet.errors import PlanError, UserError
from satunet.jobs.files import read_json
from satunet.models.checkpoints import load_checkpoint
from satunet.planners.specialist.planner import plan_specialist, preprocess_specialist
from satunet.trainers.config import TrainingChoices, TrainingConfig
from satunet.trainers.specialist.recipe import DEFAULT_STEPS, SpecialistConfig
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
        folder = train_specialist(NAME, fold="all", config=recipe, device="cpu", planner=planner)
        assert folder == specialist_folder(NAME, planner)
        assert read_json(folder / "fold_all" / "training_config.json")["steps"] == 2
        weights = load_checkpoint(folder / "fold_all" / "checkpoint_final.pth")["network_weights"]
        assert any("skip" in key or "conv1" in key for key in weights) == (planner == "resenc_m")
    monkeypatch.setattr(SpecialistTrainer, "run_training", lambda self: pytest.fail("it was trained again"))
    train_specialist(NAME, fold="all", config=recipe, device="cpu", continue_training=True)
    assert "budget" not in caplog.text
    train_specialist(
        NAME, fold="all", config=dataclasses.replace(recipe, steps=3), device="cpu", continue_training=True
    )
    assert "was started with a budget of 2 steps, but 3 are asked for" in caplog.text
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


def test_choices_of_a_specialist_are_heeded_and_kept(tmp_path: Path) -> None:
    chosen = SpecialistConfig.of(TrainingChoices(steps=300, learning_rate=0.02, batch_size=3, seed=4))
    assert chosen == SpecialistConfig(steps=300, recipe=None, learning_rate=0.02, batch_size=3, seed=4)
    assert SpecialistConfig.of(TrainingChoices()) == SpecialistConfig(steps=DEFAULT_STEPS)
    short = SpecialistConfig.of(TrainingChoices(recipe="short", learning_rate=1e-4))
    assert short.recipe == TrainingConfig.from_recipe("short", learning_rate=1e-4)
    assert short.steps == 200
    for config in (chosen, short):
        config.save(tmp_path / "c.json")
        assert SpecialistConfig.load(tmp_path / "c.json") == config
        assert SpecialistConfig.of(TrainingChoices(), begun=config) == config
    assert SpecialistConfig.of(TrainingChoices(seed=9), begun=chosen) == dataclasses.replace(chosen, seed=9)
    with pytest.raises(UserError, match="started with nnU-Net's own recipe"):
        SpecialistConfig.of(TrainingChoices(recipe="short"), begun=chosen)
    with pytest.raises(UserError, match="started with the recipe 'short'"):
        SpecialistConfig.of(TrainingChoices(recipe="cpu"), begun=short)
    with pytest.raises(UserError, match="batch_size must be at least 1"):
        SpecialistConfig.of(TrainingChoices(batch_size=0))


@pytest.mark.slow
def test_a_specialist_has_its_rate_batch_and_seed_and_stops_in_time(
    planned: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan_specialist(load_dataset(NAME), spacing_mm=(4, 4, 4), base_features=4)
    preprocess_specialist(NAME)
    rates: list[float] = []
    patches: list[int] = []
    step = SpecialistTrainer.train_step

    def seen(self: SpecialistTrainer, batch: dict) -> dict:
        patches.append(len(batch["data"]))
        rates.append(self.optimizer.param_groups[0]["lr"])
        return step(self, batch)

    monkeypatch.setattr(SpecialistTrainer, "train_step", seen)
    monkeypatch.setattr(SpecialistTrainer, "set_budget", _two_epochs)
    config = TrainingChoices(steps=4, learning_rate=0.02, batch_size=3, seed=5)
    fold = train_specialist(NAME, fold="all", config=config, device="cpu") / "fold_all"
    assert patches == [3] * 4
    assert rates == pytest.approx([0.02, 0.02, 0.02 * 0.5**0.9, 0.02 * 0.5**0.9])  # nnU-Net's, by epoch
    weights = load_checkpoint(fold / "checkpoint_final.pth")["network_weights"]
    fold.rename(planned / "first")
    rates.clear()
    train_specialist(NAME, fold="all", config=config, device="cpu", minutes=1e-9)
    assert len(rates) == 2 and not (fold / "checkpoint_final.pth").exists()
    train_specialist(NAME, fold="all", device="cpu", continue_training=True)
    assert rates == pytest.approx([0.02, 0.02, 0.02 * 0.5**0.9, 0.02 * 0.5**0.9]), "its schedule survives --c"
    assert (fold / "checkpoint_final.pth").is_file()
    train_specialist(NAME, fold="all", config=config, device="cpu")
    same = load_checkpoint(fold / "checkpoint_final.pth")["network_weights"]
    assert all(torch.allclose(weights[k], same[k], atol=1e-5) for k in weights)


def _two_epochs(trainer: SpecialistTrainer, steps: int) -> None:
    trainer.num_epochs, trainer.num_iterations_per_epoch, trainer.num_val_iterations_per_epoch = 2, steps // 2, 1
    trainer.save_every = 10


@pytest.mark.parametrize(
    ("labels", "mirrored"),
    [({"background": 0, "liver": 1}, True), ({"background": 0, "left kidney": 1}, False), ({"rt lung": 1}, False)],
)
def test_specialists_are_mirrored_only_where_labels_have_no_sides(
    labels: dict, mirrored: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = object.__new__(SpecialistTrainer)
    trainer.dataset_json = {"labels": labels}
    trainer.inference_allowed_mirroring_axes = (0, 1, 2)
    monkeypatch.setattr(
        nnUNetTrainer,
        "configure_rotation_dummyDA_mirroring_and_inital_patch_size",
        lambda self: ((-1, 1), False, (8, 8, 8), (0, 1, 2)),
    )
    axes = trainer.configure_rotation_dummyDA_mirroring_and_inital_patch_size()[-1]
    assert axes == ((0, 1, 2) if mirrored else ())
    assert trainer.inference_allowed_mirroring_axes == ((0, 1, 2) if mirrored else None)
