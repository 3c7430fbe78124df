"""Scores of a folder of predictions: rows, their means, and the files that hold them."""

from __future__ import annotations

import csv
import io
import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from satunet.errors import UserError
from satunet.files import read_json, write_json, write_text
from satunet.progress import JobSummary

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


def mean_of(values: Iterable[float]) -> float:
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
