"""Files of a run: checkpoints in nnU-Net's layout, and beside them everything that prediction needs."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from satunet.errors import EnvironmentProblemError, ModelError
from satunet.jobs.files import atomic_path, cause_of, write_json
from satunet.jobs.records import save_record, to_plain
from satunet.models.checkpoints import load_weights, network_weights
from satunet.models.results import CONFIG_FILE, SPLIT_FILE, trained_scans
from satunet.models.trained_scans import TRAINED_SCANS_FILE, TrainedScans
from satunet.trainers.config import TrainingConfig
from satunet.trainers.unified.averaging import WeightAverage
from satunet.trainers.unified.faults import BadSteps
from satunet.trainers.unified.setup import TrainingSetup
from satunet.trainers.unified.watching.reporting import Reporter

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, eq=False)
class RunState:
    """The parts of a run that change during training and that it resumes from.

    Attributes:
        network: The network.
        optimizer: Optimizer of its weights.
        scaler: Scaler of float16's gradients; ``None`` in other precisions.
        log: nnU-Net's logger.
        bad_steps: Number of steps that were skipped.
        reporter: Reporter, which counts the scans drawn and the scans that could not be read.
        epochs_done: Number of finished epochs.
        best_ema: Best moving average of the soft Dice so far; ``None`` before the first epoch.
        average: Average of the weights; ``None`` if there is none, or if it has become the network's weights.
    """

    network: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.GradScaler | None
    log: Any
    bad_steps: BadSteps
    reporter: Reporter
    epochs_done: int
    best_ema: float | None
    average: WeightAverage | None = None


def checkpoint_of(
    state: RunState,
    config: TrainingConfig,
    *,
    counted: Mapping[str, Any],
    trainer_name: str,
    made_by: Mapping[str, Any],
) -> dict[str, Any]:
    """A checkpoint with nnU-Net's keys, of plain values and tensors.

    Args:
        state: State after an epoch.
        config: Settings of the training.
        counted: Counts from :meth:`Reporter.state`, over all processes.
        trainer_name: Name of the trainer's class, by which nnU-Net's tools find it.
        made_by: nnU-Net's ``init_args``.
    """
    weights = state.network.state_dict()
    ours = {"training_config": to_plain(config), "bad_steps": state.bad_steps.state_dict()} | dict(counted)
    if state.average is not None:  # readers of the weights get the average; a run resumes from its last ones
        ours["last_weights"], weights = weights, state.average.average.state_dict()
    return {
        "network_weights": weights,
        "optimizer_state": state.optimizer.state_dict(),
        "grad_scaler_state": state.scaler.state_dict() if state.scaler is not None else None,
        "logging": plain(state.log.get_checkpoint()),
        "_best_ema": state.best_ema,
        "current_epoch": state.epochs_done,
        "init_args": dict(made_by),
        "trainer_name": trainer_name,
        "inference_allowed_mirroring_axes": None,
        "satunet": ours,
    }


def restore(state: RunState, content: Mapping[str, Any], *, source: Path | str) -> RunState:
    """Restore the parts of a run from its checkpoint.

    Returns:
        The same parts, with the epochs done and the best value so far.

    Raises:
        ModelError: The weights are not this network's, or a part that a run resumes from is missing.
    """
    load_weights(state.network, network_weights(content, source=source), source=source)
    try:
        state.optimizer.load_state_dict(content["optimizer_state"])
        state.log.load_checkpoint(content["logging"])
        scaler_state = content["grad_scaler_state"]
        restored = replace(state, epochs_done=content["current_epoch"], best_ema=content["_best_ema"])
    except (KeyError, ValueError) as error:
        raise ModelError(
            f"{source}: has only weights, or the state of another optimizer, so a run cannot continue from it ({error}); start a new one "
            "with -pretrained_weights"
        ) from error
    ours = content.get("satunet", {})
    if state.average is not None:
        state.average.restore(ours.get("last_weights", state.network.state_dict()))
    state.bad_steps.load_state_dict(ours.get("bad_steps"))
    state.reporter.load(ours)
    if state.scaler is not None and scaler_state is not None:
        state.scaler.load_state_dict(scaler_state)
    return restored


def differences(config: TrainingConfig, content: Mapping[str, Any]) -> str:
    """Differences of a configuration from that of a checkpoint, as text; empty if there are none."""
    before, now = content.get("satunet", {}).get("training_config", {}), to_plain(config)
    return ", ".join(
        f"{k} {now[k]!r} instead of {before[k]!r}" for k in sorted(before.keys() & now.keys()) if before[k] != now[k]
    )


def write_model_files(
    setup: TrainingSetup,
    config: TrainingConfig,
    *,
    model: Path,
    fold: Path,
    dataset_json: Mapping[str, Any],
    fingerprint: Path,
    goes_on: bool,
    scans_seen: TrainedScans,
) -> None:
    """Write plan, label space, texts and configuration beside the folds.

    Args:
        setup: Setup of the training.
        config: Settings of the training.
        model: The model's folder.
        fold: The fold's folder in it.
        dataset_json: Content of the unified dataset's ``dataset.json``.
        fingerprint: File of the unified dataset's fingerprint; it may be missing.
        goes_on: Whether the run is resumed, so that the scans it has already seen stay listed.
        scans_seen: Scans that the initial weights were trained on.
    """
    fold.mkdir(parents=True, exist_ok=True)
    setup.plan.save(model / "plans.json")
    write_json(model / "dataset.json", dataset_json)
    setup.space.save(model / "label_space.json")
    setup.bank.save(model / "text_bank.safetensors")
    save_record(fold / CONFIG_FILE, config)
    train = list(setup.split.train)
    seen = scans_seen | scans_of(setup)
    if goes_on:  # some scans may have been removed since it began
        train = sorted({*train, *trained_scans(fold)})
        seen |= TrainedScans.of_model(model, fold.name.removeprefix("fold_")) or TrainedScans()
    seen.save(fold / TRAINED_SCANS_FILE)
    write_json(fold / SPLIT_FILE, {"train": train, "val": list(setup.split.val)}, sealed=True)
    if fingerprint.is_file():
        shutil.copyfile(fingerprint, model / "dataset_fingerprint.json")


def scans_of(setup: TrainingSetup) -> TrainedScans:
    """The scans that a training sees, by name and by content."""
    train = setup.split.train
    return TrainedScans.of(train, setup.index.of_scans(train).contents)


def write_checkpoint(path: Path, content: dict[str, Any], *, required: bool) -> bool:
    """Write a checkpoint atomically and flush it to disk; an earlier one stays until the new one is complete.

    Args:
        path: The file.
        content: Content for ``torch.save``.
        required: Whether a failure ends the run; otherwise it is logged, and the next checkpoint is a new try.

    Returns:
        Whether it was written.

    Raises:
        EnvironmentProblemError: It is required and cannot be written (usually because the disk is full).
    """
    try:
        with atomic_path(path) as temporary, temporary.open("wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
    except (OSError, RuntimeError) as error:  # torch's zip writer turns errors of the disk into RuntimeError
        told = cause_of(error)
        reason = str(told).strip().splitlines()[0] if str(told).strip() else type(told).__name__
        kept = "the earlier checkpoint of that name is untouched" if path.is_file() else "there is no earlier one"
        message = f"{path} cannot be written ({reason}); {kept}"
        if required:
            raise EnvironmentProblemError(f"{message}; repair that and continue with --c") from error
        logger.error("%s; the training continues, and the next checkpoint tries again", message)
        return False
    return True


def plain(value: Any) -> Any:
    """Numpy scalars as Python numbers, so that checkpoints load with ``weights_only``."""
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    return value.item() if isinstance(value, np.generic) else value
