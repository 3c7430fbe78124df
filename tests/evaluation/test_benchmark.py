"""Means, paired comparison and tables of a benchmark, against values worked out by hand."""

from __future__ import annotations

import csv
import io
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from scipy.stats import wilcoxon

from satunet.datasets.catalogue import load_catalogue
from satunet.errors import UserError
from satunet.evaluation.benchmark.results import BenchmarkTables, Comparison, Cost, Facts
from satunet.evaluation.benchmark.statistics import compare
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

NAN = math.nan


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
        classes=tuple(scores),
        cases=tuple(f"case{i}" for i in range(n)),
        failures=failures or {},
        rules=Rules(tolerance_mm=tolerance_mm).to_json(),
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
        facts=Facts(lesions={"tumour"}),
        costs={"one": Cost(models=1, parameters=110_280_000, seconds_per_scan=3.14)},
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
    assert total.difference == pytest.approx(-0.3 / 4)
    assert math.isnan(total.p_value)  # below six pairs
    # Cases of A: mean of liver and tumour 0.55 : 0.6, and liver alone 0.7 : 0.8
    cases = comparison(tables, "A")
    assert (cases.pairs, cases.losses) == (2, 2)
    assert cases.difference == pytest.approx((-0.05 - 0.1) / 2)


def test_the_margin_itself_is_a_tie() -> None:
    names = [f"class{i}" for i in range(4)]
    first = evaluation({n: [v] for n, v in zip(names, (0.505, 0.5051, 0.495, 0.4949), strict=True)})
    second = evaluation({n: [0.5] for n in names})
    total = comparison(compare({"A": {"x": first, "y": second}}), "total")
    assert (total.wins, total.ties, total.losses) == (1, 2, 1)


def test_wilcoxon_from_six_pairs() -> None:
    a, b = [0.9, 0.8, 0.7, 0.95, 0.6, 0.85, 0.7], [0.85, 0.82, 0.6, 0.9, 0.45, 0.7, 0.72]
    tables = compare({"A": {"x": evaluation({"liver": a}), "y": evaluation({"liver": b})}})
    expected = wilcoxon([p - q for p, q in zip(a, b, strict=True)]).pvalue
    assert comparison(tables, "A").p_value == pytest.approx(expected)
    same = compare({"A": {"x": evaluation({"liver": a}), "y": evaluation({"liver": a})}})
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
    assert content["version"] == 2
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
    facts = Facts(
        lesions={"tumour"}, regions={"liver": ("abdomen",), "tumour": ("abdomen",), "hip": ("lower limb", "pelvis")},
        modalities={"A": "ct", "B": "mri", "C": "ct"}, external={"C"},
    )  # fmt: skip
    tables = compare(results, facts=facts)
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
        return Evaluation(rows=tuple(rows), classes=("liver",), cases=("c",), failures={})

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
    own = {d: {"x": replace(e["x"], rules=Rules(tolerances_mm={"aorta": 2.0}).to_json())} for d, e in results.items()}
    assert compare(own).published == ()
    lacking = results | {"Dataset001_Y": {"x": evaluation({"a": [0.5]})}}
    first = next(iter(results))
    two = {d: {"x": e["x"], "y": e["x"]} for d, e in results.items()}
    assert compare(two).published != ()
    assert compare(two | {first: results[first]}).published == ()  # the means are not over all 72 then
    assert compare(lacking).published == ()
    short = dict(list(results.items())[1:])
    assert compare(short).published == ()
    other = {d: {"x": evaluation({n: [0.5] for n in e["x"].classes}, tolerance_mm=2.0)} for d, e in results.items()}
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


def test_a_dataset_of_one_case_has_no_interval_and_gives_none() -> None:
    many = {c: evaluation({"liver": [0.9, 0.8, 0.7, 0.6]}) for c in ("x", "y")}
    alone = {c: evaluation({"liver": [0.5]}) for c in ("x", "y")}
    whole = compare({"A": many}).totals[0].intervals["x"]["dsc"]
    assert 0.6 <= whole[0] < 0.75 < whole[1] <= 0.9
    mixed = compare({"A": many, "B": alone})
    assert all(math.isnan(end) for end in mixed.totals[0].intervals["x"]["dsc"])
    assert math.isnan(next(c for c in mixed.comparisons if c.kind == "total").low)
    assert not math.isnan(mixed.datasets[0].intervals["x"]["dsc"][0])


def test_intervals_are_those_of_a_plain_bootstrap() -> None:
    from scipy.stats import bootstrap

    values = [0.9, 0.8, 0.75, 0.4, 0.85, 0.6, 0.7, 0.95]
    own = compare({"A": {"x": evaluation({"liver": values})}}).classes[0].intervals["x"]["dsc"]
    peer = bootstrap((values,), np.mean, method="percentile", n_resamples=4000, rng=np.random.default_rng(0))
    assert own == pytest.approx(tuple(peer.confidence_interval), abs=0.015)


@pytest.mark.parametrize("order", [1, -1])
def test_datasets_are_drawn_independently(order: int) -> None:
    values = [0.1, 0.3, 0.5, 0.7, 0.9]
    tables = compare({"A": {"x": evaluation({"liver": values})}, "B": {"x": evaluation({"liver": values[::order]})}})
    low, high = tables.totals[0].intervals["x"]["dsc"]
    # The mean of two independent means of five: 1.96 standard errors on either side, whatever the order of the cases.
    expected = 2 * 1.96 * float(np.std(values)) / math.sqrt(5 * 2)
    assert high - low == pytest.approx(expected, rel=0.1)


def test_distances_are_compared_over_the_classes_that_all_have_distances_of() -> None:
    def one(liver: float, spleen: float) -> Evaluation:
        rows = [Row(case="c", scan="c", class_name=n, dsc=0.5, nsd=0.5, hd95_mm=v, reference_ml=1.0, prediction_ml=1.0)
                for n, v in (("liver", liver), ("spleen", spleen))]  # fmt: skip
        return Evaluation(rows=tuple(rows), classes=("liver", "spleen"), cases=("c",), failures={})

    total = compare({"A": {"x": one(2.0, NAN), "y": one(3.0, 40.0)}}).totals[0]
    assert (total.scores["x"]["hd95_mm"], total.scores["y"]["hd95_mm"]) == (2.0, 3.0)
    assert (total.micro["x"]["hd95_mm"], total.micro["y"]["hd95_mm"]) == (2.0, 3.0)
