"""Predict many scans: one bad scan never ends the rest, and a second run does what is missing.

While the network works on one scan, the next one is read and preprocessed, and the masks of the previous one are
restored and compressed. All queues are bounded: at any time there is one scan ahead, one in the network, and at most
two behind it.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from satunet.compute.threads import in_network_thread
from satunet.errors import DiskFullError
from satunet.jobs.progress import JobSummary, progress_bar
from satunet.prediction.call import Call, Prepared
from satunet.prediction.door.inputs import Scan, collect_scans
from satunet.prediction.door.jobs import ScanJob, resolve
from satunet.prediction.masks.found import Weighed
from satunet.prediction.predictor import Predictor
from satunet.prediction.results.outputs import ScanResult
from satunet.prediction.results.places import SUMMARY

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
    call = Call.begin(jobs, output, predictor, inputs=inputs)
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    mine = jobs[rank::world]
    with ExitStack() as stack:
        tally = _Tally(advance=stack.enter_context(progress_bar("Predicting", len(mine))))
        closing = stack.enter_context(ThreadPoolExecutor(1, thread_name_prefix="finish"))
        writing = stack.enter_context(ThreadPoolExecutor(_WRITERS, thread_name_prefix="write"))
        behind, masks = threading.Semaphore(_WAITING_SCANS), threading.Semaphore(_WAITING_MASKS)
        clock = _Clock()
        for job, reading in _ahead(mine, call.prepare, stack):
            if tally.full is not None:
                break
            try:
                with clock.idle():
                    prepared = reading.result()
                if prepared is None:
                    tally.ended(job, skipped=True)
                    continue
                result = call.result_of(prepared)
                result.begin()
                started = time.monotonic()
                pending = _find_and_write(call, result, writing, masks, partial(tally.windows, job), clock)
                with clock.idle():
                    behind.acquire()
                closing.submit(_close, call, result, pending, started, tally).add_done_callback(
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
    call.protected.check(file)
    summary.save(file)
    return summary


def predict_one(call: Call, job: ScanJob, on_progress: Callable[[int, int], bool | None] | None = None) -> bool:
    """Predict one scan; several threads may do so, and the network works for one of them at a time.

    Args:
        call: Everything that all scans of the call share.
        job: Scan with everything decided.
        on_progress: Called with (windows done, windows); returning ``False`` cancels.

    Returns:
        Whether there was anything to do.

    Raises:
        Exception: Anything that is wrong with the scan.
    """
    prepared = call.prepare(job)
    if prepared is None:
        return False
    result = call.result_of(prepared)
    result.begin()
    started = time.monotonic()
    with ThreadPoolExecutor(_WRITERS, thread_name_prefix="write") as writing:
        masks = threading.Semaphore(_WAITING_MASKS)
        pending = in_network_thread(_find_and_write, call, result, writing, masks, on_progress)
        _finish(call, result, pending, started)
    return True


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


def _find_and_write(
    call: Call,
    result: ScanResult,
    writing: ThreadPoolExecutor,
    room: threading.Semaphore,
    report: Callable[[int, int], bool | None] | None = None,
    clock: _Clock | None = None,
) -> list[tuple[int, Future[Weighed]]]:
    """Predict a scan's prompts; meanwhile, finished masks are restored and written, a bounded number at once."""
    pending = []
    for position, found in call.predictor.find(result.scan, result.matches, on_progress=report):
        with clock.idle() if clock is not None else contextlib.nullcontext():
            room.acquire()
        future = writing.submit(call.write, result, position, found)
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
    call: Call, result: ScanResult, pending: list[tuple[int, Future[Weighed]]], started: float, tally: _Tally
) -> None:
    """Wait for a scan's masks and write its manifest."""
    try:
        _finish(call, result, pending, started)
    except Exception as error:  # a full disk or a mask that cannot be written: the scan is not done
        tally.ended(result.job, error)
    else:
        tally.ended(result.job)


def _finish(call: Call, result: ScanResult, pending: list[tuple[int, Future[Weighed]]], started: float) -> None:
    masks: list[Weighed | None] = [None] * len(result.matches)
    for position, future in pending:
        masks[position] = future.result()
    result.finish(call.predictor.judge(result.matches, masks, result.scan), time.monotonic() - started)
