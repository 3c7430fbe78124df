"""Dice similarity coefficient (DSC) and normalised surface Dice (NSD) of label maps.

Both are computed inside the joint bounding box of a class in reference and prediction, which changes nothing: outside
of it both are background. Distances and areas are physical; nothing assumes isotropic voxels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from satunet.errors import UserError
from satunet.evaluation.surface import close_area, surface_codes

Box = tuple[slice, slice, slice]


@dataclass(frozen=True, kw_only=True)
class AbsencePolicy:
    """What a class scores where it is absent; ``nan`` leaves the case out of that class's mean.

    Attributes:
        name: Name of the policy, stored with the results.
        both: Absent in reference and prediction.
        reference: Absent in the reference, present in the prediction.
        prediction: Present in the reference, absent in the prediction.
    """

    name: str
    both: float
    reference: float
    prediction: float

    def __post_init__(self) -> None:
        for where in ("both", "reference", "prediction"):
            value = getattr(self, where)
            if not (math.isnan(value) or 0 <= value <= 1):
                raise UserError(f"absence policy {self.name!r}: {where} must be nan or between 0 and 1, got {value}")


POLICIES: Mapping[str, AbsencePolicy] = {
    "sat": AbsencePolicy(name="sat", both=1.0, reference=0.0, prediction=0.0),
    "nnunet": AbsencePolicy(name="nnunet", both=math.nan, reference=0.0, prediction=0.0),
}
"""``sat``: rightly finding nothing is right (arXiv 2312.17183). ``nnunet``: it is left out, as nnunetv2 does."""


def absence_policy(policy: str | AbsencePolicy) -> AbsencePolicy:
    """A policy by name.

    Raises:
        UserError: No policy has that name.
    """
    if isinstance(policy, AbsencePolicy):
        return policy
    if policy not in POLICIES:
        raise UserError(f"absence policy {policy!r}: allowed are {', '.join(POLICIES)}")
    return POLICIES[policy]


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Scores of one class in one case.

    Attributes:
        dsc: Dice similarity coefficient, 0 to 1, or ``nan``: left out by the absence policy.
        nsd: Normalised surface Dice, 0 to 1, or ``nan`` where ``dsc`` is.
        reference_voxels: Voxels of the class in the reference.
        prediction_voxels: Voxels of the class in the prediction.
    """

    dsc: float
    nsd: float
    reference_voxels: int
    prediction_voxels: int


def score_masks(
    reference: NDArray[np.bool_],
    prediction: NDArray[np.bool_],
    spacing_mm: Sequence[float],
    *,
    tolerance_mm: float = 1.0,
    policy: str | AbsencePolicy = "sat",
) -> Scores:
    """Score one mask.

    Args:
        reference: (X, Y, Z) boolean.
        prediction: (X, Y, Z) boolean, on the same grid.
        spacing_mm: Distance between voxel centres along (X, Y, Z).
        tolerance_mm: Surfaces closer than or as close as this count as equal in NSD.
        policy: What to score where one or both masks are empty.

    Raises:
        ValueError: Shapes differ or are not three-dimensional, or a spacing or tolerance is not allowed.
    """
    _check(reference, prediction, spacing_mm, tolerance_mm)
    found = [box for mask in (reference, prediction) if (box := _box_of(mask)) is not None]
    if not found:
        return _absent(absence_policy(policy), 0, 0)
    box = _union(found)
    return _score(reference[box], prediction[box], spacing_mm, tolerance_mm, absence_policy(policy))


def score_label_maps(
    reference: NDArray[np.integer[Any]],
    prediction: NDArray[np.integer[Any]],
    spacing_mm: Sequence[float],
    classes: Mapping[str, Sequence[int]],
    *,
    prediction_classes: Mapping[str, Sequence[int]] | None = None,
    ignore_id: int | None = None,
    tolerance_mm: float = 1.0,
    policy: str | AbsencePolicy = "sat",
) -> dict[str, Scores]:
    """Score every class of two label maps; each map is searched once, whatever the number of classes.

    Args:
        reference: (X, Y, Z) ids, not negative.
        prediction: (X, Y, Z) ids, not negative, on the same grid.
        spacing_mm: Distance between voxel centres along (X, Y, Z).
        classes: Class → ids whose union it is, in the reference.
        prediction_classes: The same for the prediction, where its ids differ; a class that is not in it was not
            predicted.
        ignore_id: Reference id of voxels that nobody labelled; what is predicted there does not count.
        tolerance_mm: Surfaces closer than or as close as this count as equal in NSD.
        policy: What to score where a class is absent.

    Returns:
        Class → scores, in the order of ``classes``.

    Raises:
        ValueError: As in :func:`score_masks`, or a map holds negative ids.
    """
    _check(reference, prediction, spacing_mm, tolerance_mm)
    rule = absence_policy(policy)
    if ignore_id is not None:
        prediction = np.where(reference == ignore_id, prediction.dtype.type(0), prediction)
    reference_index, prediction_index = LabelIndex(reference), LabelIndex(prediction)
    in_prediction = classes if prediction_classes is None else prediction_classes
    scores = {}
    for name, ids in classes.items():
        predicted_ids = in_prediction.get(name, ())
        found = [b for b in (reference_index.box(ids), prediction_index.box(predicted_ids)) if b is not None]
        if not found:
            scores[name] = _absent(rule, 0, 0)
            continue
        box = _union(found)
        scores[name] = _score(
            reference_index.mask(ids, box), prediction_index.mask(predicted_ids, box), spacing_mm, tolerance_mm, rule
        )
    return scores


class LabelIndex:
    """A label map with the bounding box of every id, found in one pass.

    Args:
        labels: (X, Y, Z) integers, not negative.

    Raises:
        ValueError: Negative ids.
    """

    def __init__(self, labels: NDArray[np.integer[Any]]) -> None:
        from scipy import ndimage

        if labels.size and int(labels.min()) < 0:
            raise ValueError(f"a label map holds ids that are not negative, got {int(labels.min())}")
        self._highest = int(labels.max(initial=0))
        # find_objects keeps a list of all ids up to the highest, so maps with huge ids are renumbered first.
        self._positions: dict[int, int] | None = None
        if self._highest > 65_535:
            values, inverse = np.unique(labels, return_inverse=True)
            inverse = inverse.reshape(labels.shape)
            shift = 0 if values[0] == 0 else 1
            self._positions = {int(v): i + shift for i, v in enumerate(values)}
            labels = inverse + shift
            self._highest = len(values) - 1 + shift
        self._labels = labels
        signed = labels if labels.dtype.kind == "i" else labels.astype(np.int32)
        self._boxes: list[Box | None] = ndimage.find_objects(signed, max_label=self._highest)

    def box(self, ids: Sequence[int]) -> Box | None:
        """Bounding box of the union of some ids, or ``None`` if none of them occurs."""
        found = [b for i in self._known(ids) if (b := self._boxes[i - 1]) is not None]
        return _union(found) if found else None

    def mask(self, ids: Sequence[int], box: Box) -> NDArray[np.bool_]:
        """Boolean mask of the union of some ids inside a box."""
        chosen = np.zeros(self._highest + 1, dtype=bool)
        chosen[self._known(ids)] = True
        return np.asarray(chosen[self._labels[box]], dtype=bool)

    def _known(self, ids: Sequence[int]) -> list[int]:
        if self._positions is not None:
            ids = [self._positions[i] for i in ids if i in self._positions]
        return [i for i in ids if 0 < i <= self._highest]


def _score(
    reference: NDArray[np.bool_],
    prediction: NDArray[np.bool_],
    spacing_mm: Sequence[float],
    tolerance_mm: float,
    policy: AbsencePolicy,
) -> Scores:
    n_reference, n_prediction = int(np.count_nonzero(reference)), int(np.count_nonzero(prediction))
    if not n_reference or not n_prediction:
        return _absent(policy, n_reference, n_prediction)
    dsc = 2 * int(np.count_nonzero(reference & prediction)) / (n_reference + n_prediction)
    a, b = surface_codes(reference), surface_codes(prediction)
    close_a, area_a = close_area(a, b, spacing_mm=spacing_mm, tolerance_mm=tolerance_mm)
    close_b, area_b = close_area(b, a, spacing_mm=spacing_mm, tolerance_mm=tolerance_mm)
    nsd = (close_a + close_b) / (area_a + area_b)
    return Scores(dsc=dsc, nsd=nsd, reference_voxels=n_reference, prediction_voxels=n_prediction)


def _absent(policy: AbsencePolicy, n_reference: int, n_prediction: int) -> Scores:
    value = policy.prediction if n_reference else policy.reference if n_prediction else policy.both
    return Scores(dsc=value, nsd=value, reference_voxels=n_reference, prediction_voxels=n_prediction)


def _check(reference: NDArray[Any], prediction: NDArray[Any], spacing_mm: Sequence[float], tolerance_mm: float) -> None:
    if reference.ndim != 3 or reference.shape != prediction.shape:
        raise ValueError(
            f"reference and prediction must be volumes of one shape, got {reference.shape} and {prediction.shape}"
        )
    if len(spacing_mm) != 3 or not all(math.isfinite(s) and s > 0 for s in spacing_mm):
        raise ValueError(f"spacing_mm must be three positive numbers, got {tuple(spacing_mm)}")
    if not (math.isfinite(tolerance_mm) and tolerance_mm >= 0):
        raise ValueError(f"tolerance_mm must be a number that is not negative, got {tolerance_mm}")


def _box_of(mask: NDArray[np.bool_]) -> Box | None:
    spans = []
    for axis in range(3):
        others = tuple(a for a in range(3) if a != axis)
        occupied = np.flatnonzero(mask.any(axis=others))
        if not len(occupied):
            return None
        spans.append(slice(int(occupied[0]), int(occupied[-1]) + 1))
    return spans[0], spans[1], spans[2]


def _union(boxes: Sequence[Box]) -> Box:
    x, y, z = (slice(min(b[axis].start for b in boxes), max(b[axis].stop for b in boxes)) for axis in range(3))
    return x, y, z
