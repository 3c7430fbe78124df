from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from satunet.errors import GridMismatchError
from satunet.geometry import Grid, reorient
from satunet.images.image import Image
from satunet.jobs.records import from_plain, to_plain
from satunet.network.config import NetworkConfig
from satunet.plan import Normalization, UnifiedPlan
from satunet.preprocessing.transform import (
    ScanGeometry,
    nonzero_box,
    normalize,
    preprocess_image,
    preprocess_labels,
    restore,
    to_hounsfield,
)

ORIENTATIONS = [
    "".join(letters) for axes in itertools.permutations(("RL", "AP", "SI")) for letters in itertools.product(*axes)
]


def plan(spacing: tuple[float, float, float] = (2.0, 2.0, 2.0)) -> UnifiedPlan:
    network = NetworkConfig.auto(
        features_per_stage=(8, 16), strides=((1, 1, 1), (2, 2, 2)), kernel_sizes=((3, 3, 3),) * 2, text_dim=24
    )
    return UnifiedPlan(spacing_mm=spacing, patch_size=(16, 16, 16), network=network)


def centred_grid(shape: tuple[int, int, int], spacing: tuple[float, float, float], rotation: Rotation) -> Grid:
    affine = np.eye(4)
    affine[:3, :3] = rotation.as_matrix() * spacing
    affine[:3, 3] = -affine[:3, :3] @ (np.array(shape) - 1) / 2
    return Grid(shape=shape, affine=affine)


def world(grid: Grid) -> np.ndarray:
    """(3, X, Y, Z) millimetres of every voxel centre."""
    index = np.stack(np.meshgrid(*[np.arange(n) for n in grid.shape], indexing="ij"))
    return np.einsum("ij,jxyz->ixyz", grid.affine[:3, :3], index) + grid.affine[:3, 3][:, None, None, None]


def ball(grid: Grid, centre_mm: tuple[float, float, float], radius_mm: float) -> np.ndarray:
    """Share of each voxel near the surface of a ball, 1 inside, 0 outside: no staircase."""
    distance = np.linalg.norm(world(grid) - np.array(centre_mm)[:, None, None, None], axis=0)
    return np.clip((radius_mm - distance) / max(grid.spacing_mm) + 0.5, 0, 1)


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_landmarks_stay_in_place_in_every_orientation(orientation: str) -> None:
    grid = centred_grid((40, 36, 30), (1.5, 1.8, 2.2), Rotation.from_euler("xyz", [4, -3, 5], degrees=True))
    places = ((14.0, -9.0, 6.0), (-17.0, 11.0, -8.0))
    volume = sum(value * ball(grid, place, 7.0) for value, place in zip((200, 400), places, strict=True)) + 10.0
    ids = (ball(grid, places[0], 7.0) > 0.5) + 2 * (ball(grid, places[1], 7.0) > 0.5)
    turned, turned_grid = reorient(np.stack([volume, ids]), grid, orientation)
    image = Image(array=turned[0], grid=turned_grid)
    prepared = preprocess_image(image, modality="mri", plan=plan())
    assert prepared.geometry.grid.orientation == "RAS"
    labels = preprocess_labels(Image(array=turned[1].astype(np.uint8), grid=turned_grid), prepared.geometry)
    assert labels.shape == prepared.array.shape
    there = world(prepared.geometry.grid)
    for label, place in enumerate(places, start=1):
        mask = labels[0] == label
        np.testing.assert_allclose(there[:, mask].mean(axis=1), place, atol=0.4)  # a fifth of a voxel
        brightest = prepared.array[0] * mask
        weights = np.clip(brightest - brightest[mask].min(), 0, None) * mask
        centroid = (there * weights).sum(axis=(1, 2, 3)) / weights.sum()
        np.testing.assert_allclose(centroid, place, atol=0.4)
    back = restore((labels[0] == 1).astype(np.float32), prepared.geometry)
    assert back.shape == turned_grid.shape
    there = world(turned_grid)
    np.testing.assert_allclose((there * back).sum(axis=(1, 2, 3)) / back.sum(), places[0], atol=0.4)


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (0.8, 0.8, 2.5), (1.7, 1.3, 1.1)])
@pytest.mark.parametrize("target", [(1.0, 1.0, 3.0), (1.5, 1.5, 1.5), (0.9, 1.1, 1.0)])
def test_volumes_survive_the_way_there_and_back_within_one_percent(
    spacing: tuple[float, float, float], target: tuple[float, float, float]
) -> None:
    shape = tuple(round(56 / s) for s in spacing)
    grid = centred_grid(shape, spacing, Rotation.from_euler("z", 20, degrees=True))  # type: ignore[arg-type]
    radius = 18.0
    there, back = [], []
    for x, y, z in np.random.default_rng(0).uniform(-3, 3, size=(6, 3)):  # one ball alone errs by its place
        image = Image(array=ball(grid, (x, y, z), radius) + 1, grid=grid)
        labels = Image(array=(image.array > 1.5).astype(np.uint8), grid=grid)
        geometry = preprocess_image(image, modality="other", plan=plan(target)).geometry
        there.append(preprocess_labels(labels, geometry).sum() * geometry.grid.voxel_ml)
        probability = ball(geometry.grid, (x, y, z), radius).astype(np.float32)
        restored = restore(probability, geometry) > 0.5
        back.append(restored.sum() * grid.voxel_ml)
    expected = 4 / 3 * np.pi * radius**3 / 1000
    # Where slices are thick, on either side, nnU-Net's rule takes whole slices: the ball's are a few too many or few.
    thick = max(*spacing, *target) > 2
    assert np.mean(there) == pytest.approx(expected, rel=0.03 if thick else 0.01)
    assert np.mean(back) == pytest.approx(expected, rel=0.01)


def test_probabilities_come_back_exactly_where_nothing_is_resampled() -> None:
    rng = np.random.default_rng(0)
    array = np.zeros((9, 8, 7), np.float32)
    array[2:7, 1:6, 3:6] = rng.normal(size=(5, 5, 3)) + 9
    for orientation in ORIENTATIONS:
        grid = Grid(shape=(9, 8, 7), affine=np.diag([2.0, 2.0, 2.0, 1.0]))
        turned, turned_grid = reorient(array, grid, orientation)
        prepared = preprocess_image(Image(array=turned, grid=turned_grid), modality="mri", plan=plan())
        assert prepared.geometry.cropped_shape == prepared.geometry.shape
        inside = np.where(turned != 0, turned, 0)
        cut = reorient(inside, turned_grid, "RAS")[0][prepared.geometry.crop]
        np.testing.assert_array_equal(restore(cut, prepared.geometry), turned)


@given(
    st.tuples(*[st.integers(1, 12)] * 3),
    st.tuples(*[st.floats(0.3, 9.0)] * 3),
    st.tuples(*[st.floats(-180, 180)] * 3),
    st.sampled_from(ORIENTATIONS),
)
@settings(deadline=None, max_examples=60)
def test_any_grid_goes_there_and_back(shape, spacing, angles, orientation) -> None:  # type: ignore[no-untyped-def]
    """One voxel, one slice, smaller than a target voxel, oblique to 45 degrees: all have a way and a way back."""
    grid = centred_grid(shape, spacing, Rotation.from_euler("xyz", angles, degrees=True))
    array = np.random.default_rng(0).normal(size=shape)
    labels = Image(array=np.ones(shape, np.uint8), grid=grid)
    prepared = preprocess_image(
        Image(array=array, grid=grid), modality="ct", plan=plan((1.0, 1.0, 3.0)), orientation=orientation
    )
    assert prepared.array.shape == (1, *prepared.geometry.shape)
    assert prepared.array.dtype == np.float32
    assert np.isfinite(prepared.array).all()
    assert (preprocess_labels(labels, prepared.geometry) == 1).all()
    again = from_plain(json.loads(json.dumps(to_plain(prepared.geometry))), ScanGeometry, source="scan")
    ones = restore(np.ones(again.shape, np.float32), again)
    assert ones.shape == shape
    np.testing.assert_allclose(ones, array != 0, atol=1e-6)
    # the extent in space is that of the crop
    corners = [prepared.geometry.grid, prepared.geometry.turned]
    middle = [g.affine[:3, :3] @ ((np.array(g.shape) - 1) / 2) + g.affine[:3, 3] for g in corners]
    if prepared.geometry.cropped_shape == prepared.geometry.turned.shape:
        np.testing.assert_allclose(middle[0], middle[1], atol=1e-6 * max(spacing) * max(shape))


def test_an_all_zero_scan_keeps_its_extent() -> None:
    grid = Grid(shape=(6, 5, 4), affine=np.diag([2.0, 2.0, 2.0, 1.0]))
    prepared = preprocess_image(Image(array=np.zeros(grid.shape), grid=grid), modality="mri", plan=plan())
    assert prepared.geometry.shape == grid.shape
    assert (prepared.array == 0).all()


def test_the_crop_is_the_box_of_nonzero_voxels() -> None:
    volume = np.zeros((9, 9, 9))
    volume[2, 3:6, 8] = -1
    assert nonzero_box(volume) == (slice(2, 3), slice(3, 6), slice(8, 9))


def test_a_label_map_on_another_grid_is_refused() -> None:
    grid = Grid(shape=(6, 5, 4), affine=np.eye(4))
    geometry = preprocess_image(Image(array=np.ones(grid.shape), grid=grid), modality="mri", plan=plan()).geometry
    shifted = Grid(shape=grid.shape, affine=np.eye(4) + np.eye(4, k=3) * 0.5)
    with pytest.raises(GridMismatchError):
        preprocess_labels(Image(array=np.ones(grid.shape, np.uint8), grid=shifted), geometry)


def test_normalisation_follows_sat() -> None:
    rng = np.random.default_rng(0)
    volume = rng.normal(40, 700, size=(20, 20, 20))
    ct = normalize(volume, Normalization(clip=(-500, 1000)))
    clipped = np.clip(volume, -500, 1000)
    np.testing.assert_allclose(ct, (clipped - clipped.mean()) / clipped.std(), atol=1e-4)
    mri = normalize(volume, Normalization(percentiles=(0.5, 99.5)))
    clipped = np.clip(volume, *np.percentile(volume, (0.5, 99.5)))
    np.testing.assert_allclose(mri, (clipped - clipped.mean()) / clipped.std(), atol=1e-4)
    assert mri.mean(dtype=np.float64) == pytest.approx(0, abs=1e-4)
    assert mri.std(dtype=np.float64) == pytest.approx(1, abs=1e-4)


def test_large_intensities_keep_their_contrast() -> None:
    """Hippocampus scans reach 1.7 million; a sum of squares in float32 would lose them."""
    volume = 1.7e6 + np.random.default_rng(0).normal(0, 1000, size=(30, 30, 30))
    result = normalize(volume, Normalization())
    assert result.std(dtype=np.float64) == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize(("offset", "taken_off"), [(0, 0), (1024, 1024)])
def test_ct_without_its_intercept_is_recognised(offset: int, taken_off: int) -> None:
    rng = np.random.default_rng(0)
    volume = np.full((30, 30, 30), -1000, np.int16)  # air around
    volume[5:25, 5:25, 5:25] = rng.normal(40, 30, size=(20, 20, 20))
    volume[8:12, 8:12, 8:12] = 900  # bone
    stored = (volume + offset).astype(np.int16)
    np.testing.assert_array_equal(to_hounsfield(stored), stored - taken_off)


def test_ct_of_soft_tissue_alone_is_left_as_it_is() -> None:
    organ = np.random.default_rng(0).normal(60, 10, size=(20, 20, 20)).clip(0)
    np.testing.assert_array_equal(to_hounsfield(organ), organ)
