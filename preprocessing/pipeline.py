"""``plan_and_preprocess``: raw datasets → fingerprints → one plan → preprocessed scans, and the specialists'."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterable, Iterator, Sequence

from satunet.datasets.paths import preprocessed_dir
from satunet.datasets.raw import load_dataset, split_scan_id
from satunet.jobs.progress import JobSummary
from satunet.jobs.workers import Workers
from satunet.planners.options import PlanOptions
from satunet.planners.run import plan_datasets, plan_specialists, specialist_of
from satunet.planners.specialist.planner import preprocess_specialist
from satunet.preprocessing.run import preprocess_datasets
from satunet.preprocessing.splits import Folds, folds_of, share_folds


def plan_and_preprocess(
    dataset_names: Sequence[str],
    options: PlanOptions | None = None,
    *,
    specialists: bool = False,
    processes: int | Workers = 1,
) -> JobSummary:
    """Plan, then preprocess; results that are up to date are not made again.

    Args:
        dataset_names: Datasets in ``nnUNet_raw``.
        options: Given values of the plan; everything else is planned.
        specialists: Whether to plan each dataset's nnU-Net as well, and to preprocess for it.
        processes: Number of worker processes, or workers of another kind; nnunetv2 cannot use a cluster and runs here.

    Returns:
        Summary of everything; its exit code is 1 if something failed.
    """
    options = PlanOptions() if options is None else options
    planned = plan_datasets(dataset_names, options, processes=processes)
    plan, found = planned.plan, planned.summary
    # Preprocessing finds bad cases again and names their scans, but not datasets without a plan.
    failures = {item: reason for item, reason in found.failures.items() if "/" not in item}
    summary = JobSummary("plan_and_preprocess", failures=failures, notes=dict(found.notes), started=found.started)
    folds, people = folds_of([load_dataset(name) for name in plan.datasets])
    if people.findings:
        summary.note("people", "; ".join(people.findings))
    made = preprocess_datasets(plan, plan.datasets, space=planned.label_space, folds=folds, processes=processes)
    summary.include(made)
    if specialists:
        plans = plan_specialists(plan, options)
        summary.failures |= plans.failures
        here = processes.processes if isinstance(processes, Workers) else processes
        for name in plan.datasets:
            if specialist_of(name) not in plans.failures:
                unusable = {case for dataset, case in cases_of(made.failures) if dataset == name}
                _preprocess_specialist(name, folds, unusable, summary, here)
    summary.save(preprocessed_dir() / plan.dataset_name / "summary.json")
    return summary


def cases_of(scans: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Dataset and case of each name that belongs to a scan; other names belong to datasets and files."""
    for scan in scans:
        with contextlib.suppress(ValueError):
            dataset, case, _ = split_scan_id(scan)
            yield dataset, case


def _preprocess_specialist(
    name: str, folds: Folds, unusable: Collection[str], summary: JobSummary, processes: int
) -> None:
    try:
        share_folds(name, folds, unusable=unusable)
        made = preprocess_specialist(name, processes=processes)
        (summary.done if made else summary.skipped)(specialist_of(name))
    except Exception as error:  # nnunetv2 may raise anything; one dataset must not end the others
        summary.failed(specialist_of(name), error)
