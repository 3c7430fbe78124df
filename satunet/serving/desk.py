"""The desk of a server: uploaded scans, a queue of jobs on them, and their results.

Jobs are done in turn, because there is one network. While it works on one scan, the scan of the next job is read and
the masks of the last one are written, as in :func:`~satunet.prediction.folder.predict_folder`. Everything is stored
in a private folder under names that the server chooses; a client's file name decides only the ending.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
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

from satunet.errors import PromptError, SatunetError, ScanTooLargeError
from satunet.jobs.files import disk_trouble, read_json
from satunet.network.model import ImageFeatures
from satunet.prediction.call import Call
from satunet.prediction.door.inputs import Scan
from satunet.prediction.door.jobs import ScanJob, resolve
from satunet.prediction.folder import predict_one
from satunet.prediction.options import Modality, Outputs
from satunet.prediction.predictor import Predictor
from satunet.prediction.results.places import manifest_file
from satunet.serving.memory import PreparedScans, Recent, RememberingNetwork, WorkingMemory, feature_bytes
from satunet.serving.options import ServeOptions

logger = logging.getLogger(__name__)

State = Literal["waiting", "running", "done", "failed", "cancelled"]
_PLACES = ("source", "path", "model")
"""Entries of a manifest that are paths."""
_NAME = "scan"
"""Name of every scan's results; clients' names are not used."""
_HANDS = 2
"""Number of jobs that are worked on at once; one of them uses the network."""


class BusyError(SatunetError):
    """The queue is full; ask again later."""


class UnknownError(SatunetError):
    """There is no scan, job or result with that name, or no longer."""


@dataclass(kw_only=True, eq=False)
class Brought:
    """A scan that a client uploaded.

    Attributes:
        id: Name that the server gave it.
        folder: Folder of its files and results.
        scan: The scan.
        shape: Voxels along its axes.
        spacing_mm: Distance between voxel centres, in millimetres.
        bytes: Size of its files.
        used: Time of the last request for it, in seconds of the monotonic clock.
        turn: Lock of the job that works on it, so that the next job finds it prepared and encoded.
    """

    id: str
    folder: Path
    scan: Scan
    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    bytes: int
    used: float = field(default_factory=time.monotonic)
    turn: threading.Lock = field(default_factory=threading.Lock)


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
        done: Number of windows done.
        total: Number of all windows; 0 until it is known.
        error: Reason of its failure.
        seconds: Duration.
        cancelled: Event that is set to cancel it.
        ended: Future that is done when the job is.
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
    ended: concurrent.futures.Future[None] = field(default_factory=concurrent.futures.Future)

    async def end(self, seconds: float | None = None) -> None:
        """Wait until the job has ended, or for some seconds; no thread waits."""
        if seconds != 0 and not self.ended.done():
            await asyncio.wait([asyncio.wrap_future(self.ended)], timeout=seconds)

    @property
    def manifest(self) -> dict[str, Any]:
        """The manifest of the results; empty until the job is done."""
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
    """Accepts scans and jobs, works on the jobs, and forgets both after a while.

    Args:
        predictor: Predictor with its model.
        folder: Private folder of the server.
        options: Limits of the server.
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
        self._room = WorkingMemory()
        self._hands = [threading.Thread(target=self._work, name=f"predict-{i}", daemon=True) for i in range(_HANDS)]
        for hand in self._hands:
            hand.start()

    # ---- scans --------------------------------------------------------------------------------------------------

    def new_folder(self) -> tuple[str, Path]:
        """An unguessable name, and an empty folder for it."""
        name = secrets.token_urlsafe(12)
        folder = self.folder / name
        folder.mkdir(parents=True)
        return name, folder

    def bring(self, name: str, folder: Path, scan: Scan) -> Brought:
        """Accept a scan whose files are in a folder of the desk.

        Raises:
            ScanError: The header cannot be read, or the scan would not fit into memory.
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
        """An uploaded scan.

        Raises:
            UnknownError: There is no scan with that name, or no longer.
        """
        with self._lock:
            found = self._scans.get(name)
            if found is None:
                raise UnknownError(f"no scan {name!r}: it was never brought, or is forgotten by now")
            found.used = time.monotonic()
            return found

    def forget(self, name: str) -> None:
        """Remove a scan, its jobs and results.

        Raises:
            UnknownError: There is no scan with that name.
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
        """Remove scans that nobody has asked for in a long time, and the oldest ones if disk space is short."""
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
            modality: Modality of the scan, to override the detected one.

        Raises:
            UnknownError: There is no such scan.
            UserError: Prompts or options cannot be used.
            BusyError: The queue is full.
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
            UnknownError: There is no job with that name, or no longer.
        """
        with self._lock:
            found = self._jobs.get(name)
        if found is None:
            raise UnknownError(f"no job {name!r}: it never was, or is forgotten by now")
        found.brought.used = time.monotonic()
        return found

    def cancel(self, name: str) -> Job:
        """Cancel a job; one that has ended is not changed.

        Raises:
            UnknownError: There is no job with that name.
        """
        job = self.job(name)
        job.cancelled.set()
        return job

    @property
    def waiting(self) -> int:
        """Number of jobs in the queue."""
        return self._waiting.qsize()

    def close(self) -> None:
        """Cancel all jobs, and stop."""
        with self._lock:
            for job in self._jobs.values():
                job.cancelled.set()
        for _ in self._hands:
            with contextlib.suppress(queue.Full):
                self._waiting.put(None, timeout=30)  # cancelled jobs make room at once
        for hand in self._hands:
            hand.join(timeout=30)

    def _work(self) -> None:
        while (job := self._waiting.get()) is not None:
            with job.brought.turn, self._room.shared():
                self._do(job)

    def _do(self, job: Job) -> None:
        if job.cancelled.is_set():
            self._end(job, "cancelled")
            return
        job.state = "running"
        started = time.monotonic()
        try:
            try:
                self._predict(job, _reporter(job))
            except ScanTooLargeError:
                if not self._room.crowded:
                    raise
                with self._room.alone():  # it may fit once the other job has left
                    self._predict(job, _reporter(job))
        except Exception as error:  # whatever is wrong with this job, the next one continues
            cancelled = isinstance(error, PromptError) and job.cancelled.is_set()
            if trouble := disk_trouble(error):
                logger.error("job %s: %s: %s", job.id, self.folder, trouble)
            elif not isinstance(error, SatunetError):
                logger.exception("job %s", job.id)
            job.error = None if cancelled else told(error, self.folder)
            self._end(job, "cancelled" if cancelled else "failed")
        else:
            job.seconds = round(time.monotonic() - started, 3)
            self._end(job, "done")

    def _predict(self, job: Job, report: Callable[[int, int], bool]) -> None:
        predictor = self.predictor.changed(outputs=job.outputs, modality=job.decided.modality)
        call = Call.begin([job.decided], job.folder, predictor, memory=self.prepared)
        predict_one(call, job.decided, report)

    def _end(self, job: Job, state: State) -> None:
        with self._lock:
            job.state = state
            self.counts[state] += 1
        if state != "done":
            shutil.rmtree(job.folder, ignore_errors=True)
        job.ended.set_result(None)


def _reporter(job: Job) -> Callable[[int, int], bool]:
    def report(done: int, total: int) -> bool:
        job.done, job.total = done, total
        return not job.cancelled.is_set()

    return report


def without_places(content: Any) -> Any:
    """The part of a manifest that a client may read: names of files and models, but no paths on the server.

    Args:
        content: Parsed JSON.
    """
    if isinstance(content, dict):
        return {k: _names_of(v) if k in _PLACES else without_places(v) for k, v in content.items()}
    return [without_places(v) for v in content] if isinstance(content, list) else content


def _names_of(places: Any) -> Any:
    return [Path(p).name for p in places] if isinstance(places, list) else Path(places).name


def told(error: Exception, folder: Path) -> str:
    """The message of an error for a client, without the server's folders.

    Args:
        error: Error that occurred.
        folder: Private folder of the server.
    """
    if trouble := disk_trouble(error):
        return f"the server's disk does not take it ({trouble}); nothing of it is kept, ask again later"
    if not isinstance(error, SatunetError):
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
    """Files below a folder, which may be removed meanwhile (pathlib's own walk would raise)."""
    return [Path(where) / name for where, _, names in os.walk(folder) for name in names]
