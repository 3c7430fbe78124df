"""Means, paired comparison and tables of a benchmark, against values worked out by hand."""

from __future__ import annotations

import csv
import io
import itertools
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from satunet.datasets.catalogue import load_catalogue
from satunet.errors import UserError
from satunet.evaluation.benchmark.conclusions.comparison import compare as compare_datasets
from satunet.evaluation.benchmark.conclusions.results import BenchmarkTables, Comparison, Cost
from satunet.evaluation.benchmark.conclusions.statistics import swap_p, wilcoxon_p
from satunet.evaluation.report.tables import (
    amount,
    markdown,
    percent,
    print_table,
    probability,
    text_tables,
    write_tables,
)
from satunet.evaluation.scoring.rules import Rules
from satunet.evaluation.scoring.scores import Evaluation, Row
from satunet.jobs.files import read_json

from .conftest import in_datasets, scored

NAN = math.nan
REGIONS = {"liver": ("abdomen",), "tumour": ("abdomen",), "hip": ("lower limb", "pelvis")}


def compare(
    results: dict[str, dict[str, Evaluation]],
    *,
    external: Sequence[str] = (),
    modalities: dict[str, str] | None = None,
    patients: dict[str, str] | None = None,
    **options: Any,
) -> BenchmarkTables:
    datasets = in_datasets(results, external=external, modalities=modalities, patients=patients)
    return compare_datasets(datasets, **options)


def evaluation(
    scores: dict[str, list[float]], *, failures: dict[str, str] | None = None, tolerance_mm: float = 1.0
) -> Evaluation:
    """Class → DSC a case; NSD is half of it."""
    n = max(len(v) for v in scores.values())
    rows = [
        Row(case=f"case{i}", scan=f"case{i}", class_name=name, dsc=values[i], nsd=values[i] / 2,
            reference_ml=1.0, prediction_ml=1.0)
        for i in range(n)
        for name, values in scores.items()
    ]  # fmt: skip
    return Evaluation(
        rows=tuple(rows),
        classes=tuple(
            replace(c, regions=REGIONS.get(c.name, ()))
            for c in scored(dict.fromkeys(scores, (1,)), lesions=["tumour"]).classes
        ),
        cases=tuple(f"case{i}" for i in range(n)),
        failures=failures or {},
        rules=Rules(tolerance_mm=tolerance_mm).comparable(),
    )


def example() -> BenchmarkTables:
    results = {
        "A": {
            "one": evaluation({"liver": [0.9, 0.7], "tumour": [0.2, NAN]}, failures={"case1": "broken"}),
            "many": evaluation({"liver": [0.8, 0.8], "tumour": [0.4, NAN]}),
        },
        "B": {
            "one": evaluation({"liver": [0.6], "spleen": [0.5], "kidney": [0.3]}),
            "many": evaluation({"liver": [0.7], "spleen": [0.5], "kidney": [NAN]}),
        },
        "C": {"one": evaluation({"liver": [0.1]})},
    }
    return compare(
        results,
        costs={"one": Cost(models=1, parameters=110_280_000, seconds_per_case=3.14)},
        missing={"many": {"C": "not trained"}},
        notes=["a note"],
    )


def comparison(tables: BenchmarkTables, where: str, metric: str = "dsc") -> Comparison:
    return next(c for c in tables.comparisons if c.where == where and c.metric == metric)


def test_means_over_cases_then_datasets_then_classes() -> None:
    tables = example()
    by_name = {g.name: g for g in tables.totals}
    # liver: (0.8 + 0.6) / 2 and (0.8 + 0.7) / 2; C has one competitor alone and does not count; spleen 0.5 in both.
    anatomy = by_name["anatomy"].scores
    assert anatomy["one"]["dsc"] == pytest.approx((0.7 + 0.5) / 2)
    assert anatomy["many"]["dsc"] == pytest.approx((0.75 + 0.5) / 2)
    assert anatomy["many"]["nsd"] == pytest.approx((0.75 + 0.5) / 4)
    assert by_name["lesions"].scores["one"]["dsc"] == pytest.approx(0.2)
    assert by_name["all classes"].scores["many"]["dsc"] == pytest.approx((0.75 + 0.5 + 0.4) / 3)
    assert (by_name["all classes"].classes, by_name["all classes"].left_out) == (3, 2)  # B's kidney and C's liver
    datasets = {g.name: g for g in tables.datasets}
    assert datasets["A"].scores["one"]["dsc"] == pytest.approx((0.8 + 0.2) / 2)
    assert datasets["A"].failures == {"one": 1, "many": 0}
    assert (datasets["B"].classes, datasets["B"].left_out) == (2, 1)  # kidney: one of the two has no score
    assert datasets["C"].scores["one"]["dsc"] == pytest.approx(0.1)
    assert math.isnan(datasets["C"].scores["many"]["dsc"])
    assert tables.missing == {"many": {"C": "not trained"}}
    assert tables.failures == {"one": {"A": {"case1": "broken"}}, "many": {}}


def test_no_lesions_no_groups() -> None:
    tables = compare({"A": {"x": evaluation({"liver": [0.5]})}})
    assert [g.name for g in tables.totals] == ["all classes"]
    assert tables.comparisons == ()


def test_wins_ties_losses() -> None:
    tables = example()
    # Pairs: A liver 0.8 : 0.8, A tumour 0.2 : 0.4, B liver 0.6 : 0.7, B spleen 0.5 : 0.5
    total = comparison(tables, "total")
    assert (total.pairs, total.wins, total.ties, total.losses) == (4, 0, 2, 2)
    assert math.isnan(total.p_value)  # three patients
    assert total.units == 3
    # Patients of A: mean of liver and tumour 0.55 : 0.6, and liver alone 0.7 : 0.8
    cases = comparison(tables, "A")
    assert (cases.pairs, cases.losses, cases.units) == (2, 2, 2)


def test_a_difference_is_that_of_the_means_in_the_tables() -> None:
    # Liver is in two datasets, spleen in one: per class of dataset A is better, per class as in the totals B is.
    results = {
        "A": {"x": evaluation({"liver": [0.9], "spleen": [0.5]}), "y": evaluation({"liver": [0.8], "spleen": [0.6]})},
        "B": {"x": evaluation({"liver": [0.8]}), "y": evaluation({"liver": [0.75]})},
        "C": {"x": evaluation({"liver": [0.3]}), "y": evaluation({"liver": [0.9]}), "z": evaluation({"liver": [0.9]})},
        "D": {c: evaluation({"liver": [v], "tumour": [v]}) for c, v in (("x", 0.4), ("y", 0.2))},
    }
    for given in (results, {d: by for d, by in results.items() if d != "C"}):
        tables = compare(given)
        rows = {"total": tables.totals[0]} | {g.name: g for g in tables.datasets}
        for c in tables.comparisons:
            if c.kind in ("total", "dataset"):
                scores = rows[c.where].scores
                assert c.difference == pytest.approx(scores[c.first][c.metric] - scores[c.second][c.metric], abs=1e-12)
            elif c.kind == "class":
                row = next(r for r in tables.classes if c.where == f"{r.dataset}: {r.class_name}")
                assert c.difference == pytest.approx(row.scores[c.first][c.metric] - row.scores[c.second][c.metric])
    two = next(c for c in tables.comparisons if c.kind == "total" and c.metric == "dsc")
    liver, spleen, tumour = (0.1 + 0.05 + 0.2) / 3, -0.1, 0.2
    assert two.difference == pytest.approx((liver + spleen + tumour) / 3)


def test_the_margin_itself_is_a_tie() -> None:
    names = [f"class{i}" for i in range(4)]
    first = evaluation({n: [v] for n, v in zip(names, (0.505, 0.5051, 0.495, 0.4949), strict=True)})
    second = evaluation({n: [0.5] for n in names})
    total = comparison(compare({"A": {"x": first, "y": second}}), "total")
    assert (total.wins, total.ties, total.losses) == (1, 2, 1)


def test_wilcoxon_over_patients() -> None:
    a, b = [0.9, 0.8, 0.7, 0.95, 0.6, 0.85, 0.7], [0.85, 0.82, 0.6, 0.9, 0.45, 0.7, 0.72]
    tables = compare({"A": {"x": evaluation({"liver": a}), "y": evaluation({"liver": b})}})
    expected = wilcoxon_p([p - q for p, q in zip(a, b, strict=True)])
    assert comparison(tables, "A").wilcoxon_p == pytest.approx(expected)
    assert comparison(tables, "A: liver").wilcoxon_p == pytest.approx(expected)
    assert math.isnan(comparison(tables, "total").wilcoxon_p)  # its pairs are classes, which depend on each other
    same = compare({"A": {"x": evaluation({"liver": a}), "y": evaluation({"liver": a})}})
    assert math.isnan(comparison(same, "A").wilcoxon_p)
    assert math.isnan(comparison(same, "A").p_value)


def test_evaluations_of_other_rules_are_not_compared() -> None:
    with pytest.raises(UserError, match="different tolerances"):
        compare({"A": {"x": evaluation({"a": [1.0]}), "y": evaluation({"a": [1.0]}, tolerance_mm=2.0)}})
    with pytest.raises(UserError, match="no evaluation"):
        compare({})


def test_files(tmp_path: Path) -> None:
    write_tables(example(), tmp_path)
    names = {"classes", "datasets", "totals", "groups", "comparisons", "costs"}
    names = {f"{n}.csv" for n in names} | {"benchmark.json"}
    assert {p.name for p in tmp_path.iterdir()} == names
    content = read_json(tmp_path / "benchmark.json")
    assert content["version"] == 3
    assert content["datasets"][2]["scores"]["many"]["dsc"] is None
    with (tmp_path / "datasets.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert rows[0]["name"] == "A"
    assert float(rows[0]["dsc one"]) == pytest.approx(0.5)
    assert rows[2]["dsc many"] == ""


def test_printed_and_in_markdown() -> None:
    stream = io.StringIO()
    print_table(example(), console=Console(file=stream), classes=True)
    text = stream.getvalue()
    for expected in ("all classes", "110.3 M", "3.1 s", "50.00", "62.50", "spleen"):
        assert expected in text
    table = next(t for t in text_tables(example()) if t.title == "Datasets")
    assert markdown(table).splitlines()[:3] == [
        "| dataset | cases | classes | failures | one DSC | many DSC | one NSD | many NSD |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
        "| A | 2 | 2 | 1 / 0 | 50.00 | 60.00 | 25.00 | 30.00 |",
    ]


def test_numbers_as_text() -> None:
    assert [percent(v) for v in (0.98765, 1.0, 0.0, NAN)] == ["98.77", "100.00", "0.00", "–"]
    assert [probability(v) for v in (0.0001, 0.04321, NAN)] == ["< 0.001", "0.043", "–"]
    assert [amount(v) for v in (None, 7, 1500.0, 110_280_000, 2.2e9)] == ["–", "7", "1.5 k", "110.3 M", "2.2 G"]


def test_regions_modalities_micro_means_and_external_datasets() -> None:
    results = {
        "A": {"x": evaluation({"liver": [1.0, 0.8], "tumour": [0.2, NAN]}), "y": evaluation({"liver": [1.0, 1.0], "tumour": [0.4, NAN]})},
        "B": {"x": evaluation({"liver": [0.5], "hip": [0.7]}), "y": evaluation({"liver": [0.6], "hip": [0.9]})},
        "C": {"x": evaluation({"liver": [0.1]}), "y": evaluation({"liver": [0.0]})},
    }  # fmt: skip
    tables = compare(results, modalities={"A": "ct", "B": "mri", "C": "ct"}, external={"C"})
    totals = {g.name: g for g in tables.totals}
    assert list(totals) == ["all classes", "anatomy", "lesions", "external: all classes"]
    assert totals["all classes"].scores["x"]["dsc"] == pytest.approx(((0.9 + 0.5) / 2 + 0.2 + 0.7) / 3)
    assert totals["all classes"].micro["x"]["dsc"] == pytest.approx((1.0 + 0.8 + 0.2 + 0.5 + 0.7) / 5)
    assert totals["external: all classes"].scores["y"]["dsc"] == 0
    groups = {(g.kind, g.name): g for g in tables.groups}
    assert set(groups) == {("region", "abdomen"), ("region", "lower limb"), ("region", "pelvis"),
                           ("modality", "ct"), ("modality", "mri")}  # fmt: skip
    assert groups["region", "abdomen"].scores["y"]["dsc"] == pytest.approx((1.0 + 0.6) / 2)  # without the tumour
    assert groups["modality", "ct"].scores["x"]["dsc"] == pytest.approx((0.9 + 0.2) / 2)  # without the external one
    assert {c.kind: c.pairs for c in tables.comparisons if c.metric == "dsc"} == {
        "total": 4, "external": 1, "dataset": 1, "class": 2}  # fmt: skip


def test_a_micro_mean_weighs_a_case_alike_for_everybody() -> None:
    def four_scans(score: float) -> Evaluation:
        rows = [Row(case="c", scan=f"c_000{i}", class_name="liver", dsc=score, nsd=score, reference_ml=1.0, prediction_ml=1.0)
                for i in range(4)]  # fmt: skip
        return Evaluation(rows=tuple(rows), classes=scored({"liver": (1,)}).classes, cases=("c",), failures={})

    results = {
        "A": {"a scan a channel": four_scans(0.2), "a scan a case": evaluation({"liver": [0.2]})},
        "B": {"a scan a channel": evaluation({"liver": [0.8]}), "a scan a case": evaluation({"liver": [0.8]})},
    }
    micro = compare(results).totals[0].micro
    assert {c: micro[c]["dsc"] for c in micro} == {"a scan a channel": 0.5, "a scan a case": 0.5}


def test_the_papers_means_are_shown_beside_the_papers_datasets_and_nothing_else() -> None:
    catalogue = load_catalogue()
    results = {r.folder: {"x": evaluation({name: [0.5] for name in r.classes})} for r in catalogue.records}
    tables = compare(results)
    assert ("72 nnU-Nets", 0.8054, 0.7815) in {(p.name, p.dsc, p.nsd) for p in tables.published}
    assert tables.totals[0].classes == 451
    [shown] = [t for t in text_tables(tables, classes=False) if t.title == "All datasets"]
    assert ("published: SAT-Pro", "–", "–", "–", "78.81", "77.82") in shown.rows
    own = {d: {"x": replace(e["x"], rules=Rules(tolerances=("aorta=2",)).comparable())} for d, e in results.items()}
    assert compare(own).published == ()
    lacking = results | {"Dataset001_Y": {"x": evaluation({"a": [0.5]})}}
    first = next(iter(results))
    two = {d: {"x": e["x"], "y": e["x"]} for d, e in results.items()}
    assert compare(two).published != ()
    assert compare(two | {first: results[first]}).published == ()  # the means are not over all 72 then
    assert compare(lacking).published == ()
    short = dict(list(results.items())[1:])
    assert compare(short).published == ()
    other = {
        d: {"x": evaluation({n: [0.5] for n in (c.name for c in e["x"].classes)}, tolerance_mm=2.0)}
        for d, e in results.items()
    }
    assert compare(other).published == ()


def test_p_values_are_adjusted_within_their_family() -> None:
    a = [0.9, 0.8, 0.7, 0.95, 0.6, 0.85, 0.7, 0.75]
    b = [v - 0.1 - 0.01 * i for i, v in enumerate(a)]
    results = {name: {"x": evaluation({"liver": a}), "y": evaluation({"liver": b})} for name in ("A", "B", "C")}
    results["D"] = {"x": evaluation({"liver": a}), "y": evaluation({"liver": [v + 0.01 * (-1) ** i for i, v in enumerate(a)]})}  # fmt: skip
    by_where = {c.where: c for c in compare(results).comparisons if c.metric == "dsc" and c.kind == "dataset"}
    p = by_where["A"].p_value
    assert p == pytest.approx(2 / 2**8)
    assert by_where["A"].p_adjusted == pytest.approx(4 * p)  # Holm: four tests
    assert by_where["D"].p_adjusted == pytest.approx(by_where["D"].p_value)
    other = {
        c.where: c for c in compare(results, correction="bh").comparisons if c.metric == "dsc" and c.kind == "dataset"
    }
    assert other["A"].p_adjusted == pytest.approx(p * 4 / 3)
    assert by_where["A"].low <= by_where["A"].difference <= by_where["A"].high
    assert by_where["A"].difference == pytest.approx(0.135)


def test_partial_results_say_what_they_wait_for() -> None:
    results = {"A": {"x": evaluation({"liver": [0.5]})}}
    tables = compare(results, waiting=["y/A/fold_0", "x/B/fold_0"], competitors=["x", "y"])
    assert tables.missing == {}  # not done yet is not missing
    assert tables.waiting == ("y/A/fold_0", "x/B/fold_0")


def test_a_dataset_of_one_patient_has_no_interval_and_gives_none() -> None:
    many = {c: evaluation({"liver": [0.9, 0.8, 0.7, 0.6]}) for c in ("x", "y")}
    alone = {c: evaluation({"liver": [0.5]}) for c in ("x", "y")}
    whole = compare({"A": many}).totals[0].intervals["x"]["dsc"]
    assert 0.25 < whole[0] < 0.4 < 0.75 < 0.8 < whole[1] < 1
    mixed = compare({"A": many, "B": alone})
    assert all(math.isnan(end) for end in mixed.totals[0].intervals["x"]["dsc"])
    assert math.isnan(next(c for c in mixed.comparisons if c.kind == "total").low)
    assert not math.isnan(mixed.datasets[0].intervals["x"]["dsc"][0])
    visits = compare({"A": many}, patients={f"case{i}": "one" for i in range(4)})
    assert math.isnan(visits.totals[0].intervals["x"]["dsc"][0])  # four visits of one patient


def test_the_interval_of_a_difference_is_students() -> None:
    from scipy.stats import ttest_1samp

    a, b = [0.9, 0.8, 0.75, 0.4, 0.85, 0.7], [0.85, 0.82, 0.6, 0.5, 0.8, 0.75]
    both = {"x": evaluation({"liver": a, "spleen": a[::-1]}), "y": evaluation({"liver": b, "spleen": b})}
    tables = compare({"A": both})
    class_only = comparison(tables, "A: liver")
    found = ttest_1samp(np.subtract(a, b), 0).confidence_interval()
    assert (class_only.low, class_only.high) == pytest.approx((found.low, found.high))
    # Classes of one patient go together: the interval is that of the patients' means.
    means = (np.subtract(a, b) + np.subtract(a[::-1], b)) / 2
    found = ttest_1samp(means, 0).confidence_interval()
    for where in ("A", "total"):
        assert (comparison(tables, where).low, comparison(tables, where).high) == pytest.approx((found.low, found.high))


def test_the_interval_of_a_mean_knows_what_each_dataset_can_lose() -> None:
    # Nothing varies, so that all of the interval is room for patients who were not drawn.
    alike = {"A": {"x": evaluation({"liver": [0.8] * 5})}, "B": {"x": evaluation({"spleen": [0.8] * 5})}}
    left = 0.025 ** (1 / 10)
    assert compare(alike).totals[0].intervals["x"]["dsc"] == pytest.approx((0.8 * left, 1 - 0.2 * left), abs=2e-3)
    # The spleen of one patient has no variance that is known: the liver stands for it.
    partly = {"x": evaluation({"liver": [0.8] * 5, "spleen": [0.4, *[NAN] * 4]})}
    low, high = compare({"A": partly}).totals[0].intervals["x"]["dsc"]
    assert low == pytest.approx(0.6 - 0.8 * (1 - 0.025 ** (1 / 5)), abs=2e-3)
    assert high == pytest.approx(0.6 + 0.2 * (1 - 0.025 ** (1 / 5)), abs=2e-3)


def test_the_interval_of_a_mean_leans_to_the_side_where_patients_differ() -> None:
    from scipy.stats import binomtest

    # In thirty of 36 patients both classes are found, in six neither: Clopper and Pearson's interval.
    found = [1.0] * 30 + [0.0] * 6
    tables = compare({"A": {"x": evaluation({"liver": found, "spleen": found})}})
    low, high = tables.totals[0].intervals["x"]["dsc"]
    exact = binomtest(30, 36).proportion_ci(method="exact")
    assert high == pytest.approx(exact.high, abs=0.005)  # 4,000 draws
    assert exact.low - 0.01 < low < exact.low + 0.005  # Student's on the logit scale reaches a little further


def test_a_patient_is_swapped_in_all_classes_at_once() -> None:
    # The spleen is missing from a prediction of x: its means are over other numbers of patients than the liver's.
    x = np.array([[0.9, 0.8, 0.7, 0.6, 0.8, 0.9, 0.5], [0.2, 0.3, 0.1, NAN, 0.6, 0.2, 0.3]])
    y = np.array([[0.6, 0.7, 0.5, 0.7, 0.7, 0.6, 0.6], [0.5, 0.4, 0.4, 0.3, 0.5, 0.6, 0.5]])
    names = ("liver", "spleen")
    tables = compare({"A": {c: evaluation({n: list(v) for n, v in zip(names, scores, strict=True)})
                            for c, scores in (("x", x), ("y", y))}})  # fmt: skip

    def difference(swapped: Sequence[bool]) -> float:
        first, second = np.where(swapped, y, x), np.where(swapped, x, y)
        return abs(float(np.mean(np.nanmean(first, axis=1) - np.nanmean(second, axis=1))))

    ways = [difference(swapped) for swapped in itertools.product((False, True), repeat=7)]
    expected = np.mean([way >= ways[0] - 1e-9 for way in ways])
    assert 0.3 < expected < 0.7  # what the liver says for x, the spleen says against it
    for where in ("A", "total"):
        assert comparison(tables, where).p_value == pytest.approx(expected)


def test_datasets_are_strata() -> None:
    from scipy.stats import ttest_ind

    a, b = [0.1, 0.3, 0.5, 0.7, 0.95], [0.2, 0.25, 0.4]
    zero = {"liver": [0.0] * 5}, {"liver": [0.0] * 3}
    tables = compare({
        "A": {"x": evaluation({"liver": a}), "y": evaluation(zero[0])},
        "B": {"x": evaluation({"liver": b}), "y": evaluation(zero[1])},
    })  # fmt: skip
    # Half the sum of two means has the error of half their difference, with Welch's degrees of freedom.
    welch = ttest_ind(a, b, equal_var=False).confidence_interval()
    total = comparison(tables, "total")
    assert total.high - total.low == pytest.approx((welch.high - welch.low) / 2)
    assert total.difference == pytest.approx((np.mean(a) + np.mean(b)) / 2)


def test_visits_of_a_patient_are_one_unit() -> None:
    a = [0.9, 0.8, 0.7, 0.6, 0.75, 0.85, 0.95, 0.65]
    b = [v - 0.1 for v in a]
    results = {"A": {"x": evaluation({"liver": a}), "y": evaluation({"liver": b})}}
    apart = comparison(compare(results), "A")
    assert (apart.units, apart.p_value) == (8, pytest.approx(2 / 2**8))
    four = comparison(compare(results, patients={f"case{i}": f"patient{i // 2}" for i in range(8)}), "A")
    assert four.units == 4
    assert math.isnan(four.p_value)
    assert four.difference == pytest.approx(apart.difference)


def test_datasets_that_share_patients_are_one_stratum() -> None:
    from scipy.stats import ttest_1samp

    a, b = [0.1, 0.3, 0.5, 0.75, 0.6, 0.2], [0.6, 0.5, 0.45, 0.2, 0.3, 0.55]
    results = {
        d: {"x": evaluation({n: v}), "y": evaluation({n: [0.0] * 6})}
        for d, n, v in (("A", "liver", a), ("B", "hip", b))
    }
    same = compare(results, patients={f"case{i}": f"patient{i}" for i in range(6)})
    # The same six people on two scans each: their means are what varies.
    found = ttest_1samp(np.add(a, b) / 2, 0).confidence_interval()
    total = comparison(same, "total")
    assert (total.low, total.high) == pytest.approx((found.low, found.high))
    assert total.units == 6
    apart = comparison(compare(results), "total")
    assert apart.units == 12
    assert apart.high - apart.low > 2 * (total.high - total.low)  # what one scan gains, the other loses


def test_other_datasets_are_another_question_than_other_patients() -> None:
    rng = np.random.default_rng(0)
    results = {}
    for d in range(8):
        a = rng.normal(0.8, 0.01, 20)
        results[f"D{d}"] = {"x": evaluation({f"class{d}": list(a)}), "y": evaluation({f"class{d}": list(a - 0.05 * (d - 2) + rng.normal(0, 1e-3, 20))})}  # fmt: skip
    tables = compare(results)
    patients, datasets = comparison(tables, "total"), comparison(tables, "total: datasets")
    assert patients.difference == pytest.approx(datasets.difference) == pytest.approx(0.05 * 1.5, abs=0.001)
    assert datasets.units == datasets.pairs == 8
    assert (datasets.wins, datasets.ties, datasets.losses) == (5, 1, 2)
    # Each dataset is certain of its own difference; whether another one would favour x is not.
    assert patients.p_value < 0.001 < 0.05 < datasets.p_value
    assert patients.low > 0 > datasets.low
    values = [r.scores["x"]["dsc"] - r.scores["y"]["dsc"] for r in tables.classes]
    assert datasets.p_value == swap_p(np.array(values))
    five = compare(dict(list(results.items())[:5]))
    assert not [c for c in five.comparisons if c.kind == "total: datasets"]


def test_distances_are_compared_over_the_classes_that_all_have_distances_of() -> None:
    def one(liver: float, spleen: float) -> Evaluation:
        rows = [Row(case="c", scan="c", class_name=n, dsc=0.5, nsd=0.5, hd95_mm=v, reference_ml=1.0, prediction_ml=1.0)
                for n, v in (("liver", liver), ("spleen", spleen))]  # fmt: skip
        return Evaluation(
            rows=tuple(rows), classes=scored({"liver": (1,), "spleen": (2,)}).classes, cases=("c",), failures={}
        )

    total = compare({"A": {"x": one(2.0, NAN), "y": one(3.0, 40.0)}}).totals[0]
    assert (total.scores["x"]["hd95_mm"], total.scores["y"]["hd95_mm"]) == (2.0, 3.0)
    assert (total.micro["x"]["hd95_mm"], total.micro["y"]["hd95_mm"]) == (2.0, 3.0)
