"""The benchmark from folders to report, with stand-ins for the networks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import satunet.prediction.specialist
from satunet.datasets import load_dataset
from satunet.errors import ModelError, UserError
from satunet.evaluation import run_benchmark as module
from satunet.files import mask_file_name, read_json, write_json
from satunet.geometry import Grid
from satunet.imageio import read_label_map, write_label_map, write_volume
from satunet.labels import build_label_space
from satunet.progress import JobSummary

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
    model = SimpleNamespace(space=space, fold=0, path=nnunet_env / "results", network=torch.nn.Linear(3, 2),
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

    def predict_folder(images: Sequence[Path], output: Path, predictor: Any, prompts: Any, modality: str) -> JobSummary:
        calls.append((output.name, tuple(prompts)))
        assert modality == "ct"
        for case, labels in references(images):
            if case == "z":
                continue  # a scan that fails
            for name in prompts:
                ids = space.ids_of(output.name, name)
                write_label_map(output / case / f"{mask_file_name(name)}.nii.gz", np.isin(labels, ids), like=GRID)
            write_json(output / case / "manifest.json", {"seconds": 2.0, "prompts": []})
        summary = JobSummary("prediction")
        if any(p.name.startswith("z") for p in images):
            summary.failures["z"] = "out of memory"
        return summary

    def predict_specialist(name: str, cases: Sequence[tuple[str, Sequence[Path]]], output: Path, **_: Any) -> None:
        if name == NAMES[2]:
            raise ModelError("not trained")
        for case, labels in references([images[0] for _, images in cases]):
            write_label_map(output / f"{case}.nii.gz", np.roll(labels, 1, axis=0), like=GRID)

    monkeypatch.setattr(module, "predict_folder", predict_folder)
    monkeypatch.setattr(satunet.prediction.specialist, "predict_specialist", predict_specialist)
    return SimpleNamespace(root=nnunet_env, calls=calls, model=nnunet_env / "results", space=space)


def test_everything_is_scored_and_every_failure_is_told(stage: SimpleNamespace) -> None:
    output = stage.root / "bench"
    tables, summary = module.run_benchmark([*NAMES], stage.model, output)
    assert tables.competitors == ("satunet", "nnU-Net")
    datasets = {g.name: g for g in tables.datasets}
    assert {n: g.cases for n, g in datasets.items()} == {NAMES[0]: 3, NAMES[1]: 1, NAMES[2]: 3}
    assert datasets[NAMES[1]].scores["satunet"]["dsc"] == 1  # the fold's validation case
    assert datasets[NAMES[0]].scores["satunet"]["dsc"] == pytest.approx(2 / 3)  # one scan failed and counts 0
    assert 0.3 < datasets[NAMES[0]].scores["nnU-Net"]["dsc"] < 1
    assert tables.missing == {"nnU-Net": {NAMES[2]: "not trained"}}
    assert summary.exit_code == 1
    expected = {f"nnU-Net/{NAMES[2]}", f"satunet/{NAMES[0]}/z", f"satunet/{NAMES[0]}/z: prediction"}
    assert expected <= set(summary.failures)
    assert len(summary.failures) == 5  # scan z of two datasets, each as a prediction and as a score, and the specialist
    assert [g.name for g in tables.totals] == ["all classes", "anatomy", "lesions"]
    assert tables.costs["satunet"].parameters == 8
    assert tables.costs["satunet"].seconds_per_scan == 2
    for file in ("report.html", "report.md", "classes.csv", "benchmark_summary.json",
                 f"scores/nnU-Net/{NAMES[0]}/per_case.csv"):  # fmt: skip
        assert (output / file).is_file()
    assert "not trained" in (output / "report.html").read_text("utf-8")
    times = read_json(output / "predictions" / "nnU-Net" / NAMES[0] / "times.json")
    assert times["scans"] == 3


def test_other_competitors_bring_their_own_predictions(stage: SimpleNamespace) -> None:
    folder = stage.root / "theirs" / NAMES[0]
    for case in "xyz":
        labels = read_label_map(stage.root / "raw" / NAMES[0] / "labelsTs" / f"{case}.nii.gz").array
        write_label_map(folder / f"{case}.nii.gz", labels, like=GRID)
    tables, _ = module.run_benchmark(
        [NAMES[0]], stage.model, stage.root / "bench", specialists=False, others={"theirs": stage.root / "theirs"}
    )
    assert tables.competitors == ("satunet", "theirs")
    assert tables.datasets[0].scores["theirs"] == {"dsc": 1, "nsd": 1}
    with pytest.raises(UserError, match="names satunet are taken"):
        module.run_benchmark([NAMES[0]], stage.model, stage.root / "bench", others={"satunet": folder})


def test_training_cases_are_scored_only_with_a_note(stage: SimpleNamespace) -> None:
    model = module.ModelFolder.load(stage.model)
    model.fold = "all"  # type: ignore[misc]
    tables, _ = module.run_benchmark([NAMES[1]], stage.model, stage.root / "bench", specialists=False)
    assert "scores are of training cases" in tables.notes[0]
    assert tables.notes[0] in (stage.root / "bench" / "report.html").read_text("utf-8")


def test_classes_are_those_that_the_dataset_lists(stage: SimpleNamespace) -> None:
    dataset = load_dataset(NAMES[0])
    classes = module.known_classes(dataset, stage.space)
    assert sorted(ids for ids in classes.values()) == [(1, 2), (2,)]  # the tumor lies in the liver


def test_nothing_to_score(stage: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    write_json(stage.root / "preprocessed" / "Dataset900_Unified" / "splits_final.json", [])
    with pytest.raises(UserError, match="nothing could be scored"):
        module.run_benchmark([NAMES[1]], stage.model, stage.root / "bench")
