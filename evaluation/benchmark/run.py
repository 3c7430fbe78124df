"""Predict with every competitor, score, compare, report; what is done already is not done again.

::

    OUTPUT/predictions/<competitor>/<dataset>/fold_<fold>/   what satunet, the specialists and commands predicted
    OUTPUT/scores/<competitor>/<dataset>/fold_<fold>/        per_case.csv, per_class.csv, summary.json
    OUTPUT/report.html, report.md, *.csv, benchmark.json, benchmark_summary.json

Tables and report are written after every dataset; until the last one they say what they still wait for.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from satunet.datasets.raw import load_dataset
from satunet.errors import UserError
from satunet.evaluation.benchmark.bootstrap import Correction
from satunet.evaluation.benchmark.competitors import (
    CommandCompetitor,
    Competitor,
    FolderCompetitor,
    SpecialistCompetitor,
    UnifiedCompetitor,
)
from satunet.evaluation.benchmark.costs import free_memory, read_object
from satunet.evaluation.benchmark.results import BenchmarkTables, Cost, Facts
from satunet.evaluation.benchmark.statistics import compare
from satunet.evaluation.benchmark.tasks import DATASET_FILE, Task, make_task, predicted_ids
from satunet.evaluation.report.page import write_report
from satunet.evaluation.report.pictures import ReportCase, cases_to_show, draw_cases
from satunet.evaluation.report.tables import print_table
from satunet.evaluation.scoring.predictions import find_predictions
from satunet.evaluation.scoring.rules import Rules
from satunet.evaluation.scoring.run import NOT_SCORED, evaluate_cases
from satunet.evaluation.scoring.scores import EVALUATION_VERSION, Evaluation
from satunet.images.image import strip_ending
from satunet.jobs.progress import JobSummary
from satunet.models.trained_scans import HashedNames

logger = logging.getLogger(__name__)

_REPORT_SECONDS = 60.0
"""How often an unfinished report is written, at most."""
_MANY_DATASETS = 30
"""Above this, one case of each is shown instead of three."""


@dataclass(frozen=True, kw_only=True)
class Contest:
    """Who takes part, and by which rules.

    Attributes:
        model: The unified network's model folder.
        output: Where predictions, tables and the report go.
        folds: Folds to score; ``None`` is the model's only one.
        specialists: Whether the datasets' nnU-Nets take part.
        folders: Competitor → folder with ``<dataset>/<predictions>``.
        commands: Competitor → command that makes predictions.
        more: Other competitors.
        rules: How to score; lesions are those of the label space.
        correction: How p-values are adjusted.
        device: Where to compute.
        processes: Worker processes for scoring.
    """

    model: Path
    output: Path
    folds: Sequence[int | str | None] = (None,)
    specialists: bool = True
    folders: Mapping[str, Path] = field(default_factory=dict)
    commands: Mapping[str, str] = field(default_factory=dict)
    more: Sequence[Competitor] = ()
    rules: Rules = field(default_factory=Rules)
    correction: Correction = "holm"
    device: str = "auto"
    processes: int = 1


def run_benchmark(dataset_names: Sequence[str], contest: Contest) -> tuple[BenchmarkTables, JobSummary]:
    """Compare the unified network with the datasets' specialists and with other competitors.

    A dataset's test cases with a reference are used; without any, the validation cases of the fold; of a dataset that
    the unified network was not trained on, all cases.

    Args:
        dataset_names: Datasets to score.
        contest: Who takes part, and by which rules.

    Returns:
        The tables, and what failed; the report is ``report.html`` in the output folder.

    Raises:
        UserError: Two competitors of one name, or no dataset could be scored at all.
    """
    summary = JobSummary("benchmark")
    predictions = contest.output / "predictions"
    unified = UnifiedCompetitor(model=contest.model, output=predictions, device=contest.device)
    competitors = _competitors(contest, unified, predictions)
    tasks = _tasks(dataset_names, contest, unified, summary)
    run = _Run(
        contest=contest, competitors=competitors, tasks=tasks, summary=summary, unified=unified,
        notes=_not_scored(summary.failures),
    )  # fmt: skip
    for task in tasks:
        for competitor in competitors:
            run.score(competitor, task)
        run.report(final=False)
    tables = run.report(final=True)
    if tables is None:
        raise UserError(f"nothing could be scored: {summary.failures}")
    print_table(tables)
    summary.note("report", str(contest.output / "report.html"))
    summary.save(contest.output / "benchmark_summary.json")
    return tables, summary


def _competitors(contest: Contest, unified: UnifiedCompetitor, predictions: Path) -> list[Competitor]:
    found: list[Competitor] = [unified]
    if contest.specialists:
        found.append(SpecialistCompetitor(output=predictions, device=contest.device))
    found += [FolderCompetitor(name=name, place=folder) for name, folder in contest.folders.items()]
    found += [CommandCompetitor(name=name, command=c, output=predictions) for name, c in contest.commands.items()]
    found += contest.more
    names = [c.name for c in found]
    twice = sorted({n for n in names if names.count(n) > 1})
    if twice:
        raise UserError(f"the names {', '.join(twice)} are taken; give the other competitors names of their own")
    bad = sorted(n for n in names if not n or "/" in n or n.startswith("."))
    if bad:
        raise UserError(f"a competitor's name is also a folder's; these cannot be one: {bad}")
    return found


def _tasks(
    dataset_names: Sequence[str], contest: Contest, unified: UnifiedCompetitor, summary: JobSummary
) -> list[Task]:
    tasks: list[Task] = []
    for fold in dict.fromkeys(contest.folds):
        facts = unified.facts(fold)
        trained = HashedNames.of_model(facts.path, facts.fold) or ()
        for name in dict.fromkeys(dataset_names):
            try:
                dataset = load_dataset(name)
                tasks.append(make_task(dataset, facts.space, facts.fold, facts.dataset_name, trained))
            except UserError as error:
                if name not in summary.failures:
                    summary.failed(name, error)
    return tasks


@dataclass(kw_only=True)
class _Run:
    """What is done so far."""

    contest: Contest
    competitors: Sequence[Competitor]
    tasks: Sequence[Task]
    summary: JobSummary
    unified: UnifiedCompetitor
    done: dict[tuple[str, str], Evaluation] = field(default_factory=dict)  # (competitor, task) → scores
    missing: dict[tuple[str, str], str] = field(default_factory=dict)  # (competitor, task) → why there are none
    notes: Sequence[str] = ()
    written: float = 0.0

    def score(self, competitor: Competitor, task: Task) -> None:
        """Predict what is not predicted yet, and score; whatever goes wrong, the others go on."""
        name = f"{competitor.name}/{task.name}"
        try:
            try:
                failures = competitor.predict(task)
            finally:
                if len(self.competitors) > 1:
                    competitor.release()
                    free_memory()
            for scan, reason in failures.items():
                self.summary.failures[f"{name}/{scan}: prediction"] = reason
            evaluation = self._evaluate(competitor, task)
        except Exception as error:  # nnunetv2 raises what it likes; one competitor on one dataset never ends the rest
            self.summary.failed(name, error)
            self.missing[competitor.name, task.name] = self.summary.failures[name]
            return
        self.done[competitor.name, task.name] = evaluation
        self.summary.done(name)
        self.summary.failures |= {f"{name}/{scan}": reason for scan, reason in evaluation.failures.items()}

    def _evaluate(self, competitor: Competitor, task: Task) -> Evaluation:
        """Scores of this run, or of an earlier one of the same files by the same rules."""
        predictions = competitor.folder(task)
        kept = self.contest.output / "scores" / competitor.name / task.name
        rules = replace(self.contest.rules, lesions=task.lesions, tolerances_mm={
            n: v for n, v in self.contest.rules.tolerances_mm.items() if n in task.classes
        })  # fmt: skip
        inputs = _fingerprint(task, predictions, rules)
        if read_object(kept / "summary.json").get("inputs") == inputs:
            with contextlib.suppress(UserError):  # damaged tables are made again
                return Evaluation.load(kept)
        evaluation, _ = evaluate_cases(
            task.references,
            predictions,
            task.classes,
            prediction_classes=predicted_ids(task, predictions),
            channels=competitor.channels(task),
            allowed_ids=task.dataset.label_ids,
            ignore_id=task.dataset.ignore_label,
            rules=rules,
            processes=min(self.contest.processes, len(task.cases)),
        )
        # A worker that died or a reference that could not be read may do better the next time.
        lasting = not any(reason.startswith(NOT_SCORED) for reason in evaluation.failures.values())
        evaluation.save(kept, extra={"inputs": inputs} if lasting else None)
        return evaluation

    def report(self, *, final: bool) -> BenchmarkTables | None:
        """Write tables and report; an unfinished one from time to time, and without pictures."""
        if not self.done or (not final and time.monotonic() - self.written < _REPORT_SECONDS):
            return None
        tables = self.tables()
        overlays = draw_cases(self._pictures(tables)) if final else []
        write_report(self.contest.output, tables, overlays=overlays, results=self._by_dataset()[0])
        self.written = time.monotonic()
        return tables

    def tables(self) -> BenchmarkTables:
        """What is known so far."""
        results, missing = self._by_dataset()
        waiting = [
            f"{c.name}/{t.name}"
            for t in self.tasks
            for c in self.competitors
            if (c.name, t.name) not in self.done and (c.name, t.name) not in self.missing
        ]
        shown = [c.name for c in self.competitors if any(c.name in by for by in results.values())]
        tasks = [t for t in self.tasks if t.dataset.name in results]
        space = self.unified.space
        return compare(
            results,
            facts=Facts(
                lesions={c.name for c in space.classes if c.lesion},
                regions={c.name: c.regions for c in space.classes},
                modalities={t.dataset.name: t.dataset.modalities[0] for t in tasks},
                external={t.dataset.name for t in tasks if t.external},
            ),
            costs=self._costs(),
            missing=missing,
            waiting=waiting,
            competitors=shown,
            notes=[*_notes(tasks), *self.notes],
            correction=self.contest.correction,
        )

    def _by_dataset(self) -> tuple[dict[str, dict[str, Evaluation]], dict[str, dict[str, str]]]:
        """Dataset → competitor → scores of the folds that all its competitors have; and what is missing, and why."""
        results: dict[str, dict[str, Evaluation]] = {}
        missing: dict[str, dict[str, str]] = {}
        for dataset in dict.fromkeys(t.dataset.name for t in self.tasks):
            own = [t for t in self.tasks if t.dataset.name == dataset]
            names = [c.name for c in self.competitors if any((c.name, t.name) in self.done for t in own)]
            shared = [t for t in own if all((c, t.name) in self.done for c in names)]
            for c in self.competitors:
                reasons = [f"fold {t.fold}: {r}" if len(own) > 1 else r
                           for t in own if (r := self.missing.get((c.name, t.name)))]  # fmt: skip
                if reasons:
                    missing.setdefault(c.name, {})[dataset] = "; ".join(reasons)
            if shared and names:
                results[dataset] = {c: _merged([(t, self.done[c, t.name]) for t in shared], len(own)) for c in names}
        return results, missing

    def _costs(self) -> dict[str, Cost]:
        costs = {}
        for competitor in self.competitors:
            tasks = [t for t in self.tasks if (competitor.name, t.name) in self.done]
            try:
                cost = competitor.cost(tasks) if tasks else None
            except Exception as error:  # a checkpoint that cannot be read costs a column, not the report
                logger.warning("the cost of %s is unknown: %s", competitor.name, error)
                continue
            if cost is not None:
                costs[competitor.name] = cost
        return costs

    def _pictures(self, tables: BenchmarkTables) -> list[ReportCase]:
        results, _ = self._by_dataset()
        folders = {c.name: c.folder for c in self.competitors}
        cases = []
        for dataset, by in results.items():
            own = {c: by[c] for c in tables.competitors if c in by}
            tasks = [t for t in self.tasks if t.dataset.name == dataset]
            cases += cases_to_show(own, tasks, folders, few=len(results) > _MANY_DATASETS)
        return cases


def _merged(folds: Sequence[tuple[Task, Evaluation]], known: int) -> Evaluation:
    """The evaluations of several folds as one."""
    if known == 1:
        return folds[0][1]
    first = folds[0][1]
    return Evaluation(
        rows=tuple(replace(row, fold=str(task.fold)) for task, e in folds for row in e.rows),
        classes=tuple(dict.fromkeys(name for _, e in folds for name in e.classes)),
        cases=tuple(dict.fromkeys(case for _, e in folds for case in e.cases)),
        failures={f"fold {task.fold}, {scan}": reason for task, e in folds for scan, reason in e.failures.items()},
        rules=first.rules,
    )


def _notes(tasks: Sequence[Task]) -> list[str]:
    notes = []
    if seen := sorted({t.dataset.name for t in tasks if t.trained_on}):
        notes.append(
            "No test cases, and training used all others, so that scores are of training cases: " + ", ".join(seen)
        )
    if external := sorted({t.dataset.name for t in tasks if t.external}):
        notes.append("External datasets, which the unified network was not trained on: " + ", ".join(external))
    for task in {t.dataset.name: t for t in tasks}.values():
        if task.unknown:
            few = ", ".join(task.unknown[:8]) + (" …" if len(task.unknown) > 8 else "")
            notes.append(
                f"{task.dataset.name}: {len(task.unknown)} of {len(task.unknown) + len(task.classes)} classes are "
                f"not scored, because the unified network does not know them: {few}"
            )
    for note in notes:
        logger.debug("%s", note)
    return notes


def _not_scored(failures: Mapping[str, str]) -> list[str]:
    """Datasets without a task, a sentence a reason."""
    by_reason: dict[str, list[str]] = {}
    for name, reason in failures.items():
        by_reason.setdefault(reason.removeprefix(f"{name}: "), []).append(name)
    return [f"Not scored, because {reason}: {', '.join(names)}" for reason, names in by_reason.items()]


def _fingerprint(task: Task, predictions: Path, rules: Rules) -> str:
    """Hash of everything that scores depend on: rules, classes, and size and time of every file."""
    found, _ = find_predictions(predictions, task.references)
    paths = [p for scans in found.values() for scan in scans for p in _files(scan.path)]
    paths.append(predictions / DATASET_FILE)
    stamps = [(str(p), s.st_size, s.st_mtime_ns) for p in (*task.references.values(), *paths) if (s := _stat(p))]
    content = {
        "version": EVALUATION_VERSION, "rules": rules.to_json(), "policy": repr(rules.policy), "classes": task.classes, "files": stamps,
        "cases": list(task.references), "ids": sorted(task.dataset.label_ids), "ignore": task.dataset.ignore_label,
    }  # fmt: skip
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _files(path: Path) -> Iterable[Path]:
    if path.is_dir():
        return sorted(p for p in path.rglob("*") if p.is_file())
    legend = path.with_name(f"{strip_ending(path.name)}.json")
    return [path, *([legend] if legend.is_file() else [])]


def _stat(path: Path) -> Any:
    try:
        return path.stat()
    except OSError:
        return None
