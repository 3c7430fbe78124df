"""What a network has seen is known by content: in copies, under other names, through fine-tuning and export."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from satunet.datasets.raw import load_dataset
from satunet.images.content import voxel_digest
from satunet.images.image import read_image
from satunet.jobs.files import write_json
from satunet.models.trained_scans import TrainedScans
from satunet.models.writing import export_model
from satunet.trainers.unified.pretrained import scans_seen
from satunet.trainers.unified.run import run_training

from .helpers import NAME, config, fold_folder, make_trainer

OPTIONS: dict[str, Any] = {"device": "cpu", "validate": False}


def raw_files(scans: tuple[str, ...]) -> list[Path]:
    files = {
        f"{name}__{case.identifier}__{channel:04d}": path
        for name in ("Dataset901_SyntheticCT", "Dataset902_SyntheticMRI")
        for case in load_dataset(name).training_cases()
        for channel, path in enumerate(case.images)
    }
    return [files[scan] for scan in scans]


def shown(seen: TrainedScans | None, file: Path) -> bool:
    assert seen is not None
    return seen.shows(voxel_digest(read_image(file)))


def test_copies_of_what_was_trained_on_are_known(planned: Path) -> None:
    trainer = run_training(NAME, config=config(steps=2), **OPTIONS)
    seen = TrainedScans.of_model(trainer.model_folder, 0)
    split = trainer.setup.split
    for file in raw_files(split.train):
        image = nib.load(file)
        other = image.as_reoriented(np.array([[2, -1], [0, 1], [1, -1]]))
        nib.save(nib.Nifti1Image(np.asarray(other.dataobj, dtype=np.float64), other.affine), planned / "p.nii")
        sitk.WriteImage(sitk.ReadImage(str(file)), str(planned / "q.mha"))
        changed = np.asarray(image.dataobj, dtype=np.float32).copy()
        changed[0, 0, 0] += 1
        nib.save(nib.Nifti1Image(changed, image.affine), planned / "r.nii.gz")
        assert shown(seen, file) and shown(seen, planned / "p.nii") and shown(seen, planned / "q.mha")
        assert not shown(seen, planned / "r.nii.gz")
    assert split.held_out
    assert not any(shown(seen, file) for file in raw_files(split.held_out))


def test_fine_tuning_and_export_inherit_what_was_seen(planned: Path, caplog: pytest.LogCaptureFixture) -> None:
    base = run_training(NAME, config=config(steps=2), **OPTIONS).setup.split.train
    export_model(fold_folder().parent, planned / "model", fold=0)
    tuned = run_training(NAME, fold=1, config=config(), minutes=1e-9, pretrained_weights=planned / "model", **OPTIONS)
    tuned = run_training(NAME, fold=1, config=config(), continue_training=True, **OPTIONS)
    export_model(tuned.model_folder, planned / "again", fold=1)
    assert set(tuned.setup.split.train) - set(base), "folds of the same scans would tell nothing"
    for path in (tuned.model_folder, planned / "again"):
        seen = TrainedScans.of_model(path, 1)
        for scans in (base, tuned.setup.split.train):
            assert all(shown(seen, file) for file in raw_files(scans))
            assert all(scan in (seen or ()) for scan in scans)
    assert "nothing beside" not in caplog.text


def test_weights_of_which_nothing_is_known_are_said(planned: Path, caplog: pytest.LogCaptureFixture) -> None:
    run_training(NAME, config=config(steps=2), **OPTIONS)
    lonely = planned / "lonely.pth"
    lonely.write_bytes((fold_folder() / "checkpoint_final.pth").read_bytes())
    assert scans_seen(lonely) == TrainedScans()
    assert "says which scans it was trained on" in caplog.text
    caplog.clear()
    # An older version wrote the split alone.
    (fold_folder() / "trained_scans.json").unlink()
    assert all(scan in scans_seen(fold_folder()) for scan in make_and_split())
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING]


def make_and_split() -> tuple[str, ...]:
    trainer = make_trainer(config())
    trainer.initialize()
    return trainer.setup.split.train


def test_a_fold_knows_its_split_as_well(tmp_path: Path) -> None:
    fold = tmp_path / "fold_0"
    fold.mkdir()
    write_json(fold / "split.json", {"train": ["A__b__0000"], "val": []})
    TrainedScans.of(["A__c__0000"], ["0" * 32]).save(fold / "trained_scans.json")
    seen = TrainedScans.of_model(tmp_path, 0)
    assert seen is not None
    assert "A__b__0000" in seen and "A__c__0000" in seen and seen.shows("0" * 32) and not seen.shows("")
