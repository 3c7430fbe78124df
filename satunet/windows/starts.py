"""Windows over a volume and the weights of their voxels.

A window has the plan's patch size, and neighbouring windows overlap by a given share. A Gaussian (sigma 1/8 of the
patch, as in nnU-Net and SAT) gives a window's centre more weight than its border, where the network sees less context.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from itertools import product

import numpy as np
from numpy.typing import NDArray

from satunet.types import Axes


def window_starts(shape: Sequence[int], patch: Sequence[int], overlap: float) -> list[Axes]:
    """First voxels of the windows that cover a volume at least as large as the patch, evenly spread.

    Args:
        shape: (X, Y, Z).
        patch: Size of a window; not larger than ``shape``.
        overlap: Smallest share of a window that is also covered by its neighbour, in [0, 1).
    """
    axes = []
    for n, p in zip(shape, patch, strict=True):
        assert n >= p, f"a volume of {tuple(shape)} has no window of {tuple(patch)}; pad it first"
        count = math.ceil((n - p) / max(1.0, p * (1 - overlap))) + 1
        axes.append([round(i * (n - p) / max(1, count - 1)) for i in range(count)])
    return [(x, y, z) for x, y, z in product(*axes)]


@lru_cache(maxsize=4)
def gaussian_weights(patch: Axes, sigma: float = 1 / 8) -> NDArray[np.float32]:
    """Weights of a window's voxels, (X, Y, Z) float32, 1 in the middle and never 0.

    Args:
        patch: Size of a window.
        sigma: Standard deviation, as a share of the patch.
    """
    profiles = []
    for size in patch:
        place = (np.arange(size) - (size - 1) / 2) / (size * sigma)
        profiles.append(np.exp(-0.5 * place**2))
    # A corner is 4 sigma away along each axis: its weight exp(-24) is far above the smallest float32.
    weights = profiles[0][:, None, None] * profiles[1][None, :, None] * profiles[2][None, None, :]
    result: NDArray[np.float32] = weights.astype(np.float32)
    return result
