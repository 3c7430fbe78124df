"""Records of a run while it trains: nnU-Net's log, TensorBoard, a line for each epoch, pictures, and counts."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from satunet.compute import distributed
from satunet.jobs.records import to_plain
from satunet.trainers.config import TrainingConfig
from satunet.trainers.unified.batches.batch import Batch
from satunet.trainers.unified.watching.statistics import ProgressFile, Statistics, TensorBoardLogger

logger = logging.getLogger(__name__)


class Reporter:
    """Counts the steps of an epoch, and reports at its end.

    Args:
        folder: Folder of the fold.
        log: nnU-Net's ``MetaLogger``.

    Attributes:
        statistics: Statistics of the current epoch.
        drawn: Dataset → number of patches seen in the whole run.
        failed_scans: Scan that could not be read → number of times; of this process, until a checkpoint gathers them.
        tensorboard: TensorBoard writer of the first process, if it was asked for.
    """

    def __init__(self, folder: Path, log: Any) -> None:
        self.folder = folder
        self.log = log
        self.statistics = Statistics()
        self.drawn: dict[str, int] = {}
        self.failed_scans: dict[str, int] = {}
        self.tensorboard: TensorBoardLogger | None = None
        self._progress: ProgressFile | None = None
        self._soft_dice: dict[str, float] = {}

    def open(self, config: TrainingConfig, first_epoch: int) -> None:
        """Open the files; on the first process only.

        Args:
            config: Settings of the run.
            first_epoch: Epoch that the run resumes from.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        self._progress = ProgressFile(self.folder / "progress.jsonl", first_epoch)
        if config.tensorboard:
            first = first_epoch * config.steps_per_epoch
            self.tensorboard = TensorBoardLogger(self.folder / "tensorboard", config.steps_per_epoch, first)
            self.log.loggers.append(self.tensorboard)
        for listening in self.log.loggers:
            listening.update_config({"training_config": to_plain(config)})

    def close(self) -> None:
        """Flush and close the loggers."""
        if self.tensorboard is not None:
            self.tensorboard.close()

    def unreadable(self, scans: Sequence[str]) -> None:
        """Count scans that were replaced by others."""
        for scan in scans:
            self.failed_scans[scan] = self.failed_scans.get(scan, 0) + 1

    def step(
        self, step: int, batch: Batch, of_query: Tensor, loss: float, rate: float, seconds: dict[str, float]
    ) -> None:
        """Count a training step.

        Args:
            step: Number of the step.
            batch: Batch from the loader.
            of_query: (B, K) losses of the queries.
            loss: Loss of all processes; not finite if the step was skipped.
            rate: Learning rate.
            seconds: Phase → seconds.
        """
        if np.isfinite(loss):
            self.statistics.add(batch.scans, batch.names, of_query.cpu(), seconds)
        if self.tensorboard is not None:
            values = {"train/loss": loss, "train/learning_rate": rate}
            self.tensorboard.log_step(values | {f"step_time/{k}": v for k, v in seconds.items()}, step)

    def end_of_training(self, epoch: int, losses: Sequence[float], skipped: int, device: torch.device) -> None:
        """Log an epoch's mean loss, also by dataset and class, the samples drawn, and the time."""
        mean = float(np.nanmean(losses)) if np.isfinite(losses).any() else float("nan")
        self.log.log("train_losses", mean, epoch)
        self.statistics = Statistics.merged(distributed.gather(self.statistics))
        for dataset, number in self.statistics.scans.items():
            self.drawn[dataset] = self.drawn.get(dataset, 0) + number
        named: dict[str, float] = dict(self.statistics.rates())
        named |= {f"train_loss_of_dataset/{k}": v for k, v in self.statistics.means("dataset").items()}
        named |= {f"train_loss_of_class/{k}": v for k, v in self.statistics.means("class").items()}
        named |= {f"samples_drawn/{k}": v for k, v in self.drawn.items()}
        named |= {"skipped_steps": skipped, "unreadable_scans": len(self.failed_scans)}
        if device.type == "cuda":
            named["memory/peak_gb"] = torch.cuda.max_memory_allocated(device) / 1e9
        self._tell(named, epoch)

    def end_of_validation(self, epoch: int, outputs: Sequence[dict[str, Any]], datasets: Sequence[str]) -> None:
        """Log the loss and the mean soft Dice of patches, overall and by dataset.

        Args:
            epoch: The epoch.
            outputs: Outputs of ``validation_step``, of this process.
            datasets: Datasets in the order in which nnU-Net's log keeps their values.
        """
        every = [output for part in distributed.gather(list(outputs)) for output in part]
        by_dataset: dict[str, list[float]] = {name: [] for name in datasets}
        for output in every:
            for dataset, value in output["dice"]:
                by_dataset.setdefault(dataset, []).append(value)
        values = [v for many in by_dataset.values() for v in many]
        means = {name: float(np.mean(v)) if v else float("nan") for name, v in by_dataset.items()}
        self.log.log("mean_fg_dice", float(np.mean(values)) if values else 0.0, epoch)
        self.log.log("dice_per_class_or_region", list(means.values()), epoch)
        self._soft_dice = {k: v for k, v in means.items() if v == v}
        self._tell({f"validation_soft_dice_of_dataset/{k}": v for k, v in self._soft_dice.items()}, epoch)
        self.log.log("val_losses", float(np.mean([o["loss"] for o in every])) if every else float("nan"), epoch)

    def end_of_epoch(self, epoch: int, step: int, values: Mapping[str, float], skipped: int) -> None:
        """Add the epoch's line to ``progress.jsonl``; a failure never ends the run."""
        if self._progress is None:
            return
        try:
            self._progress.add(
                epoch,
                dict(values)
                | {
                    "step": step,
                    "rates": self.statistics.rates(),
                    "train_loss_of_dataset": self.statistics.means("dataset"),
                    "validation_soft_dice_of_dataset": self._soft_dice,
                    "samples_drawn": dict(self.drawn),
                    "skipped_steps": skipped,
                    "unreadable_scans": dict(self.failed_scans),
                },
            )
        except OSError as error:  # a full disk
            logger.warning("the progress of epoch %d was not written: %s", epoch, error)

    def draw(self, epoch: int) -> None:
        """Draw ``progress.png``; a failure never ends the run."""
        try:
            self.log.plot_progress_png(str(self.folder))
        except Exception as error:  # a full disk, or a curve that matplotlib cannot draw
            logger.warning("the curves of epoch %d were not drawn: %s", epoch, error)

    def picture(self, epoch: int, batch: Batch, logits: Tensor) -> None:
        """Draw the first patch of a batch, prediction beside labels, to ``prediction.png`` and TensorBoard.

        Args:
            epoch: The epoch.
            batch: Batch from the loader.
            logits: (K, X, Y, Z) of the patch's queries.
        """
        from satunet.trainers.unified.watching.pictures import prediction_figure

        names = batch.names[0]
        reference = batch.membership[0, : len(names)][:, batch.labels[0].long().clamp(min=0)]
        figure = prediction_figure(
            batch.image[0, 0].numpy(),
            reference.numpy(),
            (logits[: len(names)] > 0).cpu().numpy(),
            names,
            f"{batch.scans[0]}, epoch {epoch}",
        )
        figure.savefig(self.folder / "prediction.png", dpi=110)
        if self.tensorboard is not None:
            self.tensorboard.log_figure("validation/prediction", figure, epoch)

    def state(self) -> dict[str, Any]:
        """State for a checkpoint; every process has to call this."""
        return {"failed_scans": self._failures(), "drawn": dict(self.drawn)}

    def gather_failures(self) -> None:
        """Gather the unreadable scans, so that every process knows those of all."""
        self.failed_scans = self._failures()

    def _failures(self) -> dict[str, int]:
        failed: dict[str, int] = {}
        for part in distributed.gather(self.failed_scans):
            for scan, number in part.items():
                failed[scan] = failed.get(scan, 0) + number
        return failed

    def load(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state` returned."""
        self.drawn = dict(state.get("drawn", {}))
        if distributed.rank() == 0:  # the others would count the same scans again
            self.failed_scans = dict(state.get("failed_scans", {}))

    def _tell(self, values: Mapping[str, float], epoch: int) -> None:
        """Pass values to the loggers that take any name; nnU-Net's own has a fixed list."""
        for listening in self.log.loggers:
            for key, value in values.items():
                listening.log(key, value, epoch)
