"""One network against others: what was scored, side by side, with paired statistics.

Means are taken as SAT takes them: a class of a dataset is the mean over its cases, a class is the mean over its
datasets, the whole is the mean over classes; lesions are shown apart.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from satunet.evaluation.evaluate import Evaluation, nanmean

METRICS = ("dsc", "nsd")


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a competitor costs.

    Attributes:
        parameters: Of all its networks.
        disk_mb: Of all its checkpoints, weights only.
        networks: How many there are.
        steps: Training steps a network.
        seconds_per_scan: Of prediction, reading and writing included; ``None`` where it was not measured.
    """

    parameters: int
    disk_mb: float
    networks: int
    steps: int | None = None
    seconds_per_scan: float | None = None


@dataclass(frozen=True, kw_only=True)
class ClassRow:
    """A class of a dataset, or a class over datasets.

    Attributes:
        dataset: Name, or ``""`` over datasets.
        name: Class.
        lesion: Whether it is pathological.
        cases: Cases scored.
        scores: Competitor → metric → mean over cases.
    """

    dataset: str
    name: str
    lesion: bool
    cases: int
    scores: dict[str, dict[str, float]]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two competitors over the classes of all datasets, paired.

    Attributes:
        first: Name.
        second: Name.
        metric: Metric.
        wins: Classes where ``first`` is better by more than 0.005.
        ties: Within 0.005.
        losses: Classes where ``second`` is better.
        mean_difference: Mean of first − second.
        p_value: Wilcoxon signed-rank test, two-sided; ``None`` below six pairs.
    """

    first: str
    second: str
    metric: str
    wins: int
    ties: int
    losses: int
    mean_difference: float
    p_value: float | None


@dataclass(frozen=True, kw_only=True)
class BenchmarkTables:
    """Everything the report shows in numbers.

    Attributes:
        competitors: Names, in the order of the columns.
        rows: A class of a dataset each.
        datasets: Dataset → competitor → metric → mean over its classes.
        overall: Competitor → metric → mean over classes, lesions left out if there are others.
        lesions: The same over lesion classes; empty if there are none.
        comparisons: First competitor against each other one.
        costs: Competitor → cost.
        failures: What could not be predicted or scored.
        tolerance_mm: Of the NSD.
    """

    competitors: tuple[str, ...]
    rows: tuple[ClassRow, ...]
    datasets: dict[str, dict[str, dict[str, float]]]
    overall: dict[str, dict[str, float]]
    lesions: dict[str, dict[str, float]]
    comparisons: tuple[Comparison, ...]
    costs: dict[str, Cost] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    tolerance_mm: float = 1.0


def compare(
    results: Mapping[str, Mapping[str, Evaluation]],
    *,
    lesions: frozenset[str] = frozenset(),
    costs: Mapping[str, Cost] | None = None,
    failures: Mapping[str, str] | None = None,
) -> BenchmarkTables:
    """Build the tables.

    Args:
        results: Dataset → competitor → scores.
        lesions: Names of lesion classes.
        costs: Competitor → cost.
        failures: What could not be predicted or scored.
    """
    competitors = tuple(dict.fromkeys(c for by_competitor in results.values() for c in by_competitor))
    rows = _rows(results, competitors, lesions)
    datasets = {
        dataset: {c: {m: nanmean([r.scores[c][m] for r in rows if r.dataset == dataset and c in r.scores])
                      for m in METRICS} for c in by_competitor}
        for dataset, by_competitor in results.items()
    }  # fmt: skip
    healthy = [r for r in rows if not r.lesion] or list(rows)
    ill = [r for r in rows if r.lesion]
    tolerance = next((e.tolerance_mm for d in results.values() for e in d.values()), 1.0)
    return BenchmarkTables(
        competitors=competitors,
        rows=tuple(rows),
        datasets=datasets,
        overall=_over_classes(healthy, competitors),
        lesions=_over_classes(ill, competitors) if ill and len(ill) < len(rows) else {},
        comparisons=tuple(
            _paired(rows, competitors[0], other, metric) for other in competitors[1:] for metric in METRICS
        ),
        costs=dict(costs or {}),
        failures=dict(failures or {}),
        tolerance_mm=tolerance,
    )


def table_rows(tables: BenchmarkTables) -> list[dict[str, Any]]:
    """Rows of ``per_class.csv``: a class of a dataset, a column a competitor and metric."""
    rows = []
    for row in tables.rows:
        flat: dict[str, Any] = {"dataset": row.dataset, "class": row.name, "lesion": row.lesion, "cases": row.cases}
        for competitor in tables.competitors:
            for metric in METRICS:
                flat[f"{competitor} {metric}"] = row.scores.get(competitor, {}).get(metric, math.nan)
        rows.append(flat)
    return rows


def print_tables(tables: BenchmarkTables) -> None:
    """Print the means by dataset and over all as one table."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    table = Table(title="Benchmark", title_justify="left")
    table.add_column("dataset")
    table.add_column("classes", justify="right")
    for competitor in tables.competitors:
        table.add_column(f"{competitor}\nDSC", justify="right")
        table.add_column(f"{competitor}\nNSD {tables.tolerance_mm:g} mm", justify="right")

    def cells(means: Mapping[str, Mapping[str, float]]) -> list[str]:
        return [number(means.get(c, {}).get(m, math.nan)) for c in tables.competitors for m in METRICS]

    for dataset, means in tables.datasets.items():
        count = sum(r.dataset == dataset for r in tables.rows)
        table.add_row(dataset, str(count), *cells(means))
    table.add_section()
    names = {r.name for r in tables.rows}
    table.add_row("mean over classes", str(len(names)), *cells(tables.overall), style="bold")
    if tables.lesions:
        table.add_row("lesions", str(len({r.name for r in tables.rows if r.lesion})), *cells(tables.lesions))
    (console if console.is_terminal else Console(width=140)).print(table)


def number(value: float | None, digits: int = 3) -> str:
    """A score as text; a dash where there is none."""
    return "–" if value is None or math.isnan(value) else f"{value:.{digits}f}"


def _rows(
    results: Mapping[str, Mapping[str, Evaluation]], competitors: tuple[str, ...], lesions: frozenset[str]
) -> list[ClassRow]:
    rows = []
    for dataset, by_competitor in results.items():
        means = {c: {m: e.class_means(m) for m in METRICS} for c, e in by_competitor.items()}
        cases = max((len({s.case for s in e.scores}) for e in by_competitor.values()), default=0)
        names = sorted({name for by_metric in means.values() for name in by_metric["dsc"]})
        for name in names:
            scores = {c: {m: means[c][m].get(name, math.nan) for m in METRICS} for c in competitors if c in means}
            rows.append(ClassRow(dataset=dataset, name=name, lesion=name in lesions, cases=cases, scores=scores))
    return rows


def _over_classes(rows: list[ClassRow], competitors: tuple[str, ...]) -> dict[str, dict[str, float]]:
    names = sorted({r.name for r in rows})
    return {
        c: {
            m: nanmean([nanmean([r.scores[c][m] for r in rows if r.name == name and c in r.scores]) for name in names])
            for m in METRICS
        }
        for c in competitors
    }


def _paired(rows: list[ClassRow], first: str, second: str, metric: str) -> Comparison:
    pairs = [
        r.scores[first][metric] - r.scores[second][metric] for r in rows if first in r.scores and second in r.scores
    ]
    pairs = [p for p in pairs if not math.isnan(p)]
    p_value = None
    if len(pairs) >= 6 and any(pairs):
        from scipy.stats import wilcoxon

        p_value = float(wilcoxon(pairs).pvalue)
    return Comparison(
        first=first,
        second=second,
        metric=metric,
        wins=sum(p > 0.005 for p in pairs),
        ties=sum(abs(p) <= 0.005 for p in pairs),
        losses=sum(p < -0.005 for p in pairs),
        mean_difference=nanmean(pairs),
        p_value=p_value,
    )
