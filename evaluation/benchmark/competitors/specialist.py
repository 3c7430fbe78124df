"""The datasets' specialist nnU-Nets as a competitor."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from satunet.datasets.paths import preprocessed_dir
from satunet.errors import DatasetError
from satunet.evaluation.benchmark.competitors.nnunet import predict_specialist
from satunet.evaluation.benchmark.conclusions.results import Cost
from satunet.evaluation.benchmark.costs import RUNS, Meter, cost_of_runs, read_object, record_run, size_of
from satunet.evaluation.benchmark.stamps import STAMP, is_fresh
from satunet.evaluation.benchmark.tasks import Task, trained_cases
from satunet.jobs.files import read_json, write_json
from satunet.jobs.fresh import Stamp
from satunet.jobs.records import to_plain
from satunet.models.checkpoints import load_checkpoint, network_weights
from satunet.trainers.specialist.trainer import specialist_folder

logger = logging.getLogger(__name__)

SPECIALIST = "nnU-Net"
MADE_OF = "made_of.json"
"""File beside the label maps that names the checkpoint they were made with."""

PredictCases = Callable[..., dict[str, str]]


@dataclass(kw_only=True)
class SpecialistCompetitor:
    """The datasets' nnU-Nets, predicted by nnunetv2 itself.

    Attributes:
        output: Folder of all predictions.
        device: Device to compute on.
        name: Name of the competitor.
        predict_cases: Function that predicts cases with a dataset's network.
    """

    output: Path
    device: str = "auto"
    name: str = SPECIALIST
    predict_cases: PredictCases = predict_specialist

    def folder(self, task: Task) -> Path:
        """``<output>/<name>/<dataset>/fold_<fold>``."""
        return self.output / self.name / task.name

    def channels(self, task: Task) -> None:
        """One prediction per case is enough."""

    def predict(self, task: Task) -> dict[str, str]:
        """Predict with nnunetv2's predictor; label maps from an earlier training are made again.

        Raises:
            ModelError: The specialist is not trained.
        """
        files = {c.identifier: self.folder(task) / f"{c.identifier}{task.dataset.file_ending}" for c in task.cases}
        self._remove_outdated(task, files.values())
        missing = [file for file in files.values() if not file.is_file()]
        meter = Meter()
        failures = self.predict_cases(
            task.dataset.name,
            [(c.identifier, c.images) for c in task.cases],
            self.folder(task),
            fold=task.fold,
            device=self.device,
            while_predicting=meter,
        )
        made = sum(file.is_file() for file in missing)
        record_run(
            self.folder(task),
            cases=made,
            scans=made,
            seconds=meter.seconds,
            memory_bytes=meter.memory_bytes,
            threads=meter.threads,
        )
        return failures

    def trained_cases(self, task: Task) -> frozenset[str]:
        """Cases that the fold trains on by the dataset's own splits.

        Raises:
            DatasetError: The file of splits is damaged.
        """
        file = preprocessed_dir() / task.dataset.name / "splits_final.json"
        if not file.is_file():
            return frozenset()
        try:
            return frozenset(trained_cases(read_json(file), task.fold))
        except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
            raise DatasetError(f"{file}: not the splits of an nnU-Net ({type(error).__name__}: {error})") from error

    def release(self) -> None:
        """Nothing is kept in memory."""

    def cost(self, tasks: Sequence[Task]) -> Cost | None:
        """Cost of all networks together: for each dataset, the network of its first fold."""
        counts, steps, sizes = [], [], []
        first = {task.dataset.name: task for task in reversed(tasks)}
        for name, task in first.items():
            file = specialist_folder(name) / f"fold_{task.fold}" / "checkpoint_final.pth"
            if not file.is_file():
                continue
            weights = network_weights(load_checkpoint(file), source=file)  # mapped: no tensor is read
            counts.append(sum(int(w.numel()) for w in weights.values()))
            steps.append(int(read_object(file.parent / "training_config.json").get("steps", 0)))
            sizes.append(size_of([file, *specialist_folder(name).glob("*.json")]))
        if not counts:
            return None
        return Cost(
            models=len(counts),
            parameters=sum(counts),
            disk_bytes=sum(sizes),
            training_steps=sum(steps) if all(steps) else None,
            **cost_of_runs([self.folder(task) for task in tasks]),
        )

    def _remove_outdated(self, task: Task, files: Iterable[Path]) -> None:
        """Remove label maps of another network, and record that new ones come from the current one."""
        checkpoint = specialist_folder(task.dataset.name) / f"fold_{task.fold}" / "checkpoint_final.pth"
        made_of = [checkpoint] if checkpoint.is_file() else []
        note = self.folder(task) / MADE_OF
        if is_fresh(note, made_of, {}):
            return
        outdated = [file for file in files if file.is_file()]
        for file in outdated:
            file.unlink()
        if outdated:
            logger.info("%s has changed: %d cases are predicted again", checkpoint, len(outdated))
            (self.folder(task) / RUNS).unlink(missing_ok=True)
        write_json(note, {STAMP: to_plain(Stamp.of(made_of))})
