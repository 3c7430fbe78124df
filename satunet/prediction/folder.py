"""Predict many scans: one bad scan never ends the rest, and a second run does what is missing.

While the network works on one scan, the next one is read and preprocessed, and the masks of the previous one are
restored and compressed. All queues are bounded: at any time there is one scan ahead, one in the network, and at most
two behind it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Protocol

from satunet import __version__
from satunet.compute.threads import in_network_thread
from satunet.errors import DiskFullError, UserError
from satunet.jobs.file_names import name_key
from satunet.jobs.fresh import FileState, Stamp
from satunet.jobs.progress import JobSummary, progress_bar
from satunet.jobs.records import to_plain
from satunet.jobs.wording import counted
from satunet.prediction.door.inputs import Scan, collect_scans
from satunet.prediction.door.jobs import ScanJob, Vocabulary, resolve
from satunet.prediction.door.limits import require_memory, require_writable
from satunet.prediction.door.modality import INTENSITIES
from satunet.prediction.door.worthwhile import told
from satunet.prediction.masks.found import Found, PreparedScan, Weighed
from satunet.prediction.options import PredictOptions
from satunet.prediction.predictor import Predictor
from satunet.prediction.results.manifests import MANIFEST_VERSION, why_not_done
from satunet.prediction.results.outputs import ScanResult
from satunet.prediction.results.places import STATISTICS, SUMMARY, Protected
from satunet.prompts.matching import PromptMatch

logger = logging.getLogger(__name__)

_WRITERS = 2
_WAITING_MASKS = 8
_WAITING_SCANS = 2


def predict_folder(
    inputs: Sequence[Path | Scan], output: Path, predictor: Predictor, prompts: str | Iterable[str] | None
) -> JobSummary:
    """Predict scans into a folder; :mod:`satunet.prediction.results.outputs` says what is written.

    Args:
        inputs: Files, folders (see :func:`~satunet.prediction.door.inputs.collect_scans`) or scans.
        output: Folder for the results.
        predictor: Predictor with its models and options.
        prompts: Prompts for scans without their own; ``None`` for every class that the model knows in the scan's
            modality.

    Returns:
        A summary with the outcome of each scan.

    Raises:
        PromptError: Prompts cannot be used.
        UserError: A folder has no scans, a result would replace an input, or a folder cannot be written to.
        DiskFullError: There is no space left, so that later results could not be saved either.
    """
    scans = [scan for scan in inputs if isinstance(scan, Scan)]
    paths = [path for path in inputs if not isinstance(path, Scan)]
    scans += collect_scans(paths) if paths or not scans else []
    jobs = resolve(scans, prompts, predictor.vocabulary, predictor.options)
    return predict_jobs(jobs, output, predictor)


def predict_jobs(
    jobs: Sequence[ScanJob], output: Path, predictor: Predictor, *, inputs: Iterable[Path] = ()
) -> JobSummary:
    """Predict scans for which everything is decided; under ``torchrun``, every process takes its share.

    Args:
        jobs: Jobs from :func:`~satunet.prediction.door.jobs.resolve`.
        output: Folder for the results.
        predictor: Predictor with its models and options.
        inputs: Other files that no result may replace, such as lists of prompts.

    Raises:
        UserError, DiskFullError: As :func:`predict_folder`.
    """
    run = FolderRun.begin(jobs, output, predictor, inputs=inputs)
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    mine = jobs[rank::world]
    with ExitStack() as stack:
        tally = _Tally(advance=stack.enter_context(progress_bar("Predicting", len(mine))))
        closing = stack.enter_context(ThreadPoolExecutor(1, thread_name_prefix="finish"))
        writing = stack.enter_context(ThreadPoolExecutor(_WRITERS, thread_name_prefix="write"))
        behind, masks = threading.Semaphore(_WAITING_SCANS), threading.Semaphore(_WAITING_MASKS)
        clock = _Clock()
        for job, reading in _ahead(mine, run.prepare, stack):
            if tally.full is not None:
                break
            try:
                with clock.idle():
                    prepared = reading.result()
                if prepared is None:
                    tally.ended(job, skipped=True)
                    continue
                result = run.result_of(prepared)
                result.begin()
                started = time.monotonic()
                pending = _find_and_write(run, result, writing, masks, partial(tally.windows, job), clock)
                with clock.idle():
                    behind.acquire()
                closing.submit(_close, run, result, pending, started, tally).add_done_callback(
                    lambda _: behind.release()
                )
            except Exception as error:  # whatever is wrong with this scan, the others continue
                tally.ended(job, error)
    if tally.full is not None:
        raise tally.full
    summary = tally.summary
    if summary.done_items:
        summary.note("network busy", f"{clock.busy_percent:.0f} % of the time")
    file = output / (SUMMARY if world == 1 else SUMMARY.replace(".json", f"_{rank}.json"))
    run.protected.check(file)
    summary.save(file)
    return summary


class _Tally:
    """Outcome of each scan so far; several threads report to it.

    Attributes:
        summary: Summary of all scans.
        full: Error of the full disk that ended the run; no later result could be saved.
    """

    def __init__(self, advance: Callable[..., None]) -> None:
        self.summary = JobSummary("prediction")
        self.full: DiskFullError | None = None
        self._advance = advance
        self._lock = threading.Lock()

    def ended(self, job: ScanJob, error: BaseException | None = None, *, skipped: bool = False) -> None:
        """Count a scan."""
        with self._lock:
            if isinstance(error, DiskFullError):
                self.full = self.full or error
            elif error is not None:
                self.summary.failed(job.name, error)
            else:
                (self.summary.skipped if skipped else self.summary.done)(job.name)
            self._advance(note=job.name)

    def windows(self, job: ScanJob, done: int, total: int) -> None:
        """Show the progress of a scan.

        Raises:
            DiskFullError: The disk is already full.
        """
        if self.full is not None:
            raise self.full
        self._advance(0, f"{job.name}: {done}/{total} windows")


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A job that is ready for the network.

    Attributes:
        job: Job with everything decided.
        scan: Preprocessed scan.
        stamp: Stamp of what the results are made from.
    """

    job: ScanJob
    scan: PreparedScan
    stamp: Stamp


class ScanMemory(Protocol):
    """Memory of prepared scans that are asked for repeatedly."""

    def get(self, scan: Scan) -> tuple[PreparedScan, tuple[FileState, ...]] | None:
        """The prepared scan and the state of its files, if they did not change since."""
        ...

    def put(self, scan: Scan, prepared: PreparedScan, files: tuple[FileState, ...]) -> None:
        """Remember both."""
        ...


@dataclass(frozen=True, kw_only=True)
class FolderRun:
    """Everything that all scans of a call share.

    Attributes:
        output: Folder for the results.
        predictor: Predictor with its models and options.
        protected: Files that no result may replace.
        memory: Scans that earlier calls prepared, if there may be several calls for one scan.
    """

    output: Path
    predictor: Predictor
    protected: Protected
    memory: ScanMemory | None = None

    @classmethod
    def begin(
        cls,
        jobs: Sequence[ScanJob],
        output: Path,
        predictor: Predictor,
        *,
        inputs: Iterable[Path] = (),
        memory: ScanMemory | None = None,
    ) -> FolderRun:
        """Refuse calls that cannot succeed, before anything is computed.

        Raises:
            UserError: A result would replace an input, or the folder cannot be written to.
        """
        folders = [model.path for model in predictor.models]
        protected = protect(jobs, output, predictor.options, predictor.vocabulary, [*inputs, *folders])
        require_writable(output)
        return cls(output=output, predictor=predictor, protected=protected, memory=memory)

    def prepare(self, job: ScanJob) -> Prepared | None:
        """Read and preprocess a scan; ``None`` if it is done."""
        predictor = self.predictor
        combined = self.combined(job)
        reason = why_not_done(self.output, job, predictor.options.outputs, combined)
        if reason is None and not predictor.options.overwrite:
            return None
        logger.debug("%s: %s", job.name, reason or "done already, but predicted again as asked")
        outputs = predictor.options.outputs
        if job.scan.series is not None and outputs.dicom:
            from satunet.prediction.dicom_objects.source import read_source

            read_source(job.scan.series)  # refuses a series that cannot carry results before any work
        known = None if self.memory is None else self.memory.get(job.scan)
        before, files = known or (None, ())
        if before is None:
            require_memory(job.scan, [model.plan for model in predictor.models])
        stamp = Stamp.of(() if before else job.scan.files, combined)
        stamp = replace(stamp, files=files) if before else stamp  # of a known scan, no file is read again
        image = job.scan.read() if before is None else before.image
        job = job.settled(predictor.vocabulary, image)
        assert job.modality is not None and job.matches is not None  # settled
        scan = predictor.prepare(image, job.modality, job.matches, before=before)
        if self.memory is not None:
            self.memory.put(job.scan, scan, stamp.files)
        return Prepared(job=job, scan=scan, stamp=stamp)

    def result_of(self, prepared: Prepared) -> ScanResult:
        """The writer of a scan's results."""
        job, options = prepared.job, self.predictor.options
        how = job.modality_from
        how = f"a guess from its {how}; --modality decides" if how == INTENSITIES else how
        logger.info("%s: taken as %s (%s), %s", job.name, job.modality, how, counted(len(job.matches or ()), "prompt"))
        if job.not_looked_for:
            logger.info("%s: %s", job.name, told(job.not_looked_for))
        guesses = [m.class_name for m in job.matches or () if m.note.endswith("is a guess")]
        if guesses:
            shown = ", ".join(map(str, guesses[:5])) + (f" and {len(guesses) - 5} more" if len(guesses) > 5 else "")
            logger.warning(
                "%s: the model never learned %s from %s scans; their masks are guesses", job.name, shown, job.modality
            )
        manifest = {
            "version": MANIFEST_VERSION,
            "scan": job.name,
            "source": str(job.scan.path),
            "modality": job.modality,
            "modality_from": job.modality_from,
            "requested": None if job.requested is None else list(job.requested),
            "not_looked_for": list(job.not_looked_for),
            "model": [str(model.path) for model in self.predictor.models],
            "weights": "+".join(model.weights_hash for model in self.predictor.models),
            "options": asdict(options),
            "stamp": to_plain(prepared.stamp),
        }
        return ScanResult(
            output=self.output,
            job=job,
            scan=prepared.scan,
            outputs=options.outputs,
            manifest=manifest,
            wholes=self.wholes,
            protected=self.protected,
            space=self.predictor.vocabulary.space,
        )

    def write(self, result: ScanResult, position: int, found: Found) -> Weighed:
        """Restore and write one mask."""
        weighed = self.predictor.weigh(found, result.scan)
        result.write_mask(position, weighed.mask, found)
        return weighed

    def combined(self, job: ScanJob) -> dict[str, Any]:
        """Everything besides the scan on which its result depends."""
        options = self.predictor.options
        return {
            "models": [model.identity for model in self.predictor.models],
            "prompts": None if job.requested is None else list(job.requested),
            "modality": job.modality,
            "overlap": options.window_overlap,
            "mirror": options.mirror,
            "max_absent": options.max_absent,
            "min_confidence": options.min_confidence,
            "repair": options.repair,
            "postprocessing": asdict(options.postprocessing),
            "outputs": asdict(options.outputs),
            "version": __version__,
        }

    @cached_property
    def wholes(self) -> dict[str, frozenset[str]]:
        """Class → classes that it is part of; needed only for combined label maps."""
        return dict(self.predictor.anatomy.wholes) if self.predictor.options.outputs.combine else {}


def protect(
    jobs: Sequence[ScanJob], output: Path, options: PredictOptions, vocabulary: Vocabulary, inputs: Iterable[Path]
) -> Protected:
    """The files that the results of jobs must not replace: their scans, and other inputs.

    Raises:
        UserError: They would.
    """
    besides = [file for given in inputs for file in ([given] if not given.is_dir() else given.rglob("*"))]
    protected = Protected.of([*(file for job in jobs for file in job.scan.files), *besides])
    keys = Counter(name_key(job.name) for job in jobs)
    if twice := [job.name for job in jobs if keys[name_key(job.name)] > 1]:
        raise UserError(f"{len(twice)} scans would have results with the same name, such as {twice[0]!r}")
    every = [PromptMatch(prompt=n, class_name=n, status="known") for n in vocabulary.space.class_names]
    for job in jobs:
        protected.check_scan(output, job, options.outputs, every if job.matches is None else job.matches)
    for name in (SUMMARY, STATISTICS):
        protected.check(output / name)
    return protected


def predict_one(run: FolderRun, job: ScanJob, on_progress: Callable[[int, int], bool | None] | None = None) -> bool:
    """Predict one scan; several threads may do so, and the network works for one of them at a time.

    Args:
        run: Everything that all scans of the call share.
        job: Scan with everything decided.
        on_progress: Called with (windows done, windows); returning ``False`` cancels.

    Returns:
        Whether there was anything to do.

    Raises:
        Exception: Anything that is wrong with the scan.
    """
    prepared = run.prepare(job)
    if prepared is None:
        return False
    result = run.result_of(prepared)
    result.begin()
    started = time.monotonic()
    with ThreadPoolExecutor(_WRITERS, thread_name_prefix="write") as writing:
        masks = threading.Semaphore(_WAITING_MASKS)
        pending = in_network_thread(_find_and_write, run, result, writing, masks, on_progress)
        _finish(run, result, pending, started)
    return True


def _find_and_write(
    run: FolderRun,
    result: ScanResult,
    writing: ThreadPoolExecutor,
    room: threading.Semaphore,
    report: Callable[[int, int], bool | None] | None = None,
    clock: _Clock | None = None,
) -> list[tuple[int, Future[Weighed]]]:
    """Predict a scan's prompts; meanwhile, finished masks are restored and written, a bounded number at once."""
    pending = []
    for position, found in run.predictor.find(result.scan, result.matches, on_progress=report):
        with clock.idle() if clock is not None else contextlib.nullcontext():
            room.acquire()
        future = writing.submit(run.write, result, position, found)
        future.add_done_callback(lambda _: room.release())
        pending.append((position, future))
    return pending


def _ahead(
    jobs: Sequence[ScanJob], prepare: Any, stack: ExitStack
) -> Iterator[tuple[ScanJob, Future[Prepared | None]]]:
    """Jobs with their prepared scans; the preparation is one job ahead."""
    reading = stack.enter_context(ThreadPoolExecutor(1, thread_name_prefix="read"))
    upcoming = [(job, reading.submit(prepare, job)) for job in jobs[:1]]
    for job in [*jobs[1:], None]:
        current = upcoming.pop()
        # One thread reads in this order: besides the scan that is being predicted, there is exactly one more in memory.
        if job is not None:
            upcoming.append((job, reading.submit(prepare, job)))
        yield current


class _Clock:
    """Time for which the thread that feeds the network had to wait for others."""

    def __init__(self) -> None:
        self._started = time.monotonic()
        self._idle = 0.0

    @contextlib.contextmanager
    def idle(self) -> Iterator[None]:
        """Count the time in this block as waiting."""
        started = time.monotonic()
        yield
        self._idle += time.monotonic() - started

    @property
    def busy_percent(self) -> float:
        """Percentage of the time since the start that was not waiting."""
        return 100 * (1 - self._idle / max(time.monotonic() - self._started, 1e-9))


def _close(
    run: FolderRun, result: ScanResult, pending: list[tuple[int, Future[Weighed]]], started: float, tally: _Tally
) -> None:
    """Wait for a scan's masks and write its manifest."""
    try:
        _finish(run, result, pending, started)
    except Exception as error:  # a full disk or a mask that cannot be written: the scan is not done
        tally.ended(result.job, error)
    else:
        tally.ended(result.job)


def _finish(run: FolderRun, result: ScanResult, pending: list[tuple[int, Future[Weighed]]], started: float) -> None:
    masks: list[Weighed | None] = [None] * len(result.matches)
    for position, future in pending:
        masks[position] = future.result()
    result.finish(run.predictor.judge(result.matches, masks, result.scan), time.monotonic() - started)
