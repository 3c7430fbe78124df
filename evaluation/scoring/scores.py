"""Scores of a folder of predictions: rows, their means, and the files that hold them."""

from __future__ import annotations

import csv
import dataclasses
import io
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any

from satunet.errors import EnvironmentProblemError, UserError
from satunet.evaluation.scoring.rules import Rules
from satunet.jobs.file_names import table_cell, text_of_cell
from satunet.jobs.files import atomic_path, read_json, write_json, write_text
from satunet.jobs.fresh import content_hash
from satunet.jobs.progress import JobSummary
from satunet.jobs.records import MALFORMED, from_plain
from satunet.labels.scored import ScoredClass

EVALUATION_VERSION = 4
"""Version of the files and of the meaning of their numbers: a benchmark remakes scores of another version."""
_TABLE = "per_case.csv"
HEADLINE = ("dsc", "nsd")
"""Metrics that are reported first in the field."""
METRICS = (*HEADLINE, "hd95_mm", "assd_mm", "volume_error", "absolute_volume_error", "lesion_f1",
           "panoptic_quality")  # fmt: skip
LOWER_IS_BETTER = frozenset({"hd95_mm", "assd_mm", "absolute_volume_error"})


@dataclass(frozen=True, kw_only=True)
class Row:
    """One class in one scan; a number that was left out, or not asked for, is ``nan``.

    Attributes:
        case: The case.
        scan: Name of the prediction; that of the case if there is none.
        fold: Fold of the models, if there are several.
        class_name: The class.
        dsc: Dice similarity coefficient.
        nsd: Normalised surface Dice.
        hd95_mm: 95th percentile of the Hausdorff distance.
        assd_mm: Average symmetric surface distance.
        lesion_f1: Lesion-wise F1.
        panoptic_quality: Panoptic quality of the lesions.
        lesions: Number of lesions of the reference.
        lesions_found: Number of lesions of the reference that were found.
        lesions_predicted: Number of lesions of the prediction.
        lesions_false: Number of lesions of the prediction that are false.
        reference_ml: Volume in the reference, in millilitres.
        prediction_ml: Volume in the prediction, in millilitres.
        error: Reason why there is no usable prediction; empty if there is one.
    """

    case: str
    scan: str
    fold: str = ""
    class_name: str
    dsc: float
    nsd: float
    hd95_mm: float = math.nan
    assd_mm: float = math.nan
    lesion_f1: float = math.nan
    panoptic_quality: float = math.nan
    lesions: float = math.nan
    lesions_found: float = math.nan
    lesions_predicted: float = math.nan
    lesions_false: float = math.nan
    reference_ml: float
    prediction_ml: float
    error: str = ""

    @property
    def volume_error(self) -> float:
        """(prediction - reference) / reference; ``nan`` where the reference has no volume."""
        return (self.prediction_ml - self.reference_ml) / self.reference_ml if self.reference_ml > 0 else math.nan

    @property
    def absolute_volume_error(self) -> float:
        """The volume error without its sign."""
        return abs(self.volume_error)

    def metric(self, name: str) -> float:
        """A score by name."""
        return float(getattr(self, name))


_TEXTS = ("case", "scan", "fold", "class_name", "error")
_COLUMNS = tuple(f.name for f in fields(Row))
_HEADINGS = {"class_name": "class"}


@dataclass(frozen=True, kw_only=True)
class Spread:
    """A metric over the scans in which it counts; ``nan`` if there is none.

    Attributes:
        n: Number of scans.
        mean: Mean.
        sd: Standard deviation, ``nan`` for fewer than two scans.
        median: Median.
        worst: Worst value.
    """

    n: int
    mean: float
    sd: float
    median: float
    worst: float


@dataclass(frozen=True, kw_only=True)
class ClassSummary:
    """One class over all scans of a folder.

    Attributes:
        class_name: The class.
        scored: Number of scans that count.
        present: Number of scans whose reference shows the class.
        metrics: Metric → its spread.
    """

    class_name: str
    scored: int
    present: int
    metrics: Mapping[str, Spread]

    def metric(self, name: str) -> float:
        """A mean by name."""
        return self.metrics[name].mean


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Every score of a folder of predictions.

    Attributes:
        rows: Rows, one for each scan and class.
        classes: The classes that were scored, with their ids, in the order they were given.
        cases: Names of the cases that were to be scored.
        failures: Scan (or ``scan: class``) → reason why its prediction could not be used.
        rules: Rules of scoring, as :meth:`Rules.comparable` gives them.
    """

    rows: tuple[Row, ...]
    classes: tuple[ScoredClass, ...]
    cases: tuple[str, ...]
    failures: dict[str, str]
    rules: dict[str, Any] = field(default_factory=lambda: Rules().comparable())

    @cached_property
    def class_summaries(self) -> tuple[ClassSummary, ...]:
        """Summaries of all classes, in the order of :attr:`classes`."""
        by_class: dict[str, list[Row]] = {c.name: [] for c in self.classes}
        for row in self.rows:
            by_class[row.class_name].append(row)
        return tuple(_summarise(name, rows) for name, rows in by_class.items())

    def mean(self, metric: str) -> float:
        """Mean over classes of the mean over scans; ``nan`` if nothing counts."""
        return mean_of(s.metric(metric) for s in self.class_summaries)

    def micro_mean(self, metric: str) -> float:
        """Mean over all rows, whatever their class; ``nan`` if nothing counts."""
        return mean_of(row.metric(metric) for row in self.rows)

    @property
    def exit_code(self) -> int:
        """0 if every prediction could be used, else 1."""
        return 1 if self.failures else 0

    def job_summary(self) -> JobSummary:
        """The evaluation as counts of cases, for the terminal."""
        summary = JobSummary("evaluation")
        failed = {key.split(":", 1)[0] for key in self.failures}
        scans = dict.fromkeys(r.scan for r in self.rows)
        summary.done_items += [s for s in scans if s not in failed]
        summary.failures |= self.failures
        return summary

    def save(self, folder: Path, *, parquet: bool = False, extra: Mapping[str, Any] | None = None) -> None:
        """Write ``per_case.csv``, ``per_class.csv`` and ``summary.json``.

        Args:
            folder: Folder to write to.
            parquet: Whether to write ``per_case.parquet`` as well.
            extra: Further entries for ``summary.json``.

        Raises:
            EnvironmentProblemError: Parquet was asked for, but pyarrow is not installed.
        """
        columns = tuple(_HEADINGS.get(c, c) for c in _COLUMNS)
        write_csv(folder / _TABLE, columns, [tuple(getattr(r, c) for c in _COLUMNS) for r in self.rows])
        if parquet:
            self._save_parquet(folder / "per_case.parquet")
        parts = tuple(f.name for f in fields(Spread))
        write_csv(
            folder / "per_class.csv",
            ("class", "scored", "present", *(_column(m, p) for m in METRICS for p in parts)),
            [
                (s.class_name, s.scored, s.present, *(getattr(s.metrics[m], p) for m in METRICS for p in parts))
                for s in self.class_summaries
            ],
        )
        content = {
            "version": EVALUATION_VERSION,
            "rules": self.rules,
            "cases": list(self.cases),
            "classes": [dataclasses.asdict(c) for c in self.classes],
            "rows": len(self.rows),
            "files": {_TABLE: content_hash(folder / _TABLE)},
            "mean": {m: finite(self.mean(m)) for m in METRICS},
            "micro_mean": {m: finite(self.micro_mean(m)) for m in METRICS},
            "failures": self.failures,
            "per_class": {
                s.class_name: {
                    "scored": s.scored,
                    "present": s.present,
                    **{_column(m, p): finite(getattr(s.metrics[m], p)) for m in METRICS for p in parts},
                }
                for s in self.class_summaries
            },
            **(extra or {}),
        }
        write_json(folder / "summary.json", content, sealed=True)  # last: a folder with it is complete

    def _save_parquet(self, path: Path) -> None:
        try:
            import pyarrow
            from pyarrow import parquet
        except ImportError as error:
            raise EnvironmentProblemError("--parquet needs pyarrow: pip install 'satunet[parquet]'") from error
        table = pyarrow.table({
            _HEADINGS.get(c, c): pyarrow.array(
                [getattr(r, c) for r in self.rows], pyarrow.string() if c in _TEXTS else pyarrow.float64()
            )
            for c in _COLUMNS
        })  # fmt: skip
        with atomic_path(path) as temporary:
            parquet.write_table(table, temporary)

    @classmethod
    def load(cls, folder: Path) -> Evaluation:
        """Read what :meth:`save` wrote.

        Raises:
            UserError: The folder has no results of an evaluation, or those of another version.
        """
        try:
            content = read_json(folder / "summary.json")
            if content["version"] != EVALUATION_VERSION:
                raise UserError(
                    f"{folder}: evaluation version {content['version']!r}; this satunet reads {EVALUATION_VERSION}"
                )
            digest = content.get("files", {}).get(_TABLE)
            if digest is not None and digest != content_hash(folder / _TABLE):
                raise ValueError(f"{_TABLE} is damaged: it is not what was written")
            with (folder / _TABLE).open(encoding="utf-8", newline="") as stream:
                rows = [_read_row(record) for record in csv.DictReader(stream)]
            if len(rows) != content.get("rows", len(rows)):
                raise ValueError(f"{_TABLE} has {len(rows)} rows, but {content['rows']} were written")
            classes = tuple(from_plain(c, ScoredClass, source=folder / "summary.json") for c in content["classes"])
            if unknown := {row.class_name for row in rows} - {c.name for c in classes}:
                raise ValueError(f"{_TABLE} has rows of {min(unknown)!r}, which summary.json does not list")
            return cls(
                rows=tuple(rows),
                classes=classes,
                cases=tuple(content["cases"]),
                failures=dict(content["failures"]),
                rules=dict(content["rules"]),
            )
        except (OSError, csv.Error, *MALFORMED) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(f"{folder}: not the results of an evaluation ({type(error).__name__}: {error})") from error


def mean_of(values: Iterable[float]) -> float:
    """Mean of the numbers that are not ``nan``; ``nan`` if there is none."""
    numbers = [float(v) for v in values if not math.isnan(v)]
    return math.fsum(numbers) / len(numbers) if numbers else math.nan


def write_csv(path: Path, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Write a CSV file atomically, with numbers in full precision and ``nan`` as an empty cell."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([_cell(v) for v in row] for row in rows)
    write_text(path, stream.getvalue())


def finite(value: Any) -> Any:
    """``None`` for ``nan``, which JSON does not know."""
    return None if isinstance(value, float) and math.isnan(value) else value


def _column(metric: str, part: str) -> str:
    return metric if part == "mean" else f"{metric}_{part}"


def _summarise(name: str, rows: Sequence[Row]) -> ClassSummary:
    spreads = {}
    for metric in METRICS:
        numbers = [v for r in rows if not math.isnan(v := r.metric(metric))]
        worst = (max if metric in LOWER_IS_BETTER else min)(numbers, default=math.nan)
        if metric == "volume_error":
            worst = max(numbers, key=abs, default=math.nan)
        spreads[metric] = Spread(
            n=len(numbers),
            mean=mean_of(numbers),
            sd=statistics.stdev(numbers) if len(numbers) > 1 else math.nan,
            median=statistics.median(numbers) if numbers else math.nan,
            worst=worst,
        )
    present = sum(r.reference_ml > 0 for r in rows)
    return ClassSummary(class_name=name, scored=spreads["dsc"].n, present=present, metrics=spreads)


def _cell(value: Any) -> Any:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, str):
        return table_cell(value)
    return repr(float(value)) if isinstance(value, float) else value


def _read_row(record: Mapping[str, str]) -> Row:
    values: dict[str, Any] = {}
    for column in _COLUMNS:
        text = record[_HEADINGS.get(column, column)]
        values[column] = text_of_cell(text) if column in _TEXTS else float(text) if text else math.nan
    return Row(**values)
