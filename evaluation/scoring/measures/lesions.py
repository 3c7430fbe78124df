"""Lesions counted one by one.

A lesion is a connected component (26 neighbours). It is found if the other mask has a voxel in it, the rule of
ISLES 2022 (arXiv 2206.06694): size does not matter, and one large prediction may find several lesions.
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
        reference: Lesions of the reference.
        found: Those that the prediction touches.
        predicted: Lesions of the prediction.
        false: Those that touch none of the reference.
    """

    reference: int
    found: int
    predicted: int
    false: int

    @property
    def f1(self) -> float:
        """2 TP / (2 TP + FP + FN); the caller decides what it is where both have no lesion."""
        missed = self.reference - self.found
        return 2 * self.found / (2 * self.found + self.false + missed)


def count_lesions(reference: NDArray[np.bool_], prediction: NDArray[np.bool_]) -> LesionCounts:
    """Count the lesions of two (X, Y, Z) masks that are not both empty."""
    a, n_a = _components(reference)
    b, n_b = _components(prediction)
    both = reference & prediction
    found, touched = len(np.unique(a[both])), len(np.unique(b[both]))
    return LesionCounts(reference=n_a, found=found, predicted=n_b, false=n_b - touched)


def _components(mask: NDArray[np.bool_]) -> tuple[NDArray[Any], int]:
    """(X, Y, Z) number of each voxel's lesion, 0 outside, and how many there are."""
    import cc3d

    # Padded, because cc3d 4.1 has room for too few components in a small box whose every other voxel is one.
    padded, count = cc3d.connected_components(np.pad(mask, 1), connectivity=26, return_N=True)
    return padded[1:-1, 1:-1, 1:-1], int(count)
