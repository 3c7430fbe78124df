"""Differences of two competitors: their intervals, their tests, and who wins how often.

A difference is always that of two means in the tables, and its interval and its test are for exactly this difference.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from satunet.evaluation.benchmark.conclusions.means import macro_mean, shared_rows, weights_of
from satunet.evaluation.benchmark.conclusions.patients import PatientScores
from satunet.evaluation.benchmark.conclusions.results import ClassRow, Comparison, Results
from satunet.evaluation.benchmark.conclusions.statistics import (
    FEWEST_PATIENTS,
    Correction,
    Interval,
    Uneven,
    adjust,
    difference_interval,
    jackknife_interval,
    swap_p,
    wilcoxon_p,
)
from satunet.evaluation.benchmark.conclusions.strata import Patients, by_stratum
from satunet.evaluation.scoring.scores import HEADLINE, mean_of

TIE_MARGIN = 0.005
"""Largest absolute difference that counts as a tie."""


@dataclass(frozen=True, kw_only=True)
class Differences:
    """Every two competitors, compared over all classes, in each dataset and in each class.

    Attributes:
        results: Dataset → its scores.
        names: Competitors, in the order of the tables.
        patients: Dataset → scores of its patients.
    """

    results: Results
    names: tuple[str, ...]
    patients: Patients

    def of(self, rows: Sequence[ClassRow]) -> list[Comparison]:
        """All comparisons of two competitors, with p-values that are not yet adjusted."""
        found: list[Comparison] = []
        for first, second in itertools.combinations(self.names, 2):
            for metric in HEADLINE:
                pair = _Pair(first=first, second=second, metric=metric)
                for kind, external in (("total", False), ("external", True)):
                    shared = shared_rows([r for r in rows if r.external == external], self.names, metric)
                    if shared:
                        found.append(self._over_patients(kind, kind, pair, shared))
                        found += self._over_datasets(kind, pair, shared)
                for dataset, one in self.results.items():
                    if first in one.evaluations and second in one.evaluations:
                        there = [c for c in self.names if c in one.evaluations]
                        own = [r for r in rows if r.dataset == dataset]
                        shared = shared_rows(own, there, metric)
                        if shared:
                            found.append(self._over_patients("dataset", dataset, pair, shared))
                        for row in shared_rows(own, (first, second), metric):
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
        for row, weight in zip(shared, weights_of(shared), strict=True):
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
        for row, weight in zip(shared, weights_of(shared), strict=True):
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

    def _difference_interval(self, shared: Sequence[ClassRow], pair: _Pair, difference: float) -> Interval:
        def pulls_apart(scores: PatientScores, name: str) -> NDArray[np.float64] | None:
            first, second = (scores.pulls(c, pair.metric, name) for c in (pair.first, pair.second))
            return None if first is None or second is None else first - second

        return difference_interval(difference, [s.pulls for s in by_stratum(self.patients, shared, pulls_apart)])


def adjusted(comparisons: Sequence[Comparison], correction: Correction) -> list[Comparison]:
    """The same comparisons with p-values adjusted within each family: two competitors, one metric, one kind."""
    families: dict[tuple[str, str, str, str], list[int]] = {}
    for i, c in enumerate(comparisons):
        families.setdefault((c.kind, c.first, c.second, c.metric), []).append(i)
    found = list(comparisons)
    for members in families.values():
        for i, p in zip(members, adjust([comparisons[i].p_value for i in members], correction), strict=True):
            found[i] = dataclasses.replace(comparisons[i], p_adjusted=p)
    return found


@dataclass(frozen=True, kw_only=True)
class _Pair:
    """Two competitors and a metric."""

    first: str
    second: str
    metric: str

    def of(self, row: ClassRow) -> float:
        """Difference of a class of a dataset."""
        return row.scores[self.first][self.metric] - row.scores[self.second][self.metric]

    def difference(self, rows: Sequence[ClassRow]) -> float:
        """Difference of the macro means."""
        both = (self.first, self.second)
        first, second = (macro_mean(shared_rows(rows, both, self.metric), c, self.metric) for c in both)
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
