"""nnU-Net's trainer with text queries.

``SATTrainer`` keeps what users of nnU-Net know: result folders, log, ``progress.png``, checkpoints with nnU-Net's
keys, folds from ``splits_final.json``, a validation of whole scans at the end. It replaces the parts that
assume a fixed set of output channels: the network, the batches, the loss, and the learning rate, which changes at every
step.

Every step is a function of the weights, the seed and its number. Nothing else is carried from step to step, so a run
resumed from a checkpoint equals one that was never interrupted, and several processes (DDP) together take the same step
as a single one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import logging
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from satunet.compute import distributed
from satunet.compute.devices import autocast_for, precision_for
from satunet.datasets.raw import split_scan_id
from satunet.errors import ModelError, SatunetError
from satunet.jobs.progress import in_locale
from satunet.jobs.wording import counted
from satunet.models.checkpoints import load_checkpoint
from satunet.models.results import begin_again, end_run
from satunet.models.trained_scans import TrainedScans
from satunet.network.engines import for_training
from satunet.network.model import PromptedUNet
from satunet.plan import UnifiedPlan
from satunet.trainers.config import TrainingConfig
from satunet.trainers.unified.averaging import WeightAverage
from satunet.trainers.unified.batches.batch import Batch
from satunet.trainers.unified.batches.loading import worker_count
from satunet.trainers.unified.batches.streams import Streams
from satunet.trainers.unified.checkpointing import (
    RunState,
    checkpoint_of,
    differences,
    plain,
    restore,
    write_checkpoint,
    write_model_files,
)
from satunet.trainers.unified.faults import BadSteps, explain_memory
from satunet.trainers.unified.setup import TrainingSetup
from satunet.trainers.unified.stepping import Stepper
from satunet.trainers.unified.validation import validate
from satunet.trainers.unified.watching.reporting import Reporter
from satunet.trainers.unified.watching.statistics import Statistics, one_wandb_run

logger = logging.getLogger(__name__)


class SATTrainer(nnUNetTrainer):
    """Trains a :class:`PromptedUNet` on a unified plan's store.

    Args:
        plans: The unified plan in nnU-Net's format.
        configuration: Name of the configuration in the plan.
        fold: Number of the fold, or ``"all"``.
        dataset_json: Content of the unified dataset's ``dataset.json``.
        device: Device to train on.
    """

    was_initialized: bool
    current_epoch: int
    _best_ema: float | None
    network: Any
    optimizer: Any
    dataloader_train: Any
    dataloader_val: Any
    grad_scaler: Any

    def __init__(
        self,
        plans: dict[str, Any],
        configuration: str,
        fold: int | str,
        dataset_json: dict[str, Any],
        device: torch.device,
    ) -> None:
        self.plan = UnifiedPlan.from_nnunet(plans)
        with contextlib.redirect_stdout(io.StringIO()), one_wandb_run():  # the base class greets on stdout
            super().__init__({"continue_training": False} | plans, configuration, fold, dataset_json, device)  # type: ignore[arg-type]
        self.device = device  # with several processes, the base class takes the rank for the number of a GPU
        self.save_every = 1
        self.bad_steps = BadSteps()
        self.reporter = Reporter(Path(str(self.output_folder)), self.logger)
        self.average: WeightAverage | None = None
        """Average of the weights of all steps, during training."""
        self.stepper: Stepper | None = None
        """Object that takes the steps, available from :meth:`on_train_start` on."""
        self.on_step: Callable[[int, float], None] | None = None
        self.deadline: float | None = None
        """Time of the monotonic clock before which to stop at the end of an epoch."""
        self.scans_seen = TrainedScans()
        """Scans that the initial weights were trained on."""
        self.goes_on = False
        """Whether a run is resumed, which keeps its own plan, classes, texts and scans."""
        self.text_encoder_folder: Path | None = None
        """Folder of a text encoder that a model brought with it, which the plan's name for it does not find."""
        self.model_folder = Path(str(self.output_folder_base))
        self.configure(TrainingConfig())

    @property
    def failed_scans(self) -> dict[str, int]:
        """Scan that could not be read and was replaced → number of times."""
        return self.reporter.failed_scans

    def configure(self, config: TrainingConfig) -> None:
        """Set how to train; nnU-Net's constructor, whose signature subclasses must keep, has no argument for it."""
        self.config = config
        self.num_iterations_per_epoch = config.steps_per_epoch
        self.num_epochs = config.epochs
        self.num_val_iterations_per_epoch = config.validation_steps
        self.initial_lr = config.learning_rate
        self.weight_decay = config.weight_decay
        self.bad_steps.limit = config.bad_steps
        half = precision_for(self.device, config.precision) is torch.float16
        self.grad_scaler = torch.GradScaler(self.device.type) if half else None  # bfloat16 has the range of float32

    # ---- set-up -------------------------------------------------------------------------------------------------

    def initialize(self) -> None:
        """Build the label space, texts, network and optimizer; called once, by the first that needs them."""
        if self.was_initialized:
            raise SatunetError("the trainer is already initialised")
        self.batch_size = self.config.batch_size or self.plan.batch_size
        self.num_input_channels = 1
        if self.goes_on:
            self.setup = TrainingSetup.of_run(self.plan.unified_folder, self.fold)
        else:
            self.setup = TrainingSetup.read(self.plan, self.fold, text_encoder=self.text_encoder_folder)
        if self.config.patches != "plan":  # a network trained with fitted patches is used with fitted windows
            self.setup = dataclasses.replace(self.setup, plan=dataclasses.replace(self.setup.plan, fit_windows=True))
        torch.manual_seed(self.config.seed)
        network = PromptedUNet(self.plan.network)
        if network.adapter is not None:
            network.adapter.fit_whitening(torch.from_numpy(self.setup.bank.matrix(self.setup.space.class_names)))
        self.network = for_training(network, self.device)
        self.optimizer, self.lr_scheduler = self.configure_optimizers()
        if self.config.weight_average:
            self.average = WeightAverage(self.network, self.config.weight_average)
        self.was_initialized = True

    @property
    def patches_at_once(self) -> int:
        """Number of patches in one pass through the network: at most this process's share of a step."""
        share = -(-self.batch_size // distributed.world_size())
        return min(share, self.config.patches_at_once or self.plan.patches_at_once or share)

    @staticmethod
    def build_network_architecture(*args: Any, **kwargs: Any) -> torch.nn.Module:
        """Refuse: nnU-Net's predictor builds networks by output channels, which a prompted network lacks."""
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
        """Switch between all scales and full resolution only."""
        assert self.network is not None
        self.network.deep_supervision = enabled

    def do_split(self) -> tuple[list[str], list[str]]:
        """Training and validation scans of the fold; with fold ``all``, every scan is both."""
        return [*self.setup.split.train], [*self.setup.split.val]

    def on_train_start(self) -> None:
        """Make the data loaders, and write the files that prediction needs beside the checkpoints."""
        if not self.was_initialized:
            self.initialize()
        split = self.setup.split
        self.streams = Streams.begin(self.setup, self.config, self.device, self.current_epoch)
        self.dataloader_train = self.streams.training_batches
        self.dataloader_val = self.streams.validation_batches
        self._say_what_is_not_taught()
        self.stepper = Stepper(
            self.network,
            self.optimizer,
            self.grad_scaler,
            self.config,
            self.device,
            at_once=self.patches_at_once,
            crop_voxels=math.prod(self.plan.crop_size),
        )
        self.set_deep_supervision_enabled(True)
        if distributed.rank() == 0:
            if self.current_epoch == 0:
                begin_again(Path(str(self.output_folder)))
            write_model_files(
                self.setup,
                self.config,
                model=self.model_folder,
                fold=Path(str(self.output_folder)),
                dataset_json=self.dataset_json,
                fingerprint=self.plan.unified_folder.fingerprint,
                goes_on=self.current_epoch > 0,
                scans_seen=self.scans_seen,
            )
            self.reporter.open(self.config, self.current_epoch)
        self.print_to_log_file(
            f"{len(split.train)} training and {len(split.val)} validation scans, {len(split.held_out)} of them held "
            f"out, {counted(len(self.setup.space.classes), 'class', 'classes')}, "
            f"{sum(p.numel() for p in self.network.parameters()) / 1e6:.2f} M parameters, "
            f"{distributed.world_size()} processes with {worker_count(self.config, self.device)} workers each"
        )

    def _say_what_is_not_taught(self) -> None:
        """Report classes that no training scan of the fold shows: they are not trained, not even as negatives."""
        if missing := self.streams.training.not_asked:
            message = (
                f"no training scan of fold {self.fold!r} shows {len(missing)} of the {len(self.setup.space.classes)} "
                f"classes, which are not trained: {', '.join(missing)}"
            )
            self.print_to_log_file(message)
            if distributed.rank() == 0:
                logger.warning("%s", message)

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
                waiting = time.perf_counter()
                batch = next(self.dataloader_train)
                waited = time.perf_counter() - waiting
                with explain_memory(self.plan, self.patches_at_once, f"in step {step}"):
                    outputs.append(self.train_step(batch, step, waited))
                if self.on_step is not None:
                    self.on_step(step, float(outputs[-1]["loss"]))
            self.on_train_epoch_end(outputs)
            with torch.no_grad():
                self.on_validation_epoch_start()
                with self.average.applied() if self.average is not None else contextlib.nullcontext():
                    results = [self.validation_step(next(self.dataloader_val)) for _ in self.streams.validation_steps]
                self.on_validation_epoch_end(results)
            self.on_epoch_end()
            if self._out_of_time():
                return
        self.on_train_end()

    def leave_processes(self) -> None:
        """Release DDP before the process group ends; see :meth:`Stepper.leave_processes`."""
        if self.stepper is not None:
            self.stepper.leave_processes()

    def _out_of_time(self) -> bool:
        """Whether another epoch would end after the deadline; the first process's clock decides for all."""
        if self.deadline is None or self.current_epoch >= self.num_epochs:
            return False
        began, ended = (self.logger.get_value(f"epoch_{k}_timestamps", step=-1) for k in ("start", "end"))
        return bool(distributed.gather(time.monotonic() + (ended - began) > self.deadline)[0])

    def on_train_epoch_start(self) -> None:
        """Switch to training and log the learning rate."""
        assert self.network is not None
        self.network.train()
        self.reporter.statistics = Statistics()
        step = self.current_epoch * self.num_iterations_per_epoch
        self.logger.log("lrs", self.config.learning_rate_at(step), self.current_epoch)

    def train_step(self, batch: Batch, step: int = 0, data_seconds: float = 0.0) -> dict[str, Any]:
        """One optimisation step; one without finite loss and gradients is skipped, counted and reported.

        Args:
            batch: Batch from the loader.
            step: Number of the step.
            data_seconds: Time that the step waited for its batch.
        """
        assert self.stepper is not None
        self.reporter.unreadable(batch.failed)
        self.stepper.voxel_weight = self.config.voxel_weight_at(step)
        result = self.stepper.take(batch, step, data_seconds)
        value = result.loss
        if result.skipped:
            message = self.bad_steps.add(step, value, result.suspects)
            self.print_to_log_file(message)
            logger.warning("%s", message)
            value = float("nan")
        elif self.average is not None:
            self.average.update(step)
        seconds = self.stepper.clock.seconds()
        self.reporter.step(step, batch, result.of_query, value, self.config.learning_rate_at(step), seconds)
        return {"loss": value}

    def on_train_epoch_end(self, train_outputs: list[dict[str, Any]]) -> None:
        """Log the mean loss of the steps that counted, and the other statistics."""
        losses = [o["loss"] for o in train_outputs]
        self.reporter.end_of_training(self.current_epoch, losses, self.bad_steps.count, self.device)

    def validation_step(self, batch: Batch) -> dict[str, Any]:
        """Loss and soft Dice of each positive query of a batch."""
        assert self.stepper is not None
        self.reporter.unreadable(batch.failed)
        loss = self.stepper.evaluate(batch)
        shown = (batch.positive & batch.valid).cpu()
        values = (1 - loss.dice).cpu()
        return {
            "loss": float(loss.total.detach()),
            "dice": [
                (split_scan_id(scan)[0], float(values[b, k]))
                for b, scan in enumerate(batch.scans)
                for k in shown[b].nonzero().flatten().tolist()
            ],
        }

    def on_validation_epoch_end(self, val_outputs: list[dict[str, Any]]) -> None:
        """Log the loss and the mean soft Dice, overall and by dataset."""
        self.reporter.end_of_validation(self.current_epoch, val_outputs, self.plan.datasets)

    def on_epoch_end(self) -> None:
        """Log, draw ``progress.png``, save the latest and the best checkpoint."""
        epoch = self.current_epoch
        self.logger.log("epoch_end_timestamps", time.time(), epoch)
        last = {
            k: self.logger.get_value(k, step=-1)
            for k in ("train_losses", "val_losses", "mean_fg_dice", "ema_fg_dice", "lrs")
        }
        self.print_to_log_file(
            f"epoch {epoch}: train loss {last['train_losses']:.4f}, val loss {last['val_losses']:.4f}, "
            f"mean soft Dice of positive queries {last['mean_fg_dice']:.4f}"
        )
        # The checkpoint to resume from comes last: a run killed before it repeats this epoch, best and line included. In
        # the first epoch, that may be the best one.
        folder = Path(str(self.output_folder))
        if distributed.rank() == 0:
            done = min((epoch + 1) * self.num_iterations_per_epoch, self.config.steps)
            self.reporter.end_of_epoch(epoch, done, plain(last), self.bad_steps.count)
        if self._best_ema is None or last["ema_fg_dice"] > self._best_ema:
            self._best_ema = float(last["ema_fg_dice"])
            self.save_checkpoint(folder / "checkpoint_best.pth")
        if epoch != self.num_epochs - 1:
            self.save_checkpoint(folder / "checkpoint_latest.pth")
        if distributed.rank() == 0:
            self.reporter.draw(epoch)
            self._picture(epoch)
        self.current_epoch += 1

    def _picture(self, epoch: int) -> None:
        """Draw the first validation patch, the same one in every epoch."""
        if not self.config.tensorboard:
            return
        try:
            batch = self.streams.validation[0]
            with torch.no_grad(), autocast_for(self.device, self.config.precision):
                inputs = (v[:1].to(self.device) for v in (batch.image, batch.queries, batch.modality))
                logits = self.network(*inputs)[0][0]
            self.reporter.picture(epoch, batch, logits)
        except Exception as error:  # never end a run over a picture
            logger.warning("no picture of epoch %d: %s", epoch, error)

    def on_train_end(self) -> None:
        """Save the final checkpoint and remove the latest."""
        folder = Path(str(self.output_folder))
        if self.average is not None:  # from here on, these are the network's weights
            self.network.load_state_dict(self.average.average.state_dict())
            self.average = None
        self.current_epoch -= 1  # the base class's checkpoints store the epoch to go on with
        self.save_checkpoint(folder / "checkpoint_final.pth")
        self.current_epoch += 1
        if distributed.rank() == 0 and not self.disable_checkpointing:
            end_run(folder)
            (folder / "checkpoint_latest.pth").unlink(missing_ok=True)
        self.dataloader_train = self.dataloader_val = None
        self.reporter.gather_failures()
        for scan, count in sorted(self.failed_scans.items()):
            self.print_to_log_file(f"{scan} could not be read {count} times")
        distributed.barrier()

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        """Segment the fold's held-out scans as a whole and write ``validation/summary.json`` in nnU-Net's format."""
        if not self.was_initialized:
            self.initialize()
        scans = self.setup.split.held_out
        if not scans:
            self.print_to_log_file(f"fold {self.fold!r} holds no scan out: there is nothing to validate on")
            return
        summary = validate(
            self.setup,
            self.network,
            scans,
            Path(str(self.output_folder)) / "validation",
            device=self.device,
            precision=self.config.precision,
        )
        if summary is not None:
            self.reporter.unreadable([*summary["failed"]])
            mean = summary["foreground_mean"]["Dice"]
            self.logger.log_summary("final_val/foreground_dice", mean)
            for dataset, found in summary["mean_per_dataset"].items():
                self.logger.log_summary(f"final_val/{dataset}_dice", found["foreground_mean"]["Dice"])
            self.print_to_log_file(f"Validation complete. Mean Validation Dice: {mean}")

    # ---- checkpoints --------------------------------------------------------------------------------------------

    def save_checkpoint(self, filename: str | Path) -> None:
        """Write a checkpoint atomically, with nnU-Net's keys and nothing that unpickles code."""
        counted = self.reporter.state()
        if distributed.rank() == 0 and not self.disable_checkpointing:
            required = Path(filename).name == "checkpoint_final.pth"
            content = checkpoint_of(
                self._state(self.current_epoch + 1),
                self.config,
                counted=counted,
                trainer_name=type(self).__name__,
                made_by={
                    "configuration": self.configuration_name,
                    "fold": self.fold,
                    "device": str(self.device),
                },
            )
            write_checkpoint(Path(filename), content, required=required)

    def load_checkpoint(self, filename_or_checkpoint: str | Path | dict[str, Any]) -> None:
        """Resume from a checkpoint.

        Raises:
            ModelError: The checkpoint cannot be read, or its weights are not this network's.
        """
        if not self.was_initialized:
            self.initialize()
        given = filename_or_checkpoint
        source, content = ("checkpoint", given) if isinstance(given, dict) else (given, load_checkpoint(Path(given)))
        restored = restore(self._state(self.current_epoch), content, source=source)
        self.current_epoch, self._best_ema = restored.epochs_done, restored.best_ema
        other = differences(self.config, content)
        if other:  # resuming with other settings is allowed, and reported
            message = f"{source} was written with another configuration; from here on: {other}"
            self.print_to_log_file(message)
            logger.warning("%s", message)

    def _state(self, epochs_done: int) -> RunState:
        return RunState(
            network=self.network,
            optimizer=self.optimizer,
            scaler=self.grad_scaler,
            log=self.logger,
            bad_steps=self.bad_steps,
            reporter=self.reporter,
            epochs_done=epochs_done,
            best_ema=self._best_ema,
            average=self.average,
        )

    def print_to_log_file(self, *args: Any, also_print_to_console: bool = True, add_timestamp: bool = True) -> None:
        """Write to nnU-Net's log file as usual, and to satunet's log instead of stdout."""
        super().print_to_log_file(*map(in_locale, args), also_print_to_console=False, add_timestamp=add_timestamp)
        if add_timestamp:
            logger.debug("%s", " ".join(map(str, args)))
