"""nnU-Net's trainer with text queries.

``SATTrainer`` keeps what users of nnU-Net know: result folders, log, ``progress.png``, checkpoints with nnU-Net's
keys, folds from ``splits_final.json``. It replaces what a fixed set of output channels needs: the network, the
batches, the loss, and the learning rate, which changes every step.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch import Tensor

from satunet.checkpoints import load_checkpoint, load_weights, network_weights
from satunet.devices import autocast_for
from satunet.errors import ModelError, SatunetError
from satunet.files import atomic_path, write_json
from satunet.labels import LabelSpace, text_variants
from satunet.network.model import PromptedUNet
from satunet.plan import UnifiedPlan
from satunet.preprocessing.store import ScanStore
from satunet.text import TextBank, load_text_encoder
from satunet.trainers.config import TrainingConfig
from satunet.trainers.loading import StepBatches, batches
from satunet.trainers.loss import prompted_loss

logger = logging.getLogger(__name__)

_MAX_BAD_STEPS = 20


class SATTrainer(nnUNetTrainer):
    """Trains a :class:`PromptedUNet` on a unified plan's store.

    Args:
        plans: The unified plan in nnU-Net's format.
        configuration: Its configuration.
        fold: Number of the fold, or ``"all"``.
        dataset_json: The unified dataset's.
        device: Where to train.
    """

    was_initialized: bool
    current_epoch: int
    _best_ema: float | None
    network: Any
    optimizer: Any
    dataloader_train: Any

    def __init__(
        self,
        plans: dict[str, Any],
        configuration: str,
        fold: int | str,
        dataset_json: dict[str, Any],
        device: torch.device,
    ) -> None:
        self.plan = UnifiedPlan.from_nnunet(plans)
        with contextlib.redirect_stdout(io.StringIO()):  # the base class greets on stdout
            super().__init__({"continue_training": False} | plans, configuration, fold, dataset_json, device)  # type: ignore[arg-type]
        self.save_every = 1
        self.bad_steps = 0
        self.failed_scans: dict[str, int] = {}
        self.on_step: Callable[[int, float], None] | None = None
        self.model_folder = Path(str(self.output_folder_base))
        self.unified_folder = Path(str(self.preprocessed_dataset_folder_base))
        self.configure(TrainingConfig())

    def configure(self, config: TrainingConfig) -> None:
        """Set how to train; nnU-Net's constructor takes no such thing, and subclasses must keep its signature."""
        self.config = config
        self.num_iterations_per_epoch = config.steps_per_epoch
        self.num_epochs = -(-config.steps // config.steps_per_epoch)
        self.num_val_iterations_per_epoch = config.validation_steps
        self.initial_lr = config.learning_rate
        self.weight_decay = config.weight_decay

    # ---- set-up -------------------------------------------------------------------------------------------------

    def initialize(self) -> None:
        """Build the label space, texts, network, optimizer; called once, by whoever needs them first."""
        if self.was_initialized:
            raise SatunetError("the trainer is already initialised")
        self.batch_size = self.config.batch_size or self.plan.batch_size
        self.num_input_channels = 1
        self.space = LabelSpace.load(self.unified_folder / "label_space.json")
        self.store = ScanStore(Path(str(self.preprocessed_dataset_folder)))
        encoder = load_text_encoder(self.plan.text_encoder)
        texts = [text for info in self.space.classes for text in text_variants(info)]
        self.bank = TextBank.build(encoder, texts)
        if self.bank.dim != self.plan.network.text_dim:
            raise ModelError(
                f"the text encoder {encoder.name!r} gives {self.bank.dim} values, the plan's network takes "
                f"{self.plan.network.text_dim}"
            )
        torch.manual_seed(self.config.seed)
        network = PromptedUNet(self.plan.network)
        if network.adapter is not None:
            network.adapter.fit_whitening(torch.from_numpy(self.bank.matrix(self.space.class_names)))
        self.network = network.to(self.device)
        self.optimizer, self.lr_scheduler = self.configure_optimizers()
        self.was_initialized = True

    @staticmethod
    def build_network_architecture(*args: Any, **kwargs: Any) -> torch.nn.Module:
        """nnU-Net's predictor builds networks by output channels; a prompted network has none."""
        raise ModelError("a text-prompted network is loaded by satunet's Predictor, not by nnU-Net's")

    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, None]:
        """Optimizer of the recipe; the learning rate is set every step, so there is no scheduler."""
        assert self.network is not None
        parameters = self.network.parameters()
        lr, decay = self.config.learning_rate, self.config.weight_decay
        if self.config.optimizer == "sgd":
            return torch.optim.SGD(parameters, lr, momentum=0.99, nesterov=True, weight_decay=decay), None
        return torch.optim.AdamW(parameters, lr, betas=(0.9, 0.999), weight_decay=decay), None

    def set_deep_supervision_enabled(self, enabled: bool) -> None:
        """All scales, or only full resolution."""
        assert self.network is not None
        self.network.deep_supervision = enabled

    def do_split(self) -> tuple[list[str], list[str]]:
        """Scans of the fold; with fold ``all``, every scan trains and validates."""
        import json

        known = [s for s in self.store.scan_ids if self.store.record(s).dataset in self.space.ids]
        if self.fold == "all":
            return known, known
        folds = json.loads((self.unified_folder / "splits_final.json").read_text(encoding="utf-8"))
        if not isinstance(self.fold, int) or not 0 <= self.fold < len(folds):
            raise ModelError(f"fold {self.fold!r}; the split has {len(folds)} folds, and 'all' takes every scan")
        present = set(known)
        train, val = ([s for s in folds[self.fold][part] if s in present] for part in ("train", "val"))
        return train, val or train

    def on_train_start(self) -> None:
        """Make the data loaders and write what prediction needs beside the checkpoints."""
        if not self.was_initialized:
            self.initialize()
        train, val = self.do_split()
        shared = (self.space, self.bank, self.plan, self.config)
        self._train_data = StepBatches(self.store, train, *shared)
        self._val_data = StepBatches(self.store, val, *shared, stream=1)
        workers = self._workers()
        first = self.current_epoch * self.num_iterations_per_epoch
        self.dataloader_train = batches(
            self._train_data, range(first, self.config.steps), workers, pin_memory=self.device.type == "cuda"
        )
        self.set_deep_supervision_enabled(True)
        folder = self.model_folder
        Path(str(self.output_folder)).mkdir(parents=True, exist_ok=True)
        self.plan.save(folder / "plans.json")
        write_json(folder / "dataset.json", self.dataset_json)
        self.space.save(folder / "label_space.json")
        self.bank.save(folder / "text_bank.safetensors")
        write_json(Path(str(self.output_folder)) / "training_config.json", self.config.to_json())
        fingerprint = self.unified_folder / "dataset_fingerprint.json"
        if fingerprint.is_file():
            shutil.copyfile(fingerprint, folder / "dataset_fingerprint.json")
        self.print_to_log_file(
            f"{len(train)} training and {len(val)} validation scans, {len(self.space.classes)} classes, "
            f"{sum(p.numel() for p in self.network.parameters()) / 1e6:.2f} M parameters, {workers} workers"
        )

    # ---- the loop -----------------------------------------------------------------------------------------------

    def run_training(self) -> None:
        """Train from the current epoch to the last."""
        self.on_train_start()
        for _ in range(self.current_epoch, self.num_epochs):
            self.on_epoch_start()
            self.on_train_epoch_start()
            done = self.current_epoch * self.num_iterations_per_epoch
            outputs = []
            for step in range(done, min(done + self.num_iterations_per_epoch, self.config.steps)):
                self._set_learning_rate(step)
                outputs.append(self.train_step(next(self.dataloader_train) | {"step": step}))
                if self.on_step is not None:
                    self.on_step(step, float(outputs[-1]["loss"]))
            self.on_train_epoch_end(outputs)
            with torch.no_grad():
                self.on_validation_epoch_start()
                results = [self.validation_step(self._val_data[i]) for i in range(self.num_val_iterations_per_epoch)]
                self.on_validation_epoch_end(results)
            self.on_epoch_end()
        self.on_train_end()

    def on_train_epoch_start(self) -> None:
        """Switch to training and log the learning rate."""
        assert self.network is not None
        self.network.train()
        step = self.current_epoch * self.num_iterations_per_epoch
        self.logger.log("lrs", self.config.learning_rate_at(step), self.current_epoch)

    def train_step(self, batch: dict[str, Any]) -> dict[str, Any]:
        """One optimisation step; a loss that is not finite is skipped, counted and reported with its scans."""
        assert self.network is not None and self.optimizer is not None
        for scan in batch["failed"]:
            self.failed_scans[scan] = self.failed_scans.get(scan, 0) + 1
        torch.manual_seed(self.config.seed + 1 + batch.get("step", 0))  # dropout: the same after a resume
        self.optimizer.zero_grad(set_to_none=True)
        loss, _ = self._loss(batch)
        if not torch.isfinite(loss):
            self.bad_steps += 1
            self.print_to_log_file(f"the loss is {loss.item()}; step skipped; scans: {', '.join(batch['scans'])}")
            if self.bad_steps > _MAX_BAD_STEPS:
                raise SatunetError(
                    f"{self.bad_steps} losses were not finite, last with the scans {batch['scans']}; "
                    "lower --learning_rate, or look at these scans"
                )
            return {"loss": np.nan}
        if self.grad_scaler is not None:
            self.grad_scaler.scale(loss).backward()
            self.grad_scaler.unscale_(self.optimizer)
            torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.config.gradient_clip)
            self.grad_scaler.step(self.optimizer)
            self.grad_scaler.update()
        else:
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.config.gradient_clip)
            self.optimizer.step()
        return {"loss": float(loss.detach())}

    def on_train_epoch_end(self, train_outputs: list[dict[str, Any]]) -> None:
        """Log the mean loss of the steps that counted."""
        losses = [o["loss"] for o in train_outputs]
        mean = float(np.nanmean(losses)) if np.isfinite(losses).any() else float("nan")
        self.logger.log("train_losses", mean, self.current_epoch)

    def validation_step(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Loss and soft Dice of each positive query of a batch."""
        loss, dice = self._loss(batch)
        shown = (batch["positive"] & batch["valid"]).cpu()
        values = (1 - dice).cpu()
        return {
            "loss": float(loss),
            "dice": [
                (scan.split("__")[0], float(values[b, k]))
                for b, scan in enumerate(batch["scans"])
                for k in shown[b].nonzero().flatten().tolist()
            ],
        }

    def on_validation_epoch_end(self, val_outputs: list[dict[str, Any]]) -> None:
        """Log the loss and the mean soft Dice, of all and a dataset."""
        by_dataset: dict[str, list[float]] = {name: [] for name in self.plan.datasets}
        for output in val_outputs:
            for dataset, value in output["dice"]:
                by_dataset.setdefault(dataset, []).append(value)
        values = [v for many in by_dataset.values() for v in many]
        mean = float(np.mean(values)) if values else 0.0
        per_dataset = [float(np.mean(v)) if v else float("nan") for v in by_dataset.values()]
        self.logger.log("mean_fg_dice", mean, self.current_epoch)
        self.logger.log("dice_per_class_or_region", per_dataset, self.current_epoch)
        loss = float(np.mean([o["loss"] for o in val_outputs])) if val_outputs else float("nan")
        self.logger.log("val_losses", loss, self.current_epoch)

    def on_epoch_end(self) -> None:
        """Log, draw ``progress.png``, save the latest and the best checkpoint."""
        epoch = self.current_epoch
        self.logger.log("epoch_end_timestamps", time.time(), epoch)
        last = {
            k: self.logger.get_value(k, step=-1) for k in ("train_losses", "val_losses", "mean_fg_dice", "ema_fg_dice")
        }
        self.print_to_log_file(
            f"epoch {epoch}: train loss {last['train_losses']:.4f}, val loss {last['val_losses']:.4f}, "
            f"mean soft Dice of positive queries {last['mean_fg_dice']:.4f}"
        )
        folder = Path(str(self.output_folder))
        if epoch != self.num_epochs - 1:
            self.save_checkpoint(folder / "checkpoint_latest.pth")
        if self._best_ema is None or last["ema_fg_dice"] > self._best_ema:
            self._best_ema = float(last["ema_fg_dice"])
            self.save_checkpoint(folder / "checkpoint_best.pth")
        with contextlib.suppress(Exception):  # a picture is not worth a run
            self.logger.plot_progress_png(str(folder))
        self.current_epoch += 1

    def on_train_end(self) -> None:
        """Save the final checkpoint and remove the latest."""
        folder = Path(str(self.output_folder))
        self.current_epoch -= 1  # the base class's checkpoints store the epoch to go on with
        self.save_checkpoint(folder / "checkpoint_final.pth")
        self.current_epoch += 1
        (folder / "checkpoint_latest.pth").unlink(missing_ok=True)
        self.dataloader_train = None
        for scan, count in sorted(self.failed_scans.items()):
            self.print_to_log_file(f"{scan} could not be read {count} times")

    # ---- checkpoints --------------------------------------------------------------------------------------------

    def save_checkpoint(self, filename: str | Path) -> None:
        """Write a checkpoint whole, with nnU-Net's keys and nothing that needs unpickling of code."""
        assert self.network is not None and self.optimizer is not None
        if self.local_rank != 0 or self.disable_checkpointing:
            return
        content = {
            "network_weights": self.network.state_dict(),
            "optimizer_state": self.optimizer.state_dict(),
            "grad_scaler_state": self.grad_scaler.state_dict() if self.grad_scaler is not None else None,
            "logging": _plain(self.logger.get_checkpoint()),
            "_best_ema": self._best_ema,
            "current_epoch": self.current_epoch + 1,
            "init_args": {"configuration": self.configuration_name, "fold": self.fold, "device": str(self.device)},
            "trainer_name": type(self).__name__,
            "inference_allowed_mirroring_axes": None,
            "satunet": {"training_config": self.config.to_json(), "bad_steps": self.bad_steps},
        }
        with atomic_path(Path(filename)) as temporary:
            torch.save(content, temporary)

    def load_checkpoint(self, filename_or_checkpoint: str | Path | dict[str, Any]) -> None:
        """Go on from a checkpoint.

        Raises:
            ModelError: It cannot be read, or its weights are not this network's.
        """
        if not self.was_initialized:
            self.initialize()
        assert self.network is not None and self.optimizer is not None
        given = filename_or_checkpoint
        source = "checkpoint" if isinstance(given, dict) else Path(given)
        content = given if isinstance(given, dict) else load_checkpoint(Path(given))
        load_weights(self.network, network_weights(content, source=source), source=source)
        self.optimizer.load_state_dict(content["optimizer_state"])
        self.current_epoch = content["current_epoch"]
        self.logger.load_checkpoint(content["logging"])
        self._best_ema = content["_best_ema"]
        self.bad_steps = content.get("satunet", {}).get("bad_steps", 0)
        if self.grad_scaler is not None and content["grad_scaler_state"] is not None:
            self.grad_scaler.load_state_dict(content["grad_scaler_state"])

    def print_to_log_file(self, *args: Any, also_print_to_console: bool = True, add_timestamp: bool = True) -> None:
        """To nnU-Net's log file as ever; to satunet's log instead of stdout."""
        super().print_to_log_file(*args, also_print_to_console=False, add_timestamp=add_timestamp)
        if add_timestamp:
            logger.debug("%s", " ".join(map(str, args)))

    # ---- helpers ------------------------------------------------------------------------------------------------

    def _loss(self, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        assert self.network is not None
        b = {k: v.to(self.device, non_blocking=True) if isinstance(v, Tensor) else v for k, v in batch.items()}
        with autocast_for(self.device, self.config.precision):  # type: ignore[arg-type]
            features = self.network.encode_image(b["data"])
            embeddings = self.network.decode(features, b["queries"], b["modality"])
        chunk = 16 if self.device.type == "cpu" else 32  # a CPU is fastest when a chunk stays in its cache
        return prompted_loss(features.maps, embeddings, b["labels"], b["membership"], b["valid"], chunk=chunk)

    def _set_learning_rate(self, step: int) -> None:
        assert self.optimizer is not None
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.learning_rate_at(step)

    def _workers(self) -> int:
        if self.config.workers is not None:
            return self.config.workers
        # Without a GPU the cores are busy with the network itself.
        return 0 if self.device.type == "cpu" else max(2, min(12, (os.cpu_count() or 2) - 1))


def _plain(value: Any) -> Any:
    """Numpy scalars as Python numbers, so that checkpoints load with ``weights_only``."""
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return value.item() if isinstance(value, np.generic) else value
