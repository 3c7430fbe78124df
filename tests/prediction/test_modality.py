"""Which modality a scan is: from names with care, from intensities by what CT is like."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import nibabel as nib
import numpy as np
import pytest

from satunet.datasets.raw import MODALITIES
from satunet.geometry import Grid
from satunet.images.image import Image, read_image
from satunet.prediction.door.modality import looks_like_ct, modality_in_name, modality_of
from satunet.prediction.options import Modality


def test_the_modalities_to_choose_from_are_those_there_are() -> None:
    assert get_args(Modality) == MODALITIES


@pytest.mark.parametrize(
    ("name", "modality"),
    [
        ("PD_0012", None), ("HU_0012", None), ("brain_echo_2", None), ("case_t1", None), ("visit-T2-b", None),
        ("us_patient_3", None), ("scan", None), ("director", None), ("petra_01", None), ("ct_and_mri", None),
        ("patient_CT", "ct"), ("CT_0012", "ct"), ("ct_0000", "ct"), ("sub-01_ses-1_T1w", "mri"), ("sub-01_FLAIR", "mri"),
        ("a-mr-b", "mri"), ("liver.dwi", "mri"), ("FDG-PET 3", "pet"), ("neck_ultrasound", "us"),
    ],
)  # fmt: skip
def test_a_name_says_a_modality_or_nothing(name: str, modality: str | None) -> None:
    assert modality_in_name(Path(f"/data/ct/mr/{name}.nii.gz")) == modality


def body(shape: tuple[int, int, int] = (40, 40, 20)) -> np.ndarray:
    """Hounsfield units by hand: air, lung, fat, soft tissue, bone."""
    rng = np.random.default_rng(0)
    values = rng.normal(0, 10, shape) - 1000
    values[5:35, 5:35] = rng.normal(-80, 15, (30, 30, shape[2]))
    values[8:32, 8:32] = rng.normal(45, 20, (24, 24, shape[2]))
    values[10:18, 10:18] = rng.normal(-800, 60, (8, 8, shape[2]))
    values[25:29, 20:24] = rng.normal(600, 150, (4, 4, shape[2]))
    return values.clip(-1024, 3071)


@pytest.mark.parametrize("offset", [0, 1000, 1024])
def test_ct_is_ct_with_an_offset_too(offset: int) -> None:
    stored = (body() + offset).clip(None if offset == 0 else 0, None).astype(np.int16)
    assert looks_like_ct(stored)
    image = Image(array=stored, grid=Grid(shape=stored.shape, affine=np.eye(4)))
    assert modality_of(image, ("ct", "mri")) == ("ct", "intensities")
    assert modality_of(image, ("mri",)) == ("mri", "the model knows no other")


def test_tissues_over_a_wide_range_are_no_ct() -> None:
    rng = np.random.default_rng(0)
    for top in (300, 1500, 4095, 60_000):
        tissues = (rng.random((30, 30, 30)) ** 2 * top).astype(np.uint16)
        assert not looks_like_ct(tissues)
        image = Image(array=tissues, grid=Grid(shape=tissues.shape, affine=np.eye(4)))
        assert modality_of(image, ("ct", "mri", "pet")) == ("mri", "intensities")
        assert modality_of(image, ("pet", "ct")) == ("pet", "intensities")
    assert not looks_like_ct(np.zeros((3, 3, 3), np.int16))
    assert not looks_like_ct(np.full((3, 3, 3), -200.0, np.float32))


def test_real_scans_are_what_they_are(real_raw: Path) -> None:
    wrong = []
    for folder in sorted(real_raw.glob("Dataset*")):
        file = sorted(folder.glob("images*/*.nii.gz"))[0]
        array = read_image(file).array
        if looks_like_ct(array) != folder.name.endswith("_CT"):
            wrong.append(folder.name)
        if folder.name.endswith("_CT") and array.min() < 0 and not looks_like_ct((array + 1024).clip(0)):
            wrong.append(f"{folder.name} with an offset")
    assert wrong == []


def test_the_name_decides_before_intensities(tmp_path: Path) -> None:
    file = tmp_path / "a_T1w.nii.gz"
    nib.save(nib.Nifti1Image(body().astype(np.int16), np.eye(4)), file)
    assert modality_of(read_image(file), ("ct", "mri")) == ("mri", "file name")
    assert modality_of(read_image(file), ("ct", "pet")) == ("ct", "intensities")
