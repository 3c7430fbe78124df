"""Specialist nnU-Nets, one for each dataset: planned, trained and predicted by nnunetv2 itself."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import io
import logging
import os
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from satunet.compute.devices import autocast_for, pick_device
from satunet.datasets.paths import preprocessed_dir
from satunet.errors import PlanError
from satunet.jobs.files import atomic_path, read_json
from satunet.jobs.progress import in_locale, progress_bar
from satunet.labels import normalize_name
from satunet.models.checkpoints import load_checkpoint
from satunet.models.results import CONFIG_FILE, begin_again, end_run, last_checkpoint
from satunet.planners.specialist.nnunet import PLANS
from satunet.planners.specialist.planner import CONFIGURATION
from satunet.trainers.config import TrainingChoices, TrainingConfig
from satunet.trainers.specialist.recipe import SpecialistConfig

logger = logging.getLogger(__name__)

STEPS_PER_EPOCH = 250
VALIDATION_STEPS = 50


class SpecialistTrainer(nnUNetTrainer):
    """nnU-Net's trainer with a budget of steps, a progress callback and checkpoints that are written atomically.

    Losses, augmentation and network are nnU-Net's own, but mirroring is left out where labels have sides: a
    network that is shown mirrored brains cannot tell left from right. Optimizer and schedule are nnU-Net's unless
    :attr:`recipe` says otherwise: SGD at 0.01 needs thousands of steps before a network of dozens of classes predicts
    any of them, so in a comparison over a few hundred steps, the specialists use those of the unified network.
    """

    on_step: Callable[[float], None] | None = None
    recipe: TrainingConfig | None = None
    deadline: float | None = None
    """Time of the monotonic clock before which to stop at the end of an epoch."""
    _step = 0

    def configure(self, config: SpecialistConfig, minutes: float | None = None) -> None:
        """Set how to train, before the network is made.

        Args:
            config: Settings that were chosen.
            minutes: Time limit; training stops at a checkpoint before it is over.
        """
        self.recipe = config.recipe
        if config.learning_rate is not None:
            self.initial_lr = config.learning_rate
        if config.seed is not None:  # for initialisation, and for sampling unless worker processes draw
            random.seed(config.seed)
            np.random.seed(config.seed % 2**32)
            torch.manual_seed(config.seed)
        self.deadline = None if minutes is None else time.monotonic() + 60 * minutes
        self.set_budget(config.steps)

    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, Any]:
        """nnU-Net's optimizer, or AdamW at the recipe's learning rate."""
        if self.recipe is None:
            optimizer, scheduler = super().configure_optimizers()
            return optimizer, scheduler
        self.initial_lr, self.weight_decay = self.recipe.learning_rate, self.recipe.weight_decay
        optimizer = torch.optim.AdamW(self.network.parameters(), self.initial_lr, weight_decay=self.weight_decay)
        return optimizer, _EveryStep()

    def set_budget(self, steps: int) -> None:
        """Train for ``steps`` steps, in epochs of 250 steps as in nnU-Net, or of 50 if these were fewer than four."""
        target = min(STEPS_PER_EPOCH if steps >= 4 * STEPS_PER_EPOCH else 50, steps)
        # Epochs are equally long, so their number must divide the steps; a budget that only long epochs divide would
        # get no checkpoints on the way, and is rounded instead.
        epochs = next(e for e in range(round(steps / target), 0, -1) if steps % e == 0)
        if steps / epochs > 4 * target:
            epochs = round(steps / target)
        self.num_epochs = epochs
        self.num_iterations_per_epoch = round(steps / epochs)
        self.num_val_iterations_per_epoch = max(1, round(VALIDATION_STEPS * self.num_iterations_per_epoch / 1000))
        self.save_every = 10

    def _build_loss(self) -> Any:
        """nnU-Net's loss; in a network of two stages, the only output keeps its weight.

        nnU-Net gives the lowest output of deep supervision no weight and scales the others to a sum of one. A single
        output would get 0/0, which makes every loss NaN.
        """
        with np.errstate(invalid="ignore"):
            loss = super()._build_loss()
        weights = getattr(loss, "weight_factors", None)
        if weights is not None and not np.isfinite(weights).all():
            loss.weight_factors = (1.0,) + (0.0,) * (len(weights) - 1)
        return loss

    def configure_rotation_dummyDA_mirroring_and_inital_patch_size(self) -> tuple[Any, ...]:  # noqa: N802
        """nnU-Net's set-up, without mirroring if labels have sides, as in nnU-Net's own variant without mirroring."""
        rotation, dummy_2d, patch, mirror_axes = super().configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        if any({"left", "right"} & set(normalize_name(name).canonical.split()) for name in self.dataset_json["labels"]):
            mirror_axes = ()
            self.inference_allowed_mirroring_axes = None
        return rotation, dummy_2d, patch, mirror_axes

    def train_step(self, batch: dict[str, Any]) -> dict[str, Any]:
        """nnU-Net's step; with a recipe, at its learning rate for this step."""
        if self.recipe is not None:
            for group in self.optimizer.param_groups:
                group["lr"] = self.recipe.learning_rate_at(self._step)
        self._step += 1
        with self._autocast():
            result: dict[str, Any] = super().train_step(batch)
        if self.on_step is not None:
            self.on_step(float(result["loss"]))
        return result

    def validation_step(self, batch: dict[str, Any]) -> dict[str, Any]:
        """nnU-Net's step."""
        with self._autocast():
            result: dict[str, Any] = super().validation_step(batch)
        return result

    def _autocast(self) -> contextlib.AbstractContextManager[object]:
        """On a CPU with native bfloat16, nnU-Net's float32 step runs in it; on other devices nnU-Net decides.

        Each step has its own context: autocast keeps the weights it cast until the outermost context ends, so a context
        around the whole training would go on computing with the first step's weights.
        """
        return autocast_for(self.device) if self.device.type == "cpu" else contextlib.nullcontext()

    def on_epoch_end(self) -> None:
        """End the epoch as nnU-Net does; then stop if another epoch would end after the deadline."""
        super().on_epoch_end()
        if self.deadline is None or self.current_epoch >= self.num_epochs:
            return
        began, ended = (self.logger.get_value(f"epoch_{k}_timestamps", step=-1) for k in ("start", "end"))
        if time.monotonic() + (ended - began) > self.deadline:
            self.current_epoch -= 1  # nnU-Net's checkpoints store the epoch to go on with
            self.save_checkpoint(str(Path(str(self.output_folder)) / "checkpoint_latest.pth"))
            self.current_epoch += 1
            raise _OutOfTimeError

    def save_checkpoint(self, filename: str) -> None:
        """nnU-Net's checkpoint, renamed into place when it is complete."""
        if self.disable_checkpointing or self.local_rank != 0:
            return
        with atomic_path(Path(filename)) as temporary:
            super().save_checkpoint(str(temporary))

    def print_to_log_file(self, *args: Any, also_print_to_console: bool = True, add_timestamp: bool = True) -> None:
        """Write to nnU-Net's log file, not to stdout."""
        super().print_to_log_file(*map(in_locale, args), also_print_to_console=False, add_timestamp=add_timestamp)

    def plot_network_architecture(self) -> None:
        """Draw nothing: nnU-Net's drawing needs an unmaintained package and would only log that it failed."""


class _OutOfTimeError(Exception):
    """Raised to stop the training in time; ``--c`` resumes it."""


class _EveryStep:
    """Stand-in for a scheduler, which nnU-Net calls once per epoch: the recipe sets the learning rate at every step."""

    def step(self, epoch: int) -> None:
        """Do nothing."""


def register() -> None:
    """Let nnunetv2 find :class:`SpecialistTrainer` by name: it looks through the modules of its own trainers."""
    setattr(importlib.import_module(nnUNetTrainer.__module__), SpecialistTrainer.__name__, SpecialistTrainer)


def specialist_folder(dataset_name: str, planner: str = "default") -> Path:
    """Result folder of a dataset's specialist, by the planner of its network."""
    from satunet.datasets.paths import results_dir

    return results_dir() / dataset_name / f"{SpecialistTrainer.__name__}__{PLANS[planner]}__{CONFIGURATION}"


def train_specialist(
    dataset_name: str,
    *,
    fold: int | str = 0,
    config: TrainingChoices | TrainingConfig | None = None,
    device: str = "auto",
    continue_training: bool = False,
    planner: str = "default",
    minutes: float | None = None,
) -> Path:
    """Train a dataset's nnU-Net, under a progress bar.

    Args:
        dataset_name: Dataset, planned and preprocessed by nnunetv2 (``plan_and_preprocess --specialists``).
        fold: Number of the fold, or ``"all"``.
        config: Settings that were chosen instead of nnU-Net's own: steps, learning rate, batch size, seed, and the
            optimizer and schedule of the recipes ``short`` and ``cpu``; a whole configuration is used as it is.
        device: Device to train on.
        continue_training: Whether to resume from the last checkpoint, if any, with the settings the run was started
            with; a finished run is left as it is.
        planner: Planner whose network is trained, one of :data:`satunet.planners.specialist.nnunet.PLANNERS`; they
            share the preprocessed scans.
        minutes: Time limit; training stops at a checkpoint before it is over.

    Returns:
        The result folder.

    Raises:
        PlanError: The dataset is not planned.
        UserError: A value is not allowed.
    """
    folder = preprocessed_dir() / dataset_name
    plans_file = folder / f"{PLANS[planner]}.json"
    if not plans_file.is_file():
        how = (
            "plan_and_preprocess --specialists"
            if planner == "default"
            else f"plan --specialists --specialist_planner {planner}"
        )
        raise PlanError(f"{plans_file}: no such plan; make it with 'satunet {how}'")
    output = specialist_folder(dataset_name, planner) / f"fold_{fold}"
    found = last_checkpoint(output) if continue_training else None
    begun = SpecialistConfig.load(output / CONFIG_FILE) if found is not None and _is_written(output) else None
    chosen = SpecialistConfig.of(config or TrainingChoices(), begun)
    where = pick_device(device)
    with _environment(where):
        plans = read_json(plans_file) | {"continue_training": continue_training}
        if chosen.batch_size is not None:
            plans["configurations"][CONFIGURATION]["batch_size"] = chosen.batch_size
        with contextlib.redirect_stdout(io.StringIO()):
            trainer = SpecialistTrainer(plans, CONFIGURATION, fold, read_json(folder / "dataset.json"), where)  # type: ignore[arg-type]
        trainer.configure(chosen, minutes)
        budget = trainer.num_epochs * trainer.num_iterations_per_epoch
        if found is not None:
            _say_another_budget(output, begun, budget)
            if found.name == "checkpoint_final.pth":
                logger.info("%s is trained already", output)
                return output.parent
            load_checkpoint(found)  # nnunetv2 unpickles it, so a file that holds more than data is refused first
            trainer.load_checkpoint(str(found))
            trainer._step = trainer.current_epoch * trainer.num_iterations_per_epoch
        dataclasses.replace(chosen, steps=budget).save(output / CONFIG_FILE)
        with progress_bar(f"nnU-Net of {dataset_name}", budget) as advance:
            advance(trainer.current_epoch * trainer.num_iterations_per_epoch)
            trainer.on_step = lambda loss: advance(note=f"loss {loss:.3f}")
            if found is None:
                begin_again(output)
            try:
                trainer.run_training()
            except _OutOfTimeError:
                logger.info(
                    "stopped in time after epoch %d of %d; continue with --c", trainer.current_epoch, trainer.num_epochs
                )
            else:
                end_run(output)
    return output.parent


def _is_written(output: Path) -> bool:
    return (output / CONFIG_FILE).is_file()


def _say_another_budget(output: Path, begun: SpecialistConfig | None, steps: int) -> None:
    """Warn of another budget, which a comparison on equal budgets would otherwise show only in its table of costs."""
    if begun is not None and begun.steps != steps:
        logger.warning(
            "%s was started with a budget of %s steps, but %d are asked for; without --c it is trained anew",
            output,
            begun.steps,
            steps,
        )


@contextlib.contextmanager
def _environment(device: torch.device) -> Iterator[None]:
    """Set nnU-Net's environment variables: on a CPU, its augmentation workers would compete with the network."""
    wanted = {"nnUNet_n_proc_DA": "0", "nnUNet_compile": "f"} if device.type == "cpu" else {}
    before = {key: os.environ.get(key) for key in wanted}
    try:
        for key, value in wanted.items():
            os.environ.setdefault(key, value)
        yield
    finally:
        for key, old in before.items():
            if old is None:
                os.environ.pop(key, None)
