"""Plans of the specialist nnU-Nets, and their preprocessing by nnunetv2 itself."""

from __future__ import annotations

import contextlib
import logging
from pathlib import Path
from typing import Any

from satunet.datasets.paths import dataset_number, preprocessed_dir
from satunet.datasets.raw import Dataset, load_dataset
from satunet.errors import PlanError, SatunetError
from satunet.images.image import read_grid
from satunet.jobs.files import read_json
from satunet.jobs.fresh import Stamp
from satunet.jobs.progress import prints_to_log
from satunet.jobs.records import load_record, save_record
from satunet.planners.fingerprint.readers import nnunet_axes, nnunet_reader
from satunet.planners.specialist.nnunet import PLANS, plan_nnunet

logger = logging.getLogger(__name__)

CONFIGURATION = "3d_fullres"
PLANS_NAME = PLANS["default"]


def plan_specialist(
    dataset: Dataset,
    *,
    gpu_memory_gb: float | None = None,
    spacing_mm: tuple[float, float, float] | None = None,
    base_features: int | None = None,
    planner: str = "default",
) -> None:
    """Let nnunetv2's planner write its plans file, from the existing fingerprint.

    Args:
        dataset: The dataset; its ``dataset_fingerprint.json`` must exist.
        gpu_memory_gb: Memory to plan for; the planner's own (8 GB by default) if not given.
        spacing_mm: Target spacing (R, A, S); planned if not given.
        base_features: Features of the first stage, for machines without a GPU; 32 if not given.
        planner: Name of the planner, one of :data:`satunet.planners.specialist.nnunet.PLANNERS`.

    Raises:
        PlanError: nnU-Net plans no 3D configuration: the scans are single slices, or no patch fits the memory.
    """
    target = None
    if spacing_mm is not None:
        target = _in_nnunets_axes(spacing_mm, dataset)
    plan = plan_nnunet(
        dataset.name,
        planner=planner,
        gpu_memory_gb=gpu_memory_gb,
        spacing_mm=target,
        base_features=base_features,
    )
    if CONFIGURATION not in plan["configurations"]:
        raise PlanError(f"{dataset.name}: nnU-Net plans no {CONFIGURATION} for single slices")


def preprocess_specialist(name: str, *, processes: int = 1) -> bool:
    """Let nnunetv2 preprocess a dataset for its specialist if plan or scans have changed.

    Returns:
        Whether there was anything to do.
    """
    from nnunetv2.experiment_planning.plan_and_preprocess_api import preprocess_dataset

    folder = preprocessed_dir() / name
    files, plan = _made_from(name)
    marker = folder / f"{PLANS_NAME}_{CONFIGURATION}_made_from.json"
    with contextlib.suppress(SatunetError):  # the record is missing or unreadable
        if load_record(marker, Stamp).why_stale(files, plan) is None:
            return False
    marker.unlink(missing_ok=True)
    made_of = Stamp.of(files, plan)
    with prints_to_log(logger, "nnunetv2"):
        preprocess_dataset(
            dataset_number(name),
            plans_identifier=PLANS_NAME,
            configurations=(CONFIGURATION,),
            num_processes=(max(1, processes),),
            verbose=False,
        )
    save_record(marker, made_of)
    return True


def _made_from(name: str) -> tuple[list[Path], dict[str, Any]]:
    """Inputs of nnU-Net's preprocessed scans: files, and parts of the plan."""
    plan = read_json(preprocessed_dir() / name / f"{PLANS_NAME}.json")
    files = [file for case in load_dataset(name).training_cases() for file in case.files if file.is_file()]
    return files, {
        "configuration": plan["configurations"].get(CONFIGURATION),
        "intensities": plan.get("foreground_intensity_properties_per_channel"),
    }


def _in_nnunets_axes(spacing_mm: tuple[float, float, float], dataset: Dataset) -> list[float]:
    """Spacing along R, A, S → along the axes of nnunetv2's reader, for files like the first one."""
    if not dataset.has_scans:
        return [float(s) for s in reversed(spacing_mm)]
    cases = dataset.training_cases()
    grid = read_grid(cases[0].images[0])
    _, axes = nnunet_axes(cases[0].images[0], grid, nnunet_reader(dataset, cases))
    return [float(spacing_mm["RLAPSI".index(grid.orientation[axis]) // 2]) for axis in axes]
