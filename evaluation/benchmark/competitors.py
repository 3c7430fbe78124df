"""Who takes part in a benchmark. A competitor makes the predictions of a task that are missing, and tells its cost."""

from __future__ import annotations

import logging
import os
import shlex
import shutil
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from satunet.datasets.paths import preprocessed_dir
from satunet.errors import DatasetError, ModelError, UserError
from satunet.evaluation.benchmark.costs import RUNS, Meter, peak_memory, read_object, record_run, seconds_per_scan
from satunet.evaluation.benchmark.results import Cost
from satunet.evaluation.benchmark.tasks import Task, trained_cases
from satunet.jobs.files import read_json, write_json
from satunet.labels import LabelSpace
from satunet.models.checkpoints import load_checkpoint, network_weights
from satunet.models.folder import ModelFolder
from satunet.prediction.folder import predict_folder
from satunet.prediction.inputs import Scan
from satunet.prediction.predictor import Predictor

logger = logging.getLogger(__name__)

UNIFIED = "satunet"
SPECIALIST = "nnU-Net"


@runtime_checkable
class Competitor(Protocol):
    """One column of a benchmark."""

    @property
    def name(self) -> str:
        """Its name, which is also that of its folders."""
        ...

    def folder(self, task: Task) -> Path:
        """Where its predictions of a task are."""
        ...

    def channels(self, task: Task) -> tuple[int, ...] | None:
        """Channels that it predicts one by one, each of which must be there; ``None`` if it need not."""
        ...

    def predict(self, task: Task) -> dict[str, str]:
        """Make what is missing; scan → reason for those that failed."""
        ...

    def release(self) -> None:
        """Let go of what is in memory: the next competitor's must be its own."""
        ...

    def cost(self, tasks: Sequence[Task]) -> Cost | None:
        """What it costs, over the tasks it has predictions of; ``None`` if nothing is known."""
        ...


@dataclass(frozen=True, kw_only=True)
class NetworkFacts:
    """What is known of a unified network once it was loaded, whether or not it is in memory.

    Attributes:
        path: Its folder.
        fold: Its fold.
        checkpoint: Name of its file.
        space: Classes it knows.
        dataset_name: Of its training.
        parameters: How many.
    """

    path: Path
    fold: int | str
    checkpoint: str
    space: LabelSpace
    dataset_name: str
    parameters: int

    @classmethod
    def of(cls, model: ModelFolder) -> NetworkFacts:
        """Of a model folder."""
        return cls(
            path=model.path,
            fold=model.fold,
            checkpoint=model.checkpoint,
            space=model.space,
            dataset_name=model.plan.dataset_name,
            parameters=sum(p.numel() for p in model.network.parameters()),
        )


@dataclass(kw_only=True)
class UnifiedCompetitor:
    """The unified network, a model folder with a checkpoint a fold.

    Attributes:
        model: The model folder.
        output: Folder of all predictions.
        device: Where to compute.
    """

    model: Path
    output: Path
    device: str = "auto"
    name: str = UNIFIED
    _loaded: Predictor | None = field(default=None, repr=False)
    _last: NetworkFacts | None = field(default=None, repr=False)

    def predictor(self, fold: int | str | None) -> Predictor:
        """The network of a fold, or of the only one there; the last one asked for is kept until it is released."""
        if self._loaded is None or (fold is not None and str(fold) != str(self._loaded.model.fold)):
            self._loaded = None  # two networks in memory at once are one too many
            self._loaded = Predictor(ModelFolder.load(self.model, fold=fold), device=self.device)
            self._last = NetworkFacts.of(self._loaded.model)
        return self._loaded

    def release(self) -> None:
        """The network is loaded again for the next task."""
        self._loaded = None

    def facts(self, fold: int | str | None = None) -> NetworkFacts:
        """What the model folder says of a fold, or of the last one loaded."""
        if self._last is None or (fold is not None and str(fold) != str(self._last.fold)):
            self.predictor(fold)
        assert self._last is not None  # set by predictor()
        return self._last

    @property
    def space(self) -> LabelSpace:
        """Classes it knows."""
        return self.facts().space

    def folder(self, task: Task) -> Path:
        """``<output>/<name>/<dataset>/fold_<fold>``."""
        return self.output / self.name / task.name

    def channels(self, task: Task) -> tuple[int, ...] | None:
        """All of a dataset that has several: each is a scan of its own."""
        count = len(task.dataset.channel_names)
        return tuple(range(count)) if count > 1 else None

    def predict(self, task: Task) -> dict[str, str]:
        """Every channel of every case is a scan; what is done is not done again."""
        jobs = [
            Scan(path=path, name=task.scan_name(case.identifier, channel), modality=task.dataset.modalities[channel])
            for case in task.cases
            for channel, path in enumerate(case.images)
        ]
        predictor = self.predictor(task.fold)
        with Meter() as meter:
            done = predict_folder(jobs, self.folder(task), predictor, tuple(task.classes))
        if done.done_items:
            record_run(
                self.folder(task), scans=len(done.done_items), seconds=meter.seconds, memory_bytes=meter.memory_bytes
            )
        for scan in done.failures:
            # What lies there is half of a result, or that of another network from before: it would be scored as ours.
            shutil.rmtree(self.folder(task) / scan, ignore_errors=True)
        return done.failures

    def cost(self, tasks: Sequence[Task]) -> Cost:
        """One network, however many folds are averaged over."""
        folders = [self.folder(task) for task in tasks]
        facts = self.facts()
        place = facts.path / f"fold_{facts.fold}"
        steps = read_object(place / "training_config.json").get("steps")
        return Cost(
            models=1,
            parameters=facts.parameters,
            disk_bytes=_size([*facts.path.glob("*.*"), place / facts.checkpoint]) or None,
            training_steps=None if steps is None else int(steps),
            seconds_per_scan=seconds_per_scan(folders),
            memory_bytes=peak_memory(folders),
        )


@dataclass(kw_only=True)
class SpecialistCompetitor:
    """The datasets' nnU-Nets, predicted by nnunetv2 itself.

    Attributes:
        output: Folder of all predictions.
        device: Where to compute.
    """

    output: Path
    device: str = "auto"
    name: str = SPECIALIST

    def folder(self, task: Task) -> Path:
        """``<output>/<name>/<dataset>/fold_<fold>``."""
        return self.output / self.name / task.name

    def channels(self, task: Task) -> None:
        """A prediction a case is enough."""

    def predict(self, task: Task) -> dict[str, str]:
        """Label maps by nnunetv2's predictor; those of an earlier training are made again.

        Raises:
            ModelError: Not trained, or trained on cases that are to be scored.
        """
        from satunet.evaluation.benchmark.specialist import predict_specialist

        self._check_split(task)
        files = {c.identifier: self.folder(task) / f"{c.identifier}{task.dataset.file_ending}" for c in task.cases}
        self._remove_outdated(task, files.values())
        missing = [file for file in files.values() if not file.is_file()]
        meter = Meter()
        failures = predict_specialist(
            task.dataset.name,
            [(c.identifier, c.images) for c in task.cases],
            self.folder(task),
            fold=task.fold,
            device=self.device,
            while_predicting=meter,
        )
        if made := sum(file.is_file() for file in missing):
            record_run(self.folder(task), scans=made, seconds=meter.seconds, memory_bytes=meter.memory_bytes)
        return failures

    def release(self) -> None:
        """Nothing is kept in memory."""

    def cost(self, tasks: Sequence[Task]) -> Cost | None:
        """All networks together: one a dataset, of its first fold."""
        from satunet.trainers.specialist.trainer import specialist_folder

        counts, steps, sizes = [], [], []
        first = {task.dataset.name: task for task in reversed(tasks)}
        for name, task in first.items():
            file = specialist_folder(name) / f"fold_{task.fold}" / "checkpoint_final.pth"
            if not file.is_file():
                continue
            weights = network_weights(load_checkpoint(file), source=file)  # mapped: no tensor is read
            counts.append(sum(int(w.numel()) for w in weights.values()))
            steps.append(int(read_object(file.parent / "training_config.json").get("steps", 0)))
            sizes.append(_size([file, *specialist_folder(name).glob("*.json")]))
        if not counts:
            return None
        folders = [self.folder(task) for task in tasks]
        return Cost(
            models=len(counts),
            parameters=sum(counts),
            disk_bytes=sum(sizes),
            training_steps=sum(steps) if all(steps) else None,
            seconds_per_scan=seconds_per_scan(folders),
            memory_bytes=peak_memory(folders),
        )

    def _remove_outdated(self, task: Task, files: Iterable[Path]) -> None:
        """Label maps that are older than the checkpoint are of another network."""
        from satunet.trainers.specialist.trainer import specialist_folder

        checkpoint = specialist_folder(task.dataset.name) / f"fold_{task.fold}" / "checkpoint_final.pth"
        trained = checkpoint.stat().st_mtime if checkpoint.is_file() else 0.0
        outdated = [file for file in files if file.is_file() and file.stat().st_mtime < trained]
        for file in outdated:
            file.unlink()
        if outdated:
            logger.info("%s was trained again: %d cases are predicted again", checkpoint, len(outdated))
            (self.folder(task) / RUNS).unlink(missing_ok=True)

    def _check_split(self, task: Task) -> None:
        """A specialist that was trained on what is scored is no competitor."""
        file = preprocessed_dir() / task.dataset.name / "splits_final.json"
        if task.trained_on or not file.is_file():
            return
        try:
            seen = trained_cases(read_json(file), task.fold) & set(task.references)
        except (ValueError, KeyError, IndexError, TypeError) as error:
            raise DatasetError(f"{file}: not the splits of a nnU-Net ({type(error).__name__}: {error})") from error
        if seen and not {c.identifier for c in task.dataset.test_cases()} >= set(task.references):
            raise ModelError(
                f"{file}: fold {task.fold} trains on {len(seen)} of the {len(task.cases)} cases that are to be scored, "
                f"such as {sorted(seen)[0]}; both sides need the same split"
            )


@dataclass(kw_only=True)
class FolderCompetitor:
    """Predictions that somebody else made: ``<folder>/<dataset>``, or ``<folder>/<dataset>/fold_<fold>``.

    Attributes:
        name: Its name.
        place: The folder.
    """

    name: str
    place: Path

    def folder(self, task: Task) -> Path:
        """The fold's folder if there is one, else the dataset's."""
        own = self.place / task.name
        return own if own.is_dir() else self.place / task.dataset.name

    def channels(self, task: Task) -> None:
        """A prediction a case is enough."""

    def predict(self, task: Task) -> dict[str, str]:
        """Nothing to do."""
        return {}

    def release(self) -> None:
        """Nothing is kept in memory."""

    def cost(self, tasks: Sequence[Task]) -> Cost | None:
        """What a ``cost.json`` in the folder says, with the fields of :class:`Cost`."""
        content = read_object(self.place / "cost.json")
        known = {key: content[key] for key in Cost.__dataclass_fields__ if content.get(key) is not None}
        return Cost(**known) if known else None


@dataclass(kw_only=True)
class CommandCompetitor:
    """Predictions that a command makes.

    Attributes:
        name: Its name.
        command: What to run, once a task; ``{input}`` is a folder of links to the scans (``<case>_0000.nii.gz``),
            ``{output}`` the folder for its predictions, ``{dataset}`` and ``{fold}`` their names, ``{classes}`` a JSON
            file with the classes.
        output: Folder of all predictions.
    """

    name: str
    command: str
    output: Path

    def __post_init__(self) -> None:
        if "{output}" not in self.command:
            raise UserError(f"the command of {self.name} must say where {{output}} goes, got {self.command!r}")

    def folder(self, task: Task) -> Path:
        """``<output>/<name>/<dataset>/fold_<fold>``."""
        return self.output / self.name / task.name

    def channels(self, task: Task) -> None:
        """A prediction a case is enough."""

    def predict(self, task: Task) -> dict[str, str]:
        """Run the command, unless it has run to its end for these cases.

        Raises:
            ModelError: It failed; the message has its last line.
        """
        folder = self.folder(task)
        done = folder.with_name(f"{folder.name}.done.json")
        wanted: dict[str, Any] = {"command": self.command, "cases": [c.identifier for c in task.cases]}
        if "{classes}" in self.command:
            wanted["classes"] = {name: list(ids) for name, ids in task.classes.items()}
        before = read_object(done)
        if before == wanted:
            return {}
        if before:  # what another command left would be scored as this one's
            shutil.rmtree(folder, ignore_errors=True)
            done.unlink()
        inputs = folder.with_name(f"{folder.name}.input")
        for path in _linked(inputs, (p for c in task.cases for p in c.images)):
            logger.debug("%s: input %s", self.name, path)
        classes = inputs / "classes.json"
        write_json(classes, {"classes": task.classes, "dataset": task.dataset.name})
        folder.mkdir(parents=True, exist_ok=True)
        values = {
            "input": inputs,
            "output": folder,
            "dataset": task.dataset.name,
            "fold": task.fold,
            "classes": classes,
        }
        arguments = [_filled(word, values) for word in shlex.split(self.command)]
        seconds, memory = _run(arguments, folder.with_name(f"{folder.name}.log"), self.name)
        record_run(folder, scans=len(task.cases), seconds=seconds, memory_bytes=memory)
        write_json(done, wanted)
        return {}

    def release(self) -> None:
        """Nothing is kept in memory."""

    def cost(self, tasks: Sequence[Task]) -> Cost | None:
        """Time and memory of its process."""
        folders = [self.folder(task) for task in tasks]
        seconds = seconds_per_scan(folders)
        return None if seconds is None else Cost(seconds_per_scan=seconds, memory_bytes=peak_memory(folders))


def _filled(word: str, values: Mapping[str, object]) -> str:
    """A word with its placeholders filled; other braces stay."""
    for key, value in values.items():
        word = word.replace(f"{{{key}}}", str(value))
    return word


def _run(arguments: Sequence[str], log: Path, name: str) -> tuple[float, int | None]:
    """Seconds and peak memory of a command; its output goes to a file."""
    started = time.monotonic()
    try:
        with log.open("wb") as stream:
            process = subprocess.Popen(arguments, stdout=stream, stderr=subprocess.STDOUT)
            _, status, usage = os.wait4(process.pid, 0)
    except OSError as error:
        raise ModelError(f"{name}: {arguments[0]} cannot be run ({error})") from error
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        last = lines[-1] if lines else "no output"
        raise ModelError(f"{name}: ended with code {process.returncode}: {last} (all of it in {log})")
    return time.monotonic() - started, int(usage.ru_maxrss) * 1024


def _linked(folder: Path, files: Iterable[Path]) -> list[Path]:
    """Links to files in a folder that holds nothing else."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.iterdir():
        old.unlink()
    links = []
    for file in files:
        link = folder / file.name
        link.symlink_to(file.resolve())
        links.append(link)
    return links


def _size(files: Iterable[Path]) -> int:
    return sum(f.stat().st_size for f in files if f.is_file())
