from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nnunetv2.preprocessing.resampling.default_resampling import (
    determine_do_sep_z_and_axis,
    resample_data_or_seg_to_shape,
)

from satunet.preprocessing.resampling import (
    Spacing,
    interpolation_matrix,
    new_shape,
    resample_image,
    resample_labels,
    separate_axis,
)

CASES = [
    ((1.0, 1.0, 1.0), (1.1, 1.0, 1.0), (40, 31, 30), (33, 47, 51)),
    ((1.0, 1.0, 5.0), (1.0, 1.0, 3.0), (20, 22, 9), (25, 21, 17)),
    ((5.0, 1.0, 1.0), (1.0, 1.0, 3.0), (9, 22, 20), (44, 21, 7)),
    ((1.0, 6.0, 1.2), (2.0, 2.0, 2.0), (9, 5, 20), (4, 15, 11)),
    ((2.0, 2.0, 2.0), (1.0, 1.0, 1.0), (1, 5, 3), (2, 10, 6)),
]


@pytest.mark.parametrize(("spacing", "target", "shape", "wanted"), CASES)
def test_images_are_resampled_as_by_nnunet(spacing, target, shape, wanted) -> None:  # type: ignore[no-untyped-def]
    volume = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    expected = resample_data_or_seg_to_shape(volume[None], wanted, spacing, target, order=3, order_z=0,
                                             force_separate_z=None)[0]  # fmt: skip
    found = resample_image(volume, wanted, spacing, target)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=5e-6)


@pytest.mark.parametrize(("spacing", "target", "shape", "wanted"), CASES)
def test_labels_are_resampled_as_by_nnunet(spacing, target, shape, wanted) -> None:  # type: ignore[no-untyped-def]
    rng = np.random.default_rng(1)
    blocks = rng.integers(0, 5, size=tuple(-(-n // 3) for n in shape))
    labels = np.kron(blocks, np.ones((3, 3, 3), int))[tuple(slice(n) for n in shape)].astype(np.uint8)
    expected = resample_data_or_seg_to_shape(labels[None], wanted, spacing, target, is_seg=True, order=1, order_z=0,
                                             force_separate_z=None)[0]  # fmt: skip
    found = resample_labels(labels, wanted, spacing, target)
    assert found.dtype == labels.dtype
    assert (found != expected).mean() < 1e-3  # ties between three labels, decided by the last bit there


def test_148_real_labels_are_resampled_as_by_nnunet(real_raw: Path) -> None:
    file = sorted((real_raw / "Dataset302_BrainRegions_MR" / "labelsTr").glob("*.nii.gz"))[0]
    labels = np.asarray(nib.load(file).dataobj).astype(np.uint8)[20:50, 20:50, 20:50]
    spacing, target = (2.0, 2.0, 2.0), (1.5, 1.0, 3.0)
    wanted = new_shape((30, 30, 30), spacing, target)
    assert wanted == (40, 60, 20)
    expected = resample_data_or_seg_to_shape(labels[None], wanted, spacing, target, is_seg=True, order=1, order_z=0,
                                             force_separate_z=None)[0]  # fmt: skip
    assert len(np.unique(labels)) > 40
    assert (resample_labels(labels, wanted, spacing, target) != expected).mean() < 1e-3


def test_halving_a_map_does_not_grow_its_structures() -> None:
    """At half the resolution every voxel on a boundary is a tie; a rule that favours one side is biased."""
    rng = np.random.default_rng(0)
    grown = []
    for _ in range(40):
        centre, radius = rng.uniform(18, 22, 3), rng.uniform(8, 14)
        axes = np.meshgrid(*[np.arange(40)] * 3, indexing="ij")
        ball = (sum((a - c) ** 2 for a, c in zip(axes, centre, strict=True)) < radius**2).astype(np.uint8)
        half = resample_labels(ball, (20, 20, 20), (1, 1, 1), (2, 2, 2))
        grown.append(half.sum() * 8 / ball.sum())
    assert abs(np.mean(grown) - 1) < 0.01


def test_no_label_appears_that_was_not_there() -> None:
    labels = np.zeros((12, 12, 12), np.uint16)
    labels[:6], labels[6:, :6], labels[6:, 6:] = 7, 300, 2
    for wanted in ((5, 17, 9), (24, 24, 24), (1, 1, 1)):
        assert set(np.unique(resample_labels(labels, wanted, (1, 1, 1), (1, 1, 1)))) <= {7, 300, 2}


def test_where_three_labels_meet_none_is_lost_to_the_background() -> None:
    labels = np.zeros((4, 4, 4), np.uint8)
    labels[:2, :2], labels[:2, 2:], labels[2:, :2], labels[2:, 2:] = 1, 2, 3, 4
    assert resample_labels(labels, (3, 3, 3), (1, 1, 1), (4 / 3, 4 / 3, 4 / 3)).min() > 0


spacings = st.tuples(*[st.sampled_from([0.5, 1.0, 1.5, 2.0, 3.0, 3.1, 5.0, 8.0])] * 3)


@given(spacings, spacings)
def test_slices_are_kept_apart_where_nnunet_keeps_them(spacing: Spacing, target: Spacing) -> None:
    separate, axis = determine_do_sep_z_and_axis(None, spacing, target)
    assert separate_axis(spacing, target) == (axis if separate else None)


@given(st.integers(1, 40), st.integers(1, 40))
@settings(deadline=None)
def test_rows_of_interpolation_matrices_are_shares(size: int, wanted: int) -> None:
    matrix = interpolation_matrix(size, wanted)
    assert matrix.shape == (wanted, size)
    assert matrix.min() >= 0
    np.testing.assert_allclose(matrix.sum(axis=1), 1, atol=1e-6)
    # the centre of mass stays where it is, away from the repeated edges
    centres = (np.arange(wanted) + 0.5) * size / wanted - 0.5
    inside = (centres >= 0) & (centres <= size - 1)
    np.testing.assert_allclose((matrix @ np.arange(size))[inside], centres[inside], atol=1e-4)


@given(st.tuples(*[st.integers(1, 9)] * 3), st.tuples(*[st.integers(1, 12)] * 3))
@settings(deadline=None, max_examples=40)
def test_constant_volumes_stay_constant_at_any_shape(shape: tuple[int, int, int], wanted: tuple[int, int, int]) -> None:
    np.testing.assert_allclose(resample_image(np.full(shape, 3.0), wanted, (1, 1, 1), (1, 1, 1)), 3, atol=1e-5)
    assert (resample_labels(np.full(shape, 9, np.uint8), wanted, (1, 1, 1), (1, 1, 1)) == 9).all()


def test_a_shape_has_at_least_one_voxel() -> None:
    assert new_shape((512, 512, 1), (0.5, 0.5, 1.0), (1.0, 1.0, 3.0)) == (256, 256, 1)
