"""Comparison of competitors over datasets.

Means follow SAT (arXiv 2312.17183): a class of a dataset is the mean over scans; a class over datasets the mean over
datasets; a total the mean over classes, with lesions apart from anatomy. Tables compare like with like: a total takes
in only the classes of datasets for which every competitor has a score, and says how many these are.

Paired comparisons count wins, ties and losses over cases (within a dataset; a case's value is its mean over the
classes that both competitors were scored on) and over classes of datasets (in total). A difference of at most half a
point is a tie. The p-value is that of Wilcoxon's signed-rank test, two-sided, from six pairs on; it is not corrected
for the number of comparisons, and classes of one scan are not independent.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from satunet.errors import UserError
from satunet.evaluation.scores import METRICS, Evaluation, mean_of
from satunet.files import write_json

BENCHMARK_VERSION = 1
TIE_MARGIN = 0.005
FEWEST_PAIRS = 6

Scores = dict[str, dict[str, float]]
"""Competitor → metric → value; a competitor without a value has ``nan``."""


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a competitor costs; ``None`` is unknown.

    Attributes:
        models: Networks.
        parameters: Weights of all networks together.
        disk_bytes: Size of all model files together.
        training_steps: Optimisation steps of all networks together.
        seconds_per_scan: Time to predict one scan, mean.
    """

    models: int | None = None
    parameters: int | None = None
    disk_bytes: int | None = None
    training_steps: int | None = None
    seconds_per_scan: float | None = None


@dataclass(frozen=True, kw_only=True)
class ClassRow:
    """One class of one dataset.

    Attributes:
        dataset: The dataset.
        class_name: The class.
        lesion: Whether it is pathological.
        scans: Scans that count, the most of any competitor.
        scores: Means over scans.
    """

    dataset: str
    class_name: str
    lesion: bool
    scans: int
    scores: Scores


@dataclass(frozen=True, kw_only=True)
class GroupRow:
    """A mean over classes.

    Attributes:
        name: A dataset, or a group of classes.
        cases: Cases scored.
        classes: Classes that the mean is over.
        left_out: Classes for which some competitor has no score.
        failures: Competitor → predictions that could not be used.
        scores: The means.
    """

    name: str
    cases: int
    classes: int
    left_out: int
    failures: dict[str, int]
    scores: Scores


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two competitors over pairs of values.

    Attributes:
        where: A dataset, or ``"total"``.
        first: One competitor.
        second: The other.
        metric: ``"dsc"`` or ``"nsd"``.
        pairs: How many pairs.
        wins: Pairs in which the first is better.
        ties: Pairs within the margin.
        losses: Pairs in which the second is better.
        difference: Mean of first minus second.
        p_value: Wilcoxon's signed-rank test; ``nan`` below six pairs, or without any difference.
    """

    where: str
    first: str
    second: str
    metric: str
    pairs: int
    wins: int
    ties: int
    losses: int
    difference: float
    p_value: float


@dataclass(frozen=True, kw_only=True)
class BenchmarkTables:
    """Everything that a benchmark's report says in numbers.

    Attributes:
        competitors: In the order of columns.
        classes: By dataset and class.
        datasets: By dataset.
        totals: All classes, anatomy, lesions; groups without a class are left out.
        comparisons: Every pair of competitors, by dataset and in total.
        costs: Competitor → cost, where known.
        failures: Competitor → dataset → scan → reason.
        missing: Competitor → datasets it has no evaluation of → reason.
        tolerance_mm: Tolerance of NSD.
        policy: Absence policy.
        notes: What a reader must know, a sentence each.
    """

    competitors: tuple[str, ...]
    classes: tuple[ClassRow, ...]
    datasets: tuple[GroupRow, ...]
    totals: tuple[GroupRow, ...]
    comparisons: tuple[Comparison, ...]
    costs: dict[str, Cost] = field(default_factory=dict)
    failures: dict[str, dict[str, dict[str, str]]] = field(default_factory=dict)
    missing: dict[str, dict[str, str]] = field(default_factory=dict)
    tolerance_mm: float
    policy: str
    notes: tuple[str, ...] = ()

    def save(self, path: Path) -> None:
        """Write everything as one versioned JSON file; ``nan`` becomes ``null``."""
        import dataclasses

        write_json(path, {"version": BENCHMARK_VERSION} | _without_nan(dataclasses.asdict(self)))


def compare(
    results: Mapping[str, Mapping[str, Evaluation]],
    *,
    lesions: Collection[str] = (),
    costs: Mapping[str, Cost] | None = None,
    missing: Mapping[str, Mapping[str, str]] | None = None,
    competitors: Sequence[str] | None = None,
    notes: Sequence[str] = (),
    tie_margin: float = TIE_MARGIN,
) -> BenchmarkTables:
    """Tables of a benchmark.

    Args:
        results: Dataset → competitor → evaluation. A competitor may lack a dataset.
        lesions: Classes that are pathological.
        costs: Competitor → cost.
        missing: Competitor → dataset → why it has no evaluation there.
        competitors: Order of the competitors; as they come if not given.
        notes: What a reader must know, a sentence each.
        tie_margin: Differences up to this are ties.

    Raises:
        UserError: Nothing to compare, or evaluations of different tolerance or policy.
    """
    evaluations = [e for by_competitor in results.values() for e in by_competitor.values()]
    if not evaluations:
        raise UserError("there is no evaluation to compare")
    rules = {(e.tolerance_mm, e.policy) for e in evaluations}
    if len(rules) > 1:
        raise UserError(f"the evaluations have different tolerances or absence policies: {sorted(rules)}")
    names = tuple(competitors or dict.fromkeys(c for by in results.values() for c in by))
    class_rows = tuple(row for dataset, by in results.items() for row in _class_rows(dataset, by, names, lesions))
    dataset_rows = tuple(_dataset_row(dataset, by, names, class_rows) for dataset, by in results.items())
    absent = {c: dict((missing or {}).get(c, {})) for c in dict.fromkeys((*names, *(missing or {})))}
    for dataset, by in results.items():
        for competitor in names:
            if competitor not in by:
                absent[competitor].setdefault(dataset, "not evaluated")
    [(tolerance_mm, policy)] = rules
    return BenchmarkTables(
        competitors=names,
        classes=class_rows,
        datasets=dataset_rows,
        totals=tuple(_total_rows(class_rows, dataset_rows, names)),
        comparisons=tuple(_comparisons(results, class_rows, names, tie_margin)),
        costs=dict(costs or {}),
        failures={c: {d: by[c].failures for d, by in results.items() if c in by and by[c].failures} for c in names},
        missing={c: reasons for c, reasons in absent.items() if reasons},
        tolerance_mm=tolerance_mm,
        policy=policy,
        notes=tuple(notes),
    )


def _class_rows(
    dataset: str, by: Mapping[str, Evaluation], names: Sequence[str], lesions: Collection[str]
) -> list[ClassRow]:
    summaries = {c: {s.class_name: s for s in e.class_summaries} for c, e in by.items()}
    classes = dict.fromkeys(name for e in by.values() for name in e.classes)
    rows = []
    for name in classes:
        own = {c: summaries[c][name] for c in names if name in summaries.get(c, {})}
        scores = {c: {m: own[c].metric(m) if c in own else math.nan for m in METRICS} for c in names}
        scans = max(s.scored for s in own.values())
        rows.append(ClassRow(dataset=dataset, class_name=name, lesion=name in lesions, scans=scans, scores=scores))
    return rows


def _shared(rows: Sequence[ClassRow], names: Sequence[str]) -> list[ClassRow]:
    """Rows in which each of the competitors has a score."""
    return [r for r in rows if not any(math.isnan(r.scores[c]["dsc"]) for c in names)]


def _means(rows: Sequence[ClassRow], names: Sequence[str]) -> Scores:
    """Means over classes of the means over datasets."""
    by_class: dict[str, list[ClassRow]] = {}
    for row in rows:
        by_class.setdefault(row.class_name, []).append(row)
    return {
        c: {m: mean_of(mean_of(r.scores[c][m] for r in group) for group in by_class.values()) for m in METRICS}
        for c in names
    }


def _dataset_row(
    dataset: str, by: Mapping[str, Evaluation], names: Sequence[str], rows: Sequence[ClassRow]
) -> GroupRow:
    own = [r for r in rows if r.dataset == dataset]
    there = [c for c in names if c in by]
    shared = _shared(own, there)
    scores = {c: dict.fromkeys(METRICS, math.nan) for c in names} | _means(shared, there)
    return GroupRow(
        name=dataset,
        cases=max((len(e.cases) for e in by.values()), default=0),
        classes=len(shared),
        left_out=len(own) - len(shared),
        failures={c: len(by[c].failures) for c in there},
        scores=scores,
    )


def _total_rows(rows: Sequence[ClassRow], datasets: Sequence[GroupRow], names: Sequence[str]) -> list[GroupRow]:
    groups = {
        "all classes": list(rows),
        "anatomy": [r for r in rows if not r.lesion],
        "lesions": [r for r in rows if r.lesion],
    }
    if not groups["lesions"]:
        del groups["anatomy"]  # it would repeat the first
    totals = []
    for group, members in groups.items():
        if not members:
            continue
        shared = _shared(members, names)
        shown = {r.dataset for r in shared}
        totals.append(
            GroupRow(
                name=group,
                cases=sum(d.cases for d in datasets if d.name in shown),
                classes=len({r.class_name for r in shared}),
                left_out=len({r.class_name for r in members} - {r.class_name for r in shared}),
                failures={c: sum(d.failures.get(c, 0) for d in datasets if d.name in shown) for c in names},
                scores=_means(shared, names),
            )
        )
    return totals


def _comparisons(
    results: Mapping[str, Mapping[str, Evaluation]],
    rows: Sequence[ClassRow],
    names: Sequence[str],
    margin: float,
) -> list[Comparison]:
    comparisons = []
    for first, second in itertools.combinations(names, 2):
        for metric in METRICS:
            shared = _shared(rows, (first, second))
            pairs = [(r.scores[first][metric], r.scores[second][metric]) for r in shared]
            comparisons.append(_comparison("total", first, second, metric, pairs, margin))
            for dataset, by in results.items():
                if first in by and second in by:
                    pairs = _case_pairs(by[first], by[second], metric)
                    comparisons.append(_comparison(dataset, first, second, metric, pairs, margin))
    return [c for c in comparisons if c.pairs]


def _case_pairs(first: Evaluation, second: Evaluation, metric: str) -> list[tuple[float, float]]:
    """Means over shared classes, case by case; a case with several scans is their mean, so that pairs always match."""
    tables = []
    for evaluation in (first, second):
        table: dict[tuple[str, str], list[float]] = {}
        for row in evaluation.rows:
            table.setdefault((row.case, row.class_name), []).append(row.metric(metric))
        tables.append({key: mean_of(values) for key, values in table.items()})
    by_case: dict[str, list[tuple[float, float]]] = {}
    for key in tables[0].keys() & tables[1].keys():
        pair = tables[0][key], tables[1][key]
        if not any(math.isnan(v) for v in pair):
            by_case.setdefault(key[0], []).append(pair)
    return [(mean_of(a for a, _ in pairs), mean_of(b for _, b in pairs)) for _, pairs in sorted(by_case.items())]


def _comparison(
    where: str, first: str, second: str, metric: str, pairs: Sequence[tuple[float, float]], margin: float
) -> Comparison:
    differences = [a - b for a, b in pairs]
    # The slack keeps a difference of exactly the margin a tie, whatever its last bits.
    wins = sum(d > margin + 1e-9 for d in differences)
    losses = sum(d < -margin - 1e-9 for d in differences)
    return Comparison(
        where=where,
        first=first,
        second=second,
        metric=metric,
        pairs=len(pairs),
        wins=wins,
        ties=len(pairs) - wins - losses,
        losses=losses,
        difference=mean_of(differences),
        p_value=_wilcoxon(differences),
    )


def _wilcoxon(differences: Sequence[float]) -> float:
    if len(differences) < FEWEST_PAIRS or not any(differences):
        return math.nan
    from scipy.stats import wilcoxon

    return float(wilcoxon(differences).pvalue)


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _without_nan(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(v) for v in value]
    return None if isinstance(value, float) and math.isnan(value) else value
