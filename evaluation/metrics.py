"""Scores of one case: Dice similarity coefficient and normalised surface Dice of every class.

Classes are unions of label ids, so that a class costs nothing but its own bounding box: both label maps are looked
through once, and everything else happens inside the box of a class.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import find_objects

from satunet.evaluation.surface import Mask, Spacing, surface_distances

Box = tuple[slice, slice, slice]


@dataclass(frozen=True, kw_only=True)
class EmptyPolicy:
    """Scores where a mask is empty; NaN leaves the case out of the means.

    Attributes:
        both: Neither mask has a voxel.
        reference: Only the reference is empty.
        prediction: Only the prediction is empty.
    """

    both: float
    reference: float = 0.0
    prediction: float = 0.0


POLICIES = {"sat": EmptyPolicy(both=1.0), "nnunet": EmptyPolicy(both=math.nan)}
"""``sat``: a class that is rightly absent scores 1 (arXiv 2312.17183). ``nnunet``: it does not count."""


@dataclass(frozen=True, kw_only=True)
class ClassScore:
    """Scores of one class in one case.

    Attributes:
        dsc: Dice similarity coefficient, 0 to 1, or NaN by policy.
        nsd: Normalised surface Dice at the tolerance, 0 to 1, or NaN by policy.
        reference_ml: Volume of the reference.
        prediction_ml: Volume of the prediction.
    """

    dsc: float
    nsd: float
    reference_ml: float
    prediction_ml: float


class LabelMapClasses:
    """Masks of classes out of a label map.

    Args:
        labels: (X, Y, Z) ids.
        classes: Class → ids whose union it is.
    """

    def __init__(self, labels: NDArray[Any], classes: Mapping[str, Sequence[int]]) -> None:
        self._labels = labels
        self._classes = classes
        self._boxes = find_objects(labels)

    def box(self, name: str) -> Box | None:
        """Bounding box of a class, or ``None`` if it has no voxel."""
        boxes = [b for i in self._classes.get(name, ()) if 0 < i <= len(self._boxes) and (b := self._boxes[i - 1])]
        return union_box(boxes)

    def mask(self, name: str, box: Box) -> Mask:
        """Mask of a class inside a box."""
        view = self._labels[box]
        ids = list(self._classes.get(name, ()))
        result: Mask = view == ids[0] if len(ids) == 1 else np.isin(view, ids)
        return result


class MaskClasses:
    """Masks of classes that are stored one by one.

    Args:
        load: Class → (X, Y, Z) mask, or ``None`` if there is none.
    """

    def __init__(self, load: Callable[[str], Mask | None]) -> None:
        self._load = load
        self._last: tuple[str, Mask | None] = ("", None)

    def _get(self, name: str) -> Mask | None:
        if self._last[0] != name:
            self._last = (name, self._load(name))
        return self._last[1]

    def box(self, name: str) -> Box | None:
        """Bounding box of a class, or ``None`` if it has no voxel."""
        mask = self._get(name)
        found = find_objects(mask.astype(np.uint8)) if mask is not None else []
        return found[0] if found else None

    def mask(self, name: str, box: Box) -> Mask:
        """Mask of a class inside a box."""
        mask = self._get(name)
        return np.zeros(tuple(s.stop - s.start for s in box), dtype=bool) if mask is None else mask[box].astype(bool)


def score_class(
    name: str,
    reference: LabelMapClasses | MaskClasses,
    prediction: LabelMapClasses | MaskClasses,
    spacing_mm: Spacing,
    *,
    tolerance_mm: float = 1.0,
    policy: EmptyPolicy = POLICIES["sat"],
) -> ClassScore:
    """Score one class of one case; both sides are on one grid.

    Args:
        name: The class.
        reference: Masks of the reference.
        prediction: Masks of the prediction.
        spacing_mm: Spacing of the grid.
        tolerance_mm: Of the NSD.
        policy: Scores where a mask is empty.
    """
    boxes = [box for side in (reference, prediction) if (box := side.box(name)) is not None]
    joint = union_box(boxes)
    if joint is None:
        return ClassScore(dsc=policy.both, nsd=policy.both, reference_ml=0.0, prediction_ml=0.0)
    ref, pred = reference.mask(name, joint), prediction.mask(name, joint)
    voxel_ml = float(np.prod(spacing_mm)) / 1000
    ref_count, pred_count = int(np.count_nonzero(ref)), int(np.count_nonzero(pred))
    volumes = {"reference_ml": ref_count * voxel_ml, "prediction_ml": pred_count * voxel_ml}
    if ref_count == 0 or pred_count == 0:
        value = policy.reference if ref_count == 0 else policy.prediction
        return ClassScore(dsc=value, nsd=value, **volumes)
    dsc = 2 * int(np.count_nonzero(ref & pred)) / (ref_count + pred_count)
    nsd = surface_distances(ref, pred, spacing_mm).surface_dice(tolerance_mm)
    return ClassScore(dsc=dsc, nsd=nsd, **volumes)


def union_box(boxes: Sequence[Box]) -> Box | None:
    """Smallest box around boxes; ``None`` if there are none."""
    if not boxes:
        return None
    x, y, z = (slice(min(b[a].start for b in boxes), max(b[a].stop for b in boxes)) for a in range(3))
    return x, y, z
