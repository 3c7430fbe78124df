"""Statistics of paired scores, on plain arrays: intervals, tests by patient, control of many tests.

Patients were drawn at random, while the classes, scans and folds of one patient depend on each other. So the patient
is the unit of everything here:

- Intervals of differences are Student's with Satterthwaite's degrees of freedom. The variance of an estimate comes from
  the influence of each patient on it, dataset by dataset: the linearised variance of clustered samples. Percentiles of a
  bootstrap are too narrow with few patients: with three, an interval meant to cover 95 % covers 75 %.
- Intervals of scores leave room for a patient who was not drawn. Ten patients in whom a network works say little about
  the one in ten in whom it fails, and the variance among the ten says nothing about it. Scores are between 0 and 1, so
  that the effect of such a patient is bounded: the interval is that of Gaffke (2005), which is a Bayesian bootstrap
  with one more patient of score 0 for its lower end, and of score 1 for its upper end; with Student's interval on the
  logit scale where that is wider.
- Tests are permutation tests that swap the two competitors patient by patient, in all classes of all datasets of a
  patient at once; they are exact where all swaps can be listed. Fewer than six patients cannot reach 5 %, so they have
  no p-value.

``benchmarks/simulate_statistics.py`` measures how often the intervals cover the truth, and how often the tests find a
difference that is not there.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Correction = Literal["holm", "bh", "none"]

FEWEST_PATIENTS = 6
"""Smallest number of units for a test, and for the interval of a difference: fewer can be swapped in too few ways for a
p-value of 5 %."""
FEWEST_FOR_INTERVALS = 3
"""Smallest number of patients of every dataset for an interval."""
LEVEL = 0.95

_MOST_LISTED = 12
"""Largest number of units for which every way to swap them is listed."""
_DRAWS = 9999
_CHUNK = 1000
_SEED = 20240817
_EQUAL = 1e-12
"""Difference below which two means are equal up to rounding: scores are fractions of voxels."""
_INTERVAL_DRAWS = 4000
_MOST_WEIGHED = 300
"""Largest number of patients who are weighed one by one for an interval."""
_MOST_RANKED = 200
"""Largest number of pairs for which the distribution of Wilcoxon's statistic is computed exactly."""

Interval = tuple[float, float]
NO_INTERVAL: Interval = (math.nan, math.nan)


def share_interval(
    estimate: float, pulls: Sequence[NDArray[np.float64]], parts: Sequence[tuple[float, float]]
) -> Interval:
    """95 % interval of a mean of scores between 0 and 1, with room for patients who were not drawn.

    Args:
        estimate: The mean.
        pulls: Influence of each patient, as in :func:`student_interval`.
        parts: For each dataset, its part of the estimate, and what that part would be if all its scores were 1.

    Returns:
        The interval; none where a dataset has fewer than three patients. Patients who are all the same have one too:
        others may still differ from them.
    """
    if not pulls or math.isnan(estimate) or any(len(p) < FEWEST_FOR_INTERVALS for p in pulls):
        return NO_INTERVAL
    numbers = [len(p) for p in pulls]
    spread = _spread([p * math.sqrt((n - 1) / n) for p, n in zip(pulls, numbers, strict=True)])
    lost, won = _unseen(numbers, [part for part, _ in parts]), _unseen(numbers, [most - p for p, most in parts])
    lows = estimate - lost + (1 - lost / estimate if estimate > 0 else 1) * spread
    highs = estimate + won + (1 - won / (1 - estimate) if estimate < 1 else 1) * spread
    low, high = float(np.quantile(lows, (1 - LEVEL) / 2)), float(np.quantile(highs, (1 + LEVEL) / 2))
    other_low, other_high = _logit_interval(estimate, pulls)
    if not math.isnan(other_low):
        low, high = min(low, other_low), max(high, other_high)
    return max(0.0, low), min(1.0, high)


def _logit_interval(estimate: float, pulls: Sequence[NDArray[np.float64]]) -> Interval:
    """Student's interval on the logit scale, longer on the side where there is room; none for an estimate of 0 or 1."""
    if not 0 < estimate < 1:
        return NO_INTERVAL
    steepness = 1 / (estimate * (1 - estimate))
    logit = math.log(estimate / (1 - estimate))
    low, high = student_interval(logit, [steepness * p for p in pulls])
    return _expit(low), _expit(high)


def _spread(pulls: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    """(draws,) deviations of an estimate in a Bayesian bootstrap of the patients (Rubin 1981)."""
    together = np.concatenate(pulls)
    if len(together) > _MOST_WEIGHED:  # the sum is close to normal by then
        normal = np.random.default_rng([_SEED, 0]).standard_normal(_INTERVAL_DRAWS)
        return np.asarray(math.sqrt(float(together @ together)) * normal, dtype=np.float64)
    return np.asarray(len(together) * (_patient_weights(len(together)) @ together), dtype=np.float64)


@functools.lru_cache(maxsize=8)
def _patient_weights(n: int) -> NDArray[np.float64]:
    """(draws, n) random weights of n patients, each row with the sum 1 (Dirichlet)."""
    return np.random.default_rng([_SEED, n]).dirichlet(np.ones(n), size=_INTERVAL_DRAWS)


def _unseen(numbers: Sequence[int], amounts: Sequence[float]) -> NDArray[np.float64]:
    """(draws,) amount that an estimate may lose to patients unlike any that were drawn.

    If a share q of the patients of one dataset of n is lost entirely, none of them is drawn with a chance of (1 - q)^n.
    For a random such chance, this is the weight of one more patient in a Bayesian bootstrap. With several datasets, the
    shares that cost the estimate most for the same chance are lost.

    Args:
        numbers: Number of patients of each dataset.
        amounts: Amount of the estimate that each dataset can lose.
    """
    found = sorted(((a / n, a, n) for a, n in zip(amounts, numbers, strict=True) if a > 0), reverse=True)
    if not found:
        return np.zeros(_INTERVAL_DRAWS)
    amount, n = (np.array([f[i] for f in found], dtype=np.float64) for i in (1, 2))
    # With the first k datasets, what is left of each is proportional to its number of patients (Lagrange).
    left = np.exp((_log_chances() - np.cumsum(n * np.log(n / amount))) / np.cumsum(n))
    lost = np.cumsum(amount) - left * np.cumsum(n)
    return np.asarray(np.where(left * n <= amount * (1 + _EQUAL), lost, 0.0).max(axis=1), dtype=np.float64)


def difference_interval(difference: float, pulls: Sequence[NDArray[np.float64]]) -> Interval:
    """95 % interval of a difference of two means: Student's, none with fewer patients than a test needs.

    With three to five patients, an interval without 0 would claim what no test of so few can find. It does not allow
    for patients who differ from all that were drawn: the bounds of a difference are too wide to be of use.

    Args:
        difference: The difference.
        pulls: Influence of each patient, as in :func:`student_interval`.
    """
    if sum(len(p) for p in pulls) < FEWEST_PATIENTS:
        return NO_INTERVAL
    return student_interval(difference, pulls)


@functools.cache
def _log_chances() -> NDArray[np.float64]:
    """(draws, 1) logarithms of chances that are spread evenly, in random order."""
    order = np.random.default_rng([_SEED, 1]).permutation(_INTERVAL_DRAWS)
    return np.asarray(np.log((order + 0.5) / _INTERVAL_DRAWS)[:, None], dtype=np.float64)


def student_interval(estimate: float, pulls: Sequence[NDArray[np.float64]]) -> Interval:
    """95 % interval of an estimate over several datasets.

    Args:
        estimate: The estimate.
        pulls: For each dataset, (patients,) influence of each patient on the estimate, such that the sum of their
            squares is its variance.

    Returns:
        The interval; none where a dataset has fewer than three patients or all its patients are the same, because then
        nothing shows how others would differ.
    """
    if not pulls or math.isnan(estimate) or any(len(p) < FEWEST_FOR_INTERVALS for p in pulls):
        return NO_INTERVAL
    from scipy.stats import t

    variances = [float(p @ p) for p in pulls]
    total = math.fsum(variances)
    if total <= _EQUAL**2:
        return NO_INTERVAL
    freedom = total**2 / math.fsum(v**2 / (len(p) - 1) for v, p in zip(variances, pulls, strict=True))
    reach = float(t.ppf((1 + LEVEL) / 2, freedom)) * math.sqrt(total)
    return estimate - reach, estimate + reach


def _expit(value: float) -> float:
    return math.nan if math.isnan(value) else 0.5 * (1 + math.tanh(value / 2))


def jackknife_interval(estimate: float, without: Sequence[float]) -> Interval:
    """95 % interval from the estimates with one unit left out at a time; none below six units.

    Args:
        estimate: The estimate over all units.
        without: Estimates without the first unit, without the second, and so on.
    """
    values = np.asarray(without, dtype=np.float64)
    n = len(values)
    if n < FEWEST_PATIENTS or math.isnan(estimate) or np.isnan(values).any():
        return NO_INTERVAL
    from scipy.stats import t

    error = math.sqrt((n - 1) / n * float(np.square(values - values.mean()).sum()))
    reach = float(t.ppf((1 + LEVEL) / 2, n - 1)) * error
    return estimate - reach, estimate + reach


def swap_p(linear: NDArray[np.float64], uneven: Sequence[Uneven] = ()) -> float:
    """Two-sided p of the difference of two means, by swapping the competitors unit by unit.

    Args:
        linear: (units,) contribution of each unit to the difference; a swap reverses its sign.
        uneven: Differences of means that a swap changes in another way.

    Returns:
        The p-value; ``nan`` below six units, or where no unit makes any difference.
    """
    n = len(linear)
    if n < FEWEST_PATIENTS:
        return math.nan
    observed = float(linear.sum()) + sum(float(u.differences(np.zeros((1, n)))[0]) for u in uneven)
    moves = bool((np.abs(linear) > _EQUAL).any()) or any(u.moves for u in uneven)
    if not moves:
        return math.nan
    reached, count = 0, 0
    for swapped in _swaps(n):
        differences = linear.sum() - 2 * (swapped @ linear)
        for u in uneven:
            differences = differences + u.differences(swapped)
        reached += int(np.count_nonzero(np.abs(differences) >= abs(observed) - _EQUAL))
        count += len(swapped)
    if n <= _MOST_LISTED:
        return reached / count
    return (reached + 1) / (count + 1)


class Uneven:
    """A weighted difference of two means over different numbers of values.

    Args:
        weight: Factor of the difference.
        sums: (2, units) sums of both competitors.
        counts: (2, units) numbers of values in these sums.
    """

    def __init__(self, weight: float, sums: NDArray[np.float64], counts: NDArray[np.float64]) -> None:
        self._weight, self._sums, self._counts = weight, sums, counts

    @property
    def moves(self) -> bool:
        """Whether swapping some unit changes the difference."""
        return bool(
            (np.abs(self._sums[0] - self._sums[1]) > _EQUAL).any() or (self._counts[0] != self._counts[1]).any()
        )

    def differences(self, swapped: NDArray[np.float64]) -> NDArray[np.float64]:
        """(n,) the difference after each of n swaps; 0 where one of the means has no value left.

        Args:
            swapped: (n, units) 1 where a unit is swapped, else 0.
        """
        first, second = self._means(swapped), self._means(1 - swapped)
        return np.asarray(np.nan_to_num(self._weight * (first - second)), dtype=np.float64)

    def _means(self, swapped: NDArray[np.float64]) -> NDArray[np.float64]:
        sums, counts = (v[0].sum() + swapped @ (v[1] - v[0]) for v in (self._sums, self._counts))
        means: NDArray[np.float64] = np.divide(sums, counts, out=np.full_like(sums, math.nan), where=counts > 0)
        return means


@functools.lru_cache(maxsize=4)
def _swaps(n: int) -> tuple[NDArray[np.float64], ...]:
    """Arrays (swaps, n) of 0 and 1: every way to swap n units, or random ones if there are too many."""
    if n <= _MOST_LISTED:
        ways = np.arange(1 << n)[:, None] >> np.arange(n) & 1
        return (ways.astype(np.float64),)
    generator = np.random.default_rng([_SEED, n])
    sizes = [min(_CHUNK, _DRAWS - start) for start in range(0, _DRAWS, _CHUNK)]
    return tuple(generator.integers(0, 2, size=(size, n)).astype(np.float64) for size in sizes)


def wilcoxon_p(differences: Sequence[float]) -> float:
    """Two-sided p of Wilcoxon's signed-rank test, one difference per patient; ``nan`` below six pairs.

    Differences of zero are left out, as Wilcoxon did (``zero_method="wilcox"`` of scipy). The distribution is exact,
    ties included, for up to 200 pairs that differ; above that it is the normal approximation, corrected for ties.
    """
    values = np.asarray(differences, dtype=np.float64)
    values = values[np.abs(values) > _EQUAL]
    if len(differences) < FEWEST_PATIENTS or not len(values):
        return math.nan
    from scipy.stats import rankdata, wilcoxon

    # Differences that are equal up to rounding are tied.
    sizes = np.round(np.abs(values), 12)
    if len(values) > _MOST_RANKED:
        return float(wilcoxon(np.sign(values) * sizes, zero_method="wilcox", method="approx").pvalue)
    doubled = np.rint(2 * rankdata(sizes)).astype(int)  # tied ranks may end in one half
    chances = np.zeros(int(doubled.sum()) + 1)
    chances[0] = 1.0
    for rank in doubled:
        chances[rank:] = (chances[rank:] + chances[: len(chances) - rank]) / 2 if rank else chances
        chances[:rank] /= 2
    positive = int(doubled[values > 0].sum())
    lower, upper = float(chances[: positive + 1].sum()), float(chances[positive:].sum())
    return min(1.0, 2 * min(lower, upper))


def adjust(p_values: Sequence[float], correction: Correction) -> list[float]:
    """Adjusted p-values of one family of tests; ``nan`` stays, and does not count as a test.

    Args:
        p_values: p-values from the tests.
        correction: ``"holm"`` bounds the chance of any false finding (Holm 1979), ``"bh"`` the share of false ones
            among the findings (Benjamini and Hochberg 1995), ``"none"`` nothing.
    """
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
