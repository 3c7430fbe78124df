"""Scores: hand-derived values, properties, published implementations, absence policies."""

from __future__ import annotations

import math
import time
import warnings
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from satunet.errors import UserError
from satunet.evaluation.scoring.measures.lesions import count_lesions
from satunet.evaluation.scoring.measures.surface import find_surface
from satunet.evaluation.scoring.metrics import Scores, score_label_maps, score_masks
from satunet.evaluation.scoring.rules import Policy, Rules

MM = (1.0, 1.0, 1.0)
masks = arrays(np.bool_, (5, 4, 6))
spacings = st.tuples(*[st.sampled_from([0.5, 0.7, 1.0, 1.3, 3.0])] * 3)


def published(a: np.ndarray, b: np.ndarray, spacing_mm: tuple[float, ...], tolerance_mm: float) -> tuple[float, ...]:
    """NSD, HD95 and ASSD of surface-distance."""
    peer = pytest.importorskip("surface_distance")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = peer.compute_surface_distances(a, b, spacing_mm)
    areas = [found[f"surfel_areas_{n}"].sum() for n in ("gt", "pred")]
    means = peer.compute_average_surface_distance(found)
    assd = (means[0] * areas[0] + means[1] * areas[1]) / sum(areas)
    nsd = peer.compute_surface_dice_at_tolerance(found, tolerance_mm)
    return float(nsd), float(peer.compute_robust_hausdorff(found, 95)), float(assd)


def block(shape: tuple[int, int, int], start: tuple[int, int, int], size: tuple[int, int, int]) -> np.ndarray:
    mask = np.zeros(shape, dtype=bool)
    mask[tuple(slice(s, s + n) for s, n in zip(start, size, strict=True))] = True
    return mask


def ball(n: int, radius_mm: float, spacing_mm: tuple[float, ...], shift: int = 0) -> np.ndarray:
    axes = [(np.arange(n) - n // 2 - (shift if i == 0 else 0)) * s for i, s in enumerate(spacing_mm)]
    x, y, z = np.meshgrid(*axes, indexing="ij")
    return x**2 + y**2 + z**2 <= radius_mm**2


def nsd(a: np.ndarray, b: np.ndarray, spacing_mm: tuple[float, ...], tolerance_mm: float = 1.0) -> float:
    return score_masks(a, b, spacing_mm, rules=Rules(tolerance_mm=tolerance_mm, no_distances=True)).nsd


def test_dice_of_shifted_cubes_by_hand() -> None:
    a, b = block((12, 12, 12), (2, 2, 2), (4, 4, 4)), block((12, 12, 12), (3, 2, 2), (4, 4, 4))
    scores = score_masks(a, b, MM)
    assert scores.dsc == 2 * 48 / 128
    assert (scores.reference_voxels, scores.prediction_voxels) == (64, 64)


def test_shifted_slabs_by_hand() -> None:
    # Two slabs of 8 layers of 3 mm that fill the cross-section of 30 x 30 mm, moved by two layers: caps 6 mm apart.
    a, b = block((14, 30, 30), (2, 0, 0), (8, 30, 30)), block((14, 30, 30), (4, 0, 0), (8, 30, 30))
    spacing_mm = (3.0, 1.0, 1.0)
    assert nsd(a, b, spacing_mm, 6.0) == 1.0
    # Below 6 mm, of each slab the cap outside of the other is far, and of the cap inside it what is more than 5 mm
    # from the rim: 19 x 19 of its 31 x 31 elements. Edges and corners are chamfered by half a voxel.
    corner = 0.5 * math.sqrt(2 * (1.5 * 0.5) ** 2 + (0.5 * 0.5) ** 2)
    cap = 29**2 + 4 * 29 * math.hypot(0.5, 1.5) + 4 * corner
    layer = 4 * 29 * 3 + 4 * 3 * math.sqrt(0.5)
    whole = 2 * cap + 7 * layer
    assert nsd(a, b, spacing_mm, 5.9) == pytest.approx((whole - cap - 19**2) / whole)


def test_distances_of_planes_by_hand() -> None:
    # Two large plates 4 voxels of 2 mm apart: every element of one lies 8 mm from the other.
    a, b = block((9, 20, 20), (0, 0, 0), (1, 20, 20)), block((9, 20, 20), (5, 0, 0), (1, 20, 20))
    scores = score_masks(a, b, (2.0, 1.0, 1.0))
    # The surfaces of a plate lie on its two faces: the nearest ones are 8 mm apart, the outer ones 10 mm.
    assert scores.hd95_mm == 10
    assert scores.assd_mm == pytest.approx(9)
    assert scores.dsc == scores.nsd == 0


def test_spheres_one_voxel_apart() -> None:
    spacing_mm = (1.0, 1.0, 2.0)
    a, b = ball(40, 12, spacing_mm), ball(40, 12, spacing_mm, shift=1)
    assert nsd(a, b, spacing_mm) == 1.0
    assert nsd(a, b, spacing_mm, 0.9) < 0.85
    scores = score_masks(a, b, spacing_mm)
    assert 0.93 < scores.dsc < 0.96  # 1 - 3 d / (4 r) for a small shift d: 0.9375
    assert scores.hd95_mm == 1.0
    # Moved by d, a sphere's surface is d |cos| away, on average d / 2; a grid shortens it, by up to half a voxel.
    far = score_masks(ball(60, 20, MM), ball(60, 20, MM, shift=6), MM)
    assert 2.5 < far.assd_mm < 3.0
    assert far.hd95_mm == pytest.approx(6 * 0.95, abs=0.5)


@settings(max_examples=100, deadline=None)
@given(a=masks, b=masks, spacing_mm=spacings, tolerance_mm=st.sampled_from([0.0, 0.5, 1.0, 1.3, 2.0, 6.5]))
def test_equal_to_the_published_implementation(
    a: np.ndarray, b: np.ndarray, spacing_mm: tuple[float, float, float], tolerance_mm: float
) -> None:
    if not a.any() or not b.any():
        return
    scores = score_masks(a, b, spacing_mm, rules=Rules(tolerance_mm=tolerance_mm))
    expected = published(a, b, spacing_mm, tolerance_mm)
    assert (scores.nsd, scores.hd95_mm, scores.assd_mm) == pytest.approx(expected, abs=1e-9)
    assert scores.dsc == pytest.approx(2 * (a & b).sum() / (a.sum() + b.sum()), abs=1e-12)
    without = score_masks(a, b, spacing_mm, rules=Rules(tolerance_mm=tolerance_mm, no_distances=True))
    assert (without.dsc, without.nsd) == (scores.dsc, pytest.approx(scores.nsd))
    assert math.isnan(without.hd95_mm) and math.isnan(without.assd_mm)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("shift", [1, 9])
def test_equal_to_monai(shift: int) -> None:
    """DSC and NSD; with whole voxels as surface elements MONAI's HD95 and ASSD are other definitions, close by."""
    metrics = pytest.importorskip("monai.metrics")
    import torch

    spacing_mm = (0.8, 1.0, 2.0)
    a, b = ball(32, 9, spacing_mm), ball(32, 8, spacing_mm, shift=shift)
    first, second = (torch.from_numpy(np.stack([~m, m])[None].astype(np.float32)) for m in (a, b))
    options: dict[str, Any] = {"include_background": False, "spacing": list(spacing_mm)}
    scores = score_masks(a, b, spacing_mm, rules=Rules(tolerance_mm=1.3))
    assert scores.dsc == pytest.approx(float(metrics.compute_dice(second, first, include_background=False)))
    peer = metrics.compute_surface_dice(second, first, class_thresholds=[1.3], use_subvoxels=True, **options)
    assert scores.nsd == pytest.approx(float(peer), abs=1e-6)
    hd95 = metrics.compute_hausdorff_distance(second, first, percentile=95, **options)
    assert scores.hd95_mm == pytest.approx(float(hd95), abs=max(spacing_mm))
    assd = metrics.compute_average_surface_distance(second, first, symmetric=True, **options)
    assert scores.assd_mm == pytest.approx(float(assd), abs=0.5)


@settings(max_examples=60, deadline=None)
@given(a=masks, b=masks, spacing_mm=spacings)
def test_symmetry_bounds_flips_transposes(a: np.ndarray, b: np.ndarray, spacing_mm: tuple[float, float, float]) -> None:
    scores = score_masks(a, b, spacing_mm)
    assert 0 <= scores.dsc <= 1
    assert 0 <= scores.nsd <= 1 + 1e-12
    turned = score_masks(np.flip(b, (0, 2)).transpose(2, 0, 1), np.flip(a, (0, 2)).transpose(2, 0, 1),
                         (spacing_mm[2], spacing_mm[0], spacing_mm[1]))  # fmt: skip
    assert turned.dsc == scores.dsc
    assert (turned.nsd, turned.assd_mm) == pytest.approx((scores.nsd, scores.assd_mm), nan_ok=True)
    if a.any():
        same = score_masks(a, a, spacing_mm)
        assert (same.dsc, same.nsd, same.hd95_mm, same.assd_mm) == (1.0, pytest.approx(1.0), 0.0, 0.0)
        if b.any():
            assert scores.assd_mm >= 0
            diagonal = math.hypot(*(n * s for n, s in zip(a.shape, spacing_mm, strict=True)))
            assert max(scores.assd_mm, scores.hd95_mm) <= diagonal


@settings(max_examples=60, deadline=None)
@given(a=masks, b=masks, spacing_mm=spacings, tolerance_mm=st.sampled_from([0.5, 1.0, 2.0]))
def test_units_do_not_matter_and_tolerance_only_helps(
    a: np.ndarray, b: np.ndarray, spacing_mm: tuple[float, float, float], tolerance_mm: float
) -> None:
    here = score_masks(a, b, spacing_mm, rules=Rules(tolerance_mm=tolerance_mm))
    doubled = score_masks(a, b, tuple(2 * s for s in spacing_mm), rules=Rules(tolerance_mm=2 * tolerance_mm))
    assert doubled.nsd == pytest.approx(here.nsd)
    assert doubled.assd_mm == pytest.approx(2 * here.assd_mm, nan_ok=True)
    assert nsd(a, b, spacing_mm, tolerance_mm + 0.3) >= here.nsd - 1e-12


@settings(max_examples=40, deadline=None)
@given(
    a=arrays(np.uint8, (5, 6, 4), elements=st.integers(0, 4)), b=arrays(np.uint8, (5, 6, 4), elements=st.integers(0, 4))
)
def test_label_maps_equal_masks_one_by_one(a: np.ndarray, b: np.ndarray) -> None:
    classes = {"one": (1,), "two or three": (2, 3), "four": (4,), "never": (9,), "all": (1, 2, 3, 4, 5)}
    rules = Rules(tolerances=("one=2",))
    scores = score_label_maps(a, b, (1.0, 2.0, 1.5), classes, rules=rules, lesions={"four"})
    assert list(scores) == list(classes)
    for name, ids in classes.items():
        alone = score_masks(
            np.isin(a, ids), np.isin(b, ids), (1.0, 2.0, 1.5), rules=rules, class_name=name, lesion=name == "four"
        )
        np.testing.assert_equal(vars(scores[name]), vars(alone))


def test_a_class_may_have_its_own_tolerance() -> None:
    a = np.zeros((12, 12, 12), dtype=np.uint8)
    a[1:4, 2:9, 2:9], a[7:10, 2:9, 2:9] = 1, 2
    b = np.roll(a, 1, axis=0)
    scores = score_label_maps(a, b, (2.0, 1.0, 1.0), {"x": (1,), "y": (2,)}, rules=Rules(tolerances=("y=2",)))
    assert scores["x"].nsd < 1 == scores["y"].nsd
    with pytest.raises(UserError, match=r"y: a tolerance in mm must not be negative, got -1"):
        Rules(tolerances=("y=-1",))
    for wrong in ("y=two", "y", "=", "y="):
        with pytest.raises(UserError, match=f"takes CLASS=MM, such as aorta=2; got '{wrong}'"):
            _ = Rules(tolerances=(wrong,)).tolerances_mm


def test_other_ids_in_the_prediction_and_classes_nobody_predicted() -> None:
    reference = np.zeros((4, 4, 4), dtype=np.uint8)
    reference[:2], reference[2:] = 1, 2
    prediction = np.where(reference == 1, 300_000, 7)
    scores = score_label_maps(
        reference, prediction, MM, {"a": (1,), "b": (2,)}, prediction_classes={"a": (300_000,), "c": (7,)}
    )
    assert (scores["a"].dsc, scores["a"].nsd) == (1.0, 1.0)
    assert (scores["b"].dsc, scores["b"].prediction_voxels) == (0.0, 0)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.uint32, np.int16, np.int32, np.int64, np.uint64])
@pytest.mark.parametrize("order", ["C", "F"])
def test_every_integer_type(dtype: type, order: str) -> None:
    labels = np.zeros((6, 5, 4), dtype=dtype, order=order)  # type: ignore[call-overload]
    labels[1:3, 1:4, 1:3] = 3
    scores = score_label_maps(labels, labels, MM, {"a": (3,), "b": (1,)})
    assert (scores["a"].dsc, scores["a"].reference_voxels, scores["b"].reference_voxels) == (1.0, 12, 0)


def test_ignored_voxels_do_not_count() -> None:
    reference = np.zeros((6, 4, 4), dtype=np.uint8)
    reference[:2], reference[4:] = 1, 9
    prediction = np.zeros_like(reference)
    prediction[:2], prediction[4:] = 1, 1
    assert score_label_maps(reference, prediction, MM, {"a": (1,)})["a"].dsc == pytest.approx(2 / 3)
    ignoring = score_label_maps(reference, prediction, MM, {"a": (1,)}, ignore_id=9)["a"]
    assert (ignoring.dsc, ignoring.nsd, ignoring.hd95_mm, ignoring.prediction_voxels) == (1.0, 1.0, 0.0, 32)


def test_a_case_that_nobody_labelled_has_no_score() -> None:
    ignored = np.full((4, 4, 4), 9, dtype=np.uint8)
    scores = score_label_maps(ignored, np.ones_like(ignored), MM, {"a": (1,)}, ignore_id=9)["a"]
    numbers = (scores.dsc, scores.nsd, scores.hd95_mm, scores.assd_mm, scores.lesion_f1, scores.panoptic_quality)
    assert all(math.isnan(n) for n in numbers)
    assert scores.lesions is None


def test_a_class_keeps_its_own_tolerance_beside_ignored_voxels() -> None:
    reference = np.zeros((14, 12, 12), dtype=np.uint8)
    reference[1:4, 2:9, 2:9], reference[7:10, 2:9, 2:9], reference[13] = 1, 2, 9
    prediction = np.roll(np.where(reference == 9, 0, reference), 1, axis=0)
    classes = {"x": (1,), "y": (2,)}
    scores = score_label_maps(
        reference, prediction, (2.0, 1.0, 1.0), classes, ignore_id=9, rules=Rules(tolerances=("y=2",))
    )
    assert scores["x"].nsd < 1 == scores["y"].nsd


def test_a_surface_at_the_edge_of_ignored_voxels_does_not_count() -> None:
    # A bar along x: annotated up to x = 10, predicted one voxel too thick everywhere and far beyond the annotation.
    reference, prediction = np.zeros((20, 12, 12), dtype=np.uint8), np.zeros((20, 12, 12), dtype=np.uint8)
    reference[3:10, 4:8, 4:8] = 1
    reference[10:] = 9
    prediction[3:18, 4:8, 4:9] = 1
    scores = score_label_maps(reference, prediction, MM, {"a": (1,)}, ignore_id=9, rules=Rules(tolerance_mm=0.0))["a"]
    # The same bars, cut before the first elements that touch an ignored voxel: of the planes x = 2.5 to 8.5, without
    # the cap at 9.5.
    cut = {}
    for name, thick in (("reference", 8), ("prediction", 9)):
        long = np.zeros((20, 12, 12), dtype=bool)
        long[3:19, 4:8, 4:thick] = True  # goes on: no cap before x = 18.5
        cut[name] = long
    surfaces = [find_surface(m) for m in cut.values()]
    areas, places = [], []
    for surface in surfaces:
        x = surface.places // (surface.present.shape[1] * surface.present.shape[2])
        near = x < 10  # element x lies between voxels x - 1 and x of the padded volume
        areas.append(surface.areas(MM)[near])
        places.append(set(surface.places[near].tolist()))
    common = [np.isin(sorted(p), sorted(places[0] & places[1])) for p in places]
    expected = sum(float(a[c].sum()) for a, c in zip(areas, common, strict=True)) / sum(float(a.sum()) for a in areas)
    assert scores.nsd == pytest.approx(expected)
    assert scores.dsc == pytest.approx(2 * 7 * 16 / (7 * 16 + 7 * 20))
    unseen = score_label_maps(np.full_like(reference, 9), prediction, MM, {"a": (1,)}, ignore_id=9)["a"]
    assert (unseen.reference_voxels, unseen.prediction_voxels, unseen.lesions) == (0, 0, None)
    blind = np.where(reference == 1, 1, 9).astype(np.uint8)  # no voxel of background is known
    nothing = score_label_maps(blind, prediction, MM, {"a": (1,)}, ignore_id=9)["a"]
    assert nothing.dsc == 1
    assert math.isnan(nothing.nsd)
    assert math.isnan(nothing.hd95_mm)


def lesions() -> tuple[np.ndarray, np.ndarray]:
    """Three lesions, of which two are found, one by a single voxel; and two predictions of nothing."""
    reference, prediction = np.zeros((20, 8, 8), dtype=bool), np.zeros((20, 8, 8), dtype=bool)
    reference[1:3, 1:3, 1:3], reference[6:9, 1:3, 1:3], reference[12, 1, 1] = True, True, True
    prediction[1:3, 1:3, 1:3], prediction[8, 2, 2] = True, True
    prediction[9, 3, 3] = True  # diagonal to the last: 26 neighbours make it one lesion
    prediction[15, 5, 5], prediction[18, 1:3, 1] = True, True
    return reference, prediction


def test_lesions_by_hand() -> None:
    reference, prediction = lesions()
    counts = count_lesions(reference, prediction)
    assert (counts.reference, counts.found, counts.predicted, counts.false) == (3, 2, 4, 2)
    assert counts.f1 == pytest.approx(2 * 2 / (2 * 2 + 2 + 1))
    assert score_masks(reference, prediction, MM, lesion=True).lesion_f1 == counts.f1
    assert math.isnan(score_masks(reference, prediction, MM).lesion_f1)
    nothing = score_masks(np.zeros_like(reference), prediction, MM, lesion=True)
    assert (nothing.lesion_f1, nothing.lesions and nothing.lesions.false) == (0.0, 4)


def test_background_is_matched_with_no_lesion() -> None:
    """A lesion that fills the case and a prediction of one voxel: their overlap is 1 of 27 voxels."""
    prediction = np.zeros((3, 3, 3), dtype=bool)
    prediction[0, 0, 0] = True
    scores = score_masks(np.ones((3, 3, 3), dtype=bool), prediction, MM, lesion=True)
    assert scores.lesions is not None
    assert (scores.lesions.found, scores.lesions.matched, scores.panoptic_quality) == (1, 0, 0.0)


@pytest.mark.parametrize("shape", [(3, 1, 1), (5, 3, 1), (3, 3, 3), (5, 5, 3), (2, 4, 1)])
def test_lesions_of_a_voxel_each_in_a_small_box(shape: tuple[int, int, int]) -> None:
    mask = np.zeros(shape, dtype=bool)
    mask[::2, ::2, ::2] = True
    counts = count_lesions(mask, mask)
    assert counts.reference == counts.found == math.prod((n + 1) // 2 for n in shape)


@settings(max_examples=60, deadline=None)
@given(a=masks, b=masks)
def test_lesions_are_those_of_scipy(a: np.ndarray, b: np.ndarray) -> None:
    from scipy import ndimage

    if not a.any() and not b.any():
        return
    (of_a, n_a), (of_b, n_b) = (ndimage.label(m, np.ones((3, 3, 3))) for m in (a, b))
    counts = count_lesions(a, b)
    assert (counts.reference, counts.predicted) == (n_a, n_b)
    assert counts.found == sum(b[of_a == i].any() for i in range(1, n_a + 1))
    assert counts.false == sum(not a[of_b == i].any() for i in range(1, n_b + 1))


EMPTY, FULL = np.zeros((3, 3, 3), dtype=bool), np.ones((3, 3, 3), dtype=bool)


@pytest.mark.parametrize(
    ("policy", "reference", "prediction", "expected", "expected_mm"),
    [
        ("sat", EMPTY, EMPTY, 1.0, math.nan),
        ("sat", EMPTY, FULL, 0.0, math.nan),
        ("sat", FULL, EMPTY, 0.0, math.nan),
        ("nnunet", EMPTY, EMPTY, math.nan, math.nan),
        ("nnunet", EMPTY, FULL, 0.0, math.nan),
        ("nnunet", FULL, EMPTY, 0.0, math.nan),
        ("brats", EMPTY, EMPTY, 1.0, 0.0),
        ("brats", EMPTY, FULL, 0.0, 374.0),
        ("brats", FULL, EMPTY, 0.0, 374.0),
    ],
)
def test_absence_policies(
    policy: Policy, reference: np.ndarray, prediction: np.ndarray, expected: float, expected_mm: float
) -> None:
    def numbers(scores: Scores) -> list[float]:
        return [scores.dsc, scores.nsd, scores.lesion_f1, scores.hd95_mm, scores.assd_mm]

    rules = Rules(policy=policy)
    wanted = [expected, expected, expected, expected_mm, expected_mm]
    np.testing.assert_equal(numbers(score_masks(reference, prediction, MM, rules=rules, lesion=True)), wanted)
    maps = score_label_maps(
        reference.astype(np.uint8), prediction.astype(np.uint8), MM, {"a": (1,)}, rules=rules, lesions={"a"}
    )
    np.testing.assert_equal(numbers(maps["a"]), wanted)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"prediction": np.ones((3, 3, 4), dtype=bool)}, "one shape"),
        ({"prediction": np.ones((3, 3, 2), dtype=bool)}, "one shape"),
        ({"spacing_mm": (1.0, 1.0, 0.0)}, "three positive numbers"),
        ({"spacing_mm": (1.0, 1.0)}, "three positive numbers"),
    ],
)
def test_wrong_arguments(kwargs: dict[str, object], message: str) -> None:
    arguments: dict[str, object] = {"reference": FULL, "prediction": FULL, "spacing_mm": MM} | kwargs
    with pytest.raises(ValueError, match=message):
        score_masks(**arguments)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="not negative, got -1"):
        score_label_maps(-np.ones((2, 2, 2), dtype=int), np.ones((2, 2, 2), dtype=int), MM, {"a": (1,)})


def test_many_classes_are_quick() -> None:
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 151, size=(10, 10, 10))
    reference = np.kron(coarse, np.ones((9, 10, 9), dtype=np.int64)).astype(np.uint8)
    prediction = np.roll(reference, 1, axis=0)
    started = time.perf_counter()
    scores = score_label_maps(reference, prediction, MM, {str(i): (i,) for i in range(1, 151)})
    assert time.perf_counter() - started < 20
    assert min(s.nsd for s in scores.values() if s.reference_voxels) > 0.8
