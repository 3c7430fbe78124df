"""Intervals and tests, against enumeration, scipy and values worked out by hand."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from satunet.evaluation.benchmark.statistics import (
    Uneven,
    adjust,
    jackknife_interval,
    share_interval,
    student_interval,
    swap_p,
    wilcoxon_p,
)

NAN = math.nan


def enumerated_wilcoxon(differences: list[float]) -> float:
    """Over every sign of the differences that are not zero: how often the smaller or larger rank sum is as extreme."""
    values = [d for d in differences if d]
    ranks = stats.rankdata(np.abs(values))
    observed = sum(r for r, v in zip(ranks, values, strict=True) if v > 0)
    sums = [
        sum(r for r, b in zip(ranks, bits, strict=True) if b) for bits in itertools.product((0, 1), repeat=len(values))
    ]
    return min(1.0, 2 * min(np.mean([s <= observed for s in sums]), np.mean([s >= observed for s in sums])))


@pytest.mark.parametrize(
    "differences",
    [
        [0.1, 0.2, 0.3, 0.4, 0.5, 0.6],
        [0, 0.1, 0.2, 0.3, 0.4, 0.5],
        [0, 0, 0.1, 0.2, 0.3, 0.4],
        [0] * 5 + [0.1],
        [0] * 20 + [0.1, 0.2, 0.3, 0.4, 0.5],
        [0.1] * 6,
        [0.1, -0.2, 0.3, -0.4, 0.5, 0.6, 0.7],
        [0] * 9 + [0.1, 0.1, -0.2, 0.3, 0.4],
        [0.1, 0.1, -0.1, 0.2, 0.2, -0.3, 0.4, 0.4],
        [0.1, -0.1, 0.1, -0.1, 0.1, -0.1],  # in the middle: twice the smaller tail would be more than 1
    ],
)
def test_wilcoxon_is_exact_with_zeros_and_ties(differences: list[float]) -> None:
    expected = enumerated_wilcoxon(differences)
    assert wilcoxon_p(differences) == pytest.approx(expected, abs=1e-12)
    assert wilcoxon_p([-d for d in differences]) == pytest.approx(expected, abs=1e-12)


def test_wilcoxon_is_scipys_where_scipys_is_exact() -> None:
    values = np.random.default_rng(0).normal(0.3, 1, 40)
    assert wilcoxon_p(list(values)) == pytest.approx(stats.wilcoxon(values, method="exact").pvalue, rel=1e-9)
    many = np.random.default_rng(1).normal(0.05, 1, 400)
    assert wilcoxon_p(list(many)) == pytest.approx(stats.wilcoxon(many, method="approx").pvalue, rel=1e-9)
    both = np.random.default_rng(1).normal(0.1, 1, 200)  # the last that is exact: close to the normal one
    assert wilcoxon_p(list(both)) == pytest.approx(stats.wilcoxon(both, method="approx").pvalue, rel=0.05)


def test_wilcoxon_needs_six_pairs_and_a_difference() -> None:
    assert math.isnan(wilcoxon_p([0.1] * 5))
    assert math.isnan(wilcoxon_p([0.0] * 9))
    # Equal scores whose means differ in the last bits are equal.
    first, second = [0.3, 0.6, 0.9, 0.1 + 0.2, 0.7, 0.8], [0.1 * 3, 0.2 * 3, 0.3 * 3, 0.3, 0.1 * 7, 0.8]
    assert any(a != b for a, b in zip(first, second, strict=True))
    assert math.isnan(wilcoxon_p([a - b for a, b in zip(first, second, strict=True)]))
    assert math.isnan(swap_p(np.subtract(first, second)))


@pytest.mark.parametrize("values", [[0.3, 0.1, -0.2, 0.4, 0.25, 0.05], [1.0, 1, 1, 1, 1, 1, 1], [0, 0, 0, 0, 0, 0.5]])
def test_swaps_are_all_listed_where_they_are_few(values: list[float]) -> None:
    observed = abs(sum(values))
    sums = [abs(sum(s * v for s, v in zip(signs, values, strict=True)))
            for signs in itertools.product((1, -1), repeat=len(values))]  # fmt: skip
    assert swap_p(np.array(values)) == pytest.approx(np.mean([s >= observed - 1e-9 for s in sums]))


def test_random_swaps_are_close_to_all_of_them_and_the_same_every_time() -> None:
    values = np.random.default_rng(3).normal(0.35, 1, 16)
    found = swap_p(values)
    signs = 1 - 2 * (np.arange(1 << 16)[:, None] >> np.arange(16) & 1)
    exact = np.mean(np.abs(signs @ values) >= abs(values.sum()) - 1e-12)
    assert found == pytest.approx(exact, abs=0.015)
    assert found == swap_p(values)
    assert swap_p(np.full(40, 1.0)) == pytest.approx(1 / 10_000)  # never 0: the data themselves are one of the ways


def test_swaps_need_six_units() -> None:
    assert math.isnan(swap_p(np.full(5, 1.0)))
    assert swap_p(np.full(6, 1.0)) == pytest.approx(2 / 2**6)
    assert math.isnan(swap_p(np.zeros(8)))


def test_means_over_unequal_numbers_are_swapped_whole() -> None:
    # The second competitor has no score of two patients: a swap moves the gap along with the scores.
    sums = np.array([[0.9, 0.8, 0.7, 0.6, 0.9, 0.8], [0.5, 0.0, 0.6, 0.0, 0.7, 0.6]])
    counts = np.array([[1.0, 1, 1, 1, 1, 1], [1, 0, 1, 0, 1, 1]])
    observed = sums[0].sum() / 6 - sums[1].sum() / 4
    found = []
    for swap in itertools.product((0, 1), repeat=6):
        first = [(sums[s, i], counts[s, i]) for i, s in enumerate(swap)]
        second = [(sums[1 - s, i], counts[1 - s, i]) for i, s in enumerate(swap)]
        means = [sum(a for a, _ in side) / sum(n for _, n in side) for side in (first, second)]
        found.append(0.5 * (means[0] - means[1]))
    uneven = Uneven(0.5, sums, counts)
    assert uneven.differences(np.zeros((1, 6)))[0] == pytest.approx(0.5 * observed)
    expected = np.mean([abs(f) >= abs(0.5 * observed) - 1e-9 for f in found])
    assert swap_p(np.zeros(6), [uneven]) == pytest.approx(expected)


def test_a_mean_that_loses_all_its_values_differs_in_nothing() -> None:
    uneven = Uneven(1.0, np.array([[0.9, 0.0], [0.0, 0.0]]), np.array([[1.0, 0], [0, 0]]))
    assert uneven.differences(np.zeros((1, 2))).tolist() == [0.0]
    assert uneven.moves
    assert Uneven(1.0, np.array([[0.5, 0.2], [0.4, 0.2]]), np.ones((2, 2))).moves
    sums = np.array([[0.5, 0.2], [0.5, 0.2]])
    assert Uneven(1.0, sums, np.array([[1.0, 1], [2, 1]])).moves
    assert not Uneven(1.0, sums, np.array([[1.0, 1], [1, 1]])).moves


def test_students_interval() -> None:
    values = np.array([0.9, 0.8, 0.75, 0.4, 0.85])
    n = len(values)
    pulls = (values - values.mean()) / n * math.sqrt(n / (n - 1))
    expected = stats.ttest_1samp(values, 0).confidence_interval()
    assert student_interval(float(values.mean()), [pulls]) == pytest.approx((expected.low, expected.high))
    low, high = share_interval(float(values.mean()), [pulls])
    assert 0 < low < values.mean() < high < 1
    assert values.mean() - low > high - values.mean()  # there is more room below
    error = math.sqrt(pulls @ pulls) / (0.74 * 0.26)
    reach = stats.t.ppf(0.975, 4) * error
    logit = math.log(0.74 / 0.26)
    assert (low, high) == pytest.approx([1 / (1 + math.exp(-v)) for v in (logit - reach, logit + reach)])


def test_no_interval_where_nothing_tells() -> None:
    assert all(map(math.isnan, student_interval(0.5, [])))
    assert all(map(math.isnan, student_interval(0.5, [np.array([0.1, -0.1])])))  # two patients
    assert all(map(math.isnan, student_interval(NAN, [np.ones(5)])))
    assert all(map(math.isnan, student_interval(0.5, [np.zeros(5)])))  # all the same
    assert all(map(math.isnan, share_interval(1.0, [np.zeros(5)])))
    assert all(map(math.isnan, share_interval(0.0, [np.zeros(5)])))
    assert all(map(math.isnan, student_interval(0.5, [np.full(5, 0.1), np.ones(2)])))


def test_the_jackknife_of_a_mean_is_students() -> None:
    values = np.random.default_rng(0).normal(size=9)
    without = [(values.sum() - v) / 8 for v in values]
    expected = stats.ttest_1samp(values, 0).confidence_interval()
    assert jackknife_interval(float(values.mean()), without) == pytest.approx((expected.low, expected.high))
    assert all(map(math.isnan, jackknife_interval(0.5, without[:5])))
    assert not math.isnan(jackknife_interval(0.5, without[:6])[0])
    assert math.isnan(jackknife_interval(NAN, without)[0])


def test_holm_by_hand() -> None:
    assert adjust([0.01, 0.04, 0.03], "holm") == pytest.approx([0.03, 0.06, 0.06])  # 0.04 alone would be less than 0.06
    assert adjust([0.04, NAN, 0.01, 0.5], "holm") == pytest.approx([0.08, NAN, 0.03, 0.5], nan_ok=True)
    assert adjust([0.6, 0.7], "holm") == [1.0, 1.0]
    assert adjust([0.02], "holm") == [0.02]


def test_other_corrections() -> None:
    p = [0.01, NAN, 0.04, 0.03]
    assert adjust(p, "bh") == pytest.approx([0.03, NAN, 0.04, 0.04], nan_ok=True)
    assert adjust(p, "none") == pytest.approx(p, nan_ok=True)
    assert adjust([NAN], "holm") == pytest.approx([NAN], nan_ok=True)
    assert adjust([], "bh") == []
