"""DSC and NSD: hand-derived values, properties, the published implementation, absence policies."""

from __future__ import annotations

import math
import time
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from satunet.errors import UserError
from satunet.evaluation.metrics import POLICIES, AbsencePolicy, absence_policy, score_label_maps, score_masks

MM = (1.0, 1.0, 1.0)
masks = arrays(np.bool_, (5, 4, 6))
spacings = st.tuples(*[st.sampled_from([0.5, 0.7, 1.0, 1.3, 3.0])] * 3)


def published_nsd(a: np.ndarray, b: np.ndarray, spacing_mm: tuple[float, ...], tolerance_mm: float) -> float:
    surface_distance = pytest.importorskip("surface_distance")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        distances = surface_distance.compute_surface_distances(a, b, spacing_mm)
    return float(surface_distance.compute_surface_dice_at_tolerance(distances, tolerance_mm))


def block(shape: tuple[int, int, int], start: tuple[int, int, int], size: tuple[int, int, int]) -> np.ndarray:
    mask = np.zeros(shape, dtype=bool)
    mask[tuple(slice(s, s + n) for s, n in zip(start, size, strict=True))] = True
    return mask


def ball(n: int, radius_mm: float, spacing_mm: tuple[float, ...], shift: int = 0) -> np.ndarray:
    axes = [(np.arange(n) - n // 2 - (shift if i == 0 else 0)) * s for i, s in enumerate(spacing_mm)]
    x, y, z = np.meshgrid(*axes, indexing="ij")
    return x**2 + y**2 + z**2 <= radius_mm**2


def test_dice_of_shifted_cubes_by_hand() -> None:
    a, b = block((12, 12, 12), (2, 2, 2), (4, 4, 4)), block((12, 12, 12), (3, 2, 2), (4, 4, 4))
    scores = score_masks(a, b, MM)
    assert scores.dsc == 2 * 48 / 128
    assert (scores.reference_voxels, scores.prediction_voxels) == (64, 64)


def test_shifted_slabs_by_hand() -> None:
    # Two slabs of 8 layers of 3 mm that fill the cross-section of 30 x 30 mm, moved by two layers: caps 6 mm apart.
    a, b = block((14, 30, 30), (2, 0, 0), (8, 30, 30)), block((14, 30, 30), (4, 0, 0), (8, 30, 30))
    spacing_mm = (3.0, 1.0, 1.0)
    assert score_masks(a, b, spacing_mm, tolerance_mm=6.0).nsd == 1.0
    # Below 6 mm, of each slab the cap outside of the other is far, and of the cap inside it what is more than 5 mm
    # from the rim: 19 x 19 of its 31 x 31 elements. Edges and corners are chamfered by half a voxel.
    corner = 0.5 * math.sqrt(2 * (1.5 * 0.5) ** 2 + (0.5 * 0.5) ** 2)
    cap = 29**2 + 4 * 29 * math.hypot(0.5, 1.5) + 4 * corner
    layer = 4 * 29 * 3 + 4 * 3 * math.sqrt(0.5)
    whole = 2 * cap + 7 * layer
    assert score_masks(a, b, spacing_mm, tolerance_mm=5.9).nsd == pytest.approx((whole - cap - 19**2) / whole)


def test_spheres_one_voxel_apart() -> None:
    spacing_mm = (1.0, 1.0, 2.0)
    a, b = ball(40, 12, spacing_mm), ball(40, 12, spacing_mm, shift=1)
    assert score_masks(a, b, spacing_mm, tolerance_mm=1.0).nsd == 1.0
    assert score_masks(a, b, spacing_mm, tolerance_mm=0.9).nsd < 0.85
    assert 0.93 < score_masks(a, b, spacing_mm).dsc < 0.96  # 1 - 3 d / (4 r) for a small shift d: 0.9375


@settings(max_examples=150, deadline=None)
@given(a=masks, b=masks, spacing_mm=spacings, tolerance_mm=st.sampled_from([0.0, 0.5, 1.0, 1.3, 2.0, 6.5]))
def test_equal_to_the_published_implementation(
    a: np.ndarray, b: np.ndarray, spacing_mm: tuple[float, float, float], tolerance_mm: float
) -> None:
    if not a.any() or not b.any():
        return
    scores = score_masks(a, b, spacing_mm, tolerance_mm=tolerance_mm)
    assert scores.nsd == pytest.approx(published_nsd(a, b, spacing_mm, tolerance_mm), abs=1e-9)
    assert scores.dsc == pytest.approx(2 * (a & b).sum() / (a.sum() + b.sum()), abs=1e-12)


@settings(max_examples=60, deadline=None)
@given(a=masks, b=masks, spacing_mm=spacings)
def test_symmetry_bounds_flips_transposes(a: np.ndarray, b: np.ndarray, spacing_mm: tuple[float, float, float]) -> None:
    scores = score_masks(a, b, spacing_mm)
    assert 0 <= scores.dsc <= 1
    assert 0 <= scores.nsd <= 1 + 1e-12
    turned = score_masks(np.flip(b, (0, 2)).transpose(2, 0, 1), np.flip(a, (0, 2)).transpose(2, 0, 1),
                         (spacing_mm[2], spacing_mm[0], spacing_mm[1]))  # fmt: skip
    assert turned.dsc == scores.dsc
    assert turned.nsd == pytest.approx(scores.nsd)
    if a.any():
        same = score_masks(a, a, spacing_mm)
        assert (same.dsc, same.nsd) == (1.0, pytest.approx(1.0))


@settings(max_examples=60, deadline=None)
@given(a=masks, b=masks, spacing_mm=spacings, tolerance_mm=st.sampled_from([0.5, 1.0, 2.0]))
def test_units_do_not_matter_and_tolerance_only_helps(
    a: np.ndarray, b: np.ndarray, spacing_mm: tuple[float, float, float], tolerance_mm: float
) -> None:
    here = score_masks(a, b, spacing_mm, tolerance_mm=tolerance_mm).nsd
    doubled = score_masks(a, b, tuple(2 * s for s in spacing_mm), tolerance_mm=2 * tolerance_mm).nsd
    assert doubled == pytest.approx(here)
    assert score_masks(a, b, spacing_mm, tolerance_mm=tolerance_mm + 0.3).nsd >= here - 1e-12


@settings(max_examples=40, deadline=None)
@given(
    a=arrays(np.uint8, (5, 6, 4), elements=st.integers(0, 4)), b=arrays(np.uint8, (5, 6, 4), elements=st.integers(0, 4))
)
def test_label_maps_equal_masks_one_by_one(a: np.ndarray, b: np.ndarray) -> None:
    classes = {"one": (1,), "two or three": (2, 3), "four": (4,), "never": (9,)}
    scores = score_label_maps(a, b, (1.0, 2.0, 1.5), classes)
    assert list(scores) == list(classes)
    for name, ids in classes.items():
        assert scores[name] == score_masks(np.isin(a, ids), np.isin(b, ids), (1.0, 2.0, 1.5))


def test_other_ids_in_the_prediction_and_classes_nobody_predicted() -> None:
    reference = np.zeros((4, 4, 4), dtype=np.uint8)
    reference[:2], reference[2:] = 1, 2
    prediction = np.where(reference == 1, 300_000, 7)
    scores = score_label_maps(
        reference, prediction, MM, {"a": (1,), "b": (2,)}, prediction_classes={"a": (300_000,), "c": (7,)}
    )
    assert (scores["a"].dsc, scores["a"].nsd) == (1.0, 1.0)
    assert (scores["b"].dsc, scores["b"].prediction_voxels) == (0.0, 0)


def test_ignored_voxels_do_not_count() -> None:
    reference = np.zeros((6, 4, 4), dtype=np.uint8)
    reference[:2], reference[4:] = 1, 9
    prediction = np.zeros_like(reference)
    prediction[:2], prediction[4:] = 1, 1
    assert score_label_maps(reference, prediction, MM, {"a": (1,)})["a"].dsc == pytest.approx(2 / 3)
    assert score_label_maps(reference, prediction, MM, {"a": (1,)}, ignore_id=9)["a"].dsc == 1.0


EMPTY, FULL = np.zeros((3, 3, 3), dtype=bool), np.ones((3, 3, 3), dtype=bool)


@pytest.mark.parametrize(
    ("policy", "reference", "prediction", "expected"),
    [
        ("sat", EMPTY, EMPTY, 1.0),
        ("sat", EMPTY, FULL, 0.0),
        ("sat", FULL, EMPTY, 0.0),
        ("nnunet", EMPTY, EMPTY, math.nan),
        ("nnunet", EMPTY, FULL, 0.0),
        ("nnunet", FULL, EMPTY, 0.0),
        (AbsencePolicy(name="own", both=0.5, reference=math.nan, prediction=0.1), EMPTY, FULL, math.nan),
        (AbsencePolicy(name="own", both=0.5, reference=math.nan, prediction=0.1), FULL, EMPTY, 0.1),
    ],
)
def test_absence_policies(
    policy: str | AbsencePolicy, reference: np.ndarray, prediction: np.ndarray, expected: float
) -> None:
    scores = score_masks(reference, prediction, MM, policy=policy)
    np.testing.assert_equal([scores.dsc, scores.nsd], [expected, expected])
    maps = score_label_maps(reference.astype(np.uint8), prediction.astype(np.uint8), MM, {"a": (1,)}, policy=policy)
    np.testing.assert_equal([maps["a"].dsc, maps["a"].nsd], [expected, expected])


def test_policies_by_name() -> None:
    assert absence_policy("sat") is POLICIES["sat"]
    with pytest.raises(UserError, match=r"'chill': allowed are sat, nnunet"):
        absence_policy("chill")
    with pytest.raises(UserError, match=r"between 0 and 1, got 2\.0"):
        AbsencePolicy(name="x", both=2.0, reference=0.0, prediction=0.0)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"prediction": np.ones((3, 3, 4), dtype=bool)}, "one shape"),
        ({"spacing_mm": (1.0, 1.0, 0.0)}, "three positive numbers"),
        ({"spacing_mm": (1.0, 1.0)}, "three positive numbers"),
        ({"tolerance_mm": -1.0}, "not negative"),
    ],
)
def test_wrong_arguments(kwargs: dict[str, object], message: str) -> None:
    arguments: dict[str, object] = {"reference": FULL, "prediction": FULL, "spacing_mm": MM} | kwargs
    with pytest.raises(ValueError, match=message):
        score_masks(**arguments)  # type: ignore[arg-type]


def test_many_classes_are_quick() -> None:
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 151, size=(10, 10, 10))
    reference = np.kron(coarse, np.ones((9, 10, 9), dtype=np.int64)).astype(np.uint8)
    prediction = np.roll(reference, 1, axis=0)
    started = time.perf_counter()
    scores = score_label_maps(reference, prediction, MM, {str(i): (i,) for i in range(1, 151)})
    assert time.perf_counter() - started < 20
    assert min(s.nsd for s in scores.values() if s.reference_voxels) > 0.8
