"""One network on a folder of small real datasets, with patients held out: the whole path, and a table by dataset.

    python benchmarks/train_real_datasets.py prepare RAW WORK     # splits by patient, plan, store
    python benchmarks/train_real_datasets.py train WORK           # goes on where it stopped
    python benchmarks/train_real_datasets.py report WORK --seen   # table, curve, throughput

``RAW`` is a ``nnUNet_raw`` folder that is only read; everything else is written to ``WORK``. Patients are held out,
not scans: cases of one patient, in whatever dataset, are on the same side of the split. A dataset of a single patient
has nobody to hold out; its scans are trained on, and its row of the table says so.
"""

from __future__ import annotations

import argparse
import os
import re
from collections import defaultdict
from pathlib import Path

from satunet.datasets.paths import UNIFIED_DATASET as UNIFIED

SPACING_MM = (3.0, 3.0, 3.0)
PATCH = (48, 48, 48)
PATIENTS = (
    (r"_SoftTissueSarcoma_", r"sts_\d+", "sarcoma"),  # PET, MR and CT of the same patients
    (r"_(BrainRegions|WhiteMatterLesion)_", r"subj_\d+", "nichart"),  # T1 and FLAIR of the same subjects
    (r"_Prostate_", r"picai_\d+", "picai"),  # ADC and DWI of one patient
    (r"_SpinalCord", r"sct", "sct"),  # T1, T2 and T2* of what may be one person
)
"""Dataset, part of the case's name that is the patient, and what that name is unique in."""


def patient_of(dataset: str, case: str) -> str:
    """Name of a case's patient, the same in every dataset."""
    for which, pattern, study in PATIENTS:
        if re.search(which, dataset) and (found := re.match(pattern, case)):
            return f"{study}/{found[0]}"
    return f"{dataset}/{case}"


def split_by_patient(cases: dict[str, list[str]], share: float = 0.2) -> dict[str, dict[str, list[str]]]:
    """One split a dataset; a held-out patient is held out everywhere, and no dataset loses its last patient.

    Args:
        cases: Dataset → cases.
        share: Share of a dataset's patients to hold out, at least one.
    """
    patients: dict[str, set[str]] = {d: {patient_of(d, c) for c in names} for d, names in cases.items()}
    sets_of: dict[str, set[str]] = defaultdict(set)
    for dataset, members in patients.items():
        for patient in members:
            sets_of[patient].add(dataset)
    held_out: set[str] = set()
    for members in sorted(patients.values(), key=len):
        wanted = max(1, round(share * len(members))) if len(members) > 1 else 0
        # those in several datasets first: one held-out patient then serves them all
        for patient in sorted(members - held_out, key=lambda p: (-len(sets_of[p]), p)):
            if len(members & held_out) >= wanted:
                break
            if all(len(patients[d] - held_out) > 1 for d in sets_of[patient]):
                held_out.add(patient)
    return {
        dataset: {
            "train": [c for c in names if patient_of(dataset, c) not in held_out],
            "val": [c for c in names if patient_of(dataset, c) in held_out],
        }
        for dataset, names in cases.items()
    }


def prepare(raw: Path, work: Path, processes: int) -> int:
    """Split, plan and preprocess."""
    from satunet.datasets.paths import all_dataset_names
    from satunet.datasets.raw import load_dataset
    from satunet.jobs.files import write_json
    from satunet.jobs.progress import setup_logging
    from satunet.planners.options import PlanOptions
    from satunet.preprocessing.pipeline import plan_and_preprocess

    _environment(work, raw)
    setup_logging(work / "prepare.log")
    names = all_dataset_names()
    cases = {name: [case.identifier for case in load_dataset(name).training_cases()] for name in names}
    splits = split_by_patient(cases)
    sides = {part: {patient_of(d, c) for d, s in splits.items() for c in s[part]} for part in ("train", "val")}
    assert not sides["train"] & sides["val"], sides["train"] & sides["val"]
    for dataset, split in splits.items():
        write_json(work / "nnUNet_preprocessed" / dataset / "splits_final.json", [split])
    summary = plan_and_preprocess(
        names,
        PlanOptions(spacing_mm=SPACING_MM, patch_size=PATCH, batch_size=2, base_features=16, gpu_memory_gb=2.0),
        processes=processes,
    )
    summary.show()
    return summary.exit_code


def train(work: Path, steps: int, minutes: float | None, device: str) -> int:
    """Train and validate, or go on with it."""
    from satunet.jobs.progress import setup_logging
    from satunet.trainers.config import TrainingConfig
    from satunet.trainers.unified.run import run_training

    _environment(work)
    setup_logging(work / "train.log")
    config = TrainingConfig.from_recipe("cpu", steps=steps)
    run_training(UNIFIED, fold=0, config=config, device=device, continue_training="if_begun", minutes=minutes)
    return 0


def report(work: Path, *, seen_too: bool) -> int:
    """Print the table by dataset, the curve and the throughput of a finished training.

    Args:
        work: Folder of the training.
        seen_too: Whether to segment the scans of datasets that have nobody to hold out, too.
    """
    import torch
    from common import header

    from satunet.datasets.unified import UnifiedFolder
    from satunet.jobs.files import read_json
    from satunet.jobs.records import load_record
    from satunet.plan import UnifiedPlan
    from satunet.trainers.config import TrainingConfig
    from satunet.trainers.unified.trainer import SATTrainer
    from satunet.trainers.unified.validation import score_scan, summarize
    from satunet.trainers.unified.watching.statistics import read_progress

    _environment(work)
    folder = work / "nnUNet_preprocessed" / UNIFIED
    plan = UnifiedPlan.load(UnifiedFolder(name=UNIFIED).plan)
    trainer = SATTrainer(
        plan.to_nnunet(), plan.configuration, 0, read_json(folder / "dataset.json"), torch.device("cpu")
    )
    fold = Path(str(trainer.output_folder))
    trainer.configure(load_record(fold / "training_config.json", TrainingConfig))
    trainer.load_checkpoint(fold / "checkpoint_final.pth")
    held_out = read_json(fold / "validation" / "summary.json")["mean_per_dataset"]
    train, _ = trainer.do_split()
    trainer.network.eval()
    trainer.set_deep_supervision_enabled(False)
    alone = [scan for scan in train if seen_too and scan.split("__")[0] not in held_out]
    seen = summarize(
        [
            {"scan": scan, "metrics": score_scan(trainer.setup, trainer.network, scan, device=trainer.device)}
            for scan in alone
        ]
    )["mean_per_dataset"]

    header("torch", "nnunetv2")
    print(f"one network of {sum(p.numel() for p in trainer.network.parameters()) / 1e6:.2f} M parameters, "
          f"{len(trainer.setup.space.classes)} classes, patch {plan.patch_size} at {plan.spacing_mm} mm, batch "
          f"{trainer.batch_size}, {trainer.config.steps} steps on {len(train)} scans")  # fmt: skip
    print("\nDice on whole scans, mean over classes (class means over scans); * nobody to hold out: seen in training")
    print(f"{'dataset':34} {'trained':>7} {'scored':>6} {'classes':>7} {'Dice':>6}   best class")
    for dataset in sorted({**held_out, **seen}):
        row = held_out.get(dataset) or seen[dataset]
        scores = {name: c["Dice"] for name, c in row["mean"].items() if c["Dice"] == c["Dice"]}
        best = max(scores, key=lambda name: scores[name], default="")
        trained = sum(scan.split("__")[0] == dataset for scan in train)
        mark = " " if dataset in held_out else "*"
        print(f"{dataset:34} {trained:7} {row['scans']:6} {len(scores):7} {row['foreground_mean']['Dice']:6.3f}{mark}  "
              f"{best} {scores.get(best, float('nan')):.3f}")  # fmt: skip
    mean = sum(row["foreground_mean"]["Dice"] for row in held_out.values()) / len(held_out)
    print(f"mean over the {len(held_out)} datasets with held-out patients: {mean:.3f}")
    print("\n step  train loss  val loss  soft Dice of val patches   s/step: data forward backward   patches/s")
    for line in read_progress(fold / "progress.jsonl"):
        rates = line["rates"]
        print(f"{line['step']:5}  {line['train_losses']:10.4f}  {line['val_losses']:8.4f}  {line['mean_fg_dice']:24.4f}   "
              f"{rates['time/data']:12.3f} {rates['time/forward']:7.3f} {rates['time/backward']:8.3f}   "
              f"{rates['throughput/patches_per_s']:9.2f}")  # fmt: skip
    return 0


def _environment(work: Path, raw: Path | None = None) -> None:
    note = work / "raw_folder.txt"
    if raw is not None:
        work.mkdir(parents=True, exist_ok=True)
        note.write_text(str(raw.resolve()), encoding="utf-8")
    os.environ["nnUNet_raw"] = note.read_text(encoding="utf-8")
    for name in ("preprocessed", "results"):
        folder = work / f"nnUNet_{name}"
        folder.mkdir(parents=True, exist_ok=True)
        os.environ[f"nnUNet_{name}"] = str(folder.resolve())


def main() -> int:
    """Run one of the steps."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    steps = parser.add_subparsers(dest="step", required=True)
    first = steps.add_parser("prepare")
    first.add_argument("raw", type=Path)
    first.add_argument("work", type=Path)
    first.add_argument("-np", "--processes", type=int, default=1)
    second = steps.add_parser("train")
    second.add_argument("work", type=Path)
    second.add_argument("--steps", type=int, default=3000)
    second.add_argument("--minutes", type=float)
    second.add_argument("--device", default="auto")
    third = steps.add_parser("report")
    third.add_argument("work", type=Path)
    third.add_argument("--seen", action="store_true", help="score the datasets without a held-out patient, too")
    given = parser.parse_args()
    if given.step == "report":
        return report(given.work, seen_too=given.seen)
    if given.step == "prepare":
        return prepare(given.raw, given.work, given.processes)
    return train(given.work, given.steps, given.minutes, given.device)


if __name__ == "__main__":
    raise SystemExit(main())
