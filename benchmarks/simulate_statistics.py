"""How often a benchmark's intervals hold the truth, and how often its tests find what is not there.

    python benchmarks/simulate_statistics.py [REPEATS] > benchmarks/results/statistics.txt

Worlds with a known truth are drawn, and what :mod:`satunet.evaluation.benchmark` says of each is counted. Beside it
stand two usual ways: percentiles of a bootstrap of patients, and Wilcoxon's test over the classes of all datasets as if
they were independent. A 95 % interval should hold the truth in 95 %, a test at 5 % be wrong in 5 %, at most.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from satunet.evaluation.benchmark.conclusions.comparison import compare
from satunet.evaluation.benchmark.conclusions.results import BenchmarkTables, DatasetResults
from satunet.evaluation.benchmark.conclusions.statistics import difference_interval, share_interval, swap_p, wilcoxon_p
from satunet.evaluation.scoring.scores import Evaluation, Row
from satunet.labels.scored import ScoredClass

Draw = Callable[[np.random.Generator, int], NDArray[np.float64]]
_BOOTSTRAP = 1000


def main() -> None:
    """Print all tables."""
    repeats = int(sys.argv[1]) if len(sys.argv) > 1 else 400
    print(
        f"Simulated with numpy {np.__version__}; {5 * repeats} worlds per line of the first two tables, {repeats} of the"
    )
    print(f"others: rates of 5 % are good to about ±{196 * math.sqrt(0.0475 / repeats):.1f} points there.\n")
    single_means(5 * repeats)
    swapped_patients(5 * repeats)
    totals(repeats)
    failing_totals(repeats)
    other_datasets(repeats)


class _Held:
    """Intervals of one kind: how many hold the truth, and how far they reach from the estimate."""

    def __init__(self, truth: float) -> None:
        self.counted = 0
        self._truth, self._right = truth, 0
        self._reach = np.zeros(2)

    def add(self, estimate: float, interval: tuple[float, float]) -> None:
        """Count an interval; one that is not there does not count."""
        low, high = interval
        if math.isnan(low):
            return
        self.counted += 1
        self._right += low <= self._truth <= high
        self._reach += (estimate - low, high - estimate)

    @property
    def held(self) -> str:
        """Share of the intervals that hold the truth, in %, for a column."""
        return f"{100 * self._right / self.counted:8.1f}" if self.counted else f"{'-':>8}"

    @property
    def reach(self) -> str:
        """Mean distances of both ends from the estimate, for two columns."""
        return "".join(f"{d / self.counted:8.3f}" if self.counted else f"{'-':>8}" for d in self._reach)


def _failing(rate: float) -> Draw:
    """Scores about 0.90, and 0 in a share of the patients."""
    return lambda rng, n: np.where(rng.random(n) < rate, 0.0, rng.beta(45, 5, n))


def single_means(repeats: int) -> None:
    """Intervals of one mean over the patients of one dataset."""
    scores: dict[str, tuple[Draw, float]] = {
        "DSC about 0.90, skewed": (lambda rng, n: rng.beta(9, 1, n), 0.9),
        "DSC about 0.50, all sizes": (lambda rng, n: rng.beta(1, 1, n), 0.5),
        "DSC about 0.63, 30 % failures": (_failing(0.3), 0.63),
        "DSC about 0.81, 10 % failures": (_failing(0.1), 0.81),
        "DSC about 0.855, 5 % failures": (_failing(0.05), 0.855),
    }
    differences: dict[str, tuple[Draw, float]] = {
        "difference, symmetric": (lambda rng, n: rng.beta(9, 1, n) - rng.beta(9, 1, n), 0.0),
        "difference, one-sided": (lambda rng, n: 0.05 * (rng.exponential(1, n) - 1), 0.0),
        "difference, either fails in 10 %": (lambda rng, n: _failing(0.1)(rng, n) - _failing(0.1)(rng, n), 0.0),
        "difference, one fails in 10 %": (lambda rng, n: rng.beta(45, 5, n) - _failing(0.1)(rng, n), 0.09),
    }
    print("95 % intervals of a mean over patients: how often they hold it, in %, and how far they reach\n")
    print(f"{'what is averaged':34}{'patients':>9}{'ours':>8}{'no interval':>13}{'below':>8}{'above':>8}"
          f"{'bootstrap':>11}{'below':>8}{'above':>8}")  # fmt: skip
    for name, (draw, truth) in (scores | differences).items():
        for n in (3, 5, 6, 10, 20, 36, 50):
            rng = np.random.default_rng([n, len(name)])
            ours, usual = _Held(truth), _Held(truth)
            for _ in range(repeats):
                values = draw(rng, n)
                mean = float(values.mean())
                pulls = [(values - mean) / n * math.sqrt(n / (n - 1))]
                if name in scores:
                    ours.add(mean, share_interval(mean, pulls, [(mean, 1.0)]))
                else:
                    ours.add(mean, difference_interval(mean, pulls))
                picks = rng.multinomial(n, [1 / n] * n, size=_BOOTSTRAP) @ values / n
                low, high = np.percentile(picks, (2.5, 97.5))
                usual.add(mean, (float(low), float(high)))
            print(
                f"{name:34}{n:9}{ours.held}{100 * (1 - ours.counted / repeats):13.1f}{ours.reach}"
                f"{usual.held:>11}{usual.reach}"
            )
    print(
        "\nAn interval of a difference takes no account of patients unlike all that were drawn: with n patients, up to"
    )
    print("3 / n of all may fail though none of these did. An interval of a score does.\n")


def swapped_patients(repeats: int) -> None:
    """Tests of two equally good competitors on the patients of one dataset."""
    worlds: dict[str, Draw] = {
        "differences symmetric": lambda rng, n: rng.normal(0, 0.03, n),
        "most differences zero": lambda rng, n: np.where(rng.random(n) < 0.7, 0.0, rng.normal(0, 0.03, n)),
        "one fails where other does not": lambda rng, n: (rng.random(n) < 0.1) * 0.8 - (rng.random(n) < 0.1) * 0.8
        + rng.normal(0, 0.01, n),
        "differences one-sided": lambda rng, n: 0.03 * (rng.exponential(1, n) - 1),
    }  # fmt: skip
    print("Two equal competitors on one dataset: p < 0.05, in % of the worlds\n")
    print(f"{'differences':32}{'patients':>9}{'swaps':>8}{'Wilcoxon, exact':>17}{'no p':>7}")
    for name, draw in worlds.items():
        for n in (5, 6, 8, 12, 30):
            rng = np.random.default_rng([n, len(name)])
            swaps, ranks, none = 0, 0, 0
            for _ in range(repeats):
                values = draw(rng, n)
                p = swap_p(values / n)
                swaps += p < 0.05
                none += math.isnan(p)
                ranks += wilcoxon_p(list(values)) < 0.05
            print(f"{name:32}{n:9}{100 * swaps / repeats:8.1f}{100 * ranks / repeats:17.1f}{100 * none / repeats:7.1f}")
    print()


def totals(repeats: int) -> None:
    """The total over datasets and classes, where the classes of a patient depend on each other."""
    print("Two equal competitors over datasets: the total, in % of the worlds\n")
    head = f"{'datasets × patients × classes':32}{'shared':>8}{'p < 0.05':>10}{'interval':>10}{'Wilcoxon over classes':>23}"
    print(f"{head}{'bootstrap':>11}")
    for datasets, patients, classes in ((3, 4, 30), (1, 8, 60), (10, 10, 6), (3, (3, 6, 20), 12)):
        for shared in (0.0, 0.25, 0.64):
            rng = np.random.default_rng([datasets, classes, int(100 * shared)])
            wrong = held = wrong_ranks = held_too = 0
            for _ in range(repeats):
                numbers = patients if isinstance(patients, tuple) else (patients,) * datasets
                differences = [_differences(rng, n, classes, shared) for n in numbers]
                total = _total(_tables(differences, rng), "total")
                wrong += total[2] < 0.05
                held += total[0] <= 0 <= total[1]
                wrong_ranks += wilcoxon_p(list(np.concatenate([d.mean(axis=0) for d in differences]))) < 0.05
                low, high = _bootstrap(differences, rng)
                held_too += low <= 0 <= high
            name = f"{datasets} × {patients} × {classes}"
            print(f"{name:32}{shared:8.2f}{100 * wrong / repeats:10.1f}{100 * held / repeats:10.1f}"
                  f"{100 * wrong_ranks / repeats:23.1f}{100 * held_too / repeats:11.1f}")  # fmt: skip
    print(
        "\nshared: correlation of the classes of one patient. interval, bootstrap: how often 95 % intervals hold 0.\n"
    )


def failing_totals(repeats: int) -> None:
    """The total of one competitor's scores over datasets, where some patients fail in all their classes."""
    print("The total of scores over datasets where patients fail in all classes: 95 % intervals\n")
    print(f"{'datasets × patients × classes':32}{'failures':>10}{'ours':>8}{'below':>8}{'above':>8}{'bootstrap':>11}{'below':>8}"
          f"{'above':>8}")  # fmt: skip
    for datasets, patients, classes in ((3, 4, 8), (3, (3, 6, 20), 8), (10, 10, 3), (30, 3, 2)):
        for rate in (0.0, 0.05, 0.1):
            rng = np.random.default_rng([datasets, classes, int(100 * rate)])
            ours, usual = _Held(0.9 * (1 - rate)), _Held(0.9 * (1 - rate))
            for _ in range(repeats):
                numbers = patients if isinstance(patients, tuple) else (patients,) * datasets
                scores = [np.where(rng.random((n, 1)) < rate, 0.0, rng.beta(45, 5, (n, classes))) for n in numbers]
                results = {f"D{d}": DatasetResults(evaluations={"A": _evaluation(d, v)}) for d, v in enumerate(scores)}
                total = compare(results).totals[0]
                mean = total.scores["A"]["dsc"]
                ours.add(mean, total.intervals["A"]["dsc"])
                usual.add(mean, _bootstrap(scores, rng))
            name = f"{datasets} × {patients} × {classes}"
            print(f"{name:32}{f'{100 * rate:.0f} %':>10}{ours.held}{ours.reach}{usual.held:>11}{usual.reach}")
    print()


def other_datasets(repeats: int) -> None:
    """Whether another dataset would say the same, where datasets differ in whom they favour."""
    print("Two competitors of which each dataset favours one by chance: in % of the worlds\n")
    print(f"{'datasets':>9}{'other datasets: p < 0.05':>26}{'interval':>10}{'other patients: p < 0.05':>26}")
    for datasets in (6, 8, 20):
        rng = np.random.default_rng(datasets)
        wrong = held = patients_wrong = 0
        for _ in range(repeats):
            differences = [_differences(rng, 10, 4, 0.25) + rng.normal(0, 0.03) for _ in range(datasets)]
            tables = _tables(differences, rng)
            low, high, p = _total(tables, "total: datasets")
            wrong += p < 0.05
            held += low <= 0 <= high
            patients_wrong += _total(tables, "total")[2] < 0.05
        rates = [100 * count / repeats for count in (wrong, held, patients_wrong)]
        print(f"{datasets:9}{rates[0]:26.1f}{rates[1]:10.1f}{rates[2]:26.1f}")
    print(
        "\nThe last column is no error: these datasets do favour one. It is why both questions have a row of their own."
    )


def _differences(rng: np.random.Generator, patients: int, classes: int, shared: float) -> NDArray[np.float64]:
    """(patients, classes) differences of mean zero, of which classes of a patient share a part."""
    own = rng.normal(0, 0.03, (patients, classes))
    return math.sqrt(shared) * rng.normal(0, 0.03, (patients, 1)) + math.sqrt(1 - shared) * own


def _tables(differences: list[NDArray[np.float64]], rng: np.random.Generator) -> BenchmarkTables:
    results = {}
    for d, values in enumerate(differences):
        base = rng.normal(0.8, 0.03, values.shape)
        scores = {"A": base + values / 2, "B": base - values / 2}
        results[f"D{d}"] = DatasetResults(evaluations={name: _evaluation(d, v) for name, v in scores.items()})
    return compare(results)


def _evaluation(dataset: int, values: NDArray[np.float64]) -> Evaluation:
    names = [f"d{dataset} c{k}" for k in range(values.shape[1])]
    cases = [f"p{i}" for i in range(values.shape[0])]
    rows = tuple(
        Row(case=case, scan=case, class_name=name, dsc=float(values[i, k]), nsd=math.nan, reference_ml=1.0,
            prediction_ml=1.0)
        for i, case in enumerate(cases)
        for k, name in enumerate(names)
    )  # fmt: skip
    return Evaluation(rows=rows, classes=tuple(ScoredClass(name=n) for n in names), cases=tuple(cases), failures={})


def _total(tables: BenchmarkTables, kind: str) -> tuple[float, float, float]:
    found = next(c for c in tables.comparisons if c.kind == kind and c.metric == "dsc")
    return found.low, found.high, found.p_value


def _bootstrap(differences: list[NDArray[np.float64]], rng: np.random.Generator) -> tuple[float, float]:
    """Percentiles of the mean over classes, patients drawn within each dataset."""
    classes = sum(d.shape[1] for d in differences)
    drawn = np.zeros(_BOOTSTRAP)
    for values in differences:
        n = len(values)
        drawn += rng.multinomial(n, [1 / n] * n, size=_BOOTSTRAP) @ values.sum(axis=1) / n / classes
    low, high = np.percentile(drawn, (2.5, 97.5))
    return float(low), float(high)


if __name__ == "__main__":
    main()
