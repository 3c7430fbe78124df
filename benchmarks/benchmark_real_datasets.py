"""The benchmark on small real datasets, with patients held out: one network, some specialists, boxes of the reference.

    python benchmarks/train_real_datasets.py prepare RAW WORK && python benchmarks/train_real_datasets.py train WORK
    python benchmarks/benchmark_real_datasets.py specialists WORK --datasets 304 309 --steps 200    # nnU-Nets, as many
    python benchmarks/benchmark_real_datasets.py benchmark WORK OUT --specialists                    # as time allows

``WORK`` is the folder that ``train_real_datasets.py`` made. Specialists get the splits of the unified network (by
patient), its optimizer and schedule, and its spacing unless another is given: where a dataset is so small at that
spacing that nnU-Net plans two stages, the weights of its loss are 0/0 (nnunetv2 2.8.1), and it learns nothing. Datasets
of a single patient have nobody to hold out: the benchmark says for each that there is nothing to score.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from satunet.datasets.paths import UNIFIED_DATASET as UNIFIED

SPACING_MM = 3.0


def use_folders(work: Path) -> None:
    """Point nnU-Net's variables at the folders of the training."""
    os.environ["nnUNet_raw"] = (work / "raw_folder.txt").read_text(encoding="utf-8")
    for name in ("preprocessed", "results"):
        os.environ[f"nnUNet_{name}"] = str((work / f"nnUNet_{name}").resolve())


def train_specialists(names: list[str], steps: int, spacing: float, device: str, processes: int) -> int:
    """Plan, preprocess and train the nnU-Nets of some datasets."""
    from satunet.planners.options import PlanOptions
    from satunet.preprocessing.pipeline import plan_and_preprocess
    from satunet.trainers.config import TrainingConfig
    from satunet.trainers.specialist.trainer import train_specialist

    # Planned apart from the unified dataset, whose plan stays as it is.
    summary = plan_and_preprocess(
        names,
        PlanOptions(
            name="Dataset901_Specialists",
            spacing_mm=(spacing,) * 3,
            base_features=16,
            gpu_memory_gb=2.0,
            batch_size=2,
        ),
        specialists=True,
        processes=processes,
    )
    recipe = TrainingConfig.from_recipe("cpu", steps=steps)
    for name in names:
        train_specialist(name, fold=0, config=recipe, device=device, continue_training=True)
    return summary.exit_code


def benchmark(names: list[str], output: Path, *, specialists: bool, device: str, processes: int) -> int:
    """Score one network, the specialists there are, the oracle boxes, and copies of the nearest label maps."""
    from satunet.datasets.unified import UnifiedFolder
    from satunet.evaluation.benchmark.competitors import Competitor
    from satunet.evaluation.benchmark.competitors.medsam import MedSAMCompetitor
    from satunet.evaluation.benchmark.competitors.nearest_copy import NearestCopyCompetitor
    from satunet.evaluation.benchmark.competitors.specialist import SpecialistCompetitor
    from satunet.evaluation.benchmark.competitors.unified import UnifiedCompetitor
    from satunet.evaluation.benchmark.run import Contest
    from satunet.evaluation.run import run_benchmark
    from satunet.jobs.progress import setup_logging

    setup_logging(output / "benchmark.log")
    place = output / "predictions"
    others: list[Competitor] = [SpecialistCompetitor(output=place, device=device)] if specialists else []
    others += [MedSAMCompetitor(output=place, boxes="oracle"), NearestCopyCompetitor(output=place)]
    contest = Contest(
        unified=UnifiedCompetitor(model=UnifiedFolder(name=UNIFIED).results, output=place, device=device),
        others=others,
        output=output,
        folds=(0,),
        processes=processes,
    )
    _, summary = run_benchmark(names, contest)
    summary.show()
    return summary.exit_code


def main() -> int:
    """Run one of the steps."""
    from satunet.datasets.paths import all_dataset_names, dataset_name_of

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=("specialists", "benchmark"))
    parser.add_argument("work", type=Path)
    parser.add_argument("output", type=Path, nargs="?")
    parser.add_argument("-d", "--datasets", nargs="+", default=["all"])
    parser.add_argument("--specialists", action="store_true")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--spacing", type=float, default=SPACING_MM)
    parser.add_argument("--device", default="auto")
    parser.add_argument("-np", "--processes", type=int, default=1)
    given = parser.parse_args()
    use_folders(given.work)
    names = list(all_dataset_names() if "all" in given.datasets else map(dataset_name_of, given.datasets))
    if given.step == "specialists":
        return train_specialists(names, given.steps, given.spacing, given.device, given.processes)
    if given.output is None:
        parser.error("the benchmark needs an output folder")
    return benchmark(names, given.output, specialists=given.specialists, device=given.device, processes=given.processes)


if __name__ == "__main__":
    raise SystemExit(main())
