"""A mask restored inside its box is the one restored from the whole volume."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from satunet.geometry import Grid, reorient
from satunet.images.image import Image
from satunet.plan import UnifiedPlan
from satunet.prediction.masks.boxed import BoxedMask, restore_box
from satunet.preprocessing.transform import preprocess_image, restore

from .conftest import NETWORK

sizes = st.tuples(*[st.integers(5, 16)] * 3)
spacings = st.tuples(*[st.sampled_from([0.7, 1.0, 1.9])] * 3)
orientations = st.sampled_from(["RAS", "LPS", "PIR", "SAL", "IPR"])


@settings(max_examples=60, deadline=None)
@given(sizes, spacings, orientations, st.integers(0, 2**31))
def test_restoring_a_box_is_restoring_the_volume(shape, spacing, orientation: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    grid = Grid(shape=shape, affine=np.diag([*spacing, 1.0]))
    array, grid = reorient(rng.normal(size=shape).astype(np.float32) + 5, grid, orientation)
    plan = UnifiedPlan(spacing_mm=(1.0, 1.2, 0.9), patch_size=(16, 16, 16), network=NETWORK, datasets=("a",))
    geometry = preprocess_image(Image(array=array, grid=grid), modality="mri", plan=plan).geometry
    smooth = ndimage.gaussian_filter(rng.normal(size=geometry.shape), 1.5)
    probability = (1 / (1 + np.exp(-(smooth - np.quantile(smooth, 0.9)) * 20))).astype(np.float32)

    above = np.argwhere(probability > 0.5)
    low, high = np.maximum(above.min(0) - 1, 0), np.minimum(above.max(0) + 2, geometry.shape)
    x, y, z = (slice(int(a), int(b)) for a, b in zip(low, high, strict=True))
    mask = restore_box(probability[x, y, z], (x, y, z), geometry)

    whole = restore(probability, geometry)
    decided = abs(whole - 0.5) > 1e-5  # two ways to interpolate round differently in the last bits
    assert mask.full.shape == whole.shape
    assert np.array_equal(mask.full[decided], (whole > 0.5)[decided])


@given(st.integers(0, 2**31))
def test_boxed_masks_are_what_was_put_in(seed: int) -> None:
    rng = np.random.default_rng(seed)
    image = rng.normal(size=(9, 7, 8))
    start = [int(s) for s in rng.integers(0, 4, 3)]
    array = rng.random((3, 2, 4)) > 0.5
    mask = BoxedMask.of(array, (start[0], start[1], start[2]), (9, 7, 8))
    full = np.zeros((9, 7, 8), bool)
    full[start[0] : start[0] + 3, start[1] : start[1] + 2, start[2] : start[2] + 4] = array
    assert np.array_equal(mask.full, full)
    assert mask.voxels == full.sum()
    if full.any():
        assert mask.mean_of(image) == pytest.approx(image[full].mean())


def test_an_empty_mask_has_no_voxel_and_no_mean() -> None:
    empty = BoxedMask.empty((4, 5, 6))
    assert empty.full.shape == (4, 5, 6)
    assert not empty.full.any()
    assert empty.voxels == 0
    assert empty.mean_of(np.ones((4, 5, 6))) is None
