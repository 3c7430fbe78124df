"""Results of a benchmark as numbers: rows of its tables, comparisons, costs."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from satunet.evaluation.benchmark.conclusions.published import PublishedMean
from satunet.evaluation.benchmark.conclusions.statistics import Correction, Interval
from satunet.evaluation.scoring.scores import Evaluation, finite
from satunet.jobs.files import write_json
from satunet.labels.scored import ScoredClass

BENCHMARK_VERSION = 3
Scores = dict[str, dict[str, float]]
"""Competitor → metric → value; a competitor without a value has ``nan``."""
Intervals = dict[str, dict[str, Interval]]
"""Competitor → metric → 95 % interval, of the headline metrics."""


@dataclass(frozen=True, kw_only=True)
class DatasetResults:
    """The scores of one dataset.

    Attributes:
        evaluations: Competitor → its scores. A competitor may be missing.
        modality: Modality of the dataset.
        external: Whether the unified network was not trained on the dataset.
        trained_on: Whether the networks were trained on the cases.
        patients: Case → patient, by a name that is the same in all datasets; a case that is not listed is a patient of
            its own.
    """

    evaluations: Mapping[str, Evaluation]
    modality: str = ""
    external: bool = False
    trained_on: bool = False
    patients: Mapping[str, str] = field(default_factory=dict)


Results = Mapping[str, DatasetResults]
"""Dataset → its scores."""


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Cost of a competitor; ``None`` means unknown.

    Attributes:
        models: Number of networks.
        parameters: Number of weights of all networks together.
        disk_bytes: Size of all model files together.
        training_steps: Number of optimisation steps of all networks together.
        seconds_per_case: Mean time to predict one case with all its channels.
        seconds_per_scan: The same time for one scan, if the competitor predicts channel by channel.
        memory_bytes: Peak memory during prediction: of the GPU, or of the process if there is none.
        threads: Number of threads that prediction was allowed.
    """

    models: int | None = None
    parameters: int | None = None
    disk_bytes: int | None = None
    training_steps: int | None = None
    seconds_per_case: float | None = None
    seconds_per_scan: float | None = None
    memory_bytes: int | None = None
    threads: int | None = None


@dataclass(frozen=True, kw_only=True)
class ClassRow:
    """One class of one dataset.

    Attributes:
        dataset: The dataset.
        scored: The class, with its ids, its region, and whether it is a lesion.
        external: Whether the unified network was not trained on the dataset.
        modality: Modality of the dataset.
        scans: Number of scans that count, for the competitor with the most.
        scores: Means over scans.
        intervals: 95 % intervals of the headline means.
    """

    dataset: str
    scored: ScoredClass
    external: bool = False
    modality: str = ""
    scans: int
    scores: Scores
    intervals: Intervals = field(default_factory=dict)

    @property
    def class_name(self) -> str:
        """Name of the class."""
        return self.scored.name


@dataclass(frozen=True, kw_only=True)
class GroupRow:
    """A mean over classes.

    Attributes:
        kind: ``"total"``, ``"external"``, ``"region"``, ``"modality"`` or ``"dataset"``.
        name: A dataset, or a group of classes.
        cases: Number of cases scored.
        classes: Number of classes in the mean.
        left_out: Number of classes of datasets left out because some competitor has no score of them.
        failures: Competitor → number of predictions that could not be used.
        scores: The means over classes (macro).
        micro: The means over every class of every case.
        intervals: Intervals of the headline means over classes.
    """

    kind: str
    name: str
    cases: int
    classes: int
    left_out: int
    failures: dict[str, int]
    scores: Scores
    micro: Scores
    intervals: Intervals


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two competitors by one metric.

    Attributes:
        kind: ``"total"`` and ``"external"`` (other patients of these datasets), ``"datasets"`` (other datasets),
            ``"dataset"`` and ``"class"``.
        where: Name of a dataset, ``dataset: class``, or the kind.
        first: First competitor.
        second: The other.
        metric: ``"dsc"`` or ``"nsd"``.
        difference: Mean of the first minus mean of the second, as in the tables.
        low: Lower end of its 95 % interval.
        high: Upper end.
        pairs: Number of pairs that are counted: classes of datasets in a total, datasets, or patients.
        wins: Number of pairs in which the first is better.
        ties: Number of pairs within the margin.
        losses: Number of pairs in which the second is better.
        units: Number of patients, or datasets, that the test and the interval rest on.
        p_value: p of a permutation test that swaps the competitors unit by unit; ``nan`` below six units.
        p_adjusted: The same, adjusted for all tests of its family.
        wilcoxon_p: p of Wilcoxon's signed-rank test over the patients of one dataset; ``nan`` below six patients.
    """

    kind: str
    where: str
    first: str
    second: str
    metric: str
    difference: float
    low: float = math.nan
    high: float = math.nan
    pairs: int
    wins: int
    ties: int
    losses: int
    units: int
    p_value: float = math.nan
    p_adjusted: float = math.nan
    wilcoxon_p: float = math.nan


@dataclass(frozen=True, kw_only=True)
class BenchmarkTables:
    """All numbers of a benchmark's report.

    Attributes:
        competitors: Competitors in the order of columns.
        classes: Rows by dataset and class.
        datasets: Rows by dataset.
        totals: All classes, anatomy, lesions, then the same of external datasets; groups without a class are left out.
        groups: Rows by region and by modality.
        comparisons: Every pair of competitors, in total, by dataset and by class.
        costs: Competitor → cost, where known.
        failures: Competitor → dataset → scan → reason.
        missing: Competitor → dataset without an evaluation → reason.
        waiting: Items that are not done yet; if there are any, the results are partial.
        published: Means that were published for the same datasets and classes.
        rules: Rules of scoring, as :meth:`satunet.evaluation.scoring.rules.Rules.comparable` gives them.
        correction: Method by which p-values are adjusted.
        notes: Notes for readers, one sentence each.
        trained_on: Datasets whose scores are of cases that the networks were trained on.
    """

    competitors: tuple[str, ...]
    classes: tuple[ClassRow, ...]
    datasets: tuple[GroupRow, ...]
    totals: tuple[GroupRow, ...]
    groups: tuple[GroupRow, ...] = ()
    comparisons: tuple[Comparison, ...]
    costs: dict[str, Cost] = field(default_factory=dict)
    failures: dict[str, dict[str, dict[str, str]]] = field(default_factory=dict)
    missing: dict[str, dict[str, str]] = field(default_factory=dict)
    waiting: tuple[str, ...] = ()
    published: tuple[PublishedMean, ...] = ()
    rules: dict[str, Any]
    correction: Correction = "holm"
    notes: tuple[str, ...] = ()
    trained_on: tuple[str, ...] = ()

    def save(self, path: Path) -> None:
        """Write everything as one versioned JSON file; ``nan`` becomes ``null``."""
        write_json(path, {"version": BENCHMARK_VERSION} | _without_nan(dataclasses.asdict(self)), sealed=True)


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _without_nan(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(v) for v in value]
    return finite(value)
