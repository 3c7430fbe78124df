"""The unified network as a competitor."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from satunet.evaluation.benchmark.conclusions.results import Cost
from satunet.evaluation.benchmark.costs import Meter, cost_of_runs, read_object, record_run, size_of
from satunet.evaluation.benchmark.tasks import Task, TrainedNetwork, scans_of, seen_cases
from satunet.jobs.progress import JobSummary
from satunet.models.folder import ModelFolder
from satunet.models.trained_scans import TrainedScans
from satunet.prediction.door.inputs import Scan
from satunet.prediction.folder import predict_folder
from satunet.prediction.predictor import Predictor

logger = logging.getLogger(__name__)

UNIFIED = "satunet"

Load = Callable[[Path, "int | str | None", str], Predictor]
PredictFolder = Callable[[Sequence[Any], Path, Predictor, Sequence[str]], JobSummary]


def load_predictor(model: Path, fold: int | str | None, device: str) -> Predictor:
    """The predictor of a fold of a model folder, or of its only fold."""
    return Predictor(ModelFolder.load(model, fold=fold), device=device)


@dataclass(kw_only=True)
class UnifiedCompetitor:
    """The unified network: a model folder with a checkpoint for each fold.

    Attributes:
        model: The model folder.
        output: Folder of all predictions.
        device: Device to compute on.
        name: Name of the competitor.
        load: Function that loads the network of a fold.
        predict_scans: Function that predicts scans with it.
    """

    model: Path
    output: Path
    device: str = "auto"
    name: str = UNIFIED
    load: Load = load_predictor
    predict_scans: PredictFolder = predict_folder
    _loaded: Predictor | None = field(default=None, repr=False)
    _networks: dict[str, TrainedNetwork] = field(default_factory=dict, repr=False)

    def predictor(self, fold: int | str | None) -> Predictor:
        """The network of a fold, or of the only fold; the last one loaded is kept until it is released."""
        if self._loaded is None or (fold is not None and str(fold) != str(self._loaded.model.fold)):
            self._loaded = None  # never two networks in memory at once
            self._loaded = self.load(self.model, fold, self.device)
            network = _facts(self._loaded.model)
            self._networks[str(network.fold)] = network
            if fold is None:
                self._networks["None"] = network
        return self._loaded

    def release(self) -> None:
        """The network is loaded again for the next task."""
        self._loaded = None

    def network(self, fold: int | str | None = None) -> TrainedNetwork:
        """Facts about the network of a fold, or of the only fold; the first call loads it."""
        if str(fold) not in self._networks:
            self.predictor(fold)
        return self._networks[str(fold)]

    def folder(self, task: Task) -> Path:
        """``<output>/<name>/<dataset>/fold_<fold>``."""
        return self.output / self.name / task.name

    def channels(self, task: Task) -> tuple[int, ...] | None:
        """All channels if the dataset has several: each is a scan of its own."""
        count = len(task.dataset.channel_names)
        return tuple(range(count)) if count > 1 else None

    def trained_cases(self, task: Task) -> frozenset[str]:
        """Cases with a scan that the network's folder lists as trained on, by name or by content."""
        trained = self.network(task.fold).trained
        cases = {*task.patients, *task.references}
        named = {case for case in cases if any(scan in trained for scan in scans_of(task.dataset, case))}
        return seen_cases(task.dataset, task.cases, trained) | named

    def predict(self, task: Task) -> dict[str, str]:
        """Predict every channel of every case as a scan; finished scans are not predicted again."""
        jobs = [
            Scan(path=path, name=task.scan_name(case.identifier, channel), modality=task.dataset.modalities[channel])
            for case in task.cases
            for channel, path in enumerate(case.images)
        ]
        predictor = self.predictor(task.fold)
        with Meter() as meter:
            done = self.predict_scans(jobs, self.folder(task), predictor, task.classes.names)
        made = set(done.done_items)
        record_run(
            self.folder(task),
            cases=sum(
                all(task.scan_name(c.identifier, channel) in made for channel in range(len(c.images)))
                for c in task.cases
            ),
            scans=len(made),
            seconds=meter.seconds,
            memory_bytes=meter.memory_bytes,
            threads=meter.threads,
        )
        for scan in done.failures:
            # The folder holds part of a result, or another network's, which would be scored as this one's.
            shutil.rmtree(self.folder(task) / scan, ignore_errors=True)
        return done.failures

    def cost(self, tasks: Sequence[Task]) -> Cost:
        """One network, however many folds are averaged over."""
        network = self.network(tasks[0].fold)
        several = any(len(task.dataset.channel_names) > 1 for task in tasks)
        return Cost(
            models=1,
            parameters=network.parameters,
            disk_bytes=network.disk_bytes,
            training_steps=network.steps,
            **cost_of_runs([self.folder(task) for task in tasks], channel_by_channel=several),
        )


def _facts(model: ModelFolder) -> TrainedNetwork:
    place = model.path / f"fold_{model.fold}"
    steps = read_object(place / "training_config.json").get("steps")
    return TrainedNetwork(
        fold=model.fold,
        space=model.space,
        dataset_name=model.plan.dataset_name,
        trained=TrainedScans.of_model(model.path, model.fold) or TrainedScans(),
        parameters=sum(p.numel() for p in model.network.parameters()),
        steps=None if steps is None else int(steps),
        disk_bytes=size_of([*model.path.glob("*.*"), place / model.checkpoint]) or None,
    )
