"""Scores of one dataset by patient: sums and counts of every class, the basis of means, their errors and tests."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from satunet.evaluation.benchmark.conclusions.results import DatasetResults


class PatientScores:
    """Sums and counts of every competitor's scores, by patient and class.

    Args:
        dataset: Name of the dataset.
        results: Results of the dataset.
        metrics: Metrics.

    Attributes:
        patients: Names of the patients; one who is in several datasets has the same name there.
    """

    def __init__(self, dataset: str, results: DatasetResults, metrics: Sequence[str]) -> None:
        evaluations = results.evaluations
        cases = {row.case for e in evaluations.values() for row in e.rows}
        person = {case: results.patients.get(case, f"{dataset}/{case}") for case in cases}
        self.patients: tuple[str, ...] = tuple(sorted(set(person.values())))
        place = {patient: i for i, patient in enumerate(self.patients)}
        classes = dict.fromkeys(c.name for e in evaluations.values() for c in e.classes)
        self._column = {name: i for i, name in enumerate(classes)}
        self._tables: dict[tuple[str, str], tuple[NDArray[np.float64], NDArray[np.float64]]] = {}
        for competitor, evaluation in evaluations.items():
            for metric in metrics:
                sums, counts = (np.zeros((len(self.patients), len(self._column))) for _ in range(2))
                for row in evaluation.rows:
                    value = row.metric(metric)
                    if not math.isnan(value):
                        where = place[person[row.case]], self._column[row.class_name]
                        sums[where] += value
                        counts[where] += 1
                self._tables[competitor, metric] = sums, counts

    def of(self, competitor: str, metric: str, class_name: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """(patients,) sums and counts of a class."""
        sums, counts = self._tables[competitor, metric]
        column = self._column[class_name]
        return sums[:, column], counts[:, column]

    def having(self, class_name: str) -> NDArray[np.bool_]:
        """(patients,) whether any competitor has a score of the class for the patient."""
        column = self._column[class_name]
        return np.asarray(np.any([counts[:, column] > 0 for _, counts in self._tables.values()], axis=0), dtype=bool)

    def pulls(self, competitor: str, metric: str, class_name: str) -> NDArray[np.float64] | None:
        """(patients,) influence of each patient on the mean of a class; the sum of squares is the mean's variance.

        ``None`` where fewer than two patients have the class, so that its variance is unknown.
        """
        sums, counts = self.of(competitor, metric, class_name)
        having = int(np.count_nonzero(counts))
        if having < 2:
            return None
        total = counts.sum()
        pulls = (sums - sums.sum() / total * counts) / total
        return np.asarray(pulls * math.sqrt(having / (having - 1)), dtype=np.float64)
