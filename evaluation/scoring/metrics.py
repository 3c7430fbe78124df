"""Scores of label maps: DSC, NSD, HD95, ASSD and lesion-wise F1.

- DSC: 2 |A ∩ B| / (|A| + |B|).
- NSD: the area of both surfaces that lies within the tolerance of the other, over the area of both; as
  ``surface-distance`` computes it (``compute_surface_dice_at_tolerance``).
- HD95: for each surface, the distance from the other that 95 % of its area does not exceed; the larger of the two, as
  in ``surface-distance`` (``compute_robust_hausdorff``). MONAI counts edge voxels instead of areas.
- ASSD: the mean distance over the area of both surfaces; the mean of the two values of ``surface-distance``
  (``compute_average_surface_distance``), weighted by the two areas.
- Lesion-wise F1: see :mod:`satunet.evaluation.scoring.measures.lesions`.

All are computed inside the joint bounding box of a class in reference and prediction, which changes nothing, because
outside it both are background. Distances and areas are physical; voxels need not be isotropic.

Voxels that nobody labelled do not count: predictions there are removed, and a surface that borders on them has no area,
because there the reference ends with its annotation and not with the structure.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from satunet.evaluation.scoring.label_index import grown_box, union_box
from satunet.evaluation.scoring.masks import LabelMapMasks, Masks
from satunet.evaluation.scoring.measures.lesions import LesionCounts, count_lesions
from satunet.evaluation.scoring.measures.surface import distances, find_surface, margin_of, search_radius, touched
from satunet.evaluation.scoring.rules import Rules
from satunet.geometry import box_of

_DEFAULT = Rules()
_PERCENT = 0.95


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Scores of one class in one case; ``nan`` if the absence policy leaves it out or it was not asked for.

    Attributes:
        dsc: Dice similarity coefficient, 0 to 1.
        nsd: Normalised surface Dice, 0 to 1.
        hd95_mm: 95th percentile of the Hausdorff distance.
        assd_mm: Average symmetric surface distance.
        lesion_f1: Lesion-wise F1, 0 to 1, of classes that are lesions.
        panoptic_quality: Panoptic quality of their lesions, 0 to 1.
        lesions: Counts that both are computed from.
        reference_voxels: Number of voxels of the class in the reference.
        prediction_voxels: Number of voxels of the class in the prediction.
    """

    dsc: float
    nsd: float
    hd95_mm: float = math.nan
    assd_mm: float = math.nan
    lesion_f1: float = math.nan
    panoptic_quality: float = math.nan
    lesions: LesionCounts | None = None
    reference_voxels: int
    prediction_voxels: int


_LEFT_OUT = Scores(dsc=math.nan, nsd=math.nan, reference_voxels=0, prediction_voxels=0)


def score_masks(
    reference: NDArray[np.bool_],
    prediction: NDArray[np.bool_],
    spacing_mm: Sequence[float],
    *,
    rules: Rules = _DEFAULT,
    class_name: str = "",
    lesion: bool = False,
) -> Scores:
    """Score one mask.

    Args:
        reference: (X, Y, Z) boolean.
        prediction: (X, Y, Z) boolean, on the same grid.
        spacing_mm: Distance between voxel centres along (X, Y, Z).
        rules: Tolerance, absence policy, metrics.
        class_name: Class of the mask, for rules that differ by class.
        lesion: Whether lesions are counted one by one.

    Raises:
        ValueError: Shapes differ or are not three-dimensional, or a spacing is invalid.
    """
    _check(reference, prediction, spacing_mm)
    found = [box for mask in (reference, prediction) if (box := box_of(mask)) is not None]
    if not found:
        return _absent(0, 0, rules, lesion)
    box = union_box(found)
    return _score(reference[box], prediction[box], spacing_mm, rules, class_name, lesion)


def score_label_maps(
    reference: NDArray[np.integer[Any]],
    prediction: NDArray[np.integer[Any]],
    spacing_mm: Sequence[float],
    classes: Mapping[str, Sequence[int]],
    *,
    prediction_classes: Mapping[str, Sequence[int]] | None = None,
    ignore_id: int | None = None,
    rules: Rules = _DEFAULT,
    lesions: Collection[str] = (),
) -> dict[str, Scores]:
    """Score every class of two label maps; each map is searched once, whatever the number of classes.

    Args:
        reference: (X, Y, Z) ids, not negative.
        prediction: (X, Y, Z) ids, not negative, on the same grid.
        spacing_mm: Distance between voxel centres along (X, Y, Z).
        classes: Class → ids that together make it up in the reference.
        prediction_classes: The same for the prediction, if its ids differ; a class that is not listed was not
            predicted.
        ignore_id: Reference id of voxels that nobody labelled; predictions there do not count.
        rules: Tolerances, absence policy, metrics.
        lesions: Classes whose lesions are counted one by one.

    Returns:
        Class → scores, in the order of ``classes``.

    Raises:
        ValueError: As in :func:`score_masks`, or a map holds negative ids.
    """
    _check(reference, prediction, spacing_mm)
    here = LabelMapMasks(reference, {name: tuple(ids) for name, ids in classes.items()})
    in_prediction = classes if prediction_classes is None else prediction_classes
    there = LabelMapMasks(prediction, {name: tuple(in_prediction.get(name, ())) for name in classes})
    ignored = None if ignore_id is None else reference == ignore_id
    return {
        name: score_class(here, there, name, spacing_mm, rules, lesion=name in lesions, ignored=ignored)
        for name in classes
    }


def score_class(
    reference: Masks,
    prediction: Masks,
    name: str,
    spacing_mm: Sequence[float],
    rules: Rules,
    *,
    lesion: bool = False,
    ignored: NDArray[np.bool_] | None = None,
) -> Scores:
    """Score one class that reference and prediction both know.

    Args:
        reference: Masks of the reference.
        prediction: Masks of the prediction, on the same grid.
        name: The class.
        spacing_mm: Distance between voxel centres along (X, Y, Z).
        rules: Tolerances, absence policy, metrics.
        lesion: Whether lesions are counted one by one.
        ignored: (X, Y, Z) voxels that nobody labelled; predictions there do not count.
    """
    if ignored is not None and ignored.all():
        return _LEFT_OUT  # no voxel was labelled, so it is not even known whether the class is absent
    found = [b for b in (reference.box(name), prediction.box(name)) if b is not None]
    if not found:
        return _absent(0, 0, rules, lesion)
    box = union_box(found)
    if ignored is None:
        return _score(reference.mask(name, box), prediction.mask(name, box), spacing_mm, rules, name, lesion)
    box = grown_box(box, ignored.shape)  # a surface may border on ignored voxels outside the masks' box
    blind = ignored[box]
    predicted = prediction.mask(name, box) & ~blind
    return _score(reference.mask(name, box), predicted, spacing_mm, rules, name, lesion, blind)


def _score(
    reference: NDArray[np.bool_],
    prediction: NDArray[np.bool_],
    spacing_mm: Sequence[float],
    rules: Rules,
    class_name: str,
    lesion: bool,
    blind: NDArray[np.bool_] | None = None,
) -> Scores:
    n_reference, n_prediction = int(np.count_nonzero(reference)), int(np.count_nonzero(prediction))
    counts = count_lesions(reference, prediction) if lesion and (n_reference or n_prediction) else None
    if not n_reference or not n_prediction:
        return _absent(n_reference, n_prediction, rules, lesion, counts)
    dsc = 2 * int(np.count_nonzero(reference & prediction)) / (n_reference + n_prediction)
    nsd, hd95, assd = _surface_scores(reference, prediction, spacing_mm, rules.tolerance_of(class_name), rules, blind)
    return Scores(
        dsc=dsc,
        nsd=nsd,
        hd95_mm=hd95,
        assd_mm=assd,
        lesion_f1=math.nan if counts is None else counts.f1,
        panoptic_quality=math.nan if counts is None else counts.panoptic_quality,
        lesions=counts,
        reference_voxels=n_reference,
        prediction_voxels=n_prediction,
    )


def _surface_scores(
    reference: NDArray[np.bool_],
    prediction: NDArray[np.bool_],
    spacing_mm: Sequence[float],
    tolerance_mm: float,
    rules: Rules,
    blind: NDArray[np.bool_] | None,
) -> tuple[float, float, float]:
    """NSD, HD95 and ASSD of two masks that are not empty; ``nan`` if all of their surface borders on ``blind``."""
    radius = search_radius(spacing_mm, None if rules.distances else tolerance_mm)
    margin = margin_of(spacing_mm, radius)
    surfaces = [find_surface(mask, margin) for mask in (reference, prediction)]
    areas = [surface.areas(spacing_mm) for surface in surfaces]
    if blind is not None and blind.any():
        hidden = touched(blind, margin).ravel()
        areas = [np.where(hidden[surface.places], 0.0, area) for surface, area in zip(surfaces, areas, strict=True)]
    most = math.inf if rules.distances else tolerance_mm
    found = [
        distances(one, other, spacing_mm=spacing_mm, radius_mm=radius, most_mm=most)
        for one, other in (surfaces, reversed(surfaces))
    ]
    whole = sum(float(a.sum()) for a in areas)
    if not whole:
        return math.nan, math.nan, math.nan
    close = sum(float(a[d <= tolerance_mm].sum()) for a, d in zip(areas, found, strict=True))
    if not rules.distances:
        return close / whole, math.nan, math.nan
    assd = sum(float(a @ d) for a, d in zip(areas, found, strict=True)) / whole
    hd95 = max(_percentile(d, a) for d, a in zip(found, areas, strict=True) if a.any())
    return close / whole, hd95, assd


def _percentile(lengths: NDArray[np.float64], areas: NDArray[np.float64]) -> float:
    """The distance that 95 % of the area does not exceed."""
    order = np.argsort(lengths)
    share = np.cumsum(areas[order]) / areas.sum()
    return float(lengths[order][min(int(np.searchsorted(share, _PERCENT)), len(order) - 1)])


def _absent(
    n_reference: int, n_prediction: int, rules: Rules, lesion: bool, counts: LesionCounts | None = None
) -> Scores:
    value = rules.absence.score(n_reference, n_prediction)
    distance = rules.absence.distance_mm(n_reference, n_prediction) if rules.distances else math.nan
    return Scores(
        dsc=value,
        nsd=value,
        hd95_mm=distance,
        assd_mm=distance,
        lesion_f1=value if lesion else math.nan,
        panoptic_quality=value if lesion else math.nan,
        lesions=counts,
        reference_voxels=n_reference,
        prediction_voxels=n_prediction,
    )


def _check(reference: NDArray[Any], prediction: NDArray[Any], spacing_mm: Sequence[float]) -> None:
    if reference.ndim != 3 or reference.shape != prediction.shape:
        raise ValueError(
            f"reference and prediction must be volumes of one shape, got {reference.shape} and {prediction.shape}"
        )
    if len(spacing_mm) != 3 or not all(math.isfinite(s) and s > 0 for s in spacing_mm):
        raise ValueError(f"spacing_mm must be three positive numbers, got {tuple(spacing_mm)}")
