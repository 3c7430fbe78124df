"""Panoptic quality: by hand, by brute force, and against panoptica where it is installed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from satunet.evaluation.scoring.measures.lesions import _components, count_lesions, matched_overlaps
from satunet.evaluation.scoring.metrics import score_masks
from satunet.evaluation.scoring.rules import Rules

masks = arrays(np.bool_, (5, 4, 6), elements=st.integers(0, 3).map(lambda n: n == 0))


def blocks(*boxes: tuple[int, int]) -> np.ndarray:
    """Blocks along the first axis, 4 × 4 voxels across."""
    mask = np.zeros((40, 4, 4), bool)
    for start, stop in boxes:
        mask[start:stop] = True
    return mask


def test_by_hand() -> None:
    reference = blocks((0, 10), (12, 20), (22, 30), (33, 36))
    prediction = blocks((1, 10), (12, 16), (24, 30), (37, 39))
    # 9 of 10; 4 of 8, which is no more than half; 6 of 8; one is missed and one is false
    found = count_lesions(reference, prediction)
    assert (found.reference, found.predicted, found.matched) == (4, 4, 2)
    assert found.overlap == pytest.approx(0.9 + 0.75)
    assert found.panoptic_quality == pytest.approx((0.9 + 0.75) / (2 + 2 / 2 + 2 / 2))
    scores = score_masks(reference, prediction, (1, 1, 1), rules=Rules(), lesion=True)
    assert scores.panoptic_quality == found.panoptic_quality
    assert np.isnan(score_masks(reference, prediction, (1, 1, 1), rules=Rules()).panoptic_quality)


@settings(max_examples=60, deadline=None)
@given(masks, masks)
def test_as_one_would_write_it_down(a: np.ndarray, b: np.ndarray) -> None:
    if not (a | b).any():
        return
    (one, n), (other, m) = _components(a), _components(b)
    overlaps = [
        np.count_nonzero((one == i) & (other == j)) / np.count_nonzero((one == i) | (other == j))
        for i in range(1, n + 1)
        for j in range(1, m + 1)
    ]
    matched = [o for o in overlaps if o > 0.5]
    assert sorted(matched_overlaps(one, other)) == pytest.approx(sorted(matched))
    misses, false = n - len(matched), m - len(matched)
    expected = sum(matched) / (len(matched) + misses / 2 + false / 2)
    assert count_lesions(a, b).panoptic_quality == pytest.approx(expected)


def test_as_panoptica_has_it() -> None:
    panoptica: Any = pytest.importorskip("panoptica", exc_type=ImportError)
    evaluator = panoptica.Panoptica_Evaluator(
        expected_input=panoptica.InputType.UNMATCHED_INSTANCE,
        instance_matcher=panoptica.NaiveThresholdMatching(matching_threshold=0.5),
    )
    rng, compared = np.random.default_rng(0), 0
    for _ in range(12):
        one, other = (rng.uniform(size=(12, 12, 12)) < 0.12 for _ in range(2))
        other = np.where(rng.uniform(size=one.shape) < 0.9, one, other)
        (a, _), (b, _) = _components(one), _components(other)
        if any(np.count_nonzero((a == i) & (b == j)) * 2 == np.count_nonzero((a == i) | (b == j))
               for i, j in {*zip(a.ravel().tolist(), b.ravel().tolist(), strict=True)} if i and j):  # fmt: skip
            continue  # panoptica takes one half for a match; the definition asks for more
        result = evaluator.evaluate(b.astype(np.uint16), a.astype(np.uint16), verbose=False)
        result = next(iter(result.values())) if isinstance(result, dict) else result
        compared += 1
        assert count_lesions(one, other).panoptic_quality == pytest.approx(float(result.pq), abs=1e-6)
    assert compared > 2
