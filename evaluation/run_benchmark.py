"""Predict with every competitor, score, compare, report; what is done already is not done again.

::

    OUTPUT/predictions/<competitor>/<dataset>/   what satunet and the specialists predicted
    OUTPUT/scores/<competitor>/<dataset>/        per_case.csv, per_class.csv, summary.json
    OUTPUT/report.html, report.md, *.csv, benchmark.json, benchmark_summary.json
"""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from satunet.datasets import Case, Dataset, load_dataset, scan_id
from satunet.errors import DatasetError, SatunetError, UserError
from satunet.evaluation.benchmark import BenchmarkTables, Cost, compare
from satunet.evaluation.evaluate import evaluate_cases
from satunet.evaluation.pictures import ReportCase, draw_cases
from satunet.evaluation.report import write_report
from satunet.evaluation.scores import Evaluation, mean_of
from satunet.evaluation.tables import percent, print_table
from satunet.files import read_json, write_json
from satunet.labels import LabelSpace, listed_classes
from satunet.paths import preprocessed_dir
from satunet.prediction.folder import predict_folder
from satunet.prediction.model_folder import ModelFolder
from satunet.prediction.outputs import MANIFEST
from satunet.prediction.predictor import Predictor
from satunet.progress import JobSummary

logger = logging.getLogger(__name__)

UNIFIED = "satunet"
SPECIALIST = "nnU-Net"
_TIMES = "times.json"


def run_benchmark(
    dataset_names: Sequence[str],
    model: Path,
    output: Path,
    *,
    fold: int | str | None = None,
    specialists: bool = True,
    others: Mapping[str, Path] | None = None,
    device: str = "auto",
    tolerance_mm: float = 1.0,
    policy: str = "sat",
    processes: int = 1,
) -> tuple[BenchmarkTables, JobSummary]:
    """Compare the unified network with the datasets' specialists and with other competitors.

    A dataset's test cases with a reference are used; without any, the validation cases of the fold.

    Args:
        dataset_names: Datasets to score.
        model: The unified network's model folder.
        output: Where predictions, tables and the report go.
        fold: Fold of the unified network and of the specialists.
        specialists: Whether to predict with the specialist nnU-Nets.
        others: Competitor → folder with ``<dataset>/<predictions>``.
        device: Where to compute.
        tolerance_mm: Of the NSD.
        policy: For absent classes.
        processes: Worker processes for scoring.

    Returns:
        The tables, and what failed; the report is ``report.html`` in ``output``.

    Raises:
        UserError: Another competitor has the name of one of ours, or no dataset could be scored at all.
    """
    taken = sorted({UNIFIED, SPECIALIST} & set(others or {}))
    if taken:
        raise UserError(f"the names {', '.join(taken)} are taken; give the other competitors names of their own")
    summary = JobSummary("benchmark")
    predictor = Predictor(ModelFolder.load(model, fold=fold), device=device)
    tasks: list[_Task] = []
    for name in dataset_names:
        try:
            tasks.append(_task(load_dataset(name), predictor.model))
        except UserError as error:
            summary.failed(name, error)
    notes = []
    if seen := [task.dataset.name for task in tasks if task.trained_on]:
        notes.append(
            "No test cases, and training used all others, so that scores are of training cases: " + ", ".join(seen)
        )
        logger.warning("%s", notes[-1])
    bench = _Bench(predictor=predictor, output=output, specialists=specialists, others=dict(others or {}),
                   device=device, summary=summary)  # fmt: skip
    results: dict[str, dict[str, Evaluation]] = {}
    missing: dict[str, dict[str, str]] = {}
    for task in tasks:
        for competitor in bench.competitors:
            name = task.dataset.name
            try:
                evaluation = bench.evaluate(competitor, task, tolerance_mm, policy, processes)
            except (
                Exception
            ) as error:  # nnunetv2 raises what it likes; one competitor on one dataset never ends the rest
                summary.failed(f"{competitor}/{name}", error)
                missing.setdefault(competitor, {})[name] = summary.failures[f"{competitor}/{name}"]
                continue
            results.setdefault(name, {})[competitor] = evaluation
            summary.done(f"{competitor}/{name}")
            summary.failures |= {f"{competitor}/{name}/{s}": reason for s, reason in evaluation.failures.items()}
    if not results:
        raise UserError(f"nothing could be scored: {summary.failures}")
    tables = compare(
        results,
        lesions={c.name for c in predictor.model.space.classes if c.lesion},
        costs=bench.costs(tasks),
        missing=missing,
        competitors=[c for c in bench.competitors if any(c in by for by in results.values())],
        notes=notes,
    )
    shown = [bench.report_case(t, results[t.dataset.name]) for t in tasks if t.dataset.name in results]
    report = write_report(output, tables, overlays=draw_cases(shown))
    print_table(tables)
    summary.note("report", str(report))
    summary.save(output / "benchmark_summary.json")
    return tables, summary


def known_classes(dataset: Dataset, space: LabelSpace) -> dict[str, tuple[int, ...]]:
    """Classes that a dataset lists itself (no unions by rule) and the label space knows: class → ids."""
    return {name: ids for name, ids in listed_classes(dataset).items() if name in space}


@dataclass(frozen=True, kw_only=True)
class _Task:
    dataset: Dataset
    cases: tuple[Case, ...]
    classes: dict[str, tuple[int, ...]]
    trained_on: bool = False

    @property
    def references(self) -> dict[str, Path]:
        return {c.identifier: c.label for c in self.cases if c.label is not None}


@dataclass(frozen=True, kw_only=True)
class _Bench:
    """The competitors, and where their predictions are."""

    predictor: Predictor
    output: Path
    specialists: bool
    others: dict[str, Path]
    device: str
    summary: JobSummary

    @property
    def competitors(self) -> tuple[str, ...]:
        return (UNIFIED, *((SPECIALIST,) if self.specialists else ()), *self.others)

    def folder(self, competitor: str, dataset: str) -> Path:
        """Where a competitor's predictions of a dataset are."""
        return self.others.get(competitor, self.output / "predictions" / competitor) / dataset

    def evaluate(self, competitor: str, task: _Task, tolerance_mm: float, policy: str, processes: int) -> Evaluation:
        """Predict what is not predicted yet, and score."""
        name = task.dataset.name
        if competitor == UNIFIED:
            self._predict_unified(task)
        elif competitor == SPECIALIST:
            self._predict_specialist(task)
        evaluation, _ = evaluate_cases(
            task.references,
            self.folder(competitor, name),
            task.classes,
            allowed_ids=task.dataset.label_ids,
            ignore_id=task.dataset.ignore_label,
            tolerance_mm=tolerance_mm,
            policy=policy,
            processes=processes,
        )
        evaluation.save(self.output / "scores" / competitor / name)
        return evaluation

    def costs(self, tasks: Sequence[_Task]) -> dict[str, Cost]:
        """What the unified network and the specialists cost."""
        costs = {UNIFIED: self._unified_cost(tasks)}
        if self.specialists and (cost := self._specialist_cost(tasks)) is not None:
            costs[SPECIALIST] = cost
        return costs

    def report_case(self, task: _Task, results: Mapping[str, Evaluation]) -> ReportCase:
        """The case whose DSC is the median of the first competitor's."""
        first = next(iter(results.values()))
        by_case = {c.identifier: mean_of(r.dsc for r in first.rows if r.case == c.identifier) for c in task.cases}
        ordered = sorted(task.cases, key=lambda c: (by_case[c.identifier], c.identifier))
        case = ordered[len(ordered) // 2]
        notes = {}
        for competitor, evaluation in results.items():
            value = mean_of(r.dsc for r in evaluation.rows if r.case == case.identifier)
            notes[competitor] = f"DSC {percent(value)}"
        return ReportCase(
            dataset=task.dataset.name,
            case=case.identifier,
            image=case.images[0],
            reference=task.references[case.identifier],
            classes=task.classes,
            predictions={c: self.folder(c, task.dataset.name) for c in results},
            modality=task.dataset.modalities[0],
            notes=notes,
        )

    def _predict_unified(self, task: _Task) -> None:
        done = predict_folder(
            [c.images[0] for c in task.cases],
            self.folder(UNIFIED, task.dataset.name),
            self.predictor,
            tuple(task.classes),
            modality=task.dataset.modalities[0],
        )
        for scan, reason in done.failures.items():
            self.summary.failures[f"{UNIFIED}/{task.dataset.name}/{scan}: prediction"] = reason

    def _predict_specialist(self, task: _Task) -> None:
        from satunet.prediction.specialist import predict_specialist

        folder = self.folder(SPECIALIST, task.dataset.name)
        missing = [c for c in task.cases if not (folder / f"{c.identifier}{task.dataset.file_ending}").is_file()]
        started = time.monotonic()
        predict_specialist(
            task.dataset.name,
            [(c.identifier, c.images) for c in task.cases],
            folder,
            fold=self.predictor.model.fold,
            device=self.device,
        )
        if missing:
            times = {"scans": len(missing), "seconds": round(time.monotonic() - started, 2)}
            write_json(folder / _TIMES, times)

    def _unified_cost(self, tasks: Sequence[_Task]) -> Cost:
        model = self.predictor.model
        manifests = [
            file
            for task in tasks
            for case in task.cases
            if (file := self.folder(UNIFIED, task.dataset.name) / case.identifier / MANIFEST).is_file()
        ]
        parameters = sum(p.numel() for p in model.network.parameters())
        steps = _read(model.path / f"fold_{model.fold}" / "training_config.json").get("steps")
        return Cost(
            models=1,
            parameters=parameters,
            disk_bytes=4 * parameters,
            training_steps=None if steps is None else int(steps),
            seconds_per_scan=statistics.fmean(float(read_json(f)["seconds"]) for f in manifests) if manifests else None,
        )

    def _specialist_cost(self, tasks: Sequence[_Task]) -> Cost | None:
        import torch

        from satunet.trainers.specialist import specialist_folder

        counts, steps, scans, seconds = [], [], 0, 0.0
        for task in tasks:
            name = task.dataset.name
            file = specialist_folder(name) / f"fold_{self.predictor.model.fold}" / "checkpoint_final.pth"
            if not file.is_file():
                continue
            # nnU-Net's own checkpoints hold numpy scalars; they were made on this machine by the benchmark's user.
            content: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=False)
            counts.append(sum(int(w.numel()) for w in content["network_weights"].values()))
            steps.append(int(_read(file.parent / "training_config.json").get("steps", 0)))
            times = _read(self.folder(SPECIALIST, name) / _TIMES)
            scans, seconds = scans + int(times.get("scans", 0)), seconds + float(times.get("seconds", 0))
        if not counts:
            return None
        return Cost(
            models=len(counts),
            parameters=sum(counts),
            disk_bytes=4 * sum(counts),
            training_steps=sum(steps) if all(steps) else None,
            seconds_per_scan=seconds / scans if scans else None,
        )


def _task(dataset: Dataset, model: ModelFolder) -> _Task:
    cases = tuple(c for c in dataset.test_cases() if c.label is not None)
    trained_on = False
    if not cases:
        known = {c.identifier: c for c in dataset.training_cases()}
        wanted = _validation_cases(dataset, model)
        cases = tuple(known[c] for c in wanted if c in known)
        trained_on = model.fold == "all"
    classes = known_classes(dataset, model.space)
    if not cases or not classes:
        raise DatasetError(f"{dataset.name}: {len(cases)} cases to score, {len(classes)} classes that the model knows")
    return _Task(dataset=dataset, cases=cases, classes=classes, trained_on=trained_on)


def _validation_cases(dataset: Dataset, model: ModelFolder) -> list[str]:
    if model.fold == "all":
        return [c.identifier for c in dataset.training_cases()]
    file = preprocessed_dir() / model.plan.dataset_name / "splits_final.json"
    try:
        scans = set(read_json(file)[int(model.fold)]["val"])
    except (OSError, ValueError, IndexError, KeyError) as error:
        raise DatasetError(f"{file}: no validation scans of fold {model.fold} ({error})") from error
    return [c.identifier for c in dataset.training_cases() if scan_id(dataset.name, c.identifier, 0) in scans]


def _read(file: Path) -> dict[str, Any]:
    """A JSON object, empty if the file is not there or none."""
    try:
        content = read_json(file)
    except (OSError, ValueError, SatunetError):
        return {}
    return content if isinstance(content, dict) else {}
