"""Score a folder of predictions against a folder of references.

A prediction of a case is one of

- a label map ``<case>.<ending>`` with the reference's ids, or with the ids of a legend ``<case>.json`` beside it
  (``{"labels": {class: id}}``);
- a folder ``<case>/`` with a mask a class, ``<class with _ for spaces>.<ending>``.

A prediction that is missing or does not fit is an error: it is counted, shown, and scores 0 for every class that
the reference shows. Scoring only what happens to exist would reward a method for failing.
"""

from __future__ import annotations

import csv
import io
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from satunet.errors import GridMismatchError, MissingFileError, ScanError, UserError
from satunet.files import mask_file_name, read_json, write_json, write_text
from satunet.geometry import same_grid
from satunet.imageio import IMAGE_ENDINGS, Image, list_images, read_label_map, strip_ending
from satunet.evaluation.metrics import POLICIES, LabelMapClasses, MaskClasses, score_class
from satunet.progress import JobSummary, run_parallel

logger = logging.getLogger(__name__)

EVALUATION_VERSION = 1
Classes = Mapping[str, Sequence[int]]


@dataclass(frozen=True, kw_only=True)
class Score:
    """One class of one case.

    Attributes:
        case: Identifier.
        name: Class.
        dsc: Dice similarity coefficient or NaN.
        nsd: Normalised surface Dice or NaN.
        reference_ml: Volume of the reference.
        prediction_ml: Volume of the prediction.
        error: Why the prediction could not be scored, or empty.
    """

    case: str
    name: str
    dsc: float
    nsd: float
    reference_ml: float
    prediction_ml: float
    error: str = ""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Scores of a folder.

    Attributes:
        scores: One a case and class.
        tolerance_mm: Of the NSD.
        policy: Name of the policy for empty masks.
        errors: Case → why its prediction could not be scored.
    """

    scores: tuple[Score, ...]
    tolerance_mm: float
    policy: str
    errors: dict[str, str] = field(default_factory=dict)

    def class_means(self, metric: str = "dsc") -> dict[str, float]:
        """Class → mean over cases, NaN left out; a class with nothing else is NaN."""
        values: dict[str, list[float]] = {}
        for score in self.scores:
            values.setdefault(score.name, []).append(getattr(score, metric))
        return {name: nanmean(v) for name, v in sorted(values.items())}

    def mean(self, metric: str = "dsc") -> float:
        """Mean over classes of the means over cases."""
        return nanmean(list(self.class_means(metric).values()))

    def save(self, folder: Path) -> None:
        """Write ``per_case.csv``, ``per_class.csv`` and ``summary.json``, each whole."""
        rows = [vars(s) for s in self.scores]
        write_text(folder / "per_case.csv", to_csv(rows))
        dsc, nsd = self.class_means("dsc"), self.class_means("nsd")
        write_text(folder / "per_class.csv", to_csv([{"class": n, "dsc": dsc[n], "nsd": nsd[n]} for n in dsc]))
        write_json(
            folder / "summary.json",
            {
                "version": EVALUATION_VERSION,
                "tolerance_mm": self.tolerance_mm,
                "policy": self.policy,
                "cases": len({s.case for s in self.scores}),
                "classes": len(dsc),
                "mean": {"dsc": _json_number(self.mean("dsc")), "nsd": _json_number(self.mean("nsd"))},
                "errors": self.errors,
            },
        )


def evaluate_cases(
    references: Mapping[str, Path],
    predictions: Path,
    classes: Classes,
    *,
    prediction_names: Mapping[str, str] | None = None,
    tolerance_mm: float = 1.0,
    policy: str = "sat",
    processes: int = 1,
) -> tuple[Evaluation, JobSummary]:
    """Score predictions of cases.

    Args:
        references: Case → label map.
        predictions: Folder of predictions.
        classes: Class → ids in the references.
        prediction_names: Case → name of its prediction, where it differs from the case.
        tolerance_mm: Of the NSD.
        policy: Name in :data:`~satunet.evaluation.metrics.POLICIES`.
        processes: Worker processes.

    Returns:
        The scores, and what became of each case.

    Raises:
        UserError: Nothing to score, or an unknown policy.
    """
    if policy not in POLICIES:
        raise UserError(f"policy {policy!r}; allowed are {', '.join(POLICIES)}")
    if not references or not classes:
        raise UserError(f"nothing to score: {len(references)} references, {len(classes)} classes")
    if not predictions.is_dir():
        raise UserError(f"{predictions}: no such folder of predictions")
    names = prediction_names or {}
    jobs = [
        _Job(case=c, reference=r, predictions=predictions, name=names.get(c, c), classes=dict(classes),
             tolerance_mm=tolerance_mm, policy=policy)
        for c, r in sorted(references.items())
    ]  # fmt: skip
    summary = JobSummary("evaluation")
    scores: list[Score] = []
    errors: dict[str, str] = {}
    for outcome in run_parallel(_score_case, jobs, description="Scoring", processes=processes, key=lambda j: j.case):
        case = outcome.item.case
        if outcome.result is None:
            # Not even the reference could be read: there is nothing to score 0 against.
            errors[case] = str(outcome.error)
            summary.failed(case, outcome.error or "unknown error")
            continue
        scores += outcome.result
        reason = next((s.error for s in outcome.result if s.error), "")
        if reason:
            errors[case] = reason
            summary.failed(case, reason)
        else:
            summary.done(case)
    scores.sort(key=lambda s: (s.case, s.name))
    return Evaluation(scores=tuple(scores), tolerance_mm=tolerance_mm, policy=policy, errors=errors), summary


def references_in(folder: Path) -> dict[str, Path]:
    """Case → label map of every image file in a folder.

    Raises:
        UserError: No such folder, no image in it, or one case in two formats.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder of references")
    found: dict[str, Path] = {}
    for path in list_images(folder):
        case = strip_ending(path.name)
        if case in found:
            raise UserError(f"{folder}: the case {case} is there twice: {found[case].name}, {path.name}")
        found[case] = path
    if not found:
        raise UserError(f"{folder}: no label maps here; allowed endings are {', '.join(IMAGE_ENDINGS)}")
    return found


def nanmean(values: Sequence[float]) -> float:
    """Mean of the values that are not NaN; NaN if there are none."""
    kept = [v for v in values if not math.isnan(v)]
    return fmean(kept) if kept else math.nan


def to_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as CSV with a header; full precision."""
    text = io.StringIO()
    if rows:
        writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return text.getvalue()


@dataclass(frozen=True, kw_only=True)
class _Job:
    case: str
    reference: Path
    predictions: Path
    name: str
    classes: dict[str, Sequence[int]]
    tolerance_mm: float
    policy: str


def _score_case(job: _Job) -> list[Score]:
    reference = read_label_map(job.reference)
    truth = LabelMapClasses(reference.array, job.classes)
    policy = POLICIES[job.policy]
    try:
        prediction = _open_prediction(job, reference)
        rows = []
        for name in job.classes:
            score = score_class(
                name, truth, prediction, reference.grid.spacing_mm, tolerance_mm=job.tolerance_mm, policy=policy
            )
            rows.append(Score(case=job.case, name=name, **vars(score)))
        return rows
    except ScanError as error:
        voxel_ml = reference.grid.voxel_ml
        rows = []
        for name in job.classes:
            box = truth.box(name)
            volume = float(np.count_nonzero(truth.mask(name, box))) * voxel_ml if box else 0.0
            value = 0.0 if box else policy.both
            rows.append(Score(case=job.case, name=name, dsc=value, nsd=value, reference_ml=volume, prediction_ml=0.0,
                              error=str(error)))  # fmt: skip
        return rows


def _open_prediction(job: _Job, reference: Image) -> LabelMapClasses | MaskClasses:
    folder = job.predictions / job.name
    if folder.is_dir():
        files = {strip_ending(p.name): p for p in list_images(folder)}
        if not files:
            raise MissingFileError(folder, "the folder holds no mask")

        def load(name: str) -> Any:
            path = files.get(mask_file_name(name))
            if path is None:
                raise MissingFileError(folder / mask_file_name(name), "there is no mask of this class")
            return _fitting(path, reference).array > 0

        return MaskClasses(load)
    for ending in IMAGE_ENDINGS:
        path = job.predictions / f"{job.name}{ending}"
        if path.is_file():
            legend = job.predictions / f"{job.name}.json"
            classes: Mapping[str, Sequence[int]] = job.classes
            if legend.is_file():
                classes = {name: (int(i),) for name, i in read_json(legend)["labels"].items()}
            return LabelMapClasses(_fitting(path, reference).array, classes)
    raise MissingFileError(job.predictions / job.name, "there is no prediction of this case")


def _fitting(path: Path, reference: Image) -> Image:
    image = read_label_map(path)
    if not same_grid(image.grid, reference.grid):
        raise GridMismatchError(path, f"the prediction's shape is {image.grid.shape} and its spacing "
                                f"{image.grid.spacing_mm}; the reference has {reference.grid.shape} and "
                                f"{reference.grid.spacing_mm}")  # fmt: skip
    return image
