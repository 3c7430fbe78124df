"""Statistics of a run (time, losses by dataset and class, samples drawn), for TensorBoard and nnU-Net's loggers.

nnU-Net's ``MetaLogger`` passes everything to a list of loggers (Weights & Biases, where ``nnUNet_wandb_enabled``
is set). :class:`TensorBoardLogger` is one more of them.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from satunet.compute import distributed
from satunet.datasets.raw import split_scan_id
from satunet.jobs.files import parse_json, write_text

logger = logging.getLogger(__name__)

PHASES = ("data", "forward", "backward", "optimizer")
"""Parts of a step: waiting for the batch; network and loss; gradients; clipping and update."""


class StepClock:
    """Seconds of the parts of a step; on a GPU measured by its own events, so that nothing has to wait.

    Args:
        device: Device on which the step runs.
    """

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._marks: list[tuple[str, Any]] = []
        self.data = 0.0

    def start(self, data_seconds: float = 0.0) -> None:
        """Mark the beginning of a step.

        Args:
            data_seconds: Time that the step waited for its batch.
        """
        self.data = data_seconds
        self._marks = [("", self._now())]

    def done(self, phase: str) -> None:
        """Mark the end of a part, one of :data:`PHASES`."""
        self._marks.append((phase, self._now()))

    def seconds(self) -> dict[str, float]:
        """Seconds of each part; on a GPU this waits for the step to end."""
        result = {"data": self.data}
        if self._cuda:
            torch.cuda.synchronize()
        for (_, before), (phase, after) in zip(self._marks, self._marks[1:], strict=False):
            seconds = before.elapsed_time(after) / 1e3 if self._cuda else after - before
            result[phase] = result.get(phase, 0.0) + seconds
        return result

    def _now(self) -> Any:
        if not self._cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


@dataclass(kw_only=True)
class Statistics:
    """Sums over the steps of an epoch; those of several processes add up.

    Attributes:
        losses: ``("dataset", name)`` or ``("class", name)`` → (sum, number) of losses.
        scans: Dataset → number of patches drawn.
        queries: Number of queries asked.
        patches: Number of patches seen.
        seconds: Phase → seconds.
        steps: Number of steps.
    """

    losses: dict[tuple[str, str], tuple[float, int]] = field(default_factory=dict)
    scans: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    queries: int = 0
    patches: int = 0
    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    steps: int = 0

    def add(
        self,
        scans: Sequence[str],
        names: Sequence[Sequence[str]],
        of_query: torch.Tensor,
        seconds: Mapping[str, float] | None = None,
    ) -> None:
        """Count a step.

        Args:
            scans: Names of the scans of the step's crops.
            names: Classes asked for, crop by crop.
            of_query: (B, K) values of the queries, on the CPU.
            seconds: Phase → seconds.
        """
        self.steps += 1
        for b, (scan, asked) in enumerate(zip(scans, names, strict=True)):
            dataset = split_scan_id(scan)[0]
            self.scans[dataset] = self.scans.get(dataset, 0) + 1
            self.patches += 1
            self.queries += len(asked)
            values = of_query[b, : len(asked)].tolist()
            for name, value in zip(asked, values, strict=True):
                self._add(("dataset", dataset), value, 1)
                self._add(("class", name), value, 1)
        for phase, value in (seconds or {}).items():
            self.seconds[phase] = self.seconds.get(phase, 0.0) + value

    def _add(self, what: tuple[str, str], value: float, number: int) -> None:
        before, counted = self.losses.get(what, (0.0, 0))
        self.losses[what] = (before + value, counted + number)

    def means(self, kind: str) -> dict[str, float]:
        """Name → mean loss of its queries; ``kind`` is ``"dataset"`` or ``"class"``."""
        return {name: total / n for (k, name), (total, n) in sorted(self.losses.items()) if k == kind and n}

    @classmethod
    def merged(cls, parts: Iterable[Statistics]) -> Statistics:
        """The sums of several processes; steps and seconds are those of the first, as they run side by side."""
        first, *others = parts
        result = cls(
            losses=dict(first.losses),
            scans=dict(first.scans),
            queries=first.queries,
            patches=first.patches,
            seconds=dict(first.seconds),
            steps=first.steps,
        )
        for other in others:
            for what, (value, number) in other.losses.items():
                result._add(what, value, number)
            for dataset, number in other.scans.items():
                result.scans[dataset] = result.scans.get(dataset, 0) + number
            result.queries += other.queries
            result.patches += other.patches
        return result

    def rates(self) -> dict[str, float]:
        """Seconds per step by phase, and patches and queries per second."""
        steps = max(1, self.steps)
        result = {f"time/{phase}": self.seconds.get(phase, 0.0) / steps for phase in PHASES}
        whole = sum(self.seconds.values())
        if whole > 0:
            result["throughput/patches_per_s"] = self.patches / whole
            result["throughput/queries_per_s"] = self.queries / whole
        return result


class TensorBoardLogger:
    """A logger for nnU-Net's ``MetaLogger`` that writes TensorBoard event files.

    Args:
        folder: Folder to write to.
        steps_per_epoch: Steps of an epoch, because nnU-Net logs by epochs and the axis of the curves is training steps.
        first_step: Step that the run resumes from; values that an interrupted run wrote after it are dropped.
    """

    def __init__(self, folder: Path, steps_per_epoch: int, first_step: int = 0) -> None:
        self.folder = folder
        self.writer: Any = None
        self.steps_per_epoch = steps_per_epoch
        with self._not_worth_a_run():
            from torch.utils.tensorboard import SummaryWriter

            self.writer = SummaryWriter(str(folder), purge_step=first_step or None)  # type: ignore[no-untyped-call]

    @contextlib.contextmanager
    def _not_worth_a_run(self) -> Iterator[None]:
        """If curves cannot be written, end the curves and not the training."""
        try:
            yield
        except OSError as error:
            self.writer = None
            logger.warning("%s: no more curves are written (%s)", self.folder, error.strerror or error)

    def _scalar(self, key: str, value: float, step: int) -> None:
        with self._not_worth_a_run():
            if self.writer is not None:
                self.writer.add_scalar(key, value, step)

    def update_config(self, config: dict[str, Any]) -> None:
        """Show a configuration as text."""
        for key, value in config.items():
            text = json.dumps(value, indent=1, default=str)
            with self._not_worth_a_run():
                if self.writer is not None:
                    self.writer.add_text(key, f"```\n{text[:20_000]}\n```")

    def log(self, key: str, value: Any, step: int) -> None:
        """Log a value of an epoch; anything that is not a number is left out."""
        if isinstance(value, (int, float)) and value == value:
            self._scalar(key, value, (step + 1) * self.steps_per_epoch)

    def log_step(self, values: Mapping[str, float], step: int) -> None:
        """Log values of a single training step."""
        for key, value in values.items():
            self._scalar(key, value, step)

    def log_figure(self, key: str, figure: Any, epoch: int) -> None:
        """Log a picture."""
        with self._not_worth_a_run():
            if self.writer is not None:
                self.writer.add_figure(key, figure, (epoch + 1) * self.steps_per_epoch)
                self.writer.flush()

    def log_summary(self, key: str, value: Any) -> None:
        """Log a value of the whole run."""
        if isinstance(value, (int, float)) and value == value:
            self._scalar(key, value, 0)

    def close(self) -> None:
        """Write what is left."""
        with self._not_worth_a_run():
            if self.writer is not None:
                self.writer.close()


class ProgressFile:
    """A line of JSON for each epoch, for scripts: ``progress.jsonl`` beside the checkpoints.

    Args:
        path: The file.
        first_epoch: Epoch that the run resumes from; lines of this and later epochs are dropped.
    """

    def __init__(self, path: Path, first_epoch: int = 0) -> None:
        self.path = path
        kept = [line for line in read_progress(path) if line["epoch"] < first_epoch]
        write_text(path, "".join(json.dumps(line) + "\n" for line in kept))

    def add(self, epoch: int, values: Mapping[str, Any]) -> None:
        """Add the line of an epoch."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"epoch": epoch} | dict(values)) + "\n")


def read_progress(path: Path) -> list[dict[str, Any]]:
    """Lines of a :class:`ProgressFile`, up to the first one that is unfinished (by a killed run) or damaged."""
    if not path.is_file():
        return []
    lines = []
    for number, text in enumerate(path.read_bytes().splitlines(), start=1):
        try:
            line = parse_json(text, f"{path}, line {number}")
        except ValueError:
            break
        if not isinstance(line, dict) or not isinstance(line.get("epoch"), int):
            break
        lines.append(line)
    return lines


@contextlib.contextmanager
def one_wandb_run() -> Iterator[None]:
    """Keep nnU-Net's logger from opening a Weights & Biases run in every process; that of the first is enough."""
    name = "nnUNet_wandb_enabled"
    before = os.environ.get(name)
    if distributed.rank() > 0:
        os.environ[name] = "0"
    try:
        yield
    finally:
        if before is not None:
            os.environ[name] = before
        else:
            os.environ.pop(name, None)
