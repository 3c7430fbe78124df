"""What a run leaves on disk: checkpoints in nnU-Net's layout, and beside them all that prediction needs."""

from __future__ import annotations

import logging
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from satunet.errors import ModelError, SatunetError
from satunet.jobs.files import atomic_path, write_json
from satunet.models.checkpoints import load_weights, network_weights
from satunet.models.results import SPLIT_FILE, trained_scans

if TYPE_CHECKING:
    from satunet.trainers.unified.trainer import SATTrainer

logger = logging.getLogger(__name__)


def checkpoint_of(trainer: SATTrainer, counted: dict[str, Any]) -> dict[str, Any]:
    """A checkpoint with nnU-Net's keys, of plain values and tensors.

    Args:
        trainer: After an epoch.
        counted: Of its reporter, over all processes.
    """
    scaler = trainer.grad_scaler
    return {
        "network_weights": trainer.network.state_dict(),
        "optimizer_state": trainer.optimizer.state_dict(),
        "grad_scaler_state": scaler.state_dict() if scaler is not None else None,
        "logging": plain(trainer.logger.get_checkpoint()),
        "_best_ema": trainer._best_ema,
        "current_epoch": trainer.current_epoch + 1,
        "init_args": {
            "configuration": trainer.configuration_name,
            "fold": trainer.fold,
            "device": str(trainer.device),
        },
        "trainer_name": type(trainer).__name__,
        "inference_allowed_mirroring_axes": None,
        "satunet": {"training_config": trainer.config.to_json(), "bad_steps": trainer.bad_steps.to_json()} | counted,
    }


def restore(trainer: SATTrainer, content: dict[str, Any], *, source: Path | str) -> None:
    """Set a trainer to where it was when it wrote a checkpoint.

    Raises:
        ModelError: The weights are not this network's, or a part that a run goes on from is missing.
    """
    load_weights(trainer.network, network_weights(content, source=source), source=source)
    try:
        trainer.optimizer.load_state_dict(content["optimizer_state"])
        trainer.current_epoch = content["current_epoch"]
        trainer.logger.load_checkpoint(content["logging"])
        trainer._best_ema = content["_best_ema"]
        scaler_state = content["grad_scaler_state"]
    except (KeyError, ValueError) as error:
        raise ModelError(
            f"{source}: weights alone, or of another optimizer: a run cannot go on from it ({error}); start a new one "
            "with -pretrained_weights"
        ) from error
    ours = content.get("satunet", {})
    _say_differences(trainer, ours.get("training_config", {}), source)
    trainer.bad_steps.load(ours.get("bad_steps"))
    trainer.reporter.load(ours)
    if trainer.grad_scaler is not None and scaler_state is not None:
        trainer.grad_scaler.load_state_dict(scaler_state)


def _say_differences(trainer: SATTrainer, before: dict[str, Any], source: Path | str) -> None:
    """A run that goes on in another way than it began is allowed, and said."""
    now = trainer.config.to_json()
    other = [
        f"{k} {now[k]!r} instead of {before[k]!r}" for k in sorted(before.keys() & now.keys()) if before[k] != now[k]
    ]
    if other:
        message = f"{source} was written with another configuration; from here on: {', '.join(other)}"
        trainer.print_to_log_file(message)
        logger.warning("%s", message)


def write_model_files(trainer: SATTrainer) -> None:
    """Plan, label space, texts and configuration, beside the folds."""
    folder, fold = trainer.model_folder, Path(str(trainer.output_folder))
    fold.mkdir(parents=True, exist_ok=True)
    trainer.plan.save(folder / "plans.json")
    write_json(folder / "dataset.json", trainer.dataset_json)
    trainer.space.save(folder / "label_space.json")
    trainer.bank.save(folder / "text_bank.safetensors")
    write_json(fold / "training_config.json", trainer.config.to_json())
    train, val = trainer.do_split()
    if trainer.current_epoch:  # splits may have changed since it began
        train = sorted({*train, *trained_scans(fold)})
    write_json(fold / SPLIT_FILE, {"train": train, "val": val})
    fingerprint = trainer.unified_folder / "dataset_fingerprint.json"
    if fingerprint.is_file():
        shutil.copyfile(fingerprint, folder / "dataset_fingerprint.json")


def write_checkpoint(path: Path, content: dict[str, Any], *, required: bool) -> bool:
    """Write a checkpoint whole and onto the disk; the one that was there stays until the new one is complete.

    Args:
        path: The file.
        content: For ``torch.save``.
        required: Whether a failure ends the run; otherwise it is logged, and the next checkpoint tries again.

    Returns:
        Whether it was written.

    Raises:
        SatunetError: It was required and cannot be written (a full disk, as a rule).
    """
    try:
        with atomic_path(path) as temporary, temporary.open("wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
    except (OSError, RuntimeError) as error:  # torch's zip writer turns a full disk into a RuntimeError
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        kept = "the checkpoint of that name from before is untouched" if path.is_file() else "there is none from before"
        message = f"{path} cannot be written ({reason}); {kept}"
        if required:
            raise SatunetError(f"{message}; make room and go on with --c") from error
        logger.error("%s; the training goes on, and the next checkpoint tries again", message)
        return False
    return True


def plain(value: Any) -> Any:
    """Numpy scalars as Python numbers, so that checkpoints load with ``weights_only``."""
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    return value.item() if isinstance(value, np.generic) else value
