"""The demo: a first picture, then the whole pipeline on heads made from real templates, small enough for two cores.

The network always competes with a copy of labels by position; one that does not beat it has only learned where
structures usually are. The nnU-Nets (``specialists``) get the same number of steps, the same optimizer and the same
spacing as the one network. They take several times ten minutes on two cores and are therefore optional. If one of them
has not even learned its own training scans in that time, they are left out of the tables, and the reason is stated.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from satunet.datasets.paths import UNIFIED_DATASET
from satunet.datasets.raw import load_dataset
from satunet.demo.datasets import make_demo_datasets
from satunet.demo.look import FirstLook, look
from satunet.demo.packaged import ICBM152
from satunet.evaluation.benchmark.competitors import Competitor
from satunet.evaluation.benchmark.competitors.nearest_copy import NearestCopyCompetitor
from satunet.evaluation.benchmark.competitors.specialist import SpecialistCompetitor
from satunet.evaluation.benchmark.competitors.unified import UnifiedCompetitor
from satunet.evaluation.benchmark.run import Contest
from satunet.evaluation.run import run_benchmark
from satunet.jobs.progress import JobSummary
from satunet.models.checkpoints import load_checkpoint
from satunet.models.shipped import SHIPPED, resolve_model
from satunet.planners.options import PlanOptions
from satunet.prediction.door.inputs import Scan
from satunet.prediction.folder import predict_folder
from satunet.prediction.options import Outputs
from satunet.prediction.predictor import Predictor
from satunet.preprocessing.pipeline import plan_and_preprocess
from satunet.trainers.config import TrainingConfig
from satunet.trainers.specialist.trainer import specialist_folder, train_specialist
from satunet.trainers.unified.run import train_unified

logger = logging.getLogger(__name__)

SPACING_MM = (3.0, 3.0, 3.0)
PATCH = (48, 64, 48)
GPU_MEMORY_GB = 2.0
BASE_FEATURES = 12
LEARNED = 0.5
"""Smallest mean Dice of an nnU-Net's validation, on patches of its training scans, to take part in the benchmark."""
PROMPTS = (
    "hippocampus on the left side",
    "RIGHT HIPPOCAMPUS",
    "thalamus",
    "brain stem",
    "left lateral ventricle",
    "coffee cup",
)
"""Prompts in words that no dataset uses; one is a union of two sides, and one is in no brain scan."""


def run_demo(output: Path, *, steps: int, specialists: bool = False, device: str = "auto", processes: int = 1) -> int:
    """Run the demo: a picture, data, plan, preprocessing, training of one network, prediction by text, benchmark.

    Args:
        output: Folder for everything; nnU-Net's three folders are made in it.
        steps: Training steps of every network.
        specialists: Whether to train one nnU-Net per dataset as well.
        device: Device to compute on.
        processes: Worker processes.

    Returns:
        The exit code; 1 if something failed and the rest is done.
    """
    output = output.resolve()
    for name in ("raw", "preprocessed", "results"):
        folder = output / f"nnUNet_{name}"
        folder.mkdir(parents=True, exist_ok=True)
        os.environ[f"nnUNet_{name}"] = str(folder)
    summary = JobSummary("demo")
    _announce(1, "a first picture, by the model that comes with satunet")
    summary.include(_first_picture(output / "first_look", device))
    _announce(2, "three datasets: heads made of real brain templates, labelled by three atlases")
    names = make_demo_datasets(output / "nnUNet_raw")
    _announce(3, "one plan and one label space for all three")
    options = PlanOptions(
        spacing_mm=SPACING_MM, patch_size=PATCH, gpu_memory_gb=GPU_MEMORY_GB, base_features=BASE_FEATURES, batch_size=2
    )
    prepared = plan_and_preprocess(names, options, specialists=specialists, processes=processes)
    prepared.show()
    summary.include(prepared)
    _announce(4, f"one text-prompted network for all classes, {steps} steps")
    config = TrainingConfig.from_recipe("short", steps=steps)
    model = train_unified(UNIFIED_DATASET, fold="all", config=config, device=device, continue_training="if_begun")
    if specialists:
        for name in names:
            logger.info("the nnU-Net of %s, by nnunetv2, %d steps", name, steps)
            train_specialist(name, fold="all", config=config, device=device, continue_training=True)
    _announce(5, "held-out heads, segmented by text")
    held_out = load_dataset(names[0]).folder / "imagesTs"
    shown = Predictor(model, device=device, outputs=Outputs(preview=True))
    summary.include(predict_folder([held_out], output / "predicted_by_text", shown, PROMPTS))
    _announce(6, "the network against labels copied by position, on held-out heads")
    contest, notes = _contest(names, model, output / "benchmark", specialists=specialists, device=device)
    _, scored = run_benchmark(names, replace(contest, processes=processes))
    summary.include(scored)
    for note in notes:
        logger.info("%s", note)
    summary.note("first picture", str(output / "first_look" / ICBM152.name / "preview.png"))
    summary.note("report", str(output / "benchmark" / "report.html"))
    summary.note("masks by text", str(output / "predicted_by_text"))
    summary.show()
    return summary.exit_code


def _first_picture(output: Path, device: str) -> JobSummary:
    """Segment the ICBM 152 brain with the shipped model, as ``satunet try`` does."""
    predictor = Predictor(
        resolve_model(SHIPPED[0]), modality=ICBM152.modality, device=device, outputs=Outputs(preview=True)
    )
    scan = Scan(path=ICBM152.path, name=ICBM152.name)
    first = FirstLook.of(scan, scan.read(), predictor.vocabulary, predictor.options)
    summary, _ = look([first], output, predictor)
    return summary


def _contest(
    names: Sequence[str], model: Path, output: Path, *, specialists: bool, device: str
) -> tuple[Contest, list[str]]:
    """The competitors, and reasons why some do not take part."""
    predictions = output / "predictions"
    others: list[Competitor] = [NearestCopyCompetitor(output=predictions)]
    notes = []
    if not specialists:
        notes.append("nnU-Nets are left out: they were not trained. 'satunet demo --specialists' trains them as well.")
    else:
        scores = {name: learned(name) for name in names}
        if min(scores.values()) >= LEARNED:
            others.insert(0, SpecialistCompetitor(output=predictions, device=device))
        else:
            found = ", ".join(f"{name} {value:.2f}" for name, value in scores.items())
            notes.append(
                f"nnU-Nets are left out: in so few steps, one has not learned its own training scans (Dice: {found}; "
                f"required is {LEARNED:g}). More --steps help."
            )
    unified = UnifiedCompetitor(model=model, output=predictions, device=device)
    return Contest(unified=unified, others=others, output=output, folds=("all",), notes=notes), notes


def learned(dataset: str) -> float:
    """Mean Dice of a specialist's last validation, as nnunetv2 logged it; 0 if it logged none.

    Args:
        dataset: Name of the dataset; its specialist was trained on all cases.

    Raises:
        ModelError: The specialist is not trained.
    """
    checkpoint = load_checkpoint(specialist_folder(dataset) / "fold_all" / "checkpoint_final.pth")
    values = checkpoint["logging"].get("mean_fg_dice") or [0.0]
    return float(values[-1])


def _announce(number: int, what: str) -> None:
    logger.info("step %d of 6: %s", number, what)
