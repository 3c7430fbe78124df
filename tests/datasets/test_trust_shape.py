"""Headers that are wrong and shapes that are right: refused with a hint, or trusted wherever data are read."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from satunet.cli import run
from satunet.datasets.raw import TRUST_FILE, load_dataset
from satunet.preprocessing.store.scans import ScanStore

AFFINE = np.diag([1.5, 1.5, 2.0, 1.0])


def make(root: Path, cases: int = 5) -> None:
    """A dataset whose label maps, but for the first, say that they lie 7 mm beside their scans."""
    folder = root / "raw" / "Dataset001_A"
    for part in ("imagesTr", "labelsTr"):
        (folder / part).mkdir(parents=True)
    moved = AFFINE.copy()
    moved[0, 3] = 7
    labels = np.zeros((20, 18, 16), np.uint8)
    labels[5:12, 4:10, 3:9] = 1
    for number in range(cases):
        image = np.random.default_rng(number).normal(50, 40, labels.shape).astype(np.float32)
        nib.save(nib.Nifti1Image(image, AFFINE), folder / "imagesTr" / f"c{number}_0000.nii.gz")
        nib.save(nib.Nifti1Image(labels, moved if number else AFFINE), folder / "labelsTr" / f"c{number}.nii.gz")
    content = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "liver": 1}, "numTraining": cases,
               "file_ending": ".nii.gz"}  # fmt: skip
    (folder / "dataset.json").write_text(json.dumps(content))


def test_shapes_are_trusted_where_that_is_said(nnunet_env: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make(nnunet_env)
    assert run(["plan_and_preprocess", "-d", "1", "-np", "0"]) == 1
    assert "--trust_shape treats files of the same shape as being on the same grid" in capsys.readouterr().err
    assert run(["fingerprint", "-d", "1", "-np", "0", "--verify_dataset_integrity"]) == 1
    assert run(["plan_and_preprocess", "-d", "1", "-np", "0", "--trust_shape", "--verify_dataset_integrity"]) == 0
    assert load_dataset("Dataset001_A").trust_shape
    store = next((nnunet_env / "preprocessed").glob("Dataset900*/satunetPlans_3d_fullres"))
    voxels = {scan: ScanStore(store).record(scan).label_voxels[1] for scan in ScanStore(store).scan_ids}
    assert len(voxels) == 5 and len(set(voxels.values())) == 1  # the same place in every scan
    # It is kept for later commands, and taken back by removing the file.
    assert run(["fingerprint", "-d", "1", "-np", "0"]) == 0
    (nnunet_env / "preprocessed" / "Dataset001_A" / TRUST_FILE).unlink()
    assert run(["fingerprint", "-d", "1", "-np", "0"]) == 1
