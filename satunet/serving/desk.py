"""The desk of a server: scans that were brought, jobs on them in a queue, results until they are forgotten.

One thread works on the jobs in turn, because there is one network. Everything lies in one folder of the server's own,
under names of its own: what a client calls a file decides its ending and nothing else.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import re
import secrets
import shutil
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from satunet.errors import PromptError, SatunetError
from satunet.jobs.files import read_json
from satunet.network.model import ImageFeatures
from satunet.prediction.door.inputs import Scan
from satunet.prediction.door.jobs import ScanJob, resolve
from satunet.prediction.folder import FolderRun, predict_one
from satunet.prediction.options import Modality, Outputs
from satunet.prediction.predictor import Predictor
from satunet.prediction.results.places import manifest_file
from satunet.serving.memory import PreparedScans, Recent, RememberingNetwork, feature_bytes
from satunet.serving.options import ServeOptions

logger = logging.getLogger(__name__)

State = Literal["waiting", "running", "done", "failed", "cancelled"]
_PLACES = ("source", "path", "model")
"""Entries of a manifest that say where something is."""
_NAME = "scan"
"""Name of every scan's results: clients' names stay outside."""


class BusyError(SatunetError):
    """As many jobs wait as may; ask again later."""


class UnknownError(SatunetError):
    """No scan, job or result of that name, or not any more."""


@dataclass(kw_only=True, eq=False)
class Brought:
    """A scan that a client brought.

    Attributes:
        id: Name that the server gave it.
        folder: Folder of its files and results.
        scan: The scan.
        shape: Voxels along its axes.
        spacing_mm: Distance between voxel centres, in millimetres.
        bytes: Size of its files.
        used: When it was last asked for, seconds of the monotonic clock.
    """

    id: str
    folder: Path
    scan: Scan
    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    bytes: int
    used: float = field(default_factory=time.monotonic)


@dataclass(kw_only=True, eq=False)
class Job:
    """Prompts on a scan.

    Attributes:
        id: Name that the server gave it.
        brought: The scan.
        decided: Job with the meaning of the prompts.
        outputs: Outputs to write.
        folder: Folder of the results.
        state: State of the job.
        done: Windows the network has looked at.
        total: Windows it will look at; 0 until that is known.
        error: Why it failed.
        seconds: Time that it took.
        cancelled: Set to end it.
    """

    id: str
    brought: Brought
    decided: ScanJob
    outputs: Outputs
    folder: Path
    state: State = "waiting"
    done: int = 0
    total: int = 0
    error: str | None = None
    seconds: float | None = None
    cancelled: threading.Event = field(default_factory=threading.Event)

    @property
    def manifest(self) -> dict[str, Any]:
        """What was found; empty until it is done."""
        if self.state != "done":
            return {}
        try:
            content: dict[str, Any] = read_json(manifest_file(self.folder, _NAME, self.outputs.combine))
        except FileNotFoundError as error:
            raise UnknownError(f"job {self.id!r} is forgotten by now") from error
        return content

    @property
    def files(self) -> dict[str, Path]:
        """Result files by name."""
        if self.state != "done":
            return {}
        found = (file for file in _files_in(self.folder) if not file.name.startswith("."))
        return {file.name: file for file in found if file.suffix != ".log"}


class Desk:
    """Takes scans and jobs, works on them, forgets them.

    Args:
        predictor: Predictor with its model.
        folder: Folder of the server's own.
        options: Limits of what it may use.
    """

    def __init__(self, predictor: Predictor, folder: Path, options: ServeOptions) -> None:
        self.options, self.folder = options, folder
        self.features: Recent[ImageFeatures] = Recent(int(options.features_gb * 1e9), feature_bytes)
        self.prepared = PreparedScans(int(options.scans_gb * 1e9))
        numbers = iter(range(1 << 30))
        self.predictor = predictor.with_networks(lambda n: RememberingNetwork(n, self.features, next(numbers)))
        self.counts = {"scans": 0, "done": 0, "failed": 0, "cancelled": 0, "refused": 0}
        self._scans: dict[str, Brought] = {}
        self._jobs: dict[str, Job] = {}
        self._waiting: queue.Queue[Job | None] = queue.Queue(maxsize=options.queue)
        self._lock = threading.RLock()
        self._worker = threading.Thread(target=self._work, name="predict", daemon=True)
        self._worker.start()

    # ---- scans --------------------------------------------------------------------------------------------------

    def new_folder(self) -> tuple[str, Path]:
        """A name that nobody can guess, and an empty folder for what comes under it."""
        name = secrets.token_urlsafe(12)
        folder = self.folder / name
        folder.mkdir(parents=True)
        return name, folder

    def bring(self, name: str, folder: Path, scan: Scan) -> Brought:
        """Take a scan whose files are in a folder of the desk.

        Raises:
            ScanError: Its header cannot be read, or it would not fit into memory.
        """
        from satunet.prediction.door.limits import require_memory

        require_memory(scan, [model.plan for model in self.predictor.models])
        if scan.series is None:
            from satunet.images.image import read_grid

            grid = read_grid(scan.path)
        else:
            grid = scan.read().grid
        size = sum(file.stat().st_size for file in scan.files)
        brought = Brought(
            id=name,
            folder=folder,
            scan=replace(scan, name=_NAME),
            shape=grid.shape,
            spacing_mm=grid.spacing_mm,
            bytes=size,
        )
        with self._lock:
            self._scans[name] = brought
            self.counts["scans"] += 1
        self.tidy()
        return brought

    def scan(self, name: str) -> Brought:
        """A scan that was brought.

        Raises:
            UnknownError: There is none of that name, or not any more.
        """
        with self._lock:
            found = self._scans.get(name)
            if found is None:
                raise UnknownError(f"no scan {name!r}: it was never brought, or is forgotten by now")
            found.used = time.monotonic()
            return found

    def forget(self, name: str) -> None:
        """Let go of a scan, its jobs and results.

        Raises:
            UnknownError: There is none of that name.
        """
        brought = self.scan(name)
        with self._lock:
            self._scans.pop(name, None)
            jobs = [job for job in self._jobs.values() if job.brought is brought]
            for job in jobs:
                job.cancelled.set()
                self._jobs.pop(job.id, None)
        self.prepared.forget(brought.scan)
        shutil.rmtree(brought.folder, ignore_errors=True)

    def tidy(self) -> None:
        """Forget what nobody has asked for in a long time, and the oldest where disk is short."""
        oldest = time.monotonic() - 60 * self.options.keep_minutes
        with self._lock:
            idle = sorted((s for s in self._scans.values() if not self._in_use(s)), key=lambda s: s.used)
        used = sum(_size(s.folder) for s in idle)
        for brought in idle[:-1] if idle and idle[-1].used >= oldest else idle:
            if brought.used >= oldest and used <= self.options.disk_gb * 1e9:
                break
            used -= _size(brought.folder)
            with contextlib.suppress(UnknownError):
                self.forget(brought.id)

    def _in_use(self, brought: Brought) -> bool:
        return any(j.brought is brought and j.state in ("waiting", "running") for j in self._jobs.values())

    # ---- jobs ---------------------------------------------------------------------------------------------------

    def ask(self, scan: str, prompts: Sequence[str] | None, outputs: Outputs, modality: Modality | None = None) -> Job:
        """Put prompts on a scan into the queue.

        Args:
            scan: Name of the scan.
            prompts: Prompts; ``None`` for every class that is known in the scan's modality.
            outputs: Outputs to write.
            modality: Modality of the scan, if it is to be taken for another than it seems.

        Raises:
            UnknownError: No such scan.
            UserError: Prompts or options that cannot be used.
            BusyError: As many jobs wait as may.
        """
        brought = self.scan(scan)
        options = replace(self.predictor.options, outputs=outputs, modality=modality)
        (decided,) = resolve([brought.scan], prompts, self.predictor.vocabulary, options)
        name = secrets.token_urlsafe(12)
        job = Job(id=name, brought=brought, decided=decided, outputs=outputs, folder=brought.folder / "results" / name)
        with self._lock:
            try:
                self._waiting.put_nowait(job)
            except queue.Full:
                self.counts["refused"] += 1
                raise BusyError(f"{self.options.queue} jobs wait already; ask again later") from None
            self._jobs[name] = job
        return job

    def job(self, name: str) -> Job:
        """A job.

        Raises:
            UnknownError: There is none of that name, or not any more.
        """
        with self._lock:
            found = self._jobs.get(name)
        if found is None:
            raise UnknownError(f"no job {name!r}: it never was, or is forgotten by now")
        found.brought.used = time.monotonic()
        return found

    def cancel(self, name: str) -> Job:
        """End a job; one that has ended stays as it is.

        Raises:
            UnknownError: There is none of that name.
        """
        job = self.job(name)
        job.cancelled.set()
        return job

    @property
    def waiting(self) -> int:
        """Jobs in the queue."""
        return self._waiting.qsize()

    def close(self) -> None:
        """End: what runs is cancelled."""
        with self._lock:
            for job in self._jobs.values():
                job.cancelled.set()
        with contextlib.suppress(queue.Full):
            self._waiting.put_nowait(None)
        self._worker.join(timeout=30)

    def _work(self) -> None:
        while (job := self._waiting.get()) is not None:
            if job.cancelled.is_set():
                self._end(job, "cancelled")
                continue
            job.state = "running"
            started = time.monotonic()
            try:
                self._predict(job, _reporter(job))
            except Exception as error:  # whatever is wrong with this job, the next one goes on
                cancelled = isinstance(error, PromptError) and job.cancelled.is_set()
                if not isinstance(error, SatunetError):
                    logger.exception("job %s", job.id)
                job.error = None if cancelled else told(error, self.folder)
                self._end(job, "cancelled" if cancelled else "failed")
            else:
                job.seconds = round(time.monotonic() - started, 3)
                self._end(job, "done")

    def _predict(self, job: Job, report: Callable[[int, int], bool]) -> None:
        predictor = self.predictor.changed(outputs=job.outputs, modality=job.decided.modality)
        run = FolderRun.begin([job.decided], job.folder, predictor, memory=self.prepared)
        predict_one(run, job.decided, report)

    def _end(self, job: Job, state: State) -> None:
        job.state = state
        self.counts[state] += 1
        if state != "done":
            shutil.rmtree(job.folder, ignore_errors=True)


def _reporter(job: Job) -> Callable[[int, int], bool]:
    def report(done: int, total: int) -> bool:
        job.done, job.total = done, total
        return not job.cancelled.is_set()

    return report


def without_places(content: Any) -> Any:
    """What a client may read of a manifest: names of files and models, not where the server has them.

    Args:
        content: JSON, as it was read.
    """
    if isinstance(content, dict):
        return {k: _names_of(v) if k in _PLACES else without_places(v) for k, v in content.items()}
    return [without_places(v) for v in content] if isinstance(content, list) else content


def _names_of(places: Any) -> Any:
    return [Path(p).name for p in places] if isinstance(places, list) else Path(places).name


def told(error: Exception, folder: Path) -> str:
    """What a client may read of an error: nothing of the server's folders.

    Args:
        error: Error that occurred.
        folder: The server's.
    """
    if not isinstance(error, (SatunetError, PermissionError)):
        return f"the server could not do it ({type(error).__name__}); its log says more"
    text = str(getattr(error, "reason", None) or error)
    return re.sub(rf"{re.escape(str(folder))}[^\s:'\"]*/", "", text)


def _size(folder: Path) -> int:
    total = 0
    for file in _files_in(folder):
        with contextlib.suppress(OSError):
            total += file.stat().st_size
    return total


def _files_in(folder: Path) -> list[Path]:
    """Files below a folder; of one that somebody forgets meanwhile, those that are left (pathlib's own walk raises)."""
    return [Path(where) / name for where, _, names in os.walk(folder) for name in names]
