"""Score a folder of predictions against a folder of references.

Nothing is scored only because it exists: a case without a usable prediction is a counted failure, and every class that
its reference holds scores 0; classes that its reference does not hold are left out there, so that a failure is never
rewarded for finding nothing.
"""

from __future__ import annotations

import csv
import io
import logging
import math
import statistics
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from satunet.errors import DatasetError, ScanError, UserError
from satunet.evaluation.metrics import AbsencePolicy, LabelIndex, Scores, absence_policy, score_label_maps, score_masks
from satunet.evaluation.predictions import Found, PredictedLabels, PredictedMasks, ambiguous, find_predictions
from satunet.files import read_json, write_json, write_text
from satunet.geometry import Grid
from satunet.imageio import list_images, read_label_map, strip_ending
from satunet.progress import JobSummary, run_parallel

logger = logging.getLogger(__name__)

EVALUATION_VERSION = 1
METRICS = ("dsc", "nsd")
_COLUMNS = ("case", "scan", "class", "dsc", "nsd", "reference_ml", "prediction_ml", "error")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One class in one scan.

    Attributes:
        case: The case.
        scan: Name of the prediction; the case's if there is none.
        class_name: The class.
        dsc: Dice similarity coefficient, ``nan`` if left out.
        nsd: Normalised surface Dice, ``nan`` if left out.
        reference_ml: Volume in the reference, in millilitres.
        prediction_ml: Volume in the prediction, in millilitres.
        error: Why there is no usable prediction; empty if there is one.
    """

    case: str
    scan: str
    class_name: str
    dsc: float
    nsd: float
    reference_ml: float
    prediction_ml: float
    error: str = ""

    def metric(self, name: str) -> float:
        """A score by name."""
        return self.dsc if name == "dsc" else self.nsd


@dataclass(frozen=True, kw_only=True)
class ClassSummary:
    """One class over all scans of a folder; the scores are ``nan`` if no scan counts.

    Attributes:
        class_name: The class.
        scored: Scans that count.
        present: Scans whose reference holds the class.
        dsc: Mean.
        dsc_sd: Standard deviation, ``nan`` below two scans.
        dsc_median: Median.
        dsc_min: Worst.
        nsd: As for DSC.
        nsd_sd: As for DSC.
        nsd_median: As for DSC.
        nsd_min: As for DSC.
    """

    class_name: str
    scored: int
    present: int
    dsc: float
    dsc_sd: float
    dsc_median: float
    dsc_min: float
    nsd: float
    nsd_sd: float
    nsd_median: float
    nsd_min: float

    def metric(self, name: str) -> float:
        """A mean by name."""
        return self.dsc if name == "dsc" else self.nsd


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Every score of a folder of predictions.

    Attributes:
        rows: A row a scan and class.
        classes: The classes, in the order they were given.
        cases: Names of the cases that were to be scored.
        failures: Scan (or ``scan: class``) → why its prediction could not be used.
        tolerance_mm: Tolerance of NSD.
        policy: Name of the absence policy.
    """

    rows: tuple[Row, ...]
    classes: tuple[str, ...]
    cases: tuple[str, ...]
    failures: dict[str, str]
    tolerance_mm: float
    policy: str

    @cached_property
    def class_summaries(self) -> tuple[ClassSummary, ...]:
        """A summary a class, in the order of :attr:`classes`."""
        by_class: dict[str, list[Row]] = {name: [] for name in self.classes}
        for row in self.rows:
            by_class[row.class_name].append(row)
        return tuple(_summarise(name, rows) for name, rows in by_class.items())

    def mean(self, metric: str) -> float:
        """Mean over classes of the mean over scans; ``nan`` if nothing counts."""
        return mean_of(s.metric(metric) for s in self.class_summaries)

    @property
    def exit_code(self) -> int:
        """0 if every prediction could be used, else 1."""
        return 1 if self.failures else 0

    def job_summary(self) -> JobSummary:
        """The same as counts of cases, for the terminal."""
        summary = JobSummary("evaluation")
        failed = {key.split(":", 1)[0] for key in self.failures}
        scans = dict.fromkeys(r.scan for r in self.rows)
        summary.done_items += [s for s in scans if s not in failed]
        summary.failures |= self.failures
        for metric in METRICS:
            summary.note(f"mean {metric.upper()}", f"{self.mean(metric):.4f}")
        return summary

    def save(self, folder: Path) -> None:
        """Write ``per_case.csv``, ``per_class.csv`` and ``summary.json``."""
        rows = [
            (r.case, r.scan, r.class_name, r.dsc, r.nsd, r.reference_ml, r.prediction_ml, r.error) for r in self.rows
        ]
        write_csv(folder / "per_case.csv", _COLUMNS, rows)
        fields = tuple(ClassSummary.__dataclass_fields__)
        write_csv(
            folder / "per_class.csv",
            ("class", *fields[1:]),
            [tuple(getattr(s, f) for f in fields) for s in self.class_summaries],
        )
        content = {
            "version": EVALUATION_VERSION,
            "tolerance_mm": self.tolerance_mm,
            "policy": self.policy,
            "cases": list(self.cases),
            "classes": list(self.classes),
            "mean": {m: _finite(self.mean(m)) for m in METRICS},
            "failures": self.failures,
            "per_class": {s.class_name: {f: _finite(getattr(s, f)) for f in fields[1:]} for s in self.class_summaries},
        }
        write_json(folder / "summary.json", content)

    @classmethod
    def load(cls, folder: Path) -> Evaluation:
        """Read what :meth:`save` wrote.

        Raises:
            UserError: Not the results of an evaluation, or of another version.
        """
        try:
            content = read_json(folder / "summary.json")
            if content["version"] != EVALUATION_VERSION:
                raise UserError(
                    f"{folder}: evaluation version {content['version']!r}; this satunet reads {EVALUATION_VERSION}"
                )
            with (folder / "per_case.csv").open(encoding="utf-8", newline="") as stream:
                rows = [_read_row(record) for record in csv.DictReader(stream)]
            return cls(
                rows=tuple(rows),
                classes=tuple(content["classes"]),
                cases=tuple(content["cases"]),
                failures=dict(content["failures"]),
                tolerance_mm=float(content["tolerance_mm"]),
                policy=str(content["policy"]),
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(f"{folder}: not the results of an evaluation ({type(error).__name__}: {error})") from error


def evaluate_folder(
    predictions: Path,
    references: Path,
    classes: Mapping[str, Sequence[int]],
    *,
    prediction_classes: Mapping[str, Sequence[int]] | None = None,
    cases: Collection[str] | None = None,
    channels: Collection[int] | None = None,
    allowed_ids: Collection[int] | None = None,
    ignore_id: int | None = None,
    tolerance_mm: float = 1.0,
    policy: str | AbsencePolicy = "sat",
    processes: int = 1,
) -> Evaluation:
    """Score every case of a folder of references.

    Args:
        predictions: Label maps or folders of masks; how they are matched to cases and where their ids come from is
            told in :mod:`satunet.evaluation.predictions`.
        references: Label maps ``<case>.<ending>``, as in nnU-Net's ``labelsTr`` and ``labelsTs``.
        classes: Class → ids whose union it is, in the references.
        prediction_classes: The same for predicted label maps; goes before a legend beside them.
        cases: Which cases to score; all if not given.
        channels: Channels that each case must have a prediction of; without it, one prediction is enough.
        allowed_ids: Ids that a label map may hold; if not given, a prediction may hold those of the classes.
        ignore_id: Reference id of voxels that nobody labelled.
        tolerance_mm: Tolerance of NSD.
        policy: Absence policy or its name.
        processes: Worker processes.

    Returns:
        All scores; ``exit_code`` is 1 if any prediction was missing or could not be used.

    Raises:
        UserError: No classes, an unknown policy, or a wrong tolerance.
        DatasetError: No references, or a case that is asked for has none.
    """
    rule = absence_policy(policy)
    if not classes:
        raise UserError("no classes to evaluate were given")
    if not (math.isfinite(tolerance_mm) and tolerance_mm >= 0):
        raise UserError(f"tolerance_mm must be a number that is not negative, got {tolerance_mm}")
    files = _reference_files(references, cases)
    found, others = find_predictions(predictions, files.keys())
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
        for case, file in files.items()
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
    return Evaluation(
        rows=tuple(row for case in files for row in rows.get(case, ())),
        classes=tuple(classes),
        cases=tuple(files),
        failures=dict(sorted(failures.items())),
        tolerance_mm=tolerance_mm,
        policy=rule.name,
    )


def mean_of(values: Any) -> float:
    """Mean of the numbers that are not ``nan``; ``nan`` if there is none."""
    numbers = [float(v) for v in values if not math.isnan(v)]
    return math.fsum(numbers) / len(numbers) if numbers else math.nan


def write_csv(path: Path, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Write a CSV file whole; numbers with eight significant digits, ``nan`` as an empty cell."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([_cell(v) for v in row] for row in rows)
    write_text(path, stream.getvalue())


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


def _reference_files(folder: Path, cases: Collection[str] | None) -> dict[str, Path]:
    if not folder.is_dir():
        raise DatasetError(f"{folder}: no such folder of reference label maps")
    files: dict[str, Path] = {}
    for path in list_images(folder):
        case = strip_ending(path.name)
        if case in files:
            raise DatasetError(f"{folder}: two reference label maps of one case: {files[case].name}, {path.name}")
        files[case] = path
    if cases is not None:
        missing = sorted(set(cases) - set(files))
        if missing:
            raise DatasetError(f"{folder}: no reference label map of {', '.join(missing[:5])}")
        files = {case: path for case, path in files.items() if case in set(cases)}
    if not files:
        raise DatasetError(f"{folder}: no reference label maps here; expected are files such as <case>.nii.gz")
    return files


def _summarise(name: str, rows: Sequence[Row]) -> ClassSummary:
    values: dict[str, float] = {}
    scored = [r for r in rows if not math.isnan(r.dsc)]
    for metric in METRICS:
        numbers = [r.metric(metric) for r in scored]
        values[metric] = mean_of(numbers)
        values[f"{metric}_sd"] = statistics.stdev(numbers) if len(numbers) > 1 else math.nan
        values[f"{metric}_median"] = statistics.median(numbers) if numbers else math.nan
        values[f"{metric}_min"] = min(numbers, default=math.nan)
    present = sum(r.reference_ml > 0 for r in rows)
    return ClassSummary(class_name=name, scored=len(scored), present=present, **values)


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and math.isnan(value) else value


def _cell(value: Any) -> Any:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    return f"{value:.8g}" if isinstance(value, float) else value


def _read_row(record: dict[str, str]) -> Row:
    numbers = {key: float(record[key]) if record[key] else math.nan for key in _COLUMNS[3:7]}
    return Row(case=record["case"], scan=record["scan"], class_name=record["class"], error=record["error"], **numbers)
