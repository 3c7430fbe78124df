"""Short runs of the trainer on the synthetic datasets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from satunet.datasets.paths import preprocessed_dir, results_dir
from satunet.jobs.files import read_json
from satunet.plan import UnifiedPlan
from satunet.trainers.config import TrainingConfig
from satunet.trainers.unified.trainer import SATTrainer

NAME = "Dataset900_Unified"


def config(**changes: Any) -> TrainingConfig:
    """Six steps in three epochs."""
    values: dict[str, Any] = {"steps": 6, "warmup_steps": 2, "steps_per_epoch": 2, "validation_steps": 1, "workers": 0,
              "learning_rate": 1e-3, "queries_per_scan": 8, "batch_size": 1,
              "tensorboard": False}  # fmt: skip
    return TrainingConfig.from_recipe("short", **(values | changes))


def make_trainer(changed: TrainingConfig) -> SATTrainer:
    """A trainer of fold 0 on the CPU."""
    folder = preprocessed_dir() / NAME
    plan = UnifiedPlan.load(folder / "satunetPlans.json")
    trainer = SATTrainer(
        plan.to_nnunet(), plan.configuration, 0, read_json(folder / "dataset.json"), torch.device("cpu")
    )
    trainer.configure(changed)
    return trainer


def losses_of(trainer: SATTrainer) -> list[float]:
    """Train; the loss of each step."""
    losses: list[float] = []
    trainer.on_step = lambda step, loss: losses.append(loss)
    trainer.run_training()
    return losses


def fold_folder() -> Path:
    """Where fold 0's results are."""
    return results_dir() / NAME / "SATTrainer__satunetPlans__3d_fullres" / "fold_0"


def step_losses(folder: Path) -> dict[int, float]:
    """Step → loss, from the TensorBoard files of a fold."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    return {event.step: event.value for event in events.Scalars("train/loss")}
