"""Windows over a volume and their weights.

A window has the plan's patch size; neighbours overlap by the share asked for, and a Gaussian (sigma 1/8 of the
patch, as in nnU-Net and SAT) weighs a window's centre above its border.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import product

import numpy as np
from numpy.typing import NDArray

Axes = tuple[int, int, int]


def window_starts(shape: Sequence[int], patch: Sequence[int], overlap: float) -> list[Axes]:
    """First voxels of the windows that cover a volume at least as large as the patch.

    Args:
        shape: (X, Y, Z).
        patch: Of a window; not larger than ``shape``.
        overlap: Share of a window that its neighbour covers too, in [0, 1).
    """
    axes = []
    for n, p in zip(shape, patch, strict=True):
        count = int(np.ceil((n - p) / max(1.0, p * (1 - overlap)))) + 1
        axes.append([round(i * (n - p) / max(1, count - 1)) for i in range(count)])
    return [(x, y, z) for x, y, z in product(*axes)]


@lru_cache(maxsize=4)
def gaussian_weights(patch: Axes, sigma: float = 1 / 8) -> NDArray[np.float32]:
    """Weights of a window's voxels, (X, Y, Z), at most 1 and never 0."""
    profiles = []
    for size in patch:
        place = (np.arange(size) - (size - 1) / 2) / (size * sigma)
        profiles.append(np.exp(-0.5 * place**2))
    weights = profiles[0][:, None, None] * profiles[1][None, :, None] * profiles[2][None, None, :]
    # In a corner the product underflows in half precision; voxels there must still be covered by something.
    return np.maximum(weights, 1e-3).astype(np.float32)
