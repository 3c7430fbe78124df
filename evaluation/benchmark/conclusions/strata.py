"""How much each patient moves a mean: the basis of its interval.

Patients of one dataset were drawn together; they are a stratum. Datasets that share a patient are one stratum.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from satunet.evaluation.benchmark.conclusions.means import macro_mean, weights_of
from satunet.evaluation.benchmark.conclusions.patients import PatientScores
from satunet.evaluation.benchmark.conclusions.results import ClassRow
from satunet.evaluation.benchmark.conclusions.statistics import Interval, share_interval

Patients = Mapping[str, PatientScores]
"""Dataset → scores of its patients."""

_MOST_UNKNOWN = 0.5
"""Largest share of a mean that may come from classes whose variance is not known."""


@dataclass(frozen=True, kw_only=True)
class Stratum:
    """Datasets whose patients were drawn together.

    Attributes:
        pulls: (patients,) influence of each patient on a mean.
        rows: Rows of which the variance is known, each with its weight in the mean.
    """

    pulls: NDArray[np.float64]
    rows: tuple[tuple[ClassRow, float], ...]


def mean_interval(patients: Patients, shared: Sequence[ClassRow], competitor: str, metric: str) -> Interval:
    """Interval of the macro mean over rows."""
    estimate = macro_mean(shared, competitor, metric)
    strata = by_stratum(patients, shared, lambda scores, name: scores.pulls(competitor, metric, name))
    parts = [
        (math.fsum(w * row.scores[competitor][metric] for row, w in s.rows), math.fsum(w for _, w in s.rows))
        for s in strata
    ]
    return share_interval(estimate, [s.pulls for s in strata], parts)


def by_stratum(
    patients: Patients,
    shared: Sequence[ClassRow],
    of_class: Callable[[PatientScores, str], NDArray[np.float64] | None],
) -> list[Stratum]:
    """Influence of each patient on a macro mean, stratum by stratum; nothing if too little is known.

    A dataset is a stratum; datasets that share a patient are one stratum. If only one patient has a class, its
    variance cannot be seen and is assumed to be like that of the others.
    """
    strata = _strata({d: patients[d].patients for d in dict.fromkeys(r.dataset for r in shared)})
    pulls_of: dict[str, dict[str, float]] = {}  # stratum → patient → pull
    rows_of: dict[str, list[tuple[ClassRow, float]]] = {}
    known = 0.0
    for row, weight in zip(shared, weights_of(shared), strict=True):
        scores = patients[row.dataset]
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
        Stratum(
            pulls=np.array(list(pulls.values())) / known,
            rows=tuple((row, weight / known) for row, weight in rows_of.get(name, [])),
        )
        for name, pulls in pulls_of.items()
    ]


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
