"""Predict with every competitor, score and compare; finished steps are not repeated.

::

    OUTPUT/predictions/<competitor>/<dataset>/fold_<fold>/   predictions by satunet, specialists and commands
    OUTPUT/scores/<competitor>/<dataset>/fold_<fold>/        per_case.csv, per_class.csv, summary.json

Results are passed on after every dataset; until the last one, they say what is still missing.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from satunet.datasets.people import People, find_people
from satunet.datasets.raw import Dataset, load_dataset
from satunet.errors import UserError
from satunet.evaluation.benchmark.competitors import Competitor, UnifiedSide
from satunet.evaluation.benchmark.conclusions.comparison import compare
from satunet.evaluation.benchmark.conclusions.results import BenchmarkTables, Cost, DatasetResults
from satunet.evaluation.benchmark.conclusions.statistics import Correction
from satunet.evaluation.benchmark.costs import free_memory
from satunet.evaluation.benchmark.guards import budget_notes, patient_notes, require_same_cases, require_unseen
from satunet.evaluation.benchmark.stamps import STAMP, is_fresh
from satunet.evaluation.benchmark.tasks import DATASET_FILE, Task, cases_of, make_task, predicted_ids
from satunet.evaluation.scoring.predictions import find_predictions
from satunet.evaluation.scoring.rules import Rules
from satunet.evaluation.scoring.run import NOT_SCORED, evaluate_cases
from satunet.evaluation.scoring.scores import EVALUATION_VERSION, Evaluation
from satunet.images.image import strip_ending
from satunet.jobs.fresh import Stamp
from satunet.jobs.progress import JobSummary
from satunet.jobs.records import to_plain
from satunet.planners.run import known_fingerprints, scans_of

logger = logging.getLogger(__name__)

Score = Callable[..., tuple[Evaluation, JobSummary]]


@dataclass(frozen=True, kw_only=True)
class Contest:
    """Competitors and rules of a benchmark.

    Attributes:
        unified: The unified network, whose label space and split decide what is scored.
        others: The other competitors.
        output: Folder for predictions, tables and the report.
        folds: Folds to score; ``None`` means the model's only fold.
        rules: Rules of scoring.
        correction: Method by which p-values are adjusted.
        processes: Worker processes for scoring.
        score: Function that scores a folder of predictions.
        notes: Further notes for the report, one sentence each.
    """

    unified: UnifiedSide
    others: Sequence[Competitor] = ()
    output: Path
    folds: Sequence[int | str | None] = (None,)
    rules: Rules = field(default_factory=Rules)
    correction: Correction = "holm"
    processes: int = 1
    score: Score = evaluate_cases
    notes: Sequence[str] = ()

    def __post_init__(self) -> None:
        names = [c.name for c in self.competitors]
        twice = sorted({n for n in names if names.count(n) > 1})
        if twice:
            raise UserError(
                f"the names {', '.join(twice)} are already used; give the other competitors different names"
            )
        bad = sorted(n for n in names if not n or "/" in n or n.startswith("."))
        if bad:
            raise UserError(f"a competitor's name is also the name of a folder; these cannot be used: {bad}")

    @property
    def competitors(self) -> tuple[Competitor, ...]:
        """All competitors, in the order of columns."""
        return (self.unified, *self.others)


@dataclass(frozen=True, kw_only=True)
class Standing:
    """Results of a contest at some moment.

    Attributes:
        tables: The numbers.
        results: Results that the tables were made from.
        tasks: Everything that is scored.
        final: Whether these are the last results.
    """

    tables: BenchmarkTables
    results: Mapping[str, DatasetResults]
    tasks: Sequence[Task]
    final: bool


Watch = Callable[[Callable[[], Standing], bool], None]
"""Function called after every dataset with a function that makes the standing, and whether it is the last."""


def run_contest(dataset_names: Sequence[str], contest: Contest, watch: Watch) -> JobSummary:
    """Compare the unified network with the datasets' specialists and with other competitors.

    A dataset's test cases with a reference are used or, if there are none, the validation cases of the fold. If the
    unified network was not trained on the dataset, or its fold is "all", all cases that it has not seen take their
    place.

    Args:
        dataset_names: Datasets to score.
        contest: Competitors and rules.
        watch: Function called after every dataset with results, and at the end.

    Returns:
        Summary of what was done and what failed.

    Raises:
        UserError: No dataset could be scored at all.
    """
    summary = JobSummary("benchmark")
    tasks = _tasks(dataset_names, contest, summary)
    run = _Run(contest=contest, tasks=tasks, summary=summary, notes=[*contest.notes, *_not_scored(summary.failures)])
    for task in tasks:
        for competitor in contest.competitors:
            run.score(competitor, task)
        if run.done:
            watch(lambda: run.standing(final=False), False)
    if not run.results()[0]:
        raise UserError("nothing could be scored: " + "; ".join(f"{k}: {v}" for k, v in summary.failures.items()))
    watch(lambda: run.standing(final=True), True)
    return summary


def _tasks(dataset_names: Sequence[str], contest: Contest, summary: JobSummary) -> list[Task]:
    datasets: dict[str, Dataset] = {}
    for name in dict.fromkeys(dataset_names):
        try:
            datasets[name] = load_dataset(name)
        except UserError as error:
            summary.failed(name, error)
    people = _people(datasets.values())
    tasks: list[Task] = []
    for fold in dict.fromkeys(contest.folds):
        network = contest.unified.network(fold)
        for name, dataset in datasets.items():
            try:
                task = make_task(dataset, network, organs=contest.rules.organs, people=people)
                require_unseen(contest.unified, task)
                tasks.append(task)
            except UserError as error:
                if name not in summary.failures:
                    summary.failed(name, error)
    return tasks


def _people(datasets: Iterable[Dataset]) -> People:
    """People who have several cases, found by names and by the voxel digests in fingerprints."""
    known = {dataset.name: dataset for dataset in datasets}
    cases = {}
    for name, dataset in known.items():
        try:
            cases[name] = cases_of(dataset)
        except UserError:  # reported when its task is made
            cases[name] = []
    return find_people(known.values(), cases, scans_of(known_fingerprints(list(known))))


@dataclass(kw_only=True)
class _Run:
    """Work done so far."""

    contest: Contest
    tasks: Sequence[Task]
    summary: JobSummary
    done: dict[tuple[str, str], Evaluation] = field(default_factory=dict)  # (competitor, task) → scores
    missing: dict[tuple[str, str], str] = field(default_factory=dict)  # (competitor, task) → why it has no scores
    notes: Sequence[str] = ()

    def score(self, competitor: Competitor, task: Task) -> None:
        """Make missing predictions and score them; whatever goes wrong, the other tasks continue."""
        name = f"{competitor.name}/{task.name}"
        try:
            require_unseen(competitor, task)
            try:
                failures = competitor.predict(task)
            finally:
                if self.contest.others:
                    competitor.release()
                    free_memory()
            for scan, reason in failures.items():
                self.summary.failures[f"{name}/{scan}: prediction"] = reason
            evaluation = self._evaluate(competitor, task)
        except Exception as error:  # nnunetv2 raises any type of error, and one failure never stops the rest
            self.summary.failed(name, error)
            self.missing[competitor.name, task.name] = self.summary.failures[name]
            return
        self.done[competitor.name, task.name] = evaluation
        self.summary.done(name)
        self.summary.failures |= {f"{name}/{scan}": reason for scan, reason in evaluation.failures.items()}

    def _evaluate(self, competitor: Competitor, task: Task) -> Evaluation:
        """Scores from this run, or from an earlier one with the same files and rules."""
        predictions = competitor.folder(task)
        kept = self.contest.output / "scores" / competitor.name / task.name
        rules = self.contest.rules.of_classes(task.classes.names)
        rules = replace(rules, trust_shape=rules.trust_shape or task.dataset.trust_shape)
        files, combined = _made_of(task, predictions, rules)
        if is_fresh(kept / "summary.json", files, combined):
            with contextlib.suppress(UserError):  # damaged tables are made again
                return Evaluation.load(kept)
        stamp = to_plain(Stamp.of(files, combined))
        evaluation, _ = self.contest.score(
            task.references,
            predictions,
            task.classes,
            predicted=predicted_ids(task, predictions),
            channels=competitor.channels(task),
            rules=rules,
            processes=min(self.contest.processes, len(task.cases)),
        )
        # A worker that died or a reference that could not be read may succeed the next time.
        lasting = not any(reason.startswith(NOT_SCORED) for reason in evaluation.failures.values())
        evaluation.save(kept, extra={STAMP: stamp} if lasting else None)
        return evaluation

    def standing(self, *, final: bool) -> Standing:
        """The results so far."""
        results, missing = self.results()
        require_same_cases(results)
        competitors = self.contest.competitors
        waiting = [
            f"{c.name}/{t.name}"
            for t in self.tasks
            for c in competitors
            if (c.name, t.name) not in self.done and (c.name, t.name) not in self.missing
        ]
        tasks = [t for t in self.tasks if t.dataset.name in results]
        costs = self._costs()
        tables = compare(
            results,
            costs=costs,
            missing=missing,
            waiting=waiting,
            competitors=[c.name for c in competitors if any(c.name in r.evaluations for r in results.values())],
            notes=[*_notes(tasks), *patient_notes(competitors, tasks), *budget_notes(costs), *self.notes],
            correction=self.contest.correction,
        )
        return Standing(tables=tables, results=results, tasks=self.tasks, final=final)

    def results(self) -> tuple[dict[str, DatasetResults], dict[str, dict[str, str]]]:
        """Dataset → scores of the folds that all its competitors have; and competitor → dataset → reason why some
        are missing.
        """
        results: dict[str, DatasetResults] = {}
        missing: dict[str, dict[str, str]] = {}
        for dataset in dict.fromkeys(t.dataset.name for t in self.tasks):
            own = [t for t in self.tasks if t.dataset.name == dataset]
            names = [c.name for c in self.contest.competitors if any((c.name, t.name) in self.done for t in own)]
            shared = [t for t in own if all((c, t.name) in self.done for c in names)]
            for c in self.contest.competitors:
                reasons = [f"fold {t.fold}: {r}" if len(own) > 1 else r
                           for t in own if (r := self.missing.get((c.name, t.name)))]  # fmt: skip
                if reasons:
                    missing.setdefault(c.name, {})[dataset] = "; ".join(reasons)
            if shared and names:
                results[dataset] = DatasetResults(
                    evaluations={c: _merged([(t, self.done[c, t.name]) for t in shared], len(own)) for c in names},
                    modality=own[0].dataset.modalities[0],
                    external=any(t.external for t in own),
                    trained_on=any(t.trained_on for t in own),
                    patients=own[0].patients,
                )
        return results, missing

    def _costs(self) -> dict[str, Cost]:
        costs = {}
        for competitor in self.contest.competitors:
            tasks = [t for t in self.tasks if (competitor.name, t.name) in self.done]
            try:
                cost = competitor.cost(tasks) if tasks else None
            except Exception as error:  # a checkpoint that cannot be read costs a column, not the report
                logger.warning("the cost of %s is unknown: %s", competitor.name, error)
                continue
            if cost is not None:
                found = any(r.prediction_ml > 0 for t in tasks for r in self.done[competitor.name, t.name].rows)
                # The time of a network that finds nothing is meaningless: empty masks take no time.
                costs[competitor.name] = cost if found else replace(cost, seconds_per_case=None, seconds_per_scan=None)
        return costs


def _merged(folds: Sequence[tuple[Task, Evaluation]], known: int) -> Evaluation:
    """The evaluations of several folds as one."""
    if known == 1:
        return folds[0][1]
    first = folds[0][1]
    return Evaluation(
        rows=tuple(replace(row, fold=str(task.fold)) for task, e in folds for row in e.rows),
        classes=tuple(dict.fromkeys(c for _, e in folds for c in e.classes)),
        cases=tuple(dict.fromkeys(case for _, e in folds for case in e.cases)),
        failures={f"fold {task.fold}, {scan}": reason for task, e in folds for scan, reason in e.failures.items()},
        rules=first.rules,
    )


def _notes(tasks: Sequence[Task]) -> list[str]:
    notes = []
    if seen := sorted({t.dataset.name for t in tasks if t.trained_on}):
        notes.append(
            "There are no test cases, and training used all others, so that these scores are of training cases: "
            + ", ".join(seen)
        )
    notes += [
        f"{t.name}: {t.left_out} of {t.left_out + len(t.cases)} cases are left out, because the unified network was trained on them"
        for t in tasks
        if t.left_out
    ]
    if external := sorted({t.dataset.name for t in tasks if t.external}):
        notes.append("External datasets, which the unified network was not trained on: " + ", ".join(external))
    if any(c.excludes for t in tasks for c in t.classes.classes):
        notes.append("An organ is scored without the lesions in it, by the ids that dataset.json lists for it.")
    elif any(t.classes.by_name[n].lesion for t in tasks for c in t.classes.classes for n in c.includes):
        notes.append("An organ is scored with the lesions in it: it includes their ids.")
    for task in {t.dataset.name: t for t in tasks}.values():
        if task.unknown:
            few = ", ".join(task.unknown[:8]) + (" …" if len(task.unknown) > 8 else "")
            notes.append(
                f"{task.dataset.name}: {len(task.unknown)} of {len(task.unknown) + len(task.classes.classes)} classes are "
                f"not scored, because the unified network does not know them: {few}"
            )
    for note in notes:
        logger.debug("%s", note)
    return notes


def _not_scored(failures: Mapping[str, str]) -> list[str]:
    """Sentences that name the datasets without a task, one for each reason."""
    by_reason: dict[str, list[str]] = {}
    for name, reason in failures.items():
        by_reason.setdefault(reason.removeprefix(f"{name}: "), []).append(name)
    return [f"Not scored, because {reason}: {', '.join(names)}" for reason, names in by_reason.items()]


def _made_of(task: Task, predictions: Path, rules: Rules) -> tuple[list[Path], dict[str, Any]]:
    """Everything that scores depend on: files, and the values that they are combined with."""
    found, _ = find_predictions(predictions, task.references)
    paths = [p for scans in found.values() for scan in scans for p in _files(scan.path)]
    files = [p for p in (*task.references.values(), *paths, predictions / DATASET_FILE) if p.is_file()]
    combined = {
        "version": EVALUATION_VERSION, "rules": rules.comparable(), "policy": repr(rules.absence), "classes": repr(task.classes),
        "cases": list(task.references), "files": [f.name for f in files],
    }  # fmt: skip
    return files, combined


def _files(path: Path) -> Iterable[Path]:
    if path.is_dir():
        return sorted(p for p in path.rglob("*") if p.is_file())
    legend = path.with_name(f"{strip_ending(path.name)}.json")
    return [path, *([legend] if legend.is_file() else [])]
