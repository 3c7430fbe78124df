"""One network on a folder of small real datasets, with patients held out: the whole path, and a table by dataset.

    python benchmarks/train_real_datasets.py prepare RAW WORK     # splits by patient, plan, store
    python benchmarks/train_real_datasets.py train WORK           # goes on where it stopped
    python benchmarks/train_real_datasets.py report WORK          # table, curve, throughput

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

UNIFIED = "Dataset900_Unified"
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
    from satunet.datasets import load_dataset
    from satunet.files import write_json
    from satunet.paths import all_dataset_names
    from satunet.preprocessing.pipeline import plan_and_preprocess
    from satunet.progress import setup_logging

    _environment(work, raw)
    setup_logging(work / "prepare.log")
    names = all_dataset_names()
    cases = {name: [case.identifier for case in load_dataset(name).training_cases()] for name in names}
    for dataset, split in split_by_patient(cases).items():
        write_json(work / "nnUNet_preprocessed" / dataset / "splits_final.json", [split])
    summary = plan_and_preprocess(
        names,
        spacing_mm=SPACING_MM,
        patch_size=PATCH,
        batch_size=2,
        base_features=16,
        gpu_memory_gb=2.0,
        processes=processes,
    )
    summary.show()
    return summary.exit_code


def train(work: Path, steps: int, minutes: float | None, device: str) -> int:
    """Train and validate, or go on with it."""
    from satunet.progress import setup_logging
    from satunet.trainers.config import TrainingConfig
    from satunet.trainers.run import run_training

    _environment(work)
    setup_logging(work / "train.log")
    config = TrainingConfig.from_recipe("short", steps=steps, queries_per_scan=64, validation_steps=8)
    run_training(UNIFIED, fold=0, config=config, device=device, continue_training=True, minutes=minutes)
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
    second.add_argument("--steps", type=int, default=1000)
    second.add_argument("--minutes", type=float)
    second.add_argument("--device", default="auto")
    given = parser.parse_args()
    if given.step == "prepare":
        return prepare(given.raw, given.work, given.processes)
    return train(given.work, given.steps, given.minutes, given.device)


if __name__ == "__main__":
    raise SystemExit(main())
