"""Score a folder of predictions against references.

Leaving a prediction out does not pay: a case without a usable prediction counts as a failure, and every class that its
reference shows scores 0. Classes that its reference does not show are left out, so that a failure is never rewarded for
finding nothing.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from satunet.errors import DatasetError, ScanError, UserError
from satunet.evaluation.scoring.masks import (
    FolderMasks,
    LabelMapMasks,
    Masks,
    PredictedLabels,
    holds_masks,
    mask_folder,
    require_own,
)
from satunet.evaluation.scoring.metrics import Scores, score_class
from satunet.evaluation.scoring.predictions import Found, ambiguous, find_predictions
from satunet.evaluation.scoring.rules import Rules
from satunet.evaluation.scoring.scores import Evaluation, Row
from satunet.geometry import Grid
from satunet.images.image import list_images, read_label_map, strip_ending
from satunet.jobs.progress import JobSummary, run_parallel
from satunet.jobs.workers import Workers, is_out_of_memory, reason_of
from satunet.labels.scored import ScoredClass, ScoredClasses

logger = logging.getLogger(__name__)

NOT_SCORED = "not scored"
"""Beginning of the reason for a failure that the prediction did not cause."""

_BYTES_PER_VOXEL = 11
"""Memory for scoring, as measured: two label maps of two bytes per voxel, and a class that fills them."""


def evaluate_cases(
    references: Mapping[str, Path],
    predictions: Path,
    classes: ScoredClasses,
    *,
    predicted: ScoredClasses | None = None,
    channels: Collection[int] | None = None,
    rules: Rules | None = None,
    processes: int | Workers = 1,
) -> tuple[Evaluation, JobSummary]:
    """Score the predictions of some cases.

    Args:
        references: Case → label map, or folder with a mask for each class; a class without a mask in the folder was not
            annotated there and is not scored.
        predictions: Folder of label maps or of folders of masks; :mod:`satunet.evaluation.scoring.predictions`
            describes how they are matched to cases, :mod:`satunet.evaluation.scoring.masks` where their ids come from.
        classes: The classes, with their ids in reference label maps, and the ids that a label map may hold.
        predicted: The same for predicted label maps with ids of their own; they take precedence over a legend.
        channels: Channels of which each case must have a prediction; by default one prediction is enough.
        rules: Rules of scoring.
        processes: Number of worker processes, or workers of another kind.

    Returns:
        All scores and the outcome for each scan; the exit code is 1 if a prediction was missing or could not be used.

    Raises:
        UserError: There are no classes, no references, or no folder of predictions.
    """
    rules = rules or Rules()
    if not classes.classes:
        raise UserError("no classes to evaluate were given")
    if not references:
        raise UserError("no reference label maps to evaluate against were given")
    if not predictions.is_dir():
        raise UserError(f"{predictions}: there is no such folder of predictions")
    unknown = sorted(set(rules.tolerances_mm) - set(classes.names))
    if unknown:
        logger.warning("tolerances were given for %s, which are not classes here", ", ".join(unknown))
    started = time.monotonic()
    found, others = find_predictions(predictions, references.keys())
    if others:
        logger.warning("%s: %d entries belong to no case, such as %s", predictions, len(others), others[0].name)
    settings = _Settings(classes=classes, predicted=predicted, rules=rules)
    tasks = [
        _Task(case=case, reference=file, predictions=tuple(found[case]), folder=predictions,
              channels=None if channels is None else tuple(channels), settings=settings)
        for case, file in references.items()
    ]  # fmt: skip
    rows: dict[str, tuple[Row, ...]] = {}
    failures: dict[str, str] = {}
    for outcome in run_parallel(
        _score_case, tasks, description="Scoring", processes=processes, key=lambda t: t.case, needs=_memory
    ):
        if outcome.result is None:
            assert outcome.error is not None
            failures[outcome.item.case] = f"{NOT_SCORED}: {reason_of(outcome.error)}"
        else:
            rows[outcome.item.case], errors = outcome.result
            failures |= errors
    for scan, reason in failures.items():
        logger.error("%s: %s", scan, reason)
    evaluation = Evaluation(
        rows=tuple(row for case in references for row in rows.get(case, ())),
        classes=classes.classes,
        cases=tuple(references),
        failures=dict(sorted(failures.items())),
        rules=rules.comparable(),
    )
    summary = evaluation.job_summary()
    summary.started = started
    return evaluation, summary


def references_in(folder: Path) -> dict[str, Path]:
    """References of a folder: case → label map, or case → folder of masks where there are no label maps.

    Raises:
        DatasetError: There is no such folder, no reference, or a case has two label maps.
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
        inside = sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
        files = {p.name: p for p in inside if holds_masks(p)}
    if not files:
        raise DatasetError(
            f"{folder}: there are no references here; expected label maps such as <case>.nii.gz, or one folder of masks per case"
        )
    return files


@dataclass(frozen=True, kw_only=True)
class _Settings:
    classes: ScoredClasses
    predicted: ScoredClasses | None
    rules: Rules


@dataclass(frozen=True, kw_only=True)
class _Task:
    case: str
    reference: Path
    predictions: tuple[Found, ...]
    folder: Path
    channels: tuple[int, ...] | None
    settings: _Settings


class _Reference:
    """The reference of a case, and everything that its scans need from it.

    In a NIfTI file, neighbours along the first axis are adjacent in memory. Scores do not depend on the order of axes,
    so volumes are used with their axes in reverse order, and everything runs along memory.
    """

    def __init__(self, path: Path, settings: _Settings) -> None:
        self.masks: Masks
        self.ignored: NDArray[np.bool_] | None = None
        self.transposed = False
        if path.is_dir():
            self.masks = folder = FolderMasks(path, classes=settings.classes, trust_shape=settings.rules.trust_shape)
            self.grid: Grid = folder.grid
        else:
            image = read_label_map(path, allowed_ids=settings.classes.allowed_ids)
            self.grid = image.grid
            self.transposed = not image.array.flags.c_contiguous
            labels = image.array.T if self.transposed else image.array
            self.masks = LabelMapMasks(labels, settings.classes.ids)
            if settings.classes.ignore_id is not None:
                self.ignored = labels == settings.classes.ignore_id
        self.ml = self.grid.voxel_ml
        self.classes = [c for c in settings.classes.classes if self.masks.knows(c.name)]
        self.folder = path.parent
        # The columns of an oblique affine have lengths such as 1.0000001 mm; at a tolerance of 1 mm that would turn a
        # surface one voxel away from close to far.
        x, y, z = (float(f"{s:.5g}") for s in self.grid.spacing_mm)
        self.spacing_mm = (z, y, x) if self.transposed else (x, y, z)


def _memory(task: _Task) -> int:
    """Bytes that a case needs, from the header of its reference, or of one of its masks."""
    from satunet.images.image import read_grid

    path = task.reference
    if path.is_dir():
        path = list_images(mask_folder(path))[0]
    return _BYTES_PER_VOXEL * math.prod(read_grid(path).shape)


def _score_case(task: _Task) -> tuple[tuple[Row, ...], dict[str, str]]:
    """Rows and failures of one case; an error of the reference itself is raised."""
    reference = _Reference(task.reference, task.settings)
    rows: list[Row] = []
    failures: dict[str, str] = {}
    contradiction = ambiguous(task.predictions)
    if contradiction is not None or not task.predictions:
        reason = contradiction or f"no prediction in {task.folder}"
        # Each expected scan gets its rows, so that the case keeps its weight in a mean.
        missing = [task.case] if len(task.channels or ()) < 2 else [f"{task.case}_{c:04d}" for c in task.channels or ()]
        every = [row for scan in missing for row in _failed_rows(task.case, scan, reference, task.settings, reason)]
        return tuple(every), dict.fromkeys(missing, reason)
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
            if is_out_of_memory(error):  # no fault of the prediction
                raise
            failures[scan] = reason_of(error)
            scan_rows = _failed_rows(task.case, scan, reference, task.settings, failures[scan])
        failures |= {f"{scan}: {r.class_name}": r.error for r in scan_rows if r.error and scan not in failures}
        rows += scan_rows
    return tuple(rows), failures


def _score_scan(found: Found, reference: _Reference, settings: _Settings) -> list[Row]:
    predicted = _predicted(found, reference, settings)
    rows = []
    for scored in reference.classes:
        name = scored.name
        try:
            if not predicted.knows(name):
                if isinstance(predicted, FolderMasks):
                    predicted.whole(name)  # says which file is missing
                raise ScanError(found.path, "the legend of the prediction does not list this class")
            scores = score_class(
                reference.masks, predicted, name, reference.spacing_mm, settings.rules,
                lesion=scored.lesion, ignored=reference.ignored,
            )  # fmt: skip
        except ScanError as error:
            if is_out_of_memory(error):
                raise
            rows.append(_failed_row(found.case, found.scan, scored, reference, settings, str(error)))
        else:
            rows.append(_row(found, name, scores, reference))
    return rows


def _predicted(found: Found, reference: _Reference, settings: _Settings) -> Masks:
    if found.path.is_dir():
        return FolderMasks(
            found.path,
            reference.grid,
            classes=settings.classes,
            transposed=reference.transposed,
            references=reference.folder,
            trust_shape=settings.rules.trust_shape,
        )
    require_own(found.path, reference.folder)
    return PredictedLabels(
        found.path,
        reference.grid,
        settings.classes,
        predicted=settings.predicted,
        transposed=reference.transposed,
        trust_shape=settings.rules.trust_shape,
    )


def _row(found: Found, name: str, scores: Scores, reference: _Reference) -> Row:
    lesions = scores.lesions
    return Row(
        case=found.case,
        scan=found.scan,
        class_name=name,
        dsc=scores.dsc,
        nsd=scores.nsd,
        hd95_mm=scores.hd95_mm,
        assd_mm=scores.assd_mm,
        lesion_f1=scores.lesion_f1,
        panoptic_quality=scores.panoptic_quality,
        reference_ml=scores.reference_voxels * reference.ml,
        prediction_ml=scores.prediction_voxels * reference.ml,
        lesions=math.nan if lesions is None else lesions.reference,
        lesions_found=math.nan if lesions is None else lesions.found,
        lesions_predicted=math.nan if lesions is None else lesions.predicted,
        lesions_false=math.nan if lesions is None else lesions.false,
    )


def _failed_rows(case: str, scan: str, reference: _Reference, settings: _Settings, reason: str) -> list[Row]:
    return [_failed_row(case, scan, scored, reference, settings, reason) for scored in reference.classes]


def _failed_row(
    case: str, scan: str, scored: ScoredClass, reference: _Reference, settings: _Settings, reason: str
) -> Row:
    box = reference.masks.box(scored.name)
    voxels = 0 if box is None else int(np.count_nonzero(reference.masks.mask(scored.name, box)))
    score = 0.0 if voxels else math.nan
    distance = settings.rules.absence.distance_mm(voxels, 0) if voxels and settings.rules.distances else math.nan
    return Row(
        case=case,
        scan=scan,
        class_name=scored.name,
        dsc=score,
        nsd=score,
        hd95_mm=distance,
        assd_mm=distance,
        lesion_f1=score if scored.lesion else math.nan,
        panoptic_quality=score if scored.lesion else math.nan,
        reference_ml=voxels * reference.ml,
        prediction_ml=0.0,
        error=reason,
    )
