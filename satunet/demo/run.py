"""The demo: the whole pipeline on real templates, small enough for two cores."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from satunet.datasets.paths import UNIFIED_DATASET
from satunet.datasets.raw import load_dataset
from satunet.demo.datasets import make_demo_datasets
from satunet.evaluation.benchmark.competitors.nearest_copy import NearestCopyCompetitor
from satunet.evaluation.benchmark.competitors.specialist import SpecialistCompetitor
from satunet.evaluation.benchmark.competitors.unified import UnifiedCompetitor
from satunet.evaluation.benchmark.run import Contest
from satunet.evaluation.run import run_benchmark
from satunet.jobs.progress import JobSummary
from satunet.planners.options import PlanOptions
from satunet.prediction.folder import predict_folder
from satunet.prediction.predictor import Predictor
from satunet.preprocessing.pipeline import plan_and_preprocess
from satunet.trainers.config import TrainingConfig
from satunet.trainers.specialist.trainer import train_specialist
from satunet.trainers.unified.run import train_unified

logger = logging.getLogger(__name__)

SPACING_MM = (3.0, 3.0, 3.0)
GPU_MEMORY_GB = 2.0
BASE_FEATURES = 16
PROMPTS = (
    "hippocampus on the left side",
    "RIGHT HIPPOCAMPUS",
    "thalamus",
    "brain stem",
    "left lateral ventricle",
    "coffee cup",
)
"""In words that no dataset used, with a union of two sides and something no brain scan shows."""


def run_demo(output: Path, *, steps: int, device: str = "auto", processes: int = 1) -> int:
    """Data, plan, preprocessing, one network, three specialists, prediction by text, benchmark.

    Args:
        output: Folder for everything; nnU-Net's three folders are made in it.
        steps: Training steps of every network.
        device: Device to compute on.
        processes: Worker processes.

    Returns:
        The exit code: 1 if something failed and the rest is done.
    """
    output = output.resolve()
    for name in ("raw", "preprocessed", "results"):
        folder = output / f"nnUNet_{name}"
        folder.mkdir(parents=True, exist_ok=True)
        os.environ[f"nnUNet_{name}"] = str(folder)
    summary = JobSummary("demo")
    _announce(1, "three datasets from real brain templates and atlases")
    names = make_demo_datasets(output / "nnUNet_raw")
    _announce(2, "one plan and label space for all three, and nnU-Net's own plan for each")
    prepared = plan_and_preprocess(
        names,
        PlanOptions(spacing_mm=SPACING_MM, gpu_memory_gb=GPU_MEMORY_GB, base_features=BASE_FEATURES, batch_size=2),
        specialists=True,
        processes=processes,
    )
    prepared.show()
    summary.include(prepared)
    _announce(3, f"one text-prompted network for all classes, {steps} steps")
    config = TrainingConfig.from_recipe("short", steps=steps)
    model = train_unified(UNIFIED_DATASET, fold="all", config=config, device=device, continue_training="if_begun")
    _announce(4, f"a specialist nnU-Net per dataset, trained by nnunetv2, {steps} steps each")
    for name in names:
        train_specialist(name, fold="all", config=config, device=device, continue_training=True)
    _announce(5, "the held-out scan, segmented by text")
    held_out = load_dataset(names[0]).folder / "imagesTs"
    predicted = predict_folder([held_out], output / "predicted_by_text", Predictor(model, device=device), PROMPTS)
    summary.include(predicted)
    _announce(6, "one network against three, on the held-out scan")
    _, scored = run_benchmark(names, demo_contest(output / "benchmark", model, device=device, processes=processes))
    summary.include(scored)
    summary.note("report", str(output / "benchmark" / "report.html"))
    summary.note("masks by text", str(output / "predicted_by_text"))
    summary.show()
    return summary.exit_code


def demo_contest(output: Path, model: Path, *, device: str = "auto", processes: int = 1) -> Contest:
    """The network against the specialists, and against labels copied from a training template.

    The templates' labels are one atlas moved by affines: who never looks at the image is right everywhere, and the report
    has to show it.

    Args:
        output: Folder of the report and of all predictions.
        model: The network that was trained on all datasets.
        device: Where to compute.
        processes: Worker processes.
    """
    place = output / "predictions"
    return Contest(
        unified=UnifiedCompetitor(model=model, output=place, device=device),
        others=[SpecialistCompetitor(output=place, device=device), NearestCopyCompetitor(output=place)],
        output=output,
        folds=("all",),
        processes=processes,
    )


def _announce(number: int, what: str) -> None:
    logger.info("step %d of 6: %s", number, what)
