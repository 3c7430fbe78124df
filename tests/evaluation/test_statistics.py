"""Intervals and tests, against enumeration, scipy and values worked out by hand."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from satunet.evaluation.benchmark.conclusions.statistics import (
    Uneven,
    adjust,
    difference_interval,
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


def _shared(values: NDArray[np.float64]) -> tuple[float, list[NDArray[np.float64]], list[tuple[float, float]]]:
    """What :func:`share_interval` is given for the scores of one dataset."""
    n, mean = len(values), float(values.mean())
    return mean, [(values - mean) / n * math.sqrt(n / (n - 1))], [(mean, 1.0)]


@pytest.mark.parametrize(("hits", "n"), [(11, 12), (1, 12), (27, 36), (30, 30), (0, 7), (3, 3)])
def test_the_interval_of_scores_of_0_and_1_is_clopper_and_pearsons(hits: int, n: int) -> None:
    values = np.array([1.0] * hits + [0.0] * (n - hits))
    low, high = share_interval(*_shared(values))
    exact = stats.binomtest(hits, n).proportion_ci(method="exact")
    expected = exact.low, exact.high
    if 0 < hits < n:  # Student's on the logit scale may be a little wider
        students = _students_of_the_logit(values)
        expected = min(exact.low, students[0]), max(exact.high, students[1])
        assert expected != students
    assert (low, high) == pytest.approx(expected, abs=0.005)  # 4,000 draws


def _students_of_the_logit(values: NDArray[np.float64]) -> tuple[float, float]:
    mean, n = float(values.mean()), len(values)
    reach = stats.t.ppf(0.975, n - 1) * math.sqrt(values.var(ddof=1) / n) / (mean * (1 - mean))
    logit = math.log(mean / (1 - mean))
    return 1 / (1 + math.exp(reach - logit)), 1 / (1 + math.exp(-reach - logit))


def test_the_interval_leaves_room_for_a_patient_who_was_not_drawn() -> None:
    # All the same: what remains of the mean is what a failure in up to 1 - 0.025^(1/n) of the patients leaves.
    for n in (3, 10, 50, 400):
        low, high = share_interval(0.8, [np.zeros(n)], [(0.8, 1.0)])
        left = 0.025 ** (1 / n)
        assert (low, high) == pytest.approx((0.8 * left, 1 - 0.2 * left), abs=2e-3)
    assert share_interval(0.8, [np.zeros(5)], [(0.8, 1.0)]) == share_interval(0.8, [np.zeros(5)], [(0.8, 1.0)])


def test_the_interval_is_at_least_students_of_the_logit() -> None:
    values = np.array([0.2, 0.5, 0.8, 0.3])
    students = _students_of_the_logit(values)
    low, high = share_interval(*_shared(values))
    assert low <= students[0] + 1e-12
    assert high == pytest.approx(students[1])


def test_patients_who_were_not_drawn_are_where_they_cost_most() -> None:
    numbers, amounts = [3, 20, 6], [0.3, 0.3, 0.2]
    low, _ = share_interval(0.8, [np.zeros(n) for n in numbers], [(a, a) for a in amounts])
    # The shares q that cost most, of all for which no such patient is drawn in 2.5 %, by a search.
    from scipy.optimize import minimize

    allowed = {"type": "ineq", "fun": lambda q: float(np.dot(numbers, np.log1p(-q)) - math.log(0.025))}
    worst = minimize(
        lambda q: -float(np.dot(amounts, q)), [0.1] * 3, bounds=[(0, 0.99)] * 3, constraints=[allowed], method="SLSQP"
    )
    assert low == pytest.approx(0.8 + worst.fun, abs=2e-3)
    same, _ = share_interval(1.0, [np.zeros(5)] * 4, [(0.25, 0.25)] * 4)
    assert same == pytest.approx(0.025 ** (1 / 20), abs=2e-3)  # four datasets alike are one of all their patients


def test_many_patients_leave_little_room() -> None:
    values = np.random.default_rng(2).beta(9, 1, 5000)
    low, high = share_interval(*_shared(values))
    expected = stats.ttest_1samp(values, 0).confidence_interval()
    assert (low, high) == pytest.approx((expected.low, expected.high), abs=1.5e-3)
    fewer, more = share_interval(*_shared(values[:300])), share_interval(*_shared(values[:301]))
    assert fewer == pytest.approx(more, abs=2e-3)  # where weights of patients end and the normal distribution begins


def test_a_difference_of_few_patients_has_no_interval() -> None:
    pulls = np.array([0.1, -0.1, 0.05, -0.05, 0.02])
    assert all(map(math.isnan, difference_interval(0.2, [pulls])))  # nor has it a p-value
    six = np.append(pulls, -0.02)
    assert difference_interval(0.2, [six]) == student_interval(0.2, [six])
    assert not math.isnan(difference_interval(0.2, [pulls[:3], pulls[2:]])[0])


def test_no_interval_where_nothing_tells() -> None:
    assert all(map(math.isnan, student_interval(0.5, [])))
    assert all(map(math.isnan, student_interval(0.5, [np.array([0.1, -0.1])])))  # two patients
    assert all(map(math.isnan, student_interval(NAN, [np.ones(5)])))
    assert all(map(math.isnan, student_interval(0.5, [np.zeros(5)])))  # all the same
    assert all(map(math.isnan, share_interval(NAN, [np.zeros(5)], [(NAN, 1.0)])))
    assert all(map(math.isnan, share_interval(0.5, [], [])))
    assert all(map(math.isnan, share_interval(0.5, [np.zeros(5), np.zeros(2)], [(0.25, 0.5)] * 2)))
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
