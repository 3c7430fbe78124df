"""Score a folder of predictions against a folder of references.

Nothing is scored only because it exists: a case without a usable prediction is a counted failure, and every class that
its reference holds scores 0; classes that its reference does not hold are left out there, so that a failure is never
rewarded for finding nothing.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from satunet.errors import DatasetError, ScanError, UserError
from satunet.evaluation.metrics import AbsencePolicy, LabelIndex, Scores, absence_policy, score_label_maps, score_masks
from satunet.evaluation.predictions import Found, PredictedLabels, PredictedMasks, ambiguous, find_predictions
from satunet.evaluation.scores import Evaluation, Row
from satunet.geometry import Grid
from satunet.imageio import list_images, read_label_map, strip_ending
from satunet.progress import JobSummary, run_parallel

logger = logging.getLogger(__name__)


def evaluate_folder(
    predictions: Path,
    references: Path,
    classes: Mapping[str, Sequence[int]],
    *,
    prediction_classes: Mapping[str, Sequence[int]] | None = None,
    channels: Collection[int] | None = None,
    allowed_ids: Collection[int] | None = None,
    ignore_id: int | None = None,
    tolerance_mm: float = 1.0,
    policy: str | AbsencePolicy = "sat",
    processes: int = 1,
) -> Evaluation:
    """Score every case of a folder of references; :func:`evaluate_cases` tells the rest.

    Args:
        predictions: Label maps or folders of masks.
        references: Label maps ``<case>.<ending>``, as in nnU-Net's ``labelsTr`` and ``labelsTs``.
        classes: Class → ids whose union it is, in the references.

    Other arguments are those of :func:`evaluate_cases`.

    Raises:
        UserError: As in :func:`evaluate_cases`.
        DatasetError: No references in the folder.
    """
    evaluation, _ = evaluate_cases(
        references_in(references),
        predictions,
        classes,
        prediction_classes=prediction_classes,
        channels=channels,
        allowed_ids=allowed_ids,
        ignore_id=ignore_id,
        tolerance_mm=tolerance_mm,
        policy=policy,
        processes=processes,
    )
    return evaluation


def evaluate_cases(
    references: Mapping[str, Path],
    predictions: Path,
    classes: Mapping[str, Sequence[int]],
    *,
    prediction_classes: Mapping[str, Sequence[int]] | None = None,
    channels: Collection[int] | None = None,
    allowed_ids: Collection[int] | None = None,
    ignore_id: int | None = None,
    tolerance_mm: float = 1.0,
    policy: str | AbsencePolicy = "sat",
    processes: int = 1,
) -> tuple[Evaluation, JobSummary]:
    """Score the predictions of some cases.

    Args:
        references: Case → label map.
        predictions: Label maps or folders of masks; how they are matched to cases and where their ids come from is
            told in :mod:`satunet.evaluation.predictions`.
        classes: Class → ids whose union it is, in the references.
        prediction_classes: The same for predicted label maps; goes before a legend beside them.
        channels: Channels that each case must have a prediction of; without it, one prediction is enough.
        allowed_ids: Ids that a label map may hold; if not given, a prediction may hold those of the classes.
        ignore_id: Reference id of voxels that nobody labelled.
        tolerance_mm: Tolerance of NSD.
        policy: Absence policy or its name.
        processes: Worker processes.

    Returns:
        All scores, and what became of each scan: its exit code is 1 if a prediction was missing or could not be used.

    Raises:
        UserError: No classes or references, an unknown policy, a wrong tolerance, no folder of predictions.
    """
    rule = absence_policy(policy)
    if not classes:
        raise UserError("no classes to evaluate were given")
    if not (math.isfinite(tolerance_mm) and tolerance_mm >= 0):
        raise UserError(f"tolerance_mm must be a number that is not negative, got {tolerance_mm}")
    if not references:
        raise UserError("no reference label maps to evaluate against were given")
    if not predictions.is_dir():
        raise UserError(f"{predictions}: no such folder of predictions")
    started = time.monotonic()
    found, others = find_predictions(predictions, references.keys())
    if others:
        logger.warning("%s: %d entries belong to no case, such as %s", predictions, len(others), others[0].name)
    settings = _Settings(
        classes={name: tuple(ids) for name, ids in classes.items()},
        prediction_classes=None
        if prediction_classes is None
        else {name: tuple(ids) for name, ids in prediction_classes.items()},
        allowed_ids=None if allowed_ids is None else tuple(allowed_ids),
        ignore_id=ignore_id,
        tolerance_mm=tolerance_mm,
        policy=rule,
    )
    tasks = [
        _Task(case=case, reference=file, predictions=tuple(found[case]), folder=predictions,
              channels=None if channels is None else tuple(channels), settings=settings)
        for case, file in references.items()
    ]  # fmt: skip
    rows: dict[str, tuple[Row, ...]] = {}
    failures: dict[str, str] = {}
    for outcome in run_parallel(
        _score_case, tasks, description="Evaluating", processes=processes, key=lambda t: t.case
    ):
        if outcome.result is None:
            failures[outcome.item.case] = f"not scored: {outcome.error}"
        else:
            rows[outcome.item.case], errors = outcome.result
            failures |= errors
    for scan, reason in failures.items():
        logger.error("%s: %s", scan, reason)
    evaluation = Evaluation(
        rows=tuple(row for case in references for row in rows.get(case, ())),
        classes=tuple(classes),
        cases=tuple(references),
        failures=dict(sorted(failures.items())),
        tolerance_mm=tolerance_mm,
        policy=rule.name,
    )
    summary = evaluation.job_summary()
    summary.started = started
    return evaluation, summary


def references_in(folder: Path) -> dict[str, Path]:
    """Label maps of a folder: case → file.

    Raises:
        DatasetError: No such folder, no label maps, or two of one case.
    """
    if not folder.is_dir():
        raise DatasetError(f"{folder}: no such folder of reference label maps")
    files: dict[str, Path] = {}
    for path in list_images(folder):
        case = strip_ending(path.name)
        if case in files:
            raise DatasetError(f"{folder}: two reference label maps of one case: {files[case].name}, {path.name}")
        files[case] = path
    if not files:
        raise DatasetError(f"{folder}: no reference label maps here; expected are files such as <case>.nii.gz")
    return files


@dataclass(frozen=True, kw_only=True)
class _Settings:
    classes: dict[str, tuple[int, ...]]
    prediction_classes: dict[str, tuple[int, ...]] | None
    allowed_ids: tuple[int, ...] | None
    ignore_id: int | None
    tolerance_mm: float
    policy: AbsencePolicy


@dataclass(frozen=True, kw_only=True)
class _Task:
    case: str
    reference: Path
    predictions: tuple[Found, ...]
    folder: Path
    channels: tuple[int, ...] | None
    settings: _Settings


class _Reference:
    """A reference map and what every scan of its case needs of it."""

    def __init__(self, path: Path, settings: _Settings) -> None:
        image = read_label_map(path, allowed_ids=settings.allowed_ids)
        self.grid: Grid = image.grid
        self.array = image.array
        self.index = LabelIndex(image.array)
        self.ml = image.grid.voxel_ml
        # The columns of an oblique affine have lengths such as 1.0000001 mm; at a tolerance of 1 mm that would turn a
        # surface one voxel away from close to far.
        x, y, z = (float(f"{s:.5g}") for s in image.grid.spacing_mm)
        self.spacing_mm = (x, y, z)


def _score_case(task: _Task) -> tuple[tuple[Row, ...], dict[str, str]]:
    """Rows and failures of one case; an error of the reference itself is raised."""
    reference = _Reference(task.reference, task.settings)
    rows: list[Row] = []
    failures: dict[str, str] = {}
    contradiction = ambiguous(task.predictions)
    if contradiction is not None or not task.predictions:
        reason = contradiction or f"no prediction in {task.folder}"
        return tuple(_failed_rows(task.case, task.case, reference, task.settings, reason)), {task.case: reason}
    scans: list[tuple[str, Found | None]] = [(p.scan, p) for p in task.predictions]
    there = {p.channel for p in task.predictions}
    if task.channels is not None and None not in there:
        scans += [(f"{task.case}_{c:04d}", None) for c in task.channels if c not in there]
    for scan, found in scans:
        try:
            if found is None:
                raise UserError(f"no prediction of this channel in {task.folder}")
            scan_rows = _score_scan(found, reference, task.settings)
        except Exception as error:  # whatever is wrong with a prediction, it counts as a failure and scores 0
            reason = str(error) if isinstance(error, (ScanError, UserError)) else f"{type(error).__name__}: {error}"
            failures[scan] = reason
            scan_rows = _failed_rows(task.case, scan, reference, task.settings, reason)
        failures |= {f"{scan}: {r.class_name}": r.error for r in scan_rows if r.error and scan not in failures}
        rows += scan_rows
    return tuple(rows), failures


def _score_scan(found: Found, reference: _Reference, settings: _Settings) -> list[Row]:
    if found.path.is_dir():
        return _score_mask_folder(found, reference, settings)
    fixed = settings.prediction_classes is not None
    predicted = PredictedLabels(
        found.path,
        reference.grid,
        settings.prediction_classes if settings.prediction_classes is not None else settings.classes,
        allowed_ids=None if fixed else settings.allowed_ids,
        fixed=fixed,
    )
    missing = [c for c in settings.classes if c not in predicted.classes]
    scores = score_label_maps(
        reference.array,
        predicted.array,
        reference.spacing_mm,
        {name: ids for name, ids in settings.classes.items() if name not in missing},
        prediction_classes=predicted.classes,
        ignore_id=settings.ignore_id,
        tolerance_mm=settings.tolerance_mm,
        policy=settings.policy,
    )
    reason = f"{found.path.name}: the legend of the prediction does not list this class"
    return [
        _row(found, name, scores[name], reference)
        if name in scores
        else _failed_row(found.case, found.scan, name, reference, settings, reason)
        for name in settings.classes
    ]


def _score_mask_folder(found: Found, reference: _Reference, settings: _Settings) -> list[Row]:
    masks = PredictedMasks(found.path, reference.grid)
    whole = (slice(None), slice(None), slice(None))
    ignored = None if settings.ignore_id is None else reference.array == settings.ignore_id
    rows = []
    for name, ids in settings.classes.items():
        try:
            mask = masks.mask(name)
        except ScanError as error:
            rows.append(_failed_row(found.case, found.scan, name, reference, settings, str(error)))
            continue
        if ignored is not None:
            mask &= ~ignored
        scores = score_masks(
            reference.index.mask(ids, whole),
            mask,
            reference.spacing_mm,
            tolerance_mm=settings.tolerance_mm,
            policy=settings.policy,
        )
        rows.append(_row(found, name, scores, reference))
    return rows


def _row(found: Found, name: str, scores: Scores, reference: _Reference) -> Row:
    return Row(
        case=found.case,
        scan=found.scan,
        class_name=name,
        dsc=scores.dsc,
        nsd=scores.nsd,
        reference_ml=scores.reference_voxels * reference.ml,
        prediction_ml=scores.prediction_voxels * reference.ml,
    )


def _failed_rows(case: str, scan: str, reference: _Reference, settings: _Settings, reason: str) -> list[Row]:
    return [_failed_row(case, scan, name, reference, settings, reason) for name in settings.classes]


def _failed_row(case: str, scan: str, name: str, reference: _Reference, settings: _Settings, reason: str) -> Row:
    ids = settings.classes[name]
    box = reference.index.box(ids)
    voxels = 0 if box is None else int(np.count_nonzero(reference.index.mask(ids, box)))
    score = 0.0 if voxels else math.nan
    return Row(
        case=case,
        scan=scan,
        class_name=name,
        dsc=score,
        nsd=score,
        reference_ml=voxels * reference.ml,
        prediction_ml=0.0,
        error=reason,
    )
