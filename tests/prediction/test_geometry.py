"""Masks return to the right voxels, whatever the scan's grid, file format and content: an analytic network knows them."""

from __future__ import annotations

import itertools
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from satunet.geometry import Grid, reorient
from satunet.images.image import Image
from satunet.prediction import Predictor
from tests.prediction.conftest import make_model

ORIENTATIONS = ["".join(c) for p in itertools.permutations(("RL", "AP", "SI")) for c in itertools.product(*p)]


def found(
    image: object, spacing_mm: tuple[float, float, float], orientation: str = "RAS", patch: int = 16
) -> np.ndarray:
    """The analytic network's mask: where the preprocessed scan exceeds its mean."""
    model = make_model(spacing_mm, (patch, patch, patch), orientation)
    predictor = Predictor(model, device="cpu", precision="float32")
    mask = predictor.predict(image, ["bright"]).masks[0].mask
    assert mask is not None
    return mask


def rotation(angles: tuple[float, float, float]) -> np.ndarray:
    turn = np.eye(3)
    for axis, angle in enumerate(angles):
        i, j = (a for a in range(3) if a != axis)
        one = np.eye(3)
        one[i, i] = one[j, j] = np.cos(angle)
        one[i, j], one[j, i] = -np.sin(angle), np.sin(angle)
        turn = turn @ one
    return turn


@given(
    orientation=st.sampled_from(ORIENTATIONS),
    plan=st.sampled_from(["RAS", "LPS", "PIR"]),
    spacing=st.tuples(*[st.floats(0.3, 10)] * 3),
    angles=st.tuples(*[st.floats(-0.3, 0.3)] * 3),
    shape=st.tuples(*[st.integers(1, 22)] * 3),
    margins=st.tuples(*[st.integers(0, 4)] * 6),
    seed=st.integers(0, 9),
)
@settings(max_examples=40, deadline=None)
def test_any_mask_comes_back_voxel_by_voxel(orientation, plan, spacing, angles, shape, margins, seed) -> None:
    rng = np.random.default_rng(seed)
    truth = rng.random(shape) > 0.6
    array = np.where(truth, 5, 1).astype(np.float32)
    # What surrounds the body is zero and is cut off before the network sees the scan.
    array = np.pad(array, np.reshape(margins, (3, 2)))
    affine = np.eye(4)
    affine[:3, :3] = rotation(angles) * spacing
    affine[:3, 3] = rng.uniform(-200, 200, 3)
    grid = Grid(shape=array.shape, affine=affine)
    turned, there = reorient(array, grid, orientation)
    own = reorient(array, grid, plan)[1].spacing_mm
    mask = found(Image(array=turned, grid=there), own, plan)
    assert mask.shape == there.shape
    if truth.any() and not truth.all():
        assert np.array_equal(mask, turned > 3)


@given(
    orientation=st.sampled_from(ORIENTATIONS),
    spacing=st.tuples(*[st.floats(0.7, 3)] * 3),
    planned=st.tuples(*[st.floats(0.7, 3)] * 3),
    angles=st.tuples(*[st.floats(-0.2, 0.2)] * 3),
)
@settings(max_examples=12, deadline=None, phases=(Phase.explicit, Phase.generate))
def test_a_ball_stays_in_its_place_in_millimetres(orientation, spacing, planned, angles) -> None:
    affine = np.eye(4)
    affine[:3, :3] = rotation(angles) * spacing
    shape = tuple(int(np.ceil(36 / s)) for s in spacing)
    grid = Grid(shape=shape, affine=affine)
    places = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1) @ affine[:3, :3].T
    distance = np.linalg.norm(places - affine[:3, :3] @ np.array([n * 0.45 for n in shape]), axis=-1)
    array = (100 - distance).astype(np.float32)
    turned, there = reorient(array, grid, orientation)
    mask = found(Image(array=turned, grid=there), planned, patch=48)
    # The network's threshold is the mean of the clipped scan as it was read.
    level = np.clip(array, *np.percentile(array, [0.5, 99.5])).mean()
    wrong = mask != (turned > level)
    assert 0.1 < mask.mean() < 0.9
    step = max(*spacing, *planned)
    assert not wrong.any() or np.abs(turned[wrong] - level).max() <= step


TYPES = ["i1", "u1", "<i2", ">i2", "<u2", ">i4", "<u4", "<i8", "<f4", ">f4", "<f8", ">f8"]


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
@pytest.mark.parametrize("kind", TYPES)
def test_every_type_of_voxel(tmp_path: Path, kind: str, ending: str) -> None:
    truth = np.random.default_rng(0).random((11, 9, 7)) > 0.7
    array = np.where(truth, 90, 3).astype(kind)
    header = nib.Nifti1Header(endianness=">" if kind.startswith(">") else "<")
    header.set_data_dtype(array.dtype)
    nib.save(nib.Nifti1Image(array, np.diag([-1.0, 1, 1, 1]), header), tmp_path / f"a{ending}")
    mask = found(tmp_path / f"a{ending}", (1, 1, 1))
    assert np.array_equal(mask, truth)


@pytest.mark.parametrize(("slope", "intercept"), [(2.0, -1024.0), (0.01, 5.0), (-1.0, 0.0)])
def test_a_rescale_slope_is_heeded(tmp_path: Path, slope: float, intercept: float) -> None:
    truth = np.random.default_rng(0).random((11, 9, 7)) > 0.7
    raw = np.where(truth, 90, 3).astype(np.int16)
    nib.save(nib.Nifti1Image(raw, np.eye(4)), tmp_path / "b.nii")
    content = bytearray((tmp_path / "b.nii").read_bytes())
    content[112:120] = np.array([slope, intercept], "<f4").tobytes()  # scl_slope, scl_inter
    (tmp_path / "b.nii").write_bytes(content)
    assert np.array_equal(found(tmp_path / "b.nii", (1, 1, 1)), truth if slope > 0 else ~truth)


@pytest.mark.parametrize(
    ("shape", "spacing"),
    [
        ((60, 50, 1), (0.3, 0.3, 10.0)),  # one slice
        ((3, 4, 2000), (10.0, 10.0, 0.3)),  # two thousand
        ((1, 1, 1), (1.0, 1.0, 1.0)),
        ((2, 70, 3), (5.0, 0.3, 10.0)),
    ],
)
def test_thin_long_and_tiny_scans(tmp_path: Path, shape: tuple[int, int, int], spacing) -> None:
    truth = np.random.default_rng(0).random(shape) > 0.7
    affine = np.eye(4)
    affine[:3, :3] = rotation((0.2, -0.1, 0.3)) * spacing
    nib.save(nib.Nifti1Image(np.where(truth, 9, 1).astype(np.int16), affine), tmp_path / "a.nii.gz")
    assert np.array_equal(found(tmp_path / "a.nii.gz", spacing), truth)
    coarse = found(tmp_path / "a.nii.gz", (1.5, 1.5, 1.5))
    assert coarse.shape == shape
