"""Statistics of paired scores: Wilcoxon's test, control of many tests, bootstrap intervals.

Cases are what is drawn at random, so cases are what is resampled, within each dataset: all classes, scans and folds
of a case go together, and every competitor sees the same draw. Datasets are drawn independently. An interval of a mean
over classes or datasets is that of the same mean in every draw. It speaks of other cases of these datasets, not of
other datasets.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from satunet.errors import UserError
from satunet.evaluation.scoring.scores import Evaluation

Correction = Literal["holm", "bh", "none"]

FEWEST_PAIRS = 6
"""Wilcoxon's test cannot reach 5 % with fewer."""
FEWEST_CASES = 3
"""Fewer cases have no interval."""
DRAWS = 1000
_SEED = 20240817
_LEVEL = (2.5, 97.5)

Interval = tuple[float, float]
NO_INTERVAL: Interval = (math.nan, math.nan)


def wilcoxon_p(differences: Sequence[float]) -> float:
    """Two-sided p of Wilcoxon's signed-rank test; ``nan`` below six pairs, or without any difference."""
    if len(differences) < FEWEST_PAIRS or not any(differences):
        return math.nan
    from scipy.stats import wilcoxon

    return float(wilcoxon(differences).pvalue)


def adjust(p_values: Sequence[float], correction: Correction) -> list[float]:
    """Adjusted p-values of one family of tests; ``nan`` stays, and does not count as a test.

    Args:
        p_values: As the tests gave them.
        correction: ``"holm"`` bounds the chance of any false finding (Holm 1979), ``"bh"`` the share of false ones
            among the findings (Benjamini and Hochberg 1995), ``"none"`` nothing.

    Raises:
        UserError: Another correction.
    """
    if correction not in ("holm", "bh", "none"):
        raise UserError(f"correction {correction!r}: allowed are holm, bh, none")
    values = np.asarray(p_values, dtype=np.float64)
    tested = np.flatnonzero(~np.isnan(values))
    if correction == "none" or not len(tested):
        return [float(v) for v in values]
    adjusted = values.copy()
    if correction == "bh":
        from scipy.stats import false_discovery_control

        adjusted[tested] = false_discovery_control(values[tested], method="bh")
    else:
        order = tested[np.argsort(values[tested], kind="stable")]
        factors = np.arange(len(order), 0, -1)
        adjusted[order] = np.minimum(1.0, np.maximum.accumulate(values[order] * factors))
    return [float(v) for v in adjusted]


class Resampled:
    """Class means of one dataset in every draw of its cases.

    Args:
        evaluations: Competitor → evaluation of the dataset.
        metrics: Metrics to resample.
        dataset: Its name. Each has draws of its own: were those of two datasets the same, the errors of their means
            would add up or cancel, by the order of their cases.
        draws: How many.
    """

    def __init__(
        self,
        evaluations: Mapping[str, Evaluation],
        metrics: Sequence[str],
        *,
        dataset: str = "",
        draws: int = DRAWS,
    ) -> None:
        cases = sorted({row.case for e in evaluations.values() for row in e.rows})
        self.cases = len(cases)
        self._classes: dict[str, int] = {}
        for evaluation in evaluations.values():
            for name in evaluation.classes:
                self._classes.setdefault(name, len(self._classes))
        generator = np.random.default_rng([_SEED, zlib.crc32(dataset.encode())])
        # (draws, cases): how often each case is in a draw
        picks = generator.multinomial(self.cases, [1 / self.cases] * self.cases, size=draws) if self.cases else None
        self._means: dict[tuple[str, str], NDArray[np.float64]] = {}
        self._counts: dict[tuple[str, str], NDArray[np.float64]] = {}
        place = {case: i for i, case in enumerate(cases)}
        for competitor, evaluation in evaluations.items():
            for metric in metrics:
                sums, counts = (np.zeros((self.cases, len(self._classes))) for _ in range(2))
                for row in evaluation.rows:
                    value = row.metric(metric)
                    if not math.isnan(value):
                        where = place[row.case], self._classes[row.class_name]
                        sums[where] += value
                        counts[where] += 1
                if picks is None:
                    means = np.full((draws, len(self._classes)), math.nan)
                else:
                    with np.errstate(invalid="ignore"):
                        means = (picks @ sums) / (picks @ counts)
                self._means[competitor, metric] = means
                self._counts[competitor, metric] = (counts > 0).sum(axis=0)

    def means(self, competitor: str, metric: str, class_name: str) -> NDArray[np.float64]:
        """(draws,) mean of a class over the cases of each draw; ``nan`` in draws without a case that counts."""
        return self._means[competitor, metric][:, self._classes[class_name]]

    def interval(self, competitor: str, metric: str, class_name: str) -> Interval:
        """95 % interval of a class's mean; none below three cases."""
        if self._counts[competitor, metric][self._classes[class_name]] < FEWEST_CASES:
            return NO_INTERVAL
        return interval_of(self.means(competitor, metric, class_name))


def interval_of(draws: NDArray[np.float64]) -> Interval:
    """The middle 95 % of draws; none if there are no numbers, or they are all the same for want of cases."""
    numbers = draws[~np.isnan(draws)]
    if not len(numbers):
        return NO_INTERVAL
    low, high = np.percentile(numbers, _LEVEL)
    return float(low), float(high)


def mean_interval(values: Sequence[float]) -> Interval:
    """95 % interval of the mean of one number a case; none below three cases."""
    numbers = np.asarray(values, dtype=np.float64)
    if len(numbers) < FEWEST_CASES:
        return NO_INTERVAL
    picks = np.random.default_rng(_SEED).multinomial(len(numbers), [1 / len(numbers)] * len(numbers), size=DRAWS)
    return interval_of(picks @ numbers / len(numbers))
