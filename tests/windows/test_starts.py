"""Windows and their weights against nnU-Net's own."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nnunetv2.inference.sliding_window_prediction import compute_gaussian, compute_steps_for_sliding_window

from satunet.windows.starts import gaussian_weights, window_starts


@given(
    patch=st.tuples(*[st.integers(1, 24)] * 3),
    more=st.tuples(*[st.integers(0, 60)] * 3),
    overlap=st.sampled_from([0.0, 0.25, 0.5, 0.75]),
)
def test_windows_start_where_nnunets_do(
    patch: tuple[int, int, int], more: tuple[int, int, int], overlap: float
) -> None:
    shape = tuple(p + m for p, m in zip(patch, more, strict=True))
    if any(p * (1 - overlap) < 1 for p in patch):
        return  # nnU-Net's windows go less than a voxel further then; here a voxel is the least
    xs, ys, zs = compute_steps_for_sliding_window(shape, patch, 1 - overlap)
    assert window_starts(shape, patch, overlap) == [(x, y, z) for x in xs for y in ys for z in zs]


def test_a_window_goes_on_by_a_voxel_at_least() -> None:
    assert window_starts((4, 1, 1), (1, 1, 1), 0.9) == [(0, 0, 0), (1, 0, 0), (2, 0, 0), (3, 0, 0)]


@pytest.mark.parametrize("patch", [(33, 17, 25), (9, 65, 41)])
def test_weights_are_nnunets_map(patch: tuple[int, int, int]) -> None:
    """nnU-Net filters a single voxel, which puts its odd patches' middle where ours is, and cuts at 4 sigma."""
    theirs = compute_gaussian(patch, sigma_scale=1 / 8, value_scaling_factor=1, device="cpu")
    theirs = theirs.double().numpy()
    ours = gaussian_weights(patch)
    assert ours.dtype == np.float32
    assert ours[tuple(p // 2 for p in patch)] == 1
    assert ours.min() > 0
    np.testing.assert_allclose(ours, theirs / theirs.max(), atol=2e-3)


def test_weights_of_an_even_patch_are_symmetric_and_gaussian() -> None:
    weights = gaussian_weights((8, 4, 2), 0.25)
    for axis in range(3):
        np.testing.assert_array_equal(weights, np.flip(weights, axis))
    # From the middle between voxels, in units of sigma = size / 4: 0.5 / 2, 0.5 / 1, 0.5 / 0.5.
    expected = np.exp(-0.5 * (0.25**2 + 0.5**2 + 1.0**2))
    assert weights[3, 1, 0] == pytest.approx(expected, rel=1e-6)
    assert weights[0, 0, 0] == pytest.approx(np.exp(-0.5 * (1.75**2 + 1.5**2 + 1.0**2)), rel=1e-6)
