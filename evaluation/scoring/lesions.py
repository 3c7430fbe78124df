"""Lesions counted one by one.

A lesion is a connected component (26 neighbours). It is found if the other mask has a voxel in it, the rule of
ISLES 2022 (arXiv 2206.06694): size does not matter, and one large prediction may find several lesions.
"""

from __future__ import annotations

from dataclasses import dataclass

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
    import cc3d

    a, n_a = cc3d.connected_components(reference, connectivity=26, return_N=True)
    b, n_b = cc3d.connected_components(prediction, connectivity=26, return_N=True)
    both = reference & prediction
    found, touched = len(np.unique(a[both])), len(np.unique(b[both]))
    return LesionCounts(reference=int(n_a), found=found, predicted=int(n_b), false=int(n_b) - touched)
