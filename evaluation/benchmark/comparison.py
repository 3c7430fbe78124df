"""Comparison of competitors over datasets.

Macro means follow SAT (arXiv 2312.17183). The score of a class in a dataset is its mean over scans, and over several
datasets the mean over these; a region, a modality or a total is the mean over its classes, with lesions apart from
anatomy. A micro mean, shown beside them, counts every class of every case equally, however many scans of the case a
competitor predicts. Tables compare like with like: a mean includes only the classes of datasets for which every
competitor has a score, and says how many they are. Datasets that the unified network was not trained on are never mixed
with the others.

A difference is always that of two means in the tables; its interval and its test are for exactly this difference
(:mod:`satunet.evaluation.benchmark.statistics`). There are three questions: does it hold for other patients of these
datasets (``total``, ``external``), for other datasets (``datasets``, with six or more), and in one dataset or class?
Wins, ties and losses count classes of datasets, datasets, or patients; a difference of at most half a point is a tie.
p-values are adjusted within a family of tests: two competitors, one metric, and all datasets or all classes.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from satunet.errors import UserError
from satunet.evaluation.benchmark.patients import PatientScores
from satunet.evaluation.benchmark.published import published_means
from satunet.evaluation.benchmark.results import (
    BenchmarkTables,
    ClassRow,
    Comparison,
    Cost,
    GroupRow,
    Results,
    Scores,
)
from satunet.evaluation.benchmark.statistics import (
    FEWEST_PATIENTS,
    NO_INTERVAL,
    Correction,
    Interval,
    Uneven,
    adjust,
    difference_interval,
    jackknife_interval,
    share_interval,
    swap_p,
    wilcoxon_p,
)
from satunet.evaluation.scoring.scores import HEADLINE, METRICS, Evaluation, mean_of

TIE_MARGIN = 0.005

_MOST_UNKNOWN = 0.5
"""Largest share of a mean that may come from classes whose variance is not known."""


def compare(
    results: Results,
    *,
    costs: Mapping[str, Cost] | None = None,
    missing: Mapping[str, Mapping[str, str]] | None = None,
    waiting: Sequence[str] = (),
    competitors: Sequence[str] | None = None,
    notes: Sequence[str] = (),
    correction: Correction = "holm",
) -> BenchmarkTables:
    """Tables of a benchmark.

    Args:
        results: Dataset → its scores.
        costs: Competitor → cost.
        missing: Competitor → dataset → reason why there is no evaluation.
        waiting: Items that are not done yet.
        competitors: Order of the competitors; by default that in which they appear in the results.
        notes: Notes for readers, one sentence each.
        correction: Method by which p-values are adjusted.

    Raises:
        UserError: There is nothing to compare, or evaluations have different rules.
    """
    evaluations = [e for found in results.values() for e in found.evaluations.values()]
    if not evaluations:
        raise UserError("there is no evaluation to compare")
    names = tuple(competitors or dict.fromkeys(c for found in results.values() for c in found.evaluations))
    work = _Comparer(results=results, names=names)
    rules = _one_rule(evaluations)
    class_rows = tuple(row for dataset in results for row in work.class_rows(dataset))
    absent = {c: dict((missing or {}).get(c, {})) for c in dict.fromkeys((*names, *(missing or {})))}
    for dataset, found in results.items():
        for competitor in names:
            if competitor not in found.evaluations and not any(
                w.startswith(f"{competitor}/{dataset}") for w in waiting
            ):
                absent[competitor].setdefault(dataset, "not evaluated")
    scored = {(r.dataset, r.class_name) for r in _shared(class_rows, names)}
    failures = {
        c: {d: e.failures for d, found in results.items() if (e := found.evaluations.get(c)) is not None and e.failures}
        for c in names
    }
    return BenchmarkTables(
        competitors=names,
        classes=class_rows,
        datasets=tuple(work.dataset_row(dataset, class_rows) for dataset in results),
        totals=tuple(work.totals(class_rows)),
        groups=tuple(work.groups(class_rows)),
        comparisons=tuple(_adjusted(work.comparisons(class_rows), correction)),
        costs=dict(costs or {}),
        failures=failures,
        missing={c: reasons for c, reasons in absent.items() if reasons},
        waiting=tuple(waiting),
        published=published_means(scored, (rules["tolerance_mm"], *rules["tolerances_mm"].values()), rules["policy"]),
        rules=rules,
        correction=correction,
        notes=tuple(notes),
        trained_on=tuple(sorted(dataset for dataset, found in results.items() if found.trained_on)),
    )


def _one_rule(evaluations: Iterable[Evaluation]) -> dict[str, Any]:
    """The rules that all evaluations were scored by, with the tolerances of all single classes."""
    rules = [e.rules for e in evaluations]
    kept = ("tolerance_mm", "policy", "distances", "organs")
    found = {tuple(r[key] for key in kept) for r in rules}
    if len(found) > 1:
        raise UserError(f"the evaluations have different tolerances, absence policies, metrics or ids: {sorted(found)}")
    tolerances: dict[str, float] = {}
    for rule in rules:
        for name, value in rule["tolerances_mm"].items():
            if tolerances.setdefault(name, value) != value:
                raise UserError(f"the evaluations have different tolerances of {name!r}: {tolerances[name]}, {value}")
    return {**rules[0], "tolerances_mm": tolerances}


@dataclass(frozen=True, kw_only=True)
class _Comparer:
    results: Results
    names: tuple[str, ...]
    patients: dict[str, PatientScores] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for dataset, found in self.results.items():
            self.patients[dataset] = PatientScores(dataset, found, HEADLINE)

    # rows ------------------------------------------------------------------------------------------------------------

    def class_rows(self, dataset: str) -> list[ClassRow]:
        found = self.results[dataset]
        summaries = {c: {s.class_name: s for s in e.class_summaries} for c, e in found.evaluations.items()}
        classes = {c.name: c for e in found.evaluations.values() for c in e.classes}
        rows = []
        for name, scored in classes.items():
            own = {c: summaries[c][name] for c in self.names if name in summaries.get(c, {})}
            row = ClassRow(
                dataset=dataset,
                scored=scored,
                external=found.external,
                modality=found.modality,
                scans=max((s.scored for s in own.values()), default=0),
                scores={c: {m: own[c].metric(m) if c in own else math.nan for m in METRICS} for c in self.names},
            )
            intervals = {
                c: {m: self._interval([row], c, m) if c in own else NO_INTERVAL for m in HEADLINE} for c in self.names
            }
            rows.append(dataclasses.replace(row, intervals=intervals))
        return rows

    def dataset_row(self, dataset: str, rows: Sequence[ClassRow]) -> GroupRow:
        there = [c for c in self.names if c in self.results[dataset].evaluations]
        return self._group("dataset", dataset, [r for r in rows if r.dataset == dataset], there)

    def totals(self, rows: Sequence[ClassRow]) -> list[GroupRow]:
        found = []
        for kind, prefix, members in (
            ("total", "", [r for r in rows if not r.external]),
            ("external", "external: ", [r for r in rows if r.external]),
        ):
            lesions = [r for r in members if r.scored.lesion]
            anatomy = [r for r in members if not r.scored.lesion]
            groups = {"all classes": members} | ({"anatomy": anatomy, "lesions": lesions} if lesions else {})
            found += [self._group(kind, f"{prefix}{name}", own, self.names) for name, own in groups.items() if own]
        return found

    def groups(self, rows: Sequence[ClassRow]) -> list[GroupRow]:
        known = [r for r in rows if not r.external]
        regions = sorted({region for r in known for region in r.scored.regions})
        modalities = sorted({r.modality for r in known if r.modality})
        found = []
        for region in regions:
            own = [r for r in known if region in r.scored.regions and not r.scored.lesion]
            if own:
                found.append(self._group("region", region, own, self.names))
        found += [self._group("modality", m, [r for r in known if r.modality == m], self.names) for m in modalities]
        return found

    def _group(self, kind: str, name: str, members: Sequence[ClassRow], competitors: Sequence[str]) -> GroupRow:
        """Means over the classes of datasets for which each of the competitors has a score."""
        shared = _shared(members, competitors)
        datasets = dict.fromkeys(r.dataset for r in (members if kind == "dataset" else shared))
        evaluations = {d: self.results[d].evaluations for d in datasets}
        nothing = {c: dict.fromkeys(METRICS, math.nan) for c in self.names}
        return GroupRow(
            kind=kind,
            name=name,
            cases=sum(max(len(e.cases) for e in by.values()) for by in evaluations.values()),
            classes=len({r.class_name for r in shared}),
            left_out=len(members) - len(shared),
            failures={c: sum(len(by[c].failures) for by in evaluations.values() if c in by) for c in competitors},
            scores=nothing | _macro(shared, competitors),
            micro=nothing | self._micro(shared, competitors),
            intervals={c: {m: self._interval(shared, c, m) for m in HEADLINE} for c in competitors},
        )

    def _micro(self, shared: Sequence[ClassRow], competitors: Sequence[str]) -> Scores:
        wanted = {m: {(r.dataset, r.class_name) for r in _shared(shared, competitors, m)} for m in METRICS}
        found: Scores = {}
        for c in competitors:
            values: dict[str, list[float]] = {m: [] for m in METRICS}
            for dataset in dict.fromkeys(r.dataset for r in shared):
                by_case: dict[tuple[str, str], list[Any]] = {}
                for row in self.results[dataset].evaluations[c].rows:
                    by_case.setdefault((row.class_name, row.case), []).append(row)
                for (class_name, _), rows in by_case.items():
                    for m in METRICS:
                        if (dataset, class_name) in wanted[m]:
                            values[m].append(mean_of(row.metric(m) for row in rows))
            found[c] = {m: mean_of(numbers) for m, numbers in values.items()}
        return found

    # intervals -------------------------------------------------------------------------------------------------------

    def _interval(self, shared: Sequence[ClassRow], competitor: str, metric: str) -> Interval:
        """Interval of the macro mean over rows."""
        estimate = _macro_mean(shared, competitor, metric)
        strata = self._by_stratum(shared, lambda scores, name: scores.pulls(competitor, metric, name))
        parts = [
            (math.fsum(w * row.scores[competitor][metric] for row, w in s.rows), math.fsum(w for _, w in s.rows))
            for s in strata
        ]
        return share_interval(estimate, [s.pulls for s in strata], parts)

    def _difference_interval(self, shared: Sequence[ClassRow], pair: _Pair, difference: float) -> Interval:
        def pulls_apart(scores: PatientScores, name: str) -> NDArray[np.float64] | None:
            first, second = (scores.pulls(c, pair.metric, name) for c in (pair.first, pair.second))
            return None if first is None or second is None else first - second

        return difference_interval(difference, [s.pulls for s in self._by_stratum(shared, pulls_apart)])

    def _by_stratum(
        self,
        shared: Sequence[ClassRow],
        of_class: Callable[[PatientScores, str], NDArray[np.float64] | None],
    ) -> list[_Stratum]:
        """Influence of each patient on a macro mean, stratum by stratum; nothing if too little is known.

        A dataset is a stratum; datasets that share a patient are one stratum. If only one patient has a class, its
        variance cannot be seen and is assumed to be like that of the others.
        """
        strata = _strata({d: self.patients[d].patients for d in dict.fromkeys(r.dataset for r in shared)})
        pulls_of: dict[str, dict[str, float]] = {}  # stratum → patient → pull
        rows_of: dict[str, list[tuple[ClassRow, float]]] = {}
        known = 0.0
        for row, weight in zip(shared, _weights(shared), strict=True):
            scores = self.patients[row.dataset]
            pulls = of_class(scores, row.class_name)
            stratum = pulls_of.setdefault(strata[row.dataset], {})
            for i in np.flatnonzero(scores.having(row.class_name)):
                patient = scores.patients[i]
                stratum[patient] = stratum.get(patient, 0.0) + (0.0 if pulls is None else weight * float(pulls[i]))
            if pulls is not None:
                rows_of.setdefault(strata[row.dataset], []).append((row, weight))
                known += weight
        if known < 1 - _MOST_UNKNOWN:
            return []
        return [
            _Stratum(
                pulls=np.array(list(pulls.values())) / known,
                rows=tuple((row, weight / known) for row, weight in rows_of.get(name, [])),
            )
            for name, pulls in pulls_of.items()
        ]

    # comparisons -----------------------------------------------------------------------------------------------------

    def comparisons(self, rows: Sequence[ClassRow]) -> list[Comparison]:
        found: list[Comparison] = []
        for first, second in itertools.combinations(self.names, 2):
            for metric in HEADLINE:
                pair = _Pair(first=first, second=second, metric=metric)
                for kind, external in (("total", False), ("external", True)):
                    shared = _shared([r for r in rows if r.external == external], self.names, metric)
                    if shared:
                        found.append(self._over_patients(kind, kind, pair, shared))
                        found += self._over_datasets(kind, pair, shared)
                for dataset, one in self.results.items():
                    if first in one.evaluations and second in one.evaluations:
                        there = [c for c in self.names if c in one.evaluations]
                        own = [r for r in rows if r.dataset == dataset]
                        shared = _shared(own, there, metric)
                        if shared:
                            found.append(self._over_patients("dataset", dataset, pair, shared))
                        for row in _shared(own, (first, second), metric):
                            if np.count_nonzero(self.patients[dataset].having(row.class_name)) > 1:
                                found.append(self._over_patients("class", f"{dataset}: {row.class_name}", pair, [row]))
        return found

    def _over_patients(self, kind: str, where: str, pair: _Pair, shared: Sequence[ClassRow]) -> Comparison:
        """Difference of the macro means over rows, tested for other patients."""
        difference = pair.difference(shared)
        low, high = self._difference_interval(shared, pair, difference)
        linear, uneven = self._contributions(shared, pair)
        single = kind in ("dataset", "class")
        patients = self._patient_differences(shared, pair) if single else []
        counted = patients if single else [pair.of(r) for r in shared]
        return pair.comparison(
            kind,
            where,
            counted,
            difference=difference,
            low=low,
            high=high,
            units=len(linear),
            p_value=swap_p(linear, uneven),
            wilcoxon_p=wilcoxon_p(patients) if single else math.nan,
        )

    def _over_datasets(self, kind: str, pair: _Pair, shared: Sequence[ClassRow]) -> list[Comparison]:
        """The same difference, tested for other datasets; nothing if there are fewer than six."""
        names = list(dict.fromkeys(r.dataset for r in shared))
        if len(names) < FEWEST_PATIENTS:
            return []
        difference = pair.difference(shared)
        without = [pair.difference([r for r in shared if r.dataset != name]) for name in names]
        added = dict.fromkeys(names, 0.0)
        for row, weight in zip(shared, _weights(shared), strict=True):
            added[row.dataset] += weight * pair.of(row)
        low, high = jackknife_interval(difference, without)
        counted = [pair.difference([r for r in shared if r.dataset == name]) for name in names]
        return [
            pair.comparison(
                f"{kind}: datasets",
                f"{kind}: datasets",
                counted,
                difference=difference,
                low=low,
                high=high,
                units=len(names),
                p_value=swap_p(np.array(list(added.values()))),
            )
        ]

    def _contributions(self, shared: Sequence[ClassRow], pair: _Pair) -> tuple[NDArray[np.float64], list[Uneven]]:
        """Contribution of each patient of each dataset to the difference of the macro means."""
        datasets = dict.fromkeys(r.dataset for r in shared)
        unit: dict[str, int] = {}
        for dataset in datasets:
            for patient in self.patients[dataset].patients:
                unit.setdefault(patient, len(unit))
        linear, uneven, counts = np.zeros(len(unit)), [], np.zeros(len(unit))
        for row, weight in zip(shared, _weights(shared), strict=True):
            scores = self.patients[row.dataset]
            place = [unit[patient] for patient in scores.patients]
            (sums, numbers), (other_sums, other_numbers) = (
                scores.of(c, pair.metric, row.class_name) for c in (pair.first, pair.second)
            )
            counts[place] += numbers + other_numbers
            if (numbers == other_numbers).all():
                linear[place] += weight * (sums - other_sums) / numbers.sum()
            else:
                both_sums, both_numbers = np.zeros((2, len(unit))), np.zeros((2, len(unit)))
                both_sums[:, place], both_numbers[:, place] = (sums, other_sums), (numbers, other_numbers)
                uneven.append((weight, both_sums, both_numbers))
        there = counts > 0  # a patient with none of the classes is not a unit of the test
        return linear[there], [Uneven(w, s[:, there], n[:, there]) for w, s, n in uneven]

    def _patient_differences(self, shared: Sequence[ClassRow], pair: _Pair) -> list[float]:
        """For each patient of a dataset, the mean difference over classes that both competitors have a score for."""
        scores = self.patients[shared[0].dataset]
        by_class = []
        for row in shared:
            (sums, numbers), (other_sums, other_numbers) = (
                scores.of(c, pair.metric, row.class_name) for c in (pair.first, pair.second)
            )
            both = (numbers > 0) & (other_numbers > 0)
            difference = np.full(len(both), math.nan)
            difference[both] = sums[both] / numbers[both] - other_sums[both] / other_numbers[both]
            by_class.append(difference)
        means = [mean_of(values) for values in np.array(by_class).T]
        return [m for m in means if not math.isnan(m)]


@dataclass(frozen=True, kw_only=True)
class _Stratum:
    """Datasets whose patients were drawn together.

    Attributes:
        pulls: (patients,) influence of each patient on a mean.
        rows: Rows of which the variance is known, each with its weight in the mean.
    """

    pulls: NDArray[np.float64]
    rows: tuple[tuple[ClassRow, float], ...]


@dataclass(frozen=True, kw_only=True)
class _Pair:
    first: str
    second: str
    metric: str

    def of(self, row: ClassRow) -> float:
        """Difference of a class of a dataset."""
        return row.scores[self.first][self.metric] - row.scores[self.second][self.metric]

    def difference(self, rows: Sequence[ClassRow]) -> float:
        """Difference of the macro means."""
        both = (self.first, self.second)
        first, second = (_macro_mean(_shared(rows, both, self.metric), c, self.metric) for c in both)
        return first - second

    def comparison(self, kind: str, where: str, counted: Sequence[float], **numbers: Any) -> Comparison:
        """Comparison that counts wins, ties and losses among these differences."""
        # The slack keeps a difference of exactly the margin a tie, whatever its last bits.
        wins = sum(d > TIE_MARGIN + 1e-9 for d in counted)
        losses = sum(d < -TIE_MARGIN - 1e-9 for d in counted)
        return Comparison(
            kind=kind,
            where=where,
            first=self.first,
            second=self.second,
            metric=self.metric,
            pairs=len(counted),
            wins=wins,
            ties=len(counted) - wins - losses,
            losses=losses,
            **numbers,
        )


def _shared(rows: Sequence[ClassRow], names: Sequence[str], metric: str = "dsc") -> list[ClassRow]:
    """Rows in which each of the competitors has a score."""
    return [r for r in rows if not any(math.isnan(r.scores[c][metric]) for c in names)]


def _strata(patients: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """Dataset → the first of all datasets linked to it by shared patients, directly or through others."""
    strata = {dataset: dataset for dataset in patients}
    first: dict[str, str] = {}  # patient → the first dataset that the patient is in
    for dataset, names in patients.items():
        for patient in names:
            other = strata[first.setdefault(patient, dataset)]
            if other != strata[dataset]:
                joined = strata[dataset]
                strata = {d: other if s == joined else s for d, s in strata.items()}
    return strata


def _weights(rows: Sequence[ClassRow]) -> list[float]:
    """Weight of every row in the mean over classes of the means over datasets."""
    datasets: dict[str, int] = {}
    for row in rows:
        datasets[row.class_name] = datasets.get(row.class_name, 0) + 1
    return [1 / (len(datasets) * datasets[row.class_name]) for row in rows]


def _macro(rows: Sequence[ClassRow], names: Sequence[str]) -> Scores:
    """Macro means, metric by metric, over classes for which all competitors have a value."""
    found: Scores = {c: {} for c in names}
    for metric in METRICS:
        shared = _shared(rows, names, metric)
        for c in names:
            found[c][metric] = _macro_mean(shared, c, metric)
    return found


def _macro_mean(rows: Sequence[ClassRow], competitor: str, metric: str) -> float:
    """Mean over classes of the means over datasets."""
    by_class: dict[str, list[float]] = {}
    for row in rows:
        by_class.setdefault(row.class_name, []).append(row.scores[competitor][metric])
    return mean_of(mean_of(values) for values in by_class.values())


def _adjusted(comparisons: Sequence[Comparison], correction: Correction) -> list[Comparison]:
    families: dict[tuple[str, str, str, str], list[int]] = {}
    for i, c in enumerate(comparisons):
        families.setdefault((c.kind, c.first, c.second, c.metric), []).append(i)
    found = list(comparisons)
    for members in families.values():
        for i, p in zip(members, adjust([comparisons[i].p_value for i in members], correction), strict=True):
            found[i] = dataclasses.replace(comparisons[i], p_adjusted=p)
    return found
