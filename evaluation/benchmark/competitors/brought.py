"""Competitors that satunet does not run itself: predictions in a folder, and commands that make them."""

from __future__ import annotations

import logging
import os
import shlex
import shutil
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from satunet.errors import ModelError, UserError
from satunet.evaluation.benchmark.conclusions.results import Cost
from satunet.evaluation.benchmark.costs import (
    THREAD_VARIABLES,
    cost_of_runs,
    read_object,
    record_run,
    threads_for_all,
)
from satunet.evaluation.benchmark.tasks import Task
from satunet.evaluation.scoring.predictions import find_predictions
from satunet.jobs.files import write_json

logger = logging.getLogger(__name__)


@dataclass(kw_only=True)
class FolderCompetitor:
    """Predictions that somebody else made: ``<folder>/<dataset>``, or ``<folder>/<dataset>/fold_<fold>``.

    Attributes:
        name: Name of the competitor.
        place: The folder.
    """

    name: str
    place: Path

    def folder(self, task: Task) -> Path:
        """The fold's folder if there is one, else the dataset's."""
        own = self.place / task.name
        return own if own.is_dir() else self.place / task.dataset.name

    def channels(self, task: Task) -> None:
        """One prediction per case is enough."""

    def trained_cases(self, task: Task) -> frozenset[str]:
        """Unknown, so none."""
        return frozenset()

    def predict(self, task: Task) -> dict[str, str]:
        """Nothing to do."""
        return {}

    def release(self) -> None:
        """Nothing is kept in memory."""

    def cost(self, tasks: Sequence[Task]) -> Cost | None:
        """The cost in the folder's ``cost.json``, which has the fields of :class:`Cost`."""
        content = read_object(self.place / "cost.json")
        known = {key: content[key] for key in Cost.__dataclass_fields__ if content.get(key) is not None}
        return Cost(**known) if known else None


@dataclass(kw_only=True)
class CommandCompetitor:
    """Predictions that a command makes.

    Attributes:
        name: Name of the competitor.
        command: Command to run once per task; ``{input}`` is a folder of links to the scans (``<case>_0000.nii.gz``),
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
        """One prediction per case is enough."""

    def trained_cases(self, task: Task) -> frozenset[str]:
        """Unknown, so none."""
        return frozenset()

    def predict(self, task: Task) -> dict[str, str]:
        """Run the command, unless it already finished for these cases.

        Raises:
            ModelError: The command failed; the message has its last line of output.
        """
        folder = self.folder(task)
        done = folder.with_name(f"{folder.name}.done.json")
        wanted: dict[str, Any] = {"command": self.command, "cases": [c.identifier for c in task.cases]}
        if "{classes}" in self.command:
            wanted["classes"] = {name: list(ids) for name, ids in task.classes.ids.items()}
        before = read_object(done)
        if before == wanted:
            return {}
        if before:  # predictions of another command would be scored as this one's
            shutil.rmtree(folder, ignore_errors=True)
            done.unlink()
        inputs = folder.with_name(f"{folder.name}.input")
        for path in _linked(inputs, (p for c in task.cases for p in c.images)):
            logger.debug("%s: input %s", self.name, path)
        classes = inputs / "classes.json"
        write_json(classes, {"classes": task.classes.ids, "dataset": task.dataset.name})
        folder.mkdir(parents=True, exist_ok=True)
        values = {
            "input": inputs,
            "output": folder,
            "dataset": task.dataset.name,
            "fold": task.fold,
            "classes": classes,
        }
        arguments = [_filled(word, values) for word in shlex.split(self.command)]
        threads = threads_for_all()
        seconds, memory = _run(arguments, folder.with_name(f"{folder.name}.log"), self.name, threads)
        found, _ = find_predictions(folder, task.references)
        made = sum(bool(scans) for scans in found.values())
        record_run(folder, cases=made, scans=made, seconds=seconds, memory_bytes=memory, threads=threads)
        write_json(done, wanted)
        return {}

    def release(self) -> None:
        """Nothing is kept in memory."""

    def cost(self, tasks: Sequence[Task]) -> Cost | None:
        """Time and memory of its process."""
        found = cost_of_runs([self.folder(task) for task in tasks])
        return None if found["seconds_per_case"] is None else Cost(**found)


def _filled(word: str, values: Mapping[str, object]) -> str:
    """A word with its placeholders filled in; other braces are left alone."""
    for key, value in values.items():
        word = word.replace(f"{{{key}}}", str(value))
    return word


def _run(arguments: Sequence[str], log: Path, name: str, threads: int) -> tuple[float, int | None]:
    """Seconds and peak memory of a command; its output goes to a file."""
    environment = os.environ | dict.fromkeys(THREAD_VARIABLES, str(threads))
    started = time.monotonic()
    try:
        with log.open("wb") as stream:
            process = subprocess.Popen(arguments, stdout=stream, stderr=subprocess.STDOUT, env=environment)
            _, status, usage = os.wait4(process.pid, 0)
    except OSError as error:
        raise ModelError(f"{name}: {arguments[0]} cannot be run ({error})") from error
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        last = lines[-1] if lines else "no output"
        raise ModelError(f"{name}: ended with code {process.returncode}: {last} (full output in {log})")
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
