"""Predict with every competitor, score, compare, report; what is done already is not done again."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from satunet.datasets import Case, Dataset, load_dataset, scan_id
from satunet.errors import DatasetError, UserError
from satunet.evaluation.benchmark import BenchmarkTables, Cost, compare, print_tables, table_rows
from satunet.evaluation.evaluate import Evaluation, evaluate_cases, nanmean, to_csv
from satunet.evaluation.report import ReportCase, write_report
from satunet.files import read_json, write_text
from satunet.labels import LabelSpace, normalize_name
from satunet.paths import preprocessed_dir
from satunet.prediction.folder import MANIFEST, predict_folder
from satunet.prediction.model_folder import ModelFolder
from satunet.prediction.predictor import Predictor
from satunet.progress import JobSummary

logger = logging.getLogger(__name__)

UNIFIED = "satunet"
SPECIALIST = "nnU-Net"


@dataclass(frozen=True, kw_only=True)
class _Task:
    dataset: Dataset
    cases: tuple[Case, ...]
    classes: dict[str, tuple[int, ...]]


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
        policy: For empty masks.
        processes: Worker processes for scoring.

    Returns:
        The tables, and what failed; the report is ``report.html`` in ``output``.

    Raises:
        UserError: No dataset could be scored at all.
    """
    summary = JobSummary("benchmark")
    predictor = Predictor(ModelFolder.load(model, fold=fold), device=device)
    space = predictor.model.space
    tasks: list[_Task] = []
    for name in dataset_names:
        try:
            tasks.append(_task(load_dataset(name), predictor.model))
        except UserError as error:
            summary.failed(name, error)
    results: dict[str, dict[str, Evaluation]] = {}
    for task in tasks:
        name = task.dataset.name
        folders = _predict(task, predictor, output, specialists, device, summary)
        folders |= {other: folder / name for other, folder in (others or {}).items()}
        for competitor, folder in folders.items():
            references = {c.identifier: c.label for c in task.cases if c.label is not None}
            try:
                evaluation, cases = evaluate_cases(
                    references, folder, task.classes, tolerance_mm=tolerance_mm, policy=policy, processes=processes
                )
            except UserError as error:
                summary.failed(f"{competitor}/{name}", error)
                continue
            evaluation.save(output / "scores" / competitor / name)
            results.setdefault(name, {})[competitor] = evaluation
            for case, reason in cases.failures.items():
                summary.failed(f"{competitor}/{name}/{case}", reason)
            summary.done(f"{competitor}/{name}")
    if not results:
        raise UserError(f"nothing could be scored: {summary.failures}")
    lesions = frozenset(c.name for c in space.classes if c.lesion)
    costs = _costs(predictor.model, tasks, output, specialists)
    tables = compare(results, lesions=lesions, costs=costs, failures=summary.failures)
    write_text(output / "per_class.csv", to_csv(table_rows(tables)))
    shown = [_report_case(task, results[task.dataset.name], output, others or {}) for task in tasks
             if task.dataset.name in results]  # fmt: skip
    write_report(output, tables, shown)
    print_tables(tables)
    summary.note("report", str(output / "report.html"))
    summary.save(output / "benchmark_summary.json")
    return tables, summary


def listed_classes(dataset: Dataset, space: LabelSpace) -> dict[str, tuple[int, ...]]:
    """Classes that a dataset lists itself (no unions by rule) and the label space knows: class → ids."""
    found: dict[str, set[int]] = {}
    for source, ids in dataset.labels.items():
        name = normalize_name(source).canonical
        if name in space:
            found.setdefault(name, set()).update(ids)
    return {name: tuple(sorted(ids)) for name, ids in sorted(found.items())}


def _task(dataset: Dataset, model: ModelFolder) -> _Task:
    cases = tuple(c for c in dataset.test_cases() if c.label is not None)
    if not cases:
        known = {c.identifier: c for c in dataset.training_cases()}
        wanted = _validation_cases(dataset, model)
        cases = tuple(known[c] for c in wanted if c in known)
    classes = listed_classes(dataset, model.space)
    if not cases or not classes:
        raise DatasetError(f"{dataset.name}: {len(cases)} cases to score, {len(classes)} classes that the model knows")
    return _Task(dataset=dataset, cases=cases, classes=classes)


def _validation_cases(dataset: Dataset, model: ModelFolder) -> list[str]:
    file = preprocessed_dir() / model.plan.dataset_name / "splits_final.json"
    if model.fold == "all":
        logger.warning(
            "%s has no test cases and the model was trained on all: its training cases are scored", dataset.name
        )
        return [c.identifier for c in dataset.training_cases()]
    try:
        scans = set(read_json(file)[int(model.fold)]["val"])
    except (OSError, ValueError, IndexError, KeyError) as error:
        raise DatasetError(f"{file}: no validation scans of fold {model.fold} ({error})") from error
    return [c.identifier for c in dataset.training_cases() if scan_id(dataset.name, c.identifier, 0) in scans]


def _predict(
    task: _Task, predictor: Predictor, output: Path, specialists: bool, device: str, summary: JobSummary
) -> dict[str, Path]:
    """Predict a dataset with the unified network and its specialist; competitor → folder."""
    name = task.dataset.name
    folders: dict[str, Path] = {}
    target = output / "predictions" / UNIFIED / name
    done = predict_folder(
        [c.images[0] for c in task.cases],
        target,
        predictor,
        tuple(task.classes),
        modality=task.dataset.modalities[0],
    )
    for scan, reason in done.failures.items():
        summary.failed(f"{UNIFIED}/{name}/{scan}", reason)
    folders[UNIFIED] = target
    if specialists:
        from satunet.prediction.specialist import predict_specialist

        target = output / "predictions" / SPECIALIST / name
        try:
            cases = [(c.identifier, c.images) for c in task.cases]
            predict_specialist(name, cases, target, fold=predictor.model.fold, device=device)
            folders[SPECIALIST] = target
        except Exception as error:  # nnunetv2 raises what it likes; the others still count
            summary.failed(f"{SPECIALIST}/{name}", error)
    return folders


def _costs(model: ModelFolder, tasks: Sequence[_Task], output: Path, specialists: bool) -> dict[str, Cost]:
    import torch

    parameters = sum(p.numel() for p in model.network.parameters())
    seconds = []
    for task in tasks:
        for case in task.cases:
            manifest = output / "predictions" / UNIFIED / task.dataset.name / case.identifier / MANIFEST
            if manifest.is_file():
                seconds.append(float(read_json(manifest)["seconds"]))
    config = model.path / f"fold_{model.fold}" / "training_config.json"
    costs = {
        UNIFIED: Cost(
            parameters=parameters,
            disk_mb=parameters * 4 / 1e6,
            networks=1,
            steps=int(read_json(config)["steps"]) if config.is_file() else None,
            seconds_per_scan=nanmean(seconds) if seconds else None,
        )
    }
    if not specialists:
        return costs
    from satunet.trainers.specialist import specialist_folder

    counts, steps = [], []
    for task in tasks:
        file = specialist_folder(task.dataset.name) / f"fold_{model.fold}" / "checkpoint_final.pth"
        if not file.is_file():
            continue
        # nnU-Net's own checkpoints hold numpy scalars; they were made on this machine by the benchmark's user.
        content: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=False)
        counts.append(sum(int(w.numel()) for w in content["network_weights"].values()))
        steps.append(int(content.get("satunet_steps", 0)))
    if counts:
        total = sum(counts)
        budget = max(steps) or None
        costs[SPECIALIST] = Cost(parameters=total, disk_mb=total * 4 / 1e6, networks=len(counts), steps=budget)
    return costs


def _report_case(
    task: _Task, results: Mapping[str, Evaluation], output: Path, others: Mapping[str, Path]
) -> ReportCase:
    case = task.cases[0]
    assert case.label is not None
    folders = {c: others[c] / task.dataset.name if c in others else output / "predictions" / c / task.dataset.name
               for c in results}  # fmt: skip
    return ReportCase(
        dataset=task.dataset.name,
        case=case.identifier,
        image=case.images[0],
        reference=case.label,
        classes=task.classes,
        predictions=folders,
    )
