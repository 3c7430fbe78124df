"""A stage for benchmarks: datasets, and stand-ins for the networks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import satunet.evaluation.benchmark.specialist
from satunet.datasets.raw import load_dataset
from satunet.errors import ModelError
from satunet.evaluation.benchmark import competitors as module
from satunet.evaluation.benchmark import run as module_run
from satunet.evaluation.benchmark.run import Contest
from satunet.geometry import Grid
from satunet.images.image import read_label_map, write_label_map, write_volume
from satunet.jobs.files import mask_file_name, write_json
from satunet.jobs.progress import JobSummary
from satunet.labels import build_label_space

GRID = Grid(shape=(12, 10, 8), affine=np.diag([1.0, 1.0, 2.0, 1.0]))
NAMES = ("Dataset001_A", "Dataset002_B", "Dataset003_C")


def make_dataset(folder: Path, *, test_cases: bool) -> None:
    labels = {"background": 0, "liver": 1, "liver tumour": 2}
    write_json(folder / "dataset.json", {"channel_names": {"0": "CT"}, "labels": labels, "numTraining": 3,
                                         "file_ending": ".nii.gz"})  # fmt: skip
    array = np.zeros(GRID.shape, dtype=np.uint8)
    array[2:9, 2:8, 1:7], array[4:6, 4:6, 3:5] = 1, 2
    for images, references, cases in (("imagesTr", "labelsTr", "abc"), ("imagesTs", "labelsTs", "xyz")):
        for case in cases if test_cases or images == "imagesTr" else "":
            write_volume(folder / images / f"{case}_0000.nii.gz", array.astype(np.float32) * 50, like=GRID)
            write_label_map(folder / references / f"{case}.nii.gz", array, like=GRID)


@pytest.fixture
def stage(nnunet_env: Path, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Two datasets with test cases, one without; a unified network that is right and a specialist that is not."""
    for name in NAMES:
        make_dataset(nnunet_env / "raw" / name, test_cases=name != NAMES[1])
    space = build_label_space([load_dataset(n) for n in NAMES])
    scans = {"train": [], "val": [f"{NAMES[1]}__b__0000"]}
    write_json(nnunet_env / "preprocessed" / "Dataset900_Unified" / "splits_final.json", [scans])
    model = SimpleNamespace(space=space, fold=0, path=nnunet_env / "results", checkpoint="checkpoint_final.pth", network=torch.nn.Linear(3, 2),
                            plan=SimpleNamespace(dataset_name="Dataset900_Unified"))  # fmt: skip
    monkeypatch.setattr(module.ModelFolder, "load", lambda path, fold=None: model)
    monkeypatch.setattr(module, "Predictor", lambda loaded, device: SimpleNamespace(model=loaded))
    calls: list[tuple[str, tuple[str, ...]]] = []

    def references(images: Sequence[Path]) -> list[tuple[str, Any]]:
        found = []
        for path in images:
            case, folder = path.name.split("_0000")[0], path.parent.parent
            labels = "labelsTs" if path.parent.name == "imagesTs" else "labelsTr"
            found.append((case, read_label_map(folder / labels / f"{case}.nii.gz").array))
        return found

    def predict_folder(jobs: Sequence[Any], output: Path, predictor: Any, prompts: Any) -> JobSummary:
        dataset = output.parent.name
        calls.append((dataset, tuple(prompts)))
        assert {job.modality for job in jobs} == {"ct"}
        images = [job.path for job in jobs]
        summary = JobSummary("prediction")
        for case, labels in references(images):
            if case == "z":
                continue  # a scan that fails
            if (output / case / "manifest.json").is_file():
                summary.skipped(case)
                continue
            summary.done(case)
            for name in prompts:
                ids = space.ids_of(dataset if dataset in space.ids else NAMES[0], name)
                write_label_map(output / case / f"{mask_file_name(name)}.nii.gz", np.isin(labels, ids), like=GRID)
            write_json(output / case / "manifest.json", {"seconds": 2.0, "prompts": []})
        if any(p.name.startswith("z") for p in images):
            summary.failures["z"] = "out of memory"
        return summary

    def predict_specialist(
        name: str, cases: Sequence[tuple[str, Sequence[Path]]], output: Path, **_: Any
    ) -> dict[str, str]:
        if name == NAMES[2]:
            raise ModelError("not trained")
        for case, labels in references([images[0] for _, images in cases]):
            if (output / f"{case}.nii.gz").is_file():
                continue
            write_label_map(output / f"{case}.nii.gz", np.roll(labels, 1, axis=0), like=GRID)
        return {}

    monkeypatch.setattr(module, "predict_folder", predict_folder)
    monkeypatch.setattr(satunet.evaluation.benchmark.specialist, "predict_specialist", predict_specialist)
    return SimpleNamespace(root=nnunet_env, calls=calls, model=nnunet_env / "results", space=space)


@pytest.fixture
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out what takes most of the time and is tested elsewhere."""
    monkeypatch.setattr(module_run, "draw_cases", lambda cases: [])
    for chart in ("scatter", "dataset_bars", "class_bars", "bland_altman"):
        monkeypatch.setattr(f"satunet.evaluation.report.charts.{chart}", lambda *args, **options: None)


def contest(stage: SimpleNamespace, **options: Any) -> Contest:
    return Contest(model=stage.model, output=stage.root / "bench", **options)
