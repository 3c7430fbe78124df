"""``plan_and_preprocess``: raw datasets → fingerprints → one plan → preprocessed scans, and the specialists'."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from satunet.datasets.paths import preprocessed_dir
from satunet.datasets.raw import load_dataset
from satunet.jobs.files import write_json
from satunet.jobs.progress import JobSummary
from satunet.jobs.workers import Workers
from satunet.labels import build_label_space
from satunet.planners.run import fingerprint_datasets
from satunet.planners.specialist.planner import plan_specialist, preprocess_specialist
from satunet.planners.unified.impact import impact_of, summarize
from satunet.planners.unified.normalization import NormalizationSchemes
from satunet.planners.unified.planner import plan_unified, save_unified_plan
from satunet.preprocessing.run import preprocess_datasets
from satunet.preprocessing.splits import share_folds


def plan_and_preprocess(
    dataset_names: Sequence[str],
    *,
    preset: str = "auto",
    gpu_memory_gb: float = 8.0,
    spacing_mm: tuple[float, float, float] | None = None,
    patch_size: tuple[int, int, int] | None = None,
    batch_size: int | None = None,
    base_features: int | None = None,
    backbone: str = "plain",
    normalization: NormalizationSchemes = "sat",
    text_encoder: str = "minilm",
    unified_name: str = "Dataset900_Unified",
    processes: int | Workers = 1,
    preprocess: bool = True,
    specialists: bool = False,
    specialist_planner: str = "default",
) -> JobSummary:
    """Do all steps; what is up to date is not done again.

    A dataset that cannot be fingerprinted is counted as failed and left out of the plan.

    Args:
        dataset_names: Datasets in ``nnUNet_raw``.
        preset: ``"auto"``, ``"nano"`` or ``"pro"``.
        gpu_memory_gb: GPU memory to plan for.
        spacing_mm: Target spacing (R, A, S) instead of a planned one; the specialists take it as well.
        patch_size: Patch instead of a planned one.
        batch_size: Batch size instead of a planned one.
        base_features: Features of the first stage instead of a planned number; the specialists take it as well.
        backbone: ``"plain"``, or nnU-Net's residual encoder, ``"residual"``.
        normalization: SAT's scheme or nnU-Net's.
        text_encoder: Name of the text encoder, see :func:`satunet.text.load_text_encoder`.
        unified_name: Name of the unified dataset.
        processes: Worker processes, or where else to run.
        preprocess: Whether to preprocess after planning.
        specialists: Whether to plan each dataset's nnU-Net as well, and to preprocess for it.
        specialist_planner: One of :data:`satunet.planners.specialist.nnunet.PLANNERS`.

    Returns:
        The summary of everything; its exit code is 1 if something failed.
    """
    fingerprints, summary = fingerprint_datasets(dataset_names, processes=processes)
    plan = plan_unified(
        fingerprints,
        preset=preset,
        gpu_memory_gb=gpu_memory_gb,
        spacing_mm=spacing_mm,
        patch_size=patch_size,
        batch_size=batch_size,
        base_features=base_features,
        backbone=backbone,
        normalization=normalization,
        text_encoder=text_encoder,
        dataset_name=unified_name,
    )
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
    write_json(file.with_name(f"{plan.plans_name}_impact.json"), list(impacts))
    space.save(file.with_name("label_space.json"))
    if preprocess:
        # Bad cases are found again by preprocessing, which names their scans; datasets without a plan are not.
        failures = {item: reason for item, reason in summary.failures.items() if "/" not in item}
        summary = JobSummary("plan_and_preprocess", failures=failures, started=summary.started)
    else:
        summary = JobSummary("plan", failures=summary.failures, started=summary.started)
    for key, sentence in plan.explanation.items():
        summary.note(key, sentence)
    summary.note("labels", f"{len(space.classes)} classes; satunet labels shows them, and what looks wrong")
    summary.note("plan", str(file))
    if preprocess:
        summary.include(preprocess_datasets(plan, plan.datasets, processes=processes))
    if specialists:
        here = processes.processes if isinstance(processes, Workers) else processes  # nnunetv2 knows no cluster
        for name in plan.datasets:
            try:
                plan_specialist(
                    load_dataset(name),
                    # a preset's GPU memory is its own; the default planner takes the one given
                    gpu_memory_gb=gpu_memory_gb if specialist_planner == "default" else None,
                    spacing_mm=spacing_mm,
                    base_features=base_features,
                    planner=specialist_planner,
                )
                if preprocess:
                    share_folds(name, [case.identifier for case in load_dataset(name).training_cases()])
                made = preprocess_specialist(name, processes=here) if preprocess else True
                (summary.done if made else summary.skipped)(f"{name} (specialist)")
            except Exception as error:  # nnunetv2 raises what it likes; one dataset must not end the others
                summary.failed(f"{name} (specialist)", error)
    if preprocess:
        summary.save(preprocessed_dir() / unified_name / "summary.json")
    return summary
