"""What speaks for a mask, against boxes whose numbers are worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from satunet.confidence.evidence import Evidence, weigh

AFFINE = np.array([[-2.0, 0, 0, 100], [0, 1.0, 0, -20], [0, 0, 5.0, 7], [0, 0, 0, 1]])  # 10 mm3 a voxel, i to the left


def block(shape: tuple[int, int, int], *boxes: tuple[slice, slice, slice], value: float = 0.8) -> np.ndarray:
    values = np.zeros(shape, np.float32)
    for box in boxes:
        values[box] = value
    return values


def test_numbers_of_a_box() -> None:
    values = block((6, 6, 6), (slice(1, 5), slice(1, 5), slice(1, 5)))
    values[0, 1:5, 1:5] = 0.25  # 16 voxels beside the 64 of the mask
    found = weigh(values, (10, 20, 30), (50, 50, 50), AFFINE, peak=0.7, agreement=0.9)
    assert found.volume_ml == pytest.approx(0.64)
    assert found.inside == pytest.approx(0.8)
    assert found.overlap == pytest.approx(2 * 64 * 0.8 / (64 + 64 * 0.8 + 16 * 0.25))
    assert (found.whole, found.free, found.agreement) == (1.0, 1.0, 0.9)
    assert found.peak == pytest.approx(0.8)  # of the mean of looks, where no look is known to say more
    # the box's middle is voxel 10 + 2.5, 20 + 2.5, 30 + 2.5
    assert found.centre_mm == pytest.approx((100 - 2 * 12.5, -20 + 22.5, 7 + 5 * 32.5))


def test_expected_overlap_is_that_of_references_drawn_by_their_probabilities() -> None:
    rng = np.random.default_rng(0)
    values = rng.uniform(0, 1, (12, 12, 12)).astype(np.float32)
    found = weigh(values, (0, 0, 0), (99, 99, 99), np.eye(4), peak=1, agreement=1)
    mask = values > 0.5
    drawn = [rng.uniform(size=values.shape) < values for _ in range(200)]
    dice = np.mean([2 * (mask & d).sum() / (mask.sum() + d.sum()) for d in drawn])
    assert found.overlap == pytest.approx(dice, abs=0.003)


def test_pieces_and_borders() -> None:
    two = block((8, 4, 4), (slice(0, 3), slice(0, 4), slice(0, 4)), (slice(5, 6), slice(0, 4), slice(0, 4)))
    found = weigh(two, (4, 4, 4), (40, 40, 40), np.eye(4), peak=0.9, agreement=1)
    assert found.whole == pytest.approx(0.75)
    assert found.free == 1
    one = block((4, 4, 4), (slice(0, 4),) * 3)
    cut = weigh(one, (0, 4, 4), (40, 40, 40), np.eye(4), peak=0.9, agreement=1)
    assert cut.free == pytest.approx(1 - 16 / 64 ** (2 / 3))  # one face of six
    assert weigh(one, (36, 4, 4), (40, 40, 40), np.eye(4), peak=0.9, agreement=1).free == pytest.approx(cut.free)
    flat = block((4, 4, 1), (slice(0, 4), slice(0, 4), slice(0, 1)))
    assert weigh(flat, (4, 4, 0), (40, 40, 1), np.eye(4), peak=0.9, agreement=1).free == 1  # a single slice has no ends


def test_nothing_is_drawn() -> None:
    found = weigh(np.full((3, 3, 3), 0.5, np.float32), (0, 0, 0), (9, 9, 9), np.eye(4), peak=0.5, agreement=1)
    assert found == Evidence(peak=0.5)
    assert not found.drawn
