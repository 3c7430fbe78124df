"""Comparison of competitors over datasets.

Macro means follow SAT (arXiv 2312.17183). The score of a class in a dataset is its mean over scans, and over several
datasets the mean over these; a region, a modality or a total is the mean over its classes, with lesions apart from
anatomy. A micro mean, shown beside them, counts every class of every case equally, however many scans of the case a
competitor predicts. Tables compare like with like: a mean includes only the classes of datasets for which every
competitor has a score, and says how many they are. Datasets that the unified network was not trained on are never mixed
with the others.

A difference is always that of two means in the tables; its interval and its test are for exactly this difference
(:mod:`satunet.evaluation.benchmark.conclusions.differences`). There are three questions: does it hold for other
patients of these datasets (``total``, ``external``), for other datasets (``datasets``, with six or more), and in one
dataset or class? Wins, ties and losses count classes of datasets, datasets, or patients; a difference of at most half a
point is a tie. p-values are adjusted within a family of tests: two competitors, one metric, and all datasets or all
classes.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from satunet.errors import UserError
from satunet.evaluation.benchmark.conclusions.differences import Differences, adjusted
from satunet.evaluation.benchmark.conclusions.means import macro_means, shared_rows
from satunet.evaluation.benchmark.conclusions.patients import PatientScores
from satunet.evaluation.benchmark.conclusions.published import published_means
from satunet.evaluation.benchmark.conclusions.results import (
    BenchmarkTables,
    ClassRow,
    Cost,
    GroupRow,
    Results,
    Scores,
)
from satunet.evaluation.benchmark.conclusions.statistics import NO_INTERVAL, Correction
from satunet.evaluation.benchmark.conclusions.strata import Patients, mean_interval
from satunet.evaluation.scoring.scores import HEADLINE, METRICS, Evaluation, mean_of


def compare(
    results: Results,
    *,
    costs: Mapping[str, Cost] | None = None,
    missing: Mapping[str, Mapping[str, str]] | None = None,
    waiting: Sequence[str] = (),
    competitors: Sequence[str] | None = None,
    notes: Sequence[str] = (),
    correction: Correction = "holm",
) -> BenchmarkTables:
    """Tables of a benchmark.

    Args:
        results: Dataset → its scores.
        costs: Competitor → cost.
        missing: Competitor → dataset → reason why there is no evaluation.
        waiting: Items that are not done yet.
        competitors: Order of the competitors; by default that in which they appear in the results.
        notes: Notes for readers, one sentence each.
        correction: Method by which p-values are adjusted.

    Raises:
        UserError: There is nothing to compare, or evaluations have different rules.
    """
    evaluations = [e for found in results.values() for e in found.evaluations.values()]
    if not evaluations:
        raise UserError("there is no evaluation to compare")
    names = tuple(competitors or dict.fromkeys(c for found in results.values() for c in found.evaluations))
    patients = {dataset: PatientScores(dataset, found, HEADLINE) for dataset, found in results.items()}
    work = _Rows(results=results, names=names, patients=patients)
    differences = Differences(results=results, names=names, patients=patients)
    rules = _one_rule(evaluations)
    class_rows = tuple(row for dataset in results for row in work.class_rows(dataset))
    absent = {c: dict((missing or {}).get(c, {})) for c in dict.fromkeys((*names, *(missing or {})))}
    for dataset, found in results.items():
        for competitor in names:
            if competitor not in found.evaluations and not any(
                w.startswith(f"{competitor}/{dataset}") for w in waiting
            ):
                absent[competitor].setdefault(dataset, "not evaluated")
    scored = {(r.dataset, r.class_name) for r in shared_rows(class_rows, names)}
    failures = {
        c: {d: e.failures for d, found in results.items() if (e := found.evaluations.get(c)) is not None and e.failures}
        for c in names
    }
    return BenchmarkTables(
        competitors=names,
        classes=class_rows,
        datasets=tuple(work.dataset_row(dataset, class_rows) for dataset in results),
        totals=tuple(work.totals(class_rows)),
        groups=tuple(work.groups(class_rows)),
        comparisons=tuple(adjusted(differences.of(class_rows), correction)),
        costs=dict(costs or {}),
        failures=failures,
        missing={c: reasons for c, reasons in absent.items() if reasons},
        waiting=tuple(waiting),
        published=published_means(scored, (rules["tolerance_mm"], *rules["tolerances_mm"].values()), rules["policy"]),
        rules=rules,
        correction=correction,
        notes=tuple(notes),
        trained_on=tuple(sorted(dataset for dataset, found in results.items() if found.trained_on)),
    )


def _one_rule(evaluations: Iterable[Evaluation]) -> dict[str, Any]:
    """The rules that all evaluations were scored by, with the tolerances of all single classes."""
    rules = [e.rules for e in evaluations]
    kept = ("tolerance_mm", "policy", "distances", "organs")
    found = {tuple(r[key] for key in kept) for r in rules}
    if len(found) > 1:
        raise UserError(f"the evaluations have different tolerances, absence policies, metrics or ids: {sorted(found)}")
    tolerances: dict[str, float] = {}
    for rule in rules:
        for name, value in rule["tolerances_mm"].items():
            if tolerances.setdefault(name, value) != value:
                raise UserError(f"the evaluations have different tolerances of {name!r}: {tolerances[name]}, {value}")
    return {**rules[0], "tolerances_mm": tolerances}


@dataclass(frozen=True, kw_only=True)
class _Rows:
    """Rows of the tables: one per class of a dataset, and one per group of classes."""

    results: Results
    names: tuple[str, ...]
    patients: Patients

    def class_rows(self, dataset: str) -> list[ClassRow]:
        found = self.results[dataset]
        summaries = {c: {s.class_name: s for s in e.class_summaries} for c, e in found.evaluations.items()}
        classes = {c.name: c for e in found.evaluations.values() for c in e.classes}
        rows = []
        for name, scored in classes.items():
            own = {c: summaries[c][name] for c in self.names if name in summaries.get(c, {})}
            row = ClassRow(
                dataset=dataset,
                scored=scored,
                external=found.external,
                modality=found.modality,
                scans=max((s.scored for s in own.values()), default=0),
                scores={c: {m: own[c].metric(m) if c in own else math.nan for m in METRICS} for c in self.names},
            )
            intervals = {
                c: {m: mean_interval(self.patients, [row], c, m) if c in own else NO_INTERVAL for m in HEADLINE}
                for c in self.names
            }
            rows.append(dataclasses.replace(row, intervals=intervals))
        return rows

    def dataset_row(self, dataset: str, rows: Sequence[ClassRow]) -> GroupRow:
        there = [c for c in self.names if c in self.results[dataset].evaluations]
        return self._group("dataset", dataset, [r for r in rows if r.dataset == dataset], there)

    def totals(self, rows: Sequence[ClassRow]) -> list[GroupRow]:
        found = []
        for kind, prefix, members in (
            ("total", "", [r for r in rows if not r.external]),
            ("external", "external: ", [r for r in rows if r.external]),
        ):
            lesions = [r for r in members if r.scored.lesion]
            anatomy = [r for r in members if not r.scored.lesion]
            groups = {"all classes": members} | ({"anatomy": anatomy, "lesions": lesions} if lesions else {})
            found += [self._group(kind, f"{prefix}{name}", own, self.names) for name, own in groups.items() if own]
        return found

    def groups(self, rows: Sequence[ClassRow]) -> list[GroupRow]:
        known = [r for r in rows if not r.external]
        regions = sorted({region for r in known for region in r.scored.regions})
        modalities = sorted({r.modality for r in known if r.modality})
        found = []
        for region in regions:
            own = [r for r in known if region in r.scored.regions and not r.scored.lesion]
            if own:
                found.append(self._group("region", region, own, self.names))
        found += [self._group("modality", m, [r for r in known if r.modality == m], self.names) for m in modalities]
        return found

    def _group(self, kind: str, name: str, members: Sequence[ClassRow], competitors: Sequence[str]) -> GroupRow:
        """Means over the classes of datasets for which each of the competitors has a score."""
        shared = shared_rows(members, competitors)
        datasets = dict.fromkeys(r.dataset for r in (members if kind == "dataset" else shared))
        evaluations = {d: self.results[d].evaluations for d in datasets}
        nothing = {c: dict.fromkeys(METRICS, math.nan) for c in self.names}
        return GroupRow(
            kind=kind,
            name=name,
            cases=sum(max(len(e.cases) for e in by.values()) for by in evaluations.values()),
            classes=len({r.class_name for r in shared}),
            left_out=len(members) - len(shared),
            failures={c: sum(len(by[c].failures) for by in evaluations.values() if c in by) for c in competitors},
            scores=nothing | macro_means(shared, competitors),
            micro=nothing | self._micro(shared, competitors),
            intervals={c: {m: mean_interval(self.patients, shared, c, m) for m in HEADLINE} for c in competitors},
        )

    def _micro(self, shared: Sequence[ClassRow], competitors: Sequence[str]) -> Scores:
        wanted = {m: {(r.dataset, r.class_name) for r in shared_rows(shared, competitors, m)} for m in METRICS}
        found: Scores = {}
        for c in competitors:
            values: dict[str, list[float]] = {m: [] for m in METRICS}
            for dataset in dict.fromkeys(r.dataset for r in shared):
                by_case: dict[tuple[str, str], list[Any]] = {}
                for row in self.results[dataset].evaluations[c].rows:
                    by_case.setdefault((row.class_name, row.case), []).append(row)
                for (class_name, _), rows in by_case.items():
                    for m in METRICS:
                        if (dataset, class_name) in wanted[m]:
                            values[m].append(mean_of(row.metric(m) for row in rows))
            found[c] = {m: mean_of(numbers) for m, numbers in values.items()}
        return found
