"""Means over classes and datasets, of like with like.

The mean of a class is the mean over the datasets that have it, and a macro mean is the mean over classes. Only rows in
which every competitor has a score belong to the means of a table.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from satunet.evaluation.benchmark.conclusions.results import ClassRow, Scores
from satunet.evaluation.scoring.scores import METRICS, mean_of


def shared_rows(rows: Sequence[ClassRow], names: Sequence[str], metric: str = "dsc") -> list[ClassRow]:
    """Rows in which each of the competitors has a score."""
    return [r for r in rows if not any(math.isnan(r.scores[c][metric]) for c in names)]


def weights_of(rows: Sequence[ClassRow]) -> list[float]:
    """Weight of every row in the mean over classes of the means over datasets."""
    datasets: dict[str, int] = {}
    for row in rows:
        datasets[row.class_name] = datasets.get(row.class_name, 0) + 1
    return [1 / (len(datasets) * datasets[row.class_name]) for row in rows]


def macro_means(rows: Sequence[ClassRow], names: Sequence[str]) -> Scores:
    """Macro means, metric by metric, over classes for which all competitors have a value."""
    found: Scores = {c: {} for c in names}
    for metric in METRICS:
        shared = shared_rows(rows, names, metric)
        for c in names:
            found[c][metric] = macro_mean(shared, c, metric)
    return found


def macro_mean(rows: Sequence[ClassRow], competitor: str, metric: str) -> float:
    """Mean over classes of the means over datasets."""
    by_class: dict[str, list[float]] = {}
    for row in rows:
        by_class.setdefault(row.class_name, []).append(row.scores[competitor][metric])
    return mean_of(mean_of(values) for values in by_class.values())
