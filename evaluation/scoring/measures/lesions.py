"""Scores over single lesions.

A lesion is a connected component (26 neighbours). It is found if the other mask has a voxel in it, the rule of
ISLES 2022 (arXiv 2206.06694): size does not matter, and one large prediction may find several lesions. Panoptic quality
(Kirillov 2019, arXiv 1801.00868) is stricter: a lesion and its prediction match only if their intersection over union
exceeds one half, and its value counts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class LesionCounts:
    """Lesions of one class in one case.

    Attributes:
        reference: Number of lesions of the reference.
        found: Number of lesions of the reference that the prediction touches.
        predicted: Number of lesions of the prediction.
        false: Number of lesions of the prediction that touch none of the reference.
        matched: Number of pairs, a lesion from each mask, whose intersection over union exceeds one half.
        overlap: Sum of the intersections over unions of these pairs.
    """

    reference: int
    found: int
    predicted: int
    false: int
    matched: int
    overlap: float

    @property
    def f1(self) -> float:
        """2 TP / (2 TP + FP + FN); undefined without any lesion, which the caller has to handle."""
        missed = self.reference - self.found
        return 2 * self.found / (2 * self.found + self.false + missed)

    @property
    def panoptic_quality(self) -> float:
        """Sum of the matched overlaps, divided by TP + FP / 2 + FN / 2; undefined without any lesion, as for F1."""
        return 2 * self.overlap / (self.reference + self.predicted)


def count_lesions(reference: NDArray[np.bool_], prediction: NDArray[np.bool_]) -> LesionCounts:
    """Count the lesions of two (X, Y, Z) masks that are not both empty."""
    a, n_a = _components(reference)
    b, n_b = _components(prediction)
    both = reference & prediction
    found, touched = len(np.unique(a[both])), len(np.unique(b[both]))
    overlaps = matched_overlaps(a, b)
    return LesionCounts(
        reference=n_a,
        found=found,
        predicted=n_b,
        false=n_b - touched,
        matched=len(overlaps),
        overlap=float(overlaps.sum()),
    )


def matched_overlaps(a: NDArray[np.integer[Any]], b: NDArray[np.integer[Any]]) -> NDArray[np.float64]:
    """Intersections over unions above one half; each structure has at most one.

    Args:
        a: (X, Y, Z) number of each voxel's structure, 0 outside.
        b: The same for the other label map.
    """
    both = (a > 0) & (b > 0)
    if not both.any():
        return np.zeros(0)
    sizes_a, sizes_b = np.bincount(a.ravel()), np.bincount(b.ravel())
    pairs, shared = np.unique(np.stack((a[both], b[both])), axis=1, return_counts=True)
    overlaps = shared / (sizes_a[pairs[0]] + sizes_b[pairs[1]] - shared)
    return np.asarray(overlaps[overlaps > 0.5], dtype=np.float64)


def _components(mask: NDArray[np.bool_]) -> tuple[NDArray[Any], int]:
    """(X, Y, Z) number of each voxel's lesion, 0 outside, and the number of lesions."""
    import cc3d

    # Padded, because cc3d 4.1 has room for too few components in a small box whose every other voxel is one.
    padded, count = cc3d.connected_components(np.pad(mask, 1), connectivity=26, return_N=True)
    return padded[1:-1, 1:-1, 1:-1], int(count)
