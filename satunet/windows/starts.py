"""Windows over a volume: where they start, the padding that the first may need, and the weights of their voxels.

A window has the plan's patch size, and neighbouring windows overlap by a given share. A Gaussian (sigma 1/8 of the
patch, as in nnU-Net and SAT) gives a window's centre more weight than its border, where the network sees less context.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from itertools import product

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from satunet.types import Axes, Box


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


def pad_to(volume: Tensor, patch: Sequence[int]) -> tuple[Tensor, Box]:
    """Pad (X, Y, Z) evenly with zeros to at least the patch; also returns the box of the volume in the padded one.

    Zero is the mean of a normalised scan, and training crops are padded with zeros, too.
    """
    widths: list[int] = []
    inside: list[slice] = []
    for n, p in zip(volume.shape, patch, strict=True):
        missing = max(0, p - n)
        before = missing // 2
        inside.append(slice(before, before + n))
        widths = [before, missing - before, *widths]  # torch pads the last axis first
    return torch.nn.functional.pad(volume, widths), (inside[0], inside[1], inside[2])


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
