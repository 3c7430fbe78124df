"""Prediction on a Dask cluster: every worker loads the model once and takes scan after scan.

Scans, model and output must have the same paths on all machines. A worker with several threads reads and writes
beside the network, which takes one scan at a time; a worker a GPU is started with ``CUDA_VISIBLE_DEVICES``.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from satunet.jobs.progress import JobSummary, run_parallel
from satunet.jobs.workers import Workers
from satunet.models.folder import ModelFolder
from satunet.prediction.folder import FolderRun, check_prompts, predict_one
from satunet.prediction.inputs import ScanJob
from satunet.prediction.outputs import Outputs
from satunet.prediction.predictor import Predictor

_loading = threading.Lock()
_loaded: dict[str, Predictor] = {}


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How to make a predictor, wherever it is needed.

    Attributes:
        model: The model's folder.
        fold: As in :meth:`ModelFolder.load`.
        checkpoint: As in :meth:`ModelFolder.load`.
        options: Further arguments of :class:`Predictor`.
    """

    model: Path
    fold: str | None = None
    checkpoint: str = "checkpoint_final.pth"
    options: Mapping[str, Any] = field(default_factory=dict)

    def make(self) -> Predictor:
        """Load the model; raises as :meth:`ModelFolder.load`."""
        return Predictor(ModelFolder.load(self.model, fold=self.fold, checkpoint=self.checkpoint), **self.options)


def predict_on_cluster(
    jobs: Sequence[ScanJob],
    output: Path,
    recipe: Recipe,
    prompts: Sequence[str] | None,
    *,
    scheduler: str,
    modality: str | None = None,
    outputs: Outputs | None = None,
    overwrite: bool = False,
) -> JobSummary:
    """As :func:`~satunet.prediction.folder.predict_folder`, on the workers of a Dask scheduler.

    Args:
        jobs: Scans.
        output: Where to write.
        recipe: The predictor.
        prompts: As in ``predict_folder``.
        scheduler: Its address, ``tcp://host:8786``.
        modality: As in ``predict_folder``.
        outputs: As in ``predict_folder``.
        overwrite: As in ``predict_folder``.

    Raises:
        ModelError: The model cannot be loaded here.
        UserError: The cluster cannot be reached.
    """
    absolute = replace(recipe, model=recipe.model.resolve())
    # Wrong prompts and models are known before a worker is asked.
    check_prompts(absolute.make(), jobs, prompts)
    work = _Work(
        recipe=absolute,
        output=output.resolve(),
        prompts=None if prompts is None else tuple(dict.fromkeys(prompts)),
        modality=modality,
        outputs=outputs or Outputs(),
        overwrite=overwrite,
    )
    jobs = [replace(job, path=job.path.resolve()) for job in jobs]
    summary = JobSummary("prediction")
    workers = Workers(scheduler=scheduler)
    for outcome in run_parallel(work, jobs, description="Predicting", processes=workers, key=lambda job: job.name):
        if outcome.error is not None:
            summary.failed(outcome.item.name, outcome.error)
        else:
            (summary.done if outcome.result else summary.skipped)(outcome.item.name)
    summary.save(output / "prediction_summary.json")
    return summary


@dataclass(frozen=True, kw_only=True)
class _Work:
    """What a worker does with a scan; it is sent there."""

    recipe: Recipe
    output: Path
    prompts: tuple[str, ...] | None
    modality: str | None
    outputs: Outputs
    overwrite: bool

    def __call__(self, job: ScanJob) -> bool:
        """Predict a scan; ``False`` if it was done already."""
        run = FolderRun(
            output=self.output,
            predictor=_predictor(self.recipe),
            prompts=self.prompts,
            modality=self.modality,
            outputs=self.outputs,
            overwrite=self.overwrite,
        )
        return predict_one(run, job)


def _predictor(recipe: Recipe) -> Predictor:
    key = repr(recipe)
    with _loading:
        if key not in _loaded:
            _loaded.clear()  # one model at a time
            _loaded[key] = recipe.make()
        return _loaded[key]
