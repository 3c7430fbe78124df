"""Prediction on a Dask cluster: every worker loads the models once and predicts one scan after another.

Scans, models and output must have the same paths on all machines. A worker with several threads reads and writes some
scans while the network works on another; the network takes one scan at a time. Start one worker per GPU with
``CUDA_VISIBLE_DEVICES``.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from satunet.compute.threads import in_network_thread
from satunet.jobs.progress import JobSummary, run_parallel
from satunet.jobs.workers import Workers
from satunet.models.choice import ModelChoice
from satunet.prediction.call import Call, protect
from satunet.prediction.door.jobs import ScanJob, Vocabulary
from satunet.prediction.door.limits import require_writable
from satunet.prediction.folder import predict_one
from satunet.prediction.options import PredictOptions
from satunet.prediction.predictor import Predictor
from satunet.prediction.results.places import SUMMARY, Protected

_loading = threading.Lock()
_loaded: dict[str, Predictor] = {}


def predict_on_cluster(
    jobs: Sequence[ScanJob],
    output: Path,
    choice: ModelChoice,
    options: PredictOptions,
    *,
    scheduler: str,
    inputs: Iterable[Path] = (),
) -> JobSummary:
    """Run :func:`~satunet.prediction.folder.predict_jobs` on the workers of a Dask scheduler.

    Args:
        jobs: Jobs from :func:`~satunet.prediction.door.jobs.resolve`.
        output: Folder for the results.
        choice: Models.
        options: Options of the prediction.
        scheduler: Address of the scheduler, ``tcp://host:8786``.
        inputs: Other files that no result may replace, such as lists of prompts.

    Raises:
        ModelError: The models cannot be used.
        UserError: The cluster cannot be reached, or results cannot be written.
        DiskFullError: There is no space left.
    """
    absolute = replace(choice, model=tuple(folder.resolve() for folder in choice.folders))
    vocabulary = Vocabulary.of(absolute.describe())
    jobs = [_absolute(job) for job in jobs]
    work = _Work(
        choice=absolute,
        output=output.resolve(),
        options=options,
        protected=protect(jobs, output, options, vocabulary, [*inputs, *absolute.folders]),
    )
    require_writable(output)
    summary = JobSummary("prediction")
    workers = Workers(scheduler=scheduler)
    for outcome in run_parallel(work, jobs, description="Predicting", processes=workers, key=lambda job: job.name):
        if outcome.error is not None:
            summary.failed(outcome.item.name, outcome.error)
        else:
            (summary.done if outcome.result else summary.skipped)(outcome.item.name)
    summary.save(output / SUMMARY)
    return summary


@dataclass(frozen=True, kw_only=True)
class _Work:
    """The work on one scan, as sent to a worker."""

    choice: ModelChoice
    output: Path
    options: PredictOptions
    protected: Protected

    def __call__(self, job: ScanJob) -> bool:
        """Predict a scan; returns ``False`` if its result already exists."""
        predictor = _predictor(self.choice, self.options)
        return predict_one(Call(output=self.output, predictor=predictor, protected=self.protected), job)


def _predictor(choice: ModelChoice, options: PredictOptions) -> Predictor:
    key = repr((choice, options))
    with _loading:
        if key not in _loaded:
            _loaded.clear()  # only one model in memory
            _loaded[key] = in_network_thread(Predictor, choice.load(), options)
        return _loaded[key]


def _absolute(job: ScanJob) -> ScanJob:
    """The same job with absolute paths, because workers may start in other folders."""
    scan, series = job.scan, job.scan.series
    if series is not None:
        series = replace(series, files=tuple(file.resolve() for file in series.files))
    return replace(job, scan=replace(scan, path=scan.path.resolve(), series=series))
