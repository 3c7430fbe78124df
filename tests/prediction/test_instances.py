"""Structures that come in numbers: balls and a column of touching blocks, numbered from cranial to caudal."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from satunet.datasets.raw import Dataset
from satunet.errors import UserError
from satunet.geometry import Grid
from satunet.jobs.files import read_json
from satunet.labels import build_label_space
from satunet.prediction import Outputs, Predictor
from satunet.prediction.folder import predict_folder
from satunet.prediction.masks.boxed import BoxedMask
from satunet.prediction.results.instances import comes_in_numbers, count_instances
from tests.prediction.conftest import model_of

UPSIDE_DOWN = Grid(shape=(40, 40, 60), affine=np.diag([1.0, 2.0, -1.5, 1.0]))  # k grows downwards


def boxed(array: np.ndarray) -> BoxedMask:
    return BoxedMask.of(array, (0, 0, 0), array.shape)


def balls(*centres: tuple[int, int, int], radius: float = 5.0) -> np.ndarray:
    index = np.indices(UPSIDE_DOWN.shape)
    scale = np.array([1.0, 2.0, 1.5]).reshape(3, 1, 1, 1)
    inside = [((((index - np.reshape(c, (3, 1, 1, 1))) * scale) ** 2).sum(0) < radius**2) for c in centres]
    return np.any(inside, axis=0)


def test_lesions_are_pieces_from_cranial_to_caudal() -> None:
    mask = balls((10, 10, 50), (30, 10, 30), (10, 30, 9))
    found = count_instances(boxed(mask), UPSIDE_DOWN, "liver tumor")
    assert [one.number for one in found.found] == [1, 2, 3]
    assert [round(one.centre_mm[2]) for one in found.found] == [-14, -45, -75]
    assert found.labels[10, 30, 9] == 1
    assert found.labels[10, 10, 50] == 3
    assert sum(one.voxels for one in found.found) == mask.sum()
    one = found.found[0]
    assert one.volume_ml == pytest.approx(one.voxels * 0.003)
    assert np.array_equal(found.labels > 0, mask)


def test_touching_vertebrae_are_parted_and_their_processes_are_not() -> None:
    mask = np.zeros(UPSIDE_DOWN.shape, bool)
    for top in (2, 16, 30, 44):
        mask[10:26, 8:18, top : top + 12] = True  # bodies, 18 mm high
        mask[16:20, 18:26, top + 4 : top + 8] = True  # processes
    mask[17:19, 10:14, :56] = True  # thin bridges
    found = count_instances(boxed(mask), UPSIDE_DOWN, "vertebrae")
    assert len(found.found) == 4
    assert [round(one.centre_mm[2] / 21) for one in found.found] == sorted(
        (round(one.centre_mm[2] / 21) for one in found.found), reverse=True
    )
    assert found.labels[12, 10, 6] == 1
    assert found.labels[17, 24, 8] == 1  # the process of the first
    assert len(count_instances(boxed(mask), UPSIDE_DOWN, "liver tumor").found) == 1


def test_probabilities_part_what_the_mask_alone_does_not() -> None:
    mask = np.zeros((20, 20, 40), bool)
    mask[5:15, 5:15, 2:38] = True
    grid = Grid(shape=mask.shape, affine=np.eye(4))
    sure = np.where(mask, 1.0, 0.0).astype(np.float32)
    assert len(count_instances(boxed(mask), grid, "vertebrae", (sure, (0, 0, 0))).found) == 1
    sure[:, :, 18:22] *= 0.55
    assert len(count_instances(boxed(mask), grid, "vertebrae", (sure, (0, 0, 0))).found) == 2


def test_what_comes_in_numbers() -> None:
    labels = {"liver": (1,), "liver tumor": (2,), "vertebrae": (3,), "vertebrae_L1": (4,), "rib_left_3": (5,)}
    space = build_label_space(
        [Dataset(id=1, name="Dataset001_A", folder=Path(), channel_names=("0",), modalities=("ct",), labels=labels)]
    )
    assert {n for n in space.class_names if comes_in_numbers(n, space)} == {"liver tumor", "vertebrae"}
    assert comes_in_numbers("ribs", space)
    assert not comes_in_numbers(None, space)
    empty = count_instances(BoxedMask.empty((4, 4, 4)), Grid(shape=(4, 4, 4), affine=np.eye(4)), "ribs")
    assert empty.found == ()


def test_a_label_map_and_the_manifest(tmp_path: Path) -> None:
    volume = np.ones((20, 20, 20), np.float32)
    volume[3:7, 3:7, 3:7] = volume[12:15, 12:15, 12:15] = 100
    nib.save(nib.Nifti1Image(volume, np.eye(4)), tmp_path / "a.nii.gz")
    predictor = Predictor(
        model_of(({"liver": (1,), "liver tumor": (2,)}, "mri")), device="cpu", outputs=Outputs(instances=True)
    )
    predict_folder([tmp_path / "a.nii.gz"], tmp_path / "out", predictor, ["liver", "liver tumor"])
    liver, tumor = read_json(tmp_path / "out" / "a" / "manifest.json")["prompts"]
    assert "instances" not in liver
    assert [(one["number"], one["voxels"], one["centre_mm"]) for one in tumor["instances"]] == [
        (1, 27, [13.0, 13.0, 13.0]), (2, 64, [4.5, 4.5, 4.5]),
    ]  # fmt: skip
    found = np.asarray(nib.load(tmp_path / "out" / "a" / "liver_tumor_instances.nii.gz").dataobj)
    assert (found[13, 13, 13], found[4, 4, 4], int((found > 0).sum())) == (1, 2, 91)
    with pytest.raises(UserError, match="instances can be written with one mask per prompt"):
        Outputs(combine=True, instances=True)
