"""Comparison of competitors over datasets.

Means follow SAT (arXiv 2312.17183): a class of a dataset is the mean over cases; a class over datasets the mean over
datasets; a region, a modality or a total the mean over classes, with lesions apart from anatomy: macro means. A micro
mean, beside them, counts every class of every case alike, however many scans of the case a competitor predicts. Tables
compare like with like: a mean takes in only the classes of datasets for which every competitor has a score, and says
how many these are. Datasets that the unified network was not trained on are never mixed with the others.

Paired comparisons count wins, ties and losses over cases (within a dataset; a case's value is its mean over the
classes that both competitors were scored on), over cases of each class, and over classes of datasets (in total). A
difference of at most half a point is a tie. :mod:`satunet.evaluation.benchmark.bootstrap` has the tests and intervals; p-values
are adjusted within a family: two competitors, a metric, and all datasets, or all classes.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from satunet.errors import UserError
from satunet.evaluation.benchmark.bootstrap import (
    FEWEST_CASES,
    NO_INTERVAL,
    Correction,
    Interval,
    Resampled,
    adjust,
    interval_of,
    mean_interval,
    wilcoxon_p,
)
from satunet.evaluation.benchmark.published import published_means
from satunet.evaluation.benchmark.results import BenchmarkTables, ClassRow, Comparison, Cost, Facts, GroupRow, Scores
from satunet.evaluation.scoring.scores import HEADLINE, METRICS, Evaluation, mean_of

TIE_MARGIN = 0.005

CaseValues = dict[tuple[str, str], float]
"""(class, case) → value."""


def compare(
    results: Mapping[str, Mapping[str, Evaluation]],
    *,
    facts: Facts | None = None,
    costs: Mapping[str, Cost] | None = None,
    missing: Mapping[str, Mapping[str, str]] | None = None,
    waiting: Sequence[str] = (),
    competitors: Sequence[str] | None = None,
    notes: Sequence[str] = (),
    correction: Correction = "holm",
    tie_margin: float = TIE_MARGIN,
) -> BenchmarkTables:
    """Tables of a benchmark.

    Args:
        results: Dataset → competitor → evaluation. A competitor may lack a dataset.
        facts: What is known of classes and datasets.
        costs: Competitor → cost.
        missing: Competitor → dataset → why it has no evaluation there.
        waiting: What is not done yet.
        competitors: Order of the competitors; as they come if not given.
        notes: What a reader must know, a sentence each.
        correction: How p-values are adjusted.
        tie_margin: Differences up to this are ties.

    Raises:
        UserError: Nothing to compare, or evaluations under different rules.
    """
    evaluations = [e for by_competitor in results.values() for e in by_competitor.values()]
    if not evaluations:
        raise UserError("there is no evaluation to compare")
    names = tuple(competitors or dict.fromkeys(c for by in results.values() for c in by))
    work = _Comparer(results=results, facts=facts or Facts(), names=names, margin=tie_margin)
    rules = _one_rule(evaluations)
    class_rows = tuple(row for dataset in results for row in work.class_rows(dataset))
    dataset_rows = tuple(work.dataset_row(dataset, class_rows) for dataset in results)
    absent = {c: dict((missing or {}).get(c, {})) for c in dict.fromkeys((*names, *(missing or {})))}
    for dataset, by in results.items():
        for competitor in names:
            if competitor not in by and not any(w.startswith(f"{competitor}/{dataset}") for w in waiting):
                absent[competitor].setdefault(dataset, "not evaluated")
    comparisons = work.comparisons(class_rows)
    scored = {(r.dataset, r.class_name) for r in _shared(class_rows, names)}
    return BenchmarkTables(
        competitors=names,
        classes=class_rows,
        datasets=dataset_rows,
        totals=tuple(work.totals(class_rows)),
        groups=tuple(work.groups(class_rows)),
        comparisons=tuple(_adjusted(comparisons, correction)),
        costs=dict(costs or {}),
        failures={c: {d: by[c].failures for d, by in results.items() if c in by and by[c].failures} for c in names},
        missing={c: reasons for c, reasons in absent.items() if reasons},
        waiting=tuple(waiting),
        published=published_means(scored, (rules["tolerance_mm"], *rules["tolerances_mm"].values()), rules["policy"]),
        rules=rules,
        correction=correction,
        notes=tuple(notes),
    )


def _one_rule(evaluations: Iterable[Evaluation]) -> dict[str, Any]:
    """What all evaluations were scored by; their lesions and tolerances are those of their own classes."""
    rules = [e.rules for e in evaluations]
    kept = ("tolerance_mm", "policy", "distances")
    found = {tuple(r[key] for key in kept) for r in rules}
    if len(found) > 1:
        raise UserError(f"the evaluations have different tolerances, absence policies or metrics: {sorted(found)}")
    tolerances: dict[str, float] = {}
    for rule in rules:
        for name, value in rule["tolerances_mm"].items():
            if tolerances.setdefault(name, value) != value:
                raise UserError(f"the evaluations have different tolerances of {name!r}: {tolerances[name]}, {value}")
    lesions = sorted({name for rule in rules for name in rule["lesions"]})
    return {**rules[0], "tolerances_mm": tolerances, "lesions": lesions}


@dataclass(frozen=True, kw_only=True)
class _Comparer:
    results: Mapping[str, Mapping[str, Evaluation]]
    facts: Facts
    names: tuple[str, ...]
    margin: float
    draws: dict[str, Resampled] = field(default_factory=dict)
    values: dict[tuple[str, str, str], CaseValues] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for dataset, by in self.results.items():
            self.draws[dataset] = Resampled(by, HEADLINE, dataset=dataset)

    def by_case(self, dataset: str, competitor: str, metric: str) -> CaseValues:
        """(class, case) → value, the mean over the case's scans and folds."""
        key = (dataset, competitor, metric)
        if key not in self.values:
            table: dict[tuple[str, str], list[float]] = {}
            for row in self.results[dataset][competitor].rows:
                table.setdefault((row.class_name, row.case), []).append(row.metric(metric))
            self.values[key] = {where: mean_of(values) for where, values in table.items()}
        return self.values[key]

    # rows ------------------------------------------------------------------------------------------------------------

    def class_rows(self, dataset: str) -> list[ClassRow]:
        by = self.results[dataset]
        summaries = {c: {s.class_name: s for s in e.class_summaries} for c, e in by.items()}
        classes = dict.fromkeys(name for e in by.values() for name in e.classes)
        rows = []
        for name in classes:
            own = {c: summaries[c][name] for c in self.names if name in summaries.get(c, {})}
            rows.append(
                ClassRow(
                    dataset=dataset,
                    class_name=name,
                    lesion=name in self.facts.lesions,
                    external=dataset in self.facts.external,
                    modality=self.facts.modalities.get(dataset, ""),
                    regions=tuple(self.facts.regions.get(name, ())),
                    scans=max((s.scored for s in own.values()), default=0),
                    scores={c: {m: own[c].metric(m) if c in own else math.nan for m in METRICS} for c in self.names},
                    intervals={
                        c: {m: self.draws[dataset].interval(c, m, name) if c in own else NO_INTERVAL for m in HEADLINE}
                        for c in self.names
                    },
                )
            )
        return rows

    def dataset_row(self, dataset: str, rows: Sequence[ClassRow]) -> GroupRow:
        there = [c for c in self.names if c in self.results[dataset]]
        return self._group("dataset", dataset, [r for r in rows if r.dataset == dataset], there)

    def totals(self, rows: Sequence[ClassRow]) -> list[GroupRow]:
        found = []
        for kind, prefix, members in (
            ("total", "", [r for r in rows if not r.external]),
            ("external", "external: ", [r for r in rows if r.external]),
        ):
            lesions, anatomy = [r for r in members if r.lesion], [r for r in members if not r.lesion]
            groups = {"all classes": members} | ({"anatomy": anatomy, "lesions": lesions} if lesions else {})
            found += [self._group(kind, f"{prefix}{name}", own, self.names) for name, own in groups.items() if own]
        return found

    def groups(self, rows: Sequence[ClassRow]) -> list[GroupRow]:
        known = [r for r in rows if not r.external]
        regions = sorted({region for r in known for region in r.regions})
        modalities = sorted({r.modality for r in known if r.modality})
        found = []
        for region in regions:
            own = [r for r in known if region in r.regions and not r.lesion]
            if own:
                found.append(self._group("region", region, own, self.names))
        found += [self._group("modality", m, [r for r in known if r.modality == m], self.names) for m in modalities]
        return found

    def _group(self, kind: str, name: str, members: Sequence[ClassRow], competitors: Sequence[str]) -> GroupRow:
        """Means over the classes of datasets for which each of the competitors has a score."""
        shared = _shared(members, competitors)
        datasets = dict.fromkeys(r.dataset for r in (members if kind == "dataset" else shared))
        nothing = {c: dict.fromkeys(METRICS, math.nan) for c in self.names}
        return GroupRow(
            kind=kind,
            name=name,
            cases=sum(max(len(e.cases) for e in self.results[d].values()) for d in datasets),
            classes=len({r.class_name for r in shared}),
            left_out=len(members) - len(shared),
            failures={
                c: sum(len(self.results[d][c].failures) for d in datasets if c in self.results[d]) for c in competitors
            },
            scores=nothing | _macro(shared, competitors),
            micro=nothing | self._micro(shared, competitors),
            intervals={c: {m: self._interval(shared, c, m) for m in HEADLINE} for c in competitors},
        )

    def _micro(self, shared: Sequence[ClassRow], competitors: Sequence[str]) -> Scores:
        found: Scores = {c: {} for c in competitors}
        for m in METRICS:
            wanted: dict[str, set[str]] = {}
            for r in _shared(shared, competitors, m):
                wanted.setdefault(r.dataset, set()).add(r.class_name)
            for c in competitors:
                found[c][m] = mean_of(
                    value
                    for dataset, names in wanted.items()
                    for (class_name, _), value in self.by_case(dataset, c, m).items()
                    if class_name in names
                )
        return found

    # intervals -------------------------------------------------------------------------------------------------------

    def _interval(self, shared: Sequence[ClassRow], competitor: str, metric: str) -> Interval:
        if self._too_few_cases(shared):
            return NO_INTERVAL
        by_class: dict[str, list[NDArray[np.float64]]] = {}
        for r in shared:
            by_class.setdefault(r.class_name, []).append(self.draws[r.dataset].means(competitor, metric, r.class_name))
        return interval_of(_nanmean([_nanmean(draws) for draws in by_class.values()]))

    def _too_few_cases(self, shared: Sequence[ClassRow]) -> bool:
        """A dataset of one case never varies in a draw: with it, an interval would be too narrow."""
        return not shared or any(self.draws[r.dataset].cases < FEWEST_CASES for r in shared)

    def _difference_interval(self, shared: Sequence[ClassRow], first: str, second: str, metric: str) -> Interval:
        if self._too_few_cases(shared):
            return NO_INTERVAL
        differences = [
            self.draws[r.dataset].means(first, metric, r.class_name)
            - self.draws[r.dataset].means(second, metric, r.class_name)
            for r in shared
        ]
        return interval_of(_nanmean(differences))

    # comparisons -----------------------------------------------------------------------------------------------------

    def comparisons(self, rows: Sequence[ClassRow]) -> list[Comparison]:
        found = []
        for first, second in itertools.combinations(self.names, 2):
            for metric in HEADLINE:
                pair = (first, second, metric)
                for kind, external in (("total", False), ("external", True)):
                    shared = _shared([r for r in rows if r.external == external], (first, second))
                    values = [(r.scores[first][metric], r.scores[second][metric]) for r in shared]
                    if values:
                        interval = self._difference_interval(shared, *pair)
                        found.append(self._comparison(kind, kind, pair, values, interval))
                for dataset, by in self.results.items():
                    if first in by and second in by:
                        found += self._by_cases(dataset, pair)
        return [c for c in found if c.pairs]

    def _by_cases(self, dataset: str, pair: tuple[str, str, str]) -> list[Comparison]:
        first, second, metric = pair
        by_class = _case_pairs(self.by_case(dataset, first, metric), self.by_case(dataset, second, metric))
        by_case: dict[str, list[tuple[float, float]]] = {}
        for pairs in by_class.values():
            for case, both in pairs.items():
                by_case.setdefault(case, []).append(both)
        means = [(mean_of(a for a, _ in v), mean_of(b for _, b in v)) for _, v in sorted(by_case.items())]
        found = [self._comparison("dataset", dataset, pair, means, mean_interval([a - b for a, b in means]))]
        for name, pairs in by_class.items():
            values = [v for _, v in sorted(pairs.items())]
            if len(values) > 1:
                interval = mean_interval([a - b for a, b in values])
                found.append(self._comparison("class", f"{dataset}: {name}", pair, values, interval))
        return found

    def _comparison(
        self,
        kind: str,
        where: str,
        pair: tuple[str, str, str],
        values: Sequence[tuple[float, float]],
        interval: Interval,
    ) -> Comparison:
        differences = [a - b for a, b in values]
        # The slack keeps a difference of exactly the margin a tie, whatever its last bits.
        wins = sum(d > self.margin + 1e-9 for d in differences)
        losses = sum(d < -self.margin - 1e-9 for d in differences)
        first, second, metric = pair
        return Comparison(
            kind=kind,
            where=where,
            first=first,
            second=second,
            metric=metric,
            pairs=len(values),
            wins=wins,
            ties=len(values) - wins - losses,
            losses=losses,
            difference=mean_of(differences),
            low=interval[0],
            high=interval[1],
            p_value=wilcoxon_p(differences),
        )


def _shared(rows: Sequence[ClassRow], names: Sequence[str], metric: str = "dsc") -> list[ClassRow]:
    """Rows in which each of the competitors has a score."""
    return [r for r in rows if not any(math.isnan(r.scores[c][metric]) for c in names)]


def _macro(rows: Sequence[ClassRow], names: Sequence[str]) -> Scores:
    """Means over classes of the means over datasets, metric by metric over what all have a value of."""
    found: Scores = {c: {} for c in names}
    for m in METRICS:
        by_class: dict[str, list[ClassRow]] = {}
        for row in _shared(rows, names, m):
            by_class.setdefault(row.class_name, []).append(row)
        for c in names:
            found[c][m] = mean_of(mean_of(r.scores[c][m] for r in group) for group in by_class.values())
    return found


def _case_pairs(first: CaseValues, second: CaseValues) -> dict[str, dict[str, tuple[float, float]]]:
    """Class → case → both values, where both have one."""
    found: dict[str, dict[str, tuple[float, float]]] = {}
    for (class_name, case), value in first.items():
        other = second.get((class_name, case), math.nan)
        if not math.isnan(value) and not math.isnan(other):
            found.setdefault(class_name, {})[case] = value, other
    return found


def _adjusted(comparisons: Sequence[Comparison], correction: Correction) -> list[Comparison]:
    families: dict[tuple[str, str, str, str], list[int]] = {}
    for i, c in enumerate(comparisons):
        families.setdefault((c.kind, c.first, c.second, c.metric), []).append(i)
    found = list(comparisons)
    for members in families.values():
        for i, p in zip(members, adjust([comparisons[i].p_value for i in members], correction), strict=True):
            found[i] = dataclasses.replace(comparisons[i], p_adjusted=p)
    return found


def _nanmean(arrays: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    """Mean of arrays, place by place, over those that have a number there."""
    total, count = np.zeros_like(arrays[0]), np.zeros_like(arrays[0])
    for array in arrays:
        there = ~np.isnan(array)
        total[there] += array[there]
        count += there
    with np.errstate(invalid="ignore"):
        return np.asarray(total / count)
