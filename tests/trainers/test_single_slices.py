"""Datasets of one slice a case, as 2D data are written for nnU-Net: planned, trained and predicted like any other."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from satunet.geometry import Grid
from satunet.images.image import read_label_map, write_label_map, write_volume
from satunet.jobs.files import write_json
from satunet.planners.options import PlanOptions
from satunet.prediction.folder import predict_folder
from satunet.prediction.predictor import Predictor
from satunet.preprocessing.pipeline import plan_and_preprocess
from satunet.trainers.unified.batches.loading import StepBatches

from .helpers import config, fold_folder, losses_of, make_trainer

CASES = 3


def slices(folder: Path, axis: int) -> None:
    """A bright rectangle in a slice across an axis, at the same place in every case."""
    rng = np.random.default_rng(axis)
    shape, spacing = [24, 20, 22], [1.5, 1.5, 1.5]
    shape[axis], spacing[axis] = 1, 6.0
    grid = Grid(shape=(shape[0], shape[1], shape[2]), affine=np.diag([*spacing, 1.0]))
    for number in range(CASES):
        labels = np.zeros(shape, np.uint8)
        labels[tuple(slice(0, 1) if n == 1 else slice(5, 14) for n in shape)] = 1
        image = (50 + 200 * labels + rng.normal(0, 5, shape)).astype(np.float32)
        write_volume(folder / "imagesTr" / f"c{number}_0000.nii.gz", image, like=grid)
        write_label_map(folder / "labelsTr" / f"c{number}.nii.gz", labels, like=grid)
    content = {"channel_names": {"0": "MRI"}, "labels": {"background": 0, "liver": 1}, "numTraining": CASES}
    write_json(folder / "dataset.json", content | {"file_ending": ".nii.gz"})


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_single_slices_are_trained_on(nnunet_env: Path, axis: int) -> None:
    raw = nnunet_env / "raw" / "Dataset001_Slices"
    slices(raw, axis)
    options = PlanOptions(batch_size=2, base_features=4, gpu_memory_gb=1)
    assert plan_and_preprocess([raw.name], options).exit_code == 0
    trainer = make_trainer(config(batch_size=2, steps=30, steps_per_epoch=30, augment=True, learning_rate=1e-2))
    losses = losses_of(trainer)
    setup = trainer.setup
    assert setup.plan.crop_size[axis] == 1
    assert np.mean(losses[-5:]) < np.mean(losses[:5]) - 0.1, "it learns"
    batches = StepBatches(setup, setup.store.scan_ids, trainer.config)
    for step in range(30):  # every transform of the recipe has its turn
        batch = batches[step]
        assert batch.failed == ()
        assert tuple(batch.image.shape[2:]) == setup.plan.crop_size
    output = nnunet_env / "out"
    found = predict_folder([raw / "imagesTr"], output, Predictor(fold_folder().parent, device="cpu"), ["liver"])
    assert len(found.done_items) == CASES
    (first, *_) = sorted(output.rglob("liver.nii.gz"))
    truth = read_label_map(raw / "labelsTr" / "c0.nii.gz")
    assert read_label_map(first).grid.shape == truth.grid.shape
