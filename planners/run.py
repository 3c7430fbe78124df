"""Planning: fingerprints of many datasets → one plan and label space for all, and one nnU-Net plan per dataset."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from satunet.datasets.paths import all_dataset_names, dataset_number, preprocessed_dir
from satunet.datasets.raw import load_dataset
from satunet.datasets.unified import UnifiedFolder
from satunet.errors import DatasetError, PlanError, UserError
from satunet.jobs.files import write_json
from satunet.jobs.progress import JobSummary
from satunet.jobs.quick import collection_paused
from satunet.jobs.records import load_json
from satunet.jobs.wording import counted
from satunet.jobs.workers import Workers
from satunet.labels import LabelSpace, build_label_space
from satunet.plan import UnifiedPlan
from satunet.planners.fingerprint.dataset import DatasetFingerprint
from satunet.planners.fingerprint.extraction import fingerprint_dataset
from satunet.planners.options import PlanOptions, SpecialistPlanner
from satunet.planners.specialist.planner import plan_specialist
from satunet.planners.unified.impact import impact_of, summarize
from satunet.planners.unified.planner import plan_unified, save_unified_plan
from satunet.planners.unified.review import review_label_space


@dataclass(frozen=True, kw_only=True)
class Planned:
    """Result of planning.

    Attributes:
        plan: The unified plan.
        label_space: Label space of its datasets.
        summary: Datasets and cases that could not be used, and the reason for each value of the plan.
    """

    plan: UnifiedPlan
    label_space: LabelSpace
    summary: JobSummary


def plan_datasets(
    dataset_names: Sequence[str], options: PlanOptions | None = None, *, processes: int | Workers = 1
) -> Planned:
    """Plan one network for all datasets, and write plan, merged fingerprint, label space and impact.

    A dataset that cannot be fingerprinted is counted as failed and left out of the plan.

    Args:
        dataset_names: Datasets in ``nnUNet_raw``; one whose fingerprint is known needs no scans.
        options: Given values; everything else is planned.
        processes: Number of worker processes, or workers of another kind.

    Raises:
        DatasetError: No dataset can be used, or one is a unified dataset itself.
        PlanError: The given values allow no plan, or the name is another dataset's.
        LabelSpaceError: The labels of the datasets contradict each other.
    """
    options = PlanOptions() if options is None else options
    require_apart(options.name, dataset_names)
    with collection_paused():  # looking for garbage among the records of 22,000 scans takes as long as the plan
        return _planned(*fingerprint_datasets(dataset_names, processes=processes), options)


def _planned(fingerprints: Sequence[DatasetFingerprint], found: JobSummary, options: PlanOptions) -> Planned:
    plan = plan_unified(fingerprints, options)
    datasets = [load_dataset(name) for name in plan.datasets]
    space = build_label_space(datasets)
    impacts = impact_of(plan, fingerprints, {dataset.name: dataset.labels for dataset in datasets})
    explanation = plan.explanation | summarize(impacts)
    if approximate := [f.dataset for f in fingerprints if f.approximate]:
        explanation["approximate"] = (
            f"{len(approximate)} fingerprints are nnU-Net's own: spacings and shapes are exact, percentiles of "
            "intensities approximate, and what the plan does to their classes is not known"
        )
    plan = dataclasses.replace(plan, explanation=explanation)
    file = save_unified_plan(plan, fingerprints)
    write_json(plan.unified_folder.impact, list(impacts))
    space.save(plan.unified_folder.label_space)
    summary = JobSummary("plan", failures=found.failures, notes=dict(found.notes), started=found.started)
    for key, sentence in plan.explanation.items():
        summary.note(key, sentence)
    summary.note(
        "labels", f"{counted(len(space.classes), 'class', 'classes')}; satunet labels shows them, and what looks wrong"
    )
    for kind, findings in _worth_saying(space, fingerprints).items():
        summary.note(kind, "; ".join(findings))
    summary.note("plan", str(file))
    return Planned(plan=plan, label_space=space, summary=summary)


def _worth_saying(space: LabelSpace, fingerprints: Sequence[DatasetFingerprint]) -> dict[str, list[str]]:
    """Findings that change what is learned although no file is wrong: names without context, labels that are lost."""
    kinds = {"generic": "names without context", "cropped": "labels cut away"}
    said: dict[str, list[str]] = {}
    for finding in review_label_space(space, fingerprints, kinds):
        said.setdefault(kinds[finding.kind], []).append(finding.message)
    if bare := [f.dataset for f in fingerprints if not f.approximate and not any(c.label_voxels for c in f.cases)]:
        said["nothing labelled"] = [
            f"no case of {', '.join(bare)} has a labelled voxel: there is nothing to learn from it"
        ]
    return said


def require_apart(name: str, dataset_names: Sequence[str]) -> None:
    """Refuse a unified dataset with the name or number of an nnU-Net dataset, whose files it would overwrite.

    Args:
        name: Name of the unified dataset.
        dataset_names: Datasets that it is made of.

    Raises:
        PlanError: The name, or its number, is a raw dataset's, or that of a dataset that nnU-Net planned.
        DatasetError: One of the datasets is unified itself.
    """
    for other in all_dataset_names():
        if dataset_number(other) == dataset_number(name):
            raise PlanError(
                f"name {name!r}: {other} in nnUNet_raw has the number {dataset_number(name)}; a unified dataset needs one "
                "of its own"
            )
    for other in (name, *dataset_names):
        place = UnifiedFolder(name=other)
        unified = place.plan.is_file()
        if other == name and not unified and place.fingerprint.is_file():
            raise PlanError(
                f"name {name!r}: {place.folder} holds the fingerprint of a dataset, which a plan would replace"
            )
        if other != name and unified:
            raise DatasetError(f"{other} is a unified dataset; give the datasets that it is made of")
    if name in dataset_names:
        raise PlanError(f"name {name!r}: a unified dataset cannot be made of itself")


def plan_specialists(plan: UnifiedPlan, options: PlanOptions, *, planner: SpecialistPlanner = "default") -> JobSummary:
    """Let nnunetv2 plan each dataset's own nnU-Net, with the values that are given for the unified plan.

    Args:
        plan: The unified plan; its datasets have fingerprints.
        options: Options of the unified plan. Target spacing and features of the first stage also apply to the
            specialists; so does the GPU memory, except for planners with a fixed one.
        planner: nnU-Net's planner.

    Returns:
        Summary of the specialists that were planned or failed, as ``<dataset> (specialist)``.
    """
    summary = JobSummary("plans of the specialists")
    for name in plan.datasets:
        try:
            plan_specialist(
                load_dataset(name),
                gpu_memory_gb=options.gpu_memory_gb if planner == "default" else None,
                spacing_mm=options.spacing_mm,
                base_features=options.base_features,
                planner=planner,
            )
            summary.done(specialist_of(name))
        except Exception as error:  # nnunetv2 may raise anything; one dataset must not end the others
            summary.failed(specialist_of(name), error)
    return summary


def specialist_of(dataset_name: str) -> str:
    """Name of a dataset's specialist in summaries."""
    return f"{dataset_name} (specialist)"


def known_fingerprints(dataset_names: Sequence[str]) -> list[DatasetFingerprint]:
    """Fingerprints that were extracted before; datasets without one, or only with nnunetv2's, are left out."""
    found = []
    for name in dataset_names:
        file = preprocessed_dir() / name / "dataset_fingerprint.json"
        with contextlib.suppress(PlanError):  # damaged ones are made again
            found.append(DatasetFingerprint.of_file(load_json(file, error=PlanError), file))
    return found


def scans_of(fingerprints: Sequence[DatasetFingerprint]) -> dict[tuple[str, str], tuple[str, ...]]:
    """Dataset and case → hashes of its scans' voxels."""
    return {(case.dataset, case.case): case.scans for f in fingerprints for case in f.cases}


def fingerprint_datasets(
    dataset_names: Sequence[str], *, processes: int | Workers = 1
) -> tuple[list[DatasetFingerprint], JobSummary]:
    """Fingerprint datasets one after the other, the cases of each in parallel.

    Returns:
        The fingerprints of the datasets that could be read, and a summary of all cases.

    Raises:
        DatasetError: No dataset could be read.
    """
    summary = JobSummary("fingerprints")
    fingerprints = []
    for name in dataset_names:
        try:
            fingerprint, cases = fingerprint_dataset(name, processes=processes)
        except UserError as error:
            summary.failed(name, error)
            continue
        fingerprints.append(fingerprint)
        summary.include(cases)
    bare = [f.dataset for f in fingerprints if not f.approximate and not any(c.label_voxels for c in f.cases)]
    if bare:
        summary.note(
            "nothing labelled", f"no case of {', '.join(bare)} has a labelled voxel: nothing is learned from it"
        )
    if not fingerprints:
        reasons = "; ".join(summary.failures.values()) or "no dataset was given"
        raise DatasetError(f"none of the datasets can be used: {reasons}")
    return fingerprints, summary
