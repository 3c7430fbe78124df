"""Predict many scans: one bad scan never ends the rest, and a second run does what is missing.

While the network looks at one scan, the next is read and preprocessed, and the masks of the last are restored and
packed. All queues are bounded: at any time there is one scan ahead, one in the network, and at most two behind it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from satunet.errors import PromptError
from satunet.jobs.progress import JobSummary, progress_bar
from satunet.prediction.dicom_objects.source import read_source
from satunet.prediction.inputs import ScanJob, collect_scans
from satunet.prediction.masks import BoxedMask
from satunet.prediction.outputs import MANIFEST_VERSION, Outputs, ScanResult, is_done
from satunet.prediction.predictor import Predictor, PreparedScan
from satunet.prompts.matching import PromptMatch

logger = logging.getLogger(__name__)

_WRITERS = 2
_WAITING_MASKS = 8
_WAITING_SCANS = 2


def predict_folder(
    inputs: Sequence[Path | ScanJob],
    output: Path,
    predictor: Predictor,
    prompts: Sequence[str] | None,
    *,
    modality: str | None = None,
    outputs: Outputs | None = None,
    overwrite: bool = False,
) -> JobSummary:
    """Predict scans into a folder; :mod:`satunet.prediction.outputs` says what is written.

    Started by ``torchrun``, every process takes its share of the scans.

    Args:
        inputs: Files, folders (see :func:`~satunet.prediction.inputs.collect_scans`) or scans.
        output: Where to write.
        predictor: With its model.
        prompts: What to look for in scans without prompts of their own; ``None``: every class the model knows for
            the scan's modality.
        modality: Of all scans; a scan's own, or guessed, if not given.
        outputs: What to write; a mask a prompt if not given.
        overwrite: Predict scans again that are done already.

    Returns:
        What became of each scan.

    Raises:
        PromptError: Prompts that cannot be used.
        UserError: A folder without scans, or two scans of one name.
    """
    jobs = [job for job in inputs if isinstance(job, ScanJob)]
    paths = [path for path in inputs if not isinstance(path, ScanJob)]
    jobs += collect_scans(paths) if paths or not jobs else []
    run = FolderRun(
        output=output, predictor=predictor, prompts=None if prompts is None else tuple(dict.fromkeys(prompts)),
        modality=modality, outputs=outputs or Outputs(), overwrite=overwrite,
    )  # fmt: skip
    run.matches.update(check_prompts(predictor, jobs, run.prompts))
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    mine = jobs[rank::world]
    summary = JobSummary("prediction")
    with ExitStack() as stack:
        advance = stack.enter_context(progress_bar("Predicting", len(mine)))
        closing = stack.enter_context(ThreadPoolExecutor(1, thread_name_prefix="finish"))
        writing = stack.enter_context(ThreadPoolExecutor(_WRITERS, thread_name_prefix="write"))
        behind, masks = threading.Semaphore(_WAITING_SCANS), threading.Semaphore(_WAITING_MASKS)
        lock = threading.Lock()

        def ended(job: ScanJob, error: BaseException | None = None, *, skipped: bool = False) -> None:
            with lock:
                if error is not None:
                    summary.failed(job.name, error)
                else:
                    (summary.skipped if skipped else summary.done)(job.name)
                advance(note=job.name)

        clock = _Clock()
        for job, reading in _ahead(mine, run.prepare, stack):
            try:
                with clock.idle():
                    scan = reading.result()
                if scan is None:
                    ended(job, skipped=True)
                    continue
                result = run.result_of(job, scan)
                result.begin()
                started = time.monotonic()
                report = partial(_show_windows, advance, job.name)
                pending = _find_and_write(run, result, writing, masks, report, clock)
                with clock.idle():
                    behind.acquire()
                closing.submit(_close, result, pending, started, ended).add_done_callback(lambda _: behind.release())
            except Exception as error:  # whatever is wrong with this scan, the others go on
                ended(job, error)
    if summary.done_items:
        summary.note("network busy", f"{clock.busy_percent:.0f} % of the time")
    summary.save(output / ("prediction_summary.json" if world == 1 else f"prediction_summary_{rank}.json"))
    return summary


@dataclass(frozen=True, kw_only=True)
class FolderRun:
    """What holds for all scans of a call.

    Attributes:
        output: Where to write.
        predictor: With its model.
        prompts: Of scans without prompts of their own; ``None``: every class.
        modality: Of all scans.
        outputs: What to write.
        overwrite: Whether to predict scans again that are done.
        matches: What prompts mean, as far as it is known already.
    """

    output: Path
    predictor: Predictor
    prompts: tuple[str, ...] | None
    modality: str | None
    outputs: Outputs
    overwrite: bool
    matches: dict[str, list[PromptMatch]] = field(default_factory=dict)

    def prepare(self, job: ScanJob) -> PreparedScan | None:
        """Read and preprocess a scan; ``None`` if it is done."""
        if not self.overwrite and is_done(self.output, job.name, self.outputs.combine, self._manifest(job)):
            return None
        if job.series is not None and (self.outputs.dicom_seg or self.outputs.rtstruct):
            read_source(job.series)  # a series that cannot carry results is refused before any work
        named = self.modality or (job.modality if job.modality != "other" else None)
        matches = [m for p in job.prompts or self.prompts or () for m in self.matches.get(p, ())]
        return self.predictor.prepare(job.read(), named, matches)

    def result_of(self, job: ScanJob, scan: PreparedScan) -> ScanResult:
        """What will be written for a scan."""
        wanted = job.prompts or self.prompts
        if wanted is None:
            model = self.predictor.model
            wanted = tuple(c.name for c in model.space.classes if scan.modality in c.modalities)
            if not wanted:
                known = ", ".join(model.modalities)
                raise PromptError(f"the model knows no class for the modality {scan.modality!r}; it knows {known}")
        missing = [p for p in wanted if p not in self.matches]
        if missing:
            self.matches.update(by_prompt(self.predictor.match(missing)))
        # Two prompts may stand for one class; its mask is written once.
        matches = self.predictor.offered([m for p in wanted for m in self.matches[p]], scan.modality)
        for match in (m for m in matches if m.status == "unknown" and m.note):
            logger.info("%s: %s", job.name, match.note)
        found = list({m.prompt: m for m in matches}.values())
        how = scan.modality_from
        if self.modality is None and job.modality == scan.modality and how == "given":
            how = "DICOM header" if job.series is not None else "list of scans"
        logger.info("%s: taken as %s (%s), %d prompts", job.name, scan.modality, how, len(wanted))
        manifest = {
            "version": MANIFEST_VERSION,
            "scan": job.name,
            "modality": scan.modality,
            "modality_from": how,
            "model": str(self.predictor.model.path),
            **self._manifest(job),
        }
        return ScanResult(
            output=self.output, job=job, scan=scan, matches=found, outputs=self.outputs, manifest=manifest
        )

    def write(self, result: ScanResult, position: int, found: Any) -> BoxedMask:
        """Restore and write one mask."""
        mask = self.predictor.restore(found, result.scan)
        result.write_mask(position, mask, found)
        return mask

    def _manifest(self, job: ScanJob) -> dict[str, Any]:
        """What a result depends on."""
        wanted = job.prompts or self.prompts
        return {
            "source": str(job.path),
            "weights": self.predictor.model.weights_hash,
            "settings": self.predictor.settings,
            "outputs": asdict(self.outputs),
            "requested": list(wanted) if wanted is not None else None,
        }


def check_prompts(
    predictor: Predictor, jobs: Sequence[ScanJob], prompts: Sequence[str] | None
) -> dict[str, list[PromptMatch]]:
    """What all prompts mean; says once which of them name no class.

    Raises:
        PromptError: Prompts that cannot be used.
    """
    every = dict.fromkeys(p for own in (prompts, *(job.prompts for job in jobs)) for p in own or ())
    if prompts is not None and not prompts:
        raise PromptError("no prompt was given")
    found = predictor.match(list(every)) if every else []
    _report(found)
    return by_prompt(found)


def by_prompt(matches: Sequence[PromptMatch]) -> dict[str, list[PromptMatch]]:
    """What was typed → its matches."""
    found: dict[str, list[PromptMatch]] = {}
    for match in matches:
        found.setdefault(match.expanded_from or match.prompt, []).append(match)
    return found


_one_network = threading.Lock()


def predict_one(run: FolderRun, job: ScanJob) -> bool:
    """Predict one scan; several threads may do so, of which one at a time uses the network.

    Returns:
        Whether anything was to be done.

    Raises:
        Exception: Whatever is wrong with the scan.
    """
    scan = run.prepare(job)
    if scan is None:
        return False
    result = run.result_of(job, scan)
    result.begin()
    started = time.monotonic()
    with ThreadPoolExecutor(_WRITERS, thread_name_prefix="write") as writing:
        with _one_network:
            pending = _find_and_write(run, result, writing, threading.Semaphore(_WAITING_MASKS))
        _finish(result, pending, started)
    return True


def _find_and_write(
    run: FolderRun,
    result: ScanResult,
    writing: ThreadPoolExecutor,
    room: threading.Semaphore,
    report: Callable[[int, int], bool | None] | None = None,
    clock: _Clock | None = None,
) -> list[tuple[int, Future[BoxedMask]]]:
    """Look for a scan's prompts; what is found is restored and written meanwhile, a bounded number of masks at once."""
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
) -> Iterator[tuple[ScanJob, Future[PreparedScan | None]]]:
    """Jobs with their preparation, which runs one job ahead."""
    reading = stack.enter_context(ThreadPoolExecutor(1, thread_name_prefix="read"))
    upcoming = [(job, reading.submit(prepare, job)) for job in jobs[:1]]
    for job in [*jobs[1:], None]:
        current = upcoming.pop()
        # One thread reads, in this order: beside the scan that is being predicted there is one more, and no other.
        if job is not None:
            upcoming.append((job, reading.submit(prepare, job)))
        yield current


class _Clock:
    """How long the thread that feeds the network had to wait for others."""

    def __init__(self) -> None:
        self._started = time.monotonic()
        self._idle = 0.0

    @contextlib.contextmanager
    def idle(self) -> Iterator[None]:
        """Time in here is waiting."""
        started = time.monotonic()
        yield
        self._idle += time.monotonic() - started

    @property
    def busy_percent(self) -> float:
        """Share of the time since the start that was no waiting."""
        return 100 * (1 - self._idle / max(time.monotonic() - self._started, 1e-9))


def _show_windows(advance: Any, name: str, done: int, total: int) -> None:
    advance(0, f"{name}: {done}/{total} windows")


def _close(result: ScanResult, pending: list[tuple[int, Future[BoxedMask]]], started: float, ended: Any) -> None:
    """Wait for a scan's masks and write its manifest."""
    try:
        _finish(result, pending, started)
    except Exception as error:  # a full disk, a mask that cannot be written: the scan is not done
        ended(result.job, error)
    else:
        ended(result.job)


def _finish(result: ScanResult, pending: list[tuple[int, Future[BoxedMask]]], started: float) -> None:
    masks: list[BoxedMask | None] = [None] * len(result.matches)
    for position, future in pending:
        masks[position] = future.result()
    result.finish(masks, time.monotonic() - started)


def _report(matches: Sequence[PromptMatch]) -> None:
    """Say once what prompts mean that name no class, or several."""
    for prompt, found in by_prompt(matches).items():
        if found[0].expanded_from is not None:
            logger.info("prompt %r stands for %s", prompt, ", ".join(m.prompt for m in found))
            continue
        match = found[0]
        near = ", ".join(f"{name} ({value:.2f})" for name, value in match.nearest)
        if match.status == "similar":
            logger.warning("prompt %r names no class of the model; segmented by its wording; nearest: %s", prompt, near)
        elif match.status == "unknown":
            why = match.note or f"nothing the model knows; nearest: {near or 'none'}"
            logger.warning("prompt %r: %s; no mask is written", prompt, why)
        elif match.note:
            logger.info("prompt %s", match.note)
