"""Measures against bodies whose values are known, the IBSI's digital phantom, and SimpleITK's label statistics."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from satunet.geometry import Grid
from satunet.images.hounsfield import hounsfield_offset
from satunet.jobs.files import read_json
from satunet.prediction import Outputs, Predictor
from satunet.prediction.folder import predict_folder
from satunet.prediction.masks.boxed import BoxedMask
from satunet.prediction.results.measures import measure
from tests.prediction.conftest import make_model

GRID = Grid(shape=(60, 80, 40), affine=np.array([[0, -1.0, 0, 7], [0.8, 0, 0, 0], [0, 0, 2.0, 0], [0, 0, 0, 1]]))


def ellipsoid(axes_mm: tuple[float, float, float]) -> np.ndarray:
    """Along i, j and k, in the middle of the grid."""
    index = np.indices(GRID.shape).reshape(3, -1).T - (np.array(GRID.shape) - 1) / 2
    inside = ((index * np.array(GRID.spacing_mm) / (np.array(axes_mm) / 2)) ** 2).sum(1) <= 1
    return inside.reshape(GRID.shape)


def boxed(mask: np.ndarray) -> BoxedMask:
    return BoxedMask.of(mask, (0, 0, 0), mask.shape)


def test_an_ellipsoid() -> None:
    found = measure(boxed(ellipsoid((30, 60, 50))), GRID, np.ones(GRID.shape, np.float32))
    assert found is not None
    assert found.volume_ml == pytest.approx(math.pi / 6 * 30 * 60 * 50 / 1000, rel=0.01)
    axes = np.array([found.major_axis_mm, found.minor_axis_mm, found.least_axis_mm])
    assert axes * math.sqrt(5) / 2 == pytest.approx((60, 50, 30), rel=0.01)
    p = 1.6075  # Knud Thomsen's formula, right within 1.1 %
    a, b, c = 15, 30, 25
    surface = 4 * math.pi * (((a * b) ** p + (a * c) ** p + (b * c) ** p) / 3) ** (1 / p) / 100
    assert found.surface_cm2 == pytest.approx(surface, rel=0.12)  # a surface of steps is larger
    assert found.surface_cm2 > 0.98 * surface
    assert found.air is None


def test_the_digital_phantom_has_its_published_values() -> None:
    """Image Biomarker Standardisation Initiative, reference manual (arXiv 1612.07003), 5.1 and chapter 3."""
    planes = (
        "14411 14611 41641 44641",
        "14411 11611 x1311 44611",
        "144xx 11111 11x11 11611",
        "144xx 11111 11111 11611",
    )
    rows = [[list(row) for row in plane.split()] for plane in planes]
    values = np.array(rows).transpose(2, 1, 0)  # x, y, z
    mask = values != "x"
    found = measure(
        boxed(mask),
        Grid(shape=mask.shape, affine=np.diag([2.0, 2.0, 2.0, 1.0])),
        np.where(mask, values, "0").astype(np.int16),
    )
    assert found is not None
    assert found.volume_ml == pytest.approx(0.592)
    assert found.surface_cm2 == pytest.approx(3.88, abs=0.005)
    axes = (found.major_axis_mm, found.minor_axis_mm, found.least_axis_mm)
    assert axes == pytest.approx((11.4, 9.31, 8.54), abs=0.05)
    assert (found.mean, found.deviation**2) == pytest.approx((2.15, 3.05), abs=0.005)


def test_simple_itk_says_the_same() -> None:
    rng = np.random.default_rng(0)
    mask = ellipsoid((30, 60, 50)) & (rng.uniform(size=GRID.shape) < 0.9)
    image = rng.normal(100, 20, GRID.shape).astype(np.float32)
    found = measure(boxed(mask), GRID, image)
    assert found is not None
    labels, voxels = (sitk.GetImageFromArray(a.transpose(2, 1, 0)) for a in (mask.astype(np.uint8), image))
    for one in (labels, voxels):
        one.SetSpacing(GRID.spacing_mm)
    shape, statistics = sitk.LabelShapeStatisticsImageFilter(), sitk.LabelStatisticsImageFilter()
    shape.Execute(labels)
    statistics.Execute(voxels, labels)
    assert found.volume_ml == pytest.approx(shape.GetPhysicalSize(1) / 1000)
    moments = sorted(shape.GetPrincipalMoments(1))
    axes = (found.least_axis_mm, found.minor_axis_mm, found.major_axis_mm)
    n = int(mask.sum())
    assert [(a / 4) ** 2 * (n - 1) / n for a in axes] == pytest.approx(moments)
    assert found.mean == pytest.approx(statistics.GetMean(1), rel=1e-5)
    assert found.deviation == pytest.approx(statistics.GetSigma(1) * math.sqrt((n - 1) / n), rel=1e-5)


@pytest.mark.parametrize("offset", [0, 1024])
def test_hu_classes(offset: int) -> None:
    image = np.full(GRID.shape, -1000.0)
    image[10:50, 10:70, 5:35] = 40
    box = (slice(20, 24), slice(20, 30), slice(10, 20))
    image[box] = np.repeat([-800.0, -100.0, 60.0, 700.0], 100).reshape(4, 10, 10)
    mask = np.zeros(GRID.shape, bool)
    mask[box] = True
    voxels = (image + offset).clip(0 if offset else -1024).astype(np.int16)
    found = measure(boxed(mask), GRID, voxels, hu_offset=hounsfield_offset(voxels))
    assert found is not None
    assert (found.air, found.fat, found.soft, found.dense) == (0.25,) * 4
    assert found.mean == pytest.approx(np.mean([-800, -100, 60, 700]))


def test_nothing_and_a_single_voxel() -> None:
    assert measure(BoxedMask.empty(GRID.shape), GRID, np.ones(GRID.shape)) is None
    one = np.zeros(GRID.shape, bool)
    one[3, 3, 3] = True
    found = measure(boxed(one), GRID, np.ones(GRID.shape))
    assert found is not None
    assert (found.major_axis_mm, found.deviation) == (0, 0)


def test_a_row_for_each_mask(tmp_path: Path) -> None:
    volume = np.ones((20, 20, 20), np.float32)
    volume[5:12, 5:12, 5:12] = 100
    nib.save(nib.Nifti1Image(volume, np.eye(4)), tmp_path / "a.nii.gz")
    predictor = Predictor(make_model(), device="cpu", outputs=Outputs(measures=True))
    predict_folder([tmp_path / "a.nii.gz"], tmp_path / "out", predictor, ["left bright", "coffee cup"])
    with (tmp_path / "out" / "a" / "measures.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert (row["prompt"], row["class"], float(row["volume_ml"])) == ("left bright", "left bright", 0.343)
    assert (float(row["mean"]), row["air"]) == (100, "")
    assert "measures.csv" in read_json(tmp_path / "out" / "a" / "manifest.json")["files"]
    combined = predictor.changed(outputs=Outputs(measures=True, combine=True))
    predict_folder([tmp_path / "a.nii.gz"], tmp_path / "both", combined, ["left bright"])
    assert (tmp_path / "both" / "a_measures.csv").is_file()
