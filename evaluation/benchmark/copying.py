"""A competitor that never looks at the image: the labels of another scan, stretched to fit.

Any method that claims a good score should beat it. If organs lie at the same place in every crop, it scores well.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from satunet.types import Box


def copied_labels(
    labels: NDArray[np.integer], box: Box, shape: tuple[int, int, int], target: Box
) -> NDArray[np.integer]:
    """Labels of one scan moved to another by the affine that maps box to box, by nearest neighbour.

    Args:
        labels: (X, Y, Z) ids.
        box: Box of the voxels that are not zero in the scan of the labels.
        shape: Shape of the other scan, in the same orientation.
        target: Box of the voxels that are not zero in the other scan.
    """
    index = []
    for n, here, there in zip(shape, box, target, strict=True):
        scale = (here.stop - here.start) / (there.stop - there.start)
        places = here.start + (np.arange(n) + 0.5 - there.start) * scale
        index.append(np.floor(places).astype(int))
    inside = [(i >= 0) & (i < n) for i, n in zip(index, labels.shape, strict=True)]
    clipped = [np.clip(i, 0, n - 1) for i, n in zip(index, labels.shape, strict=True)]
    moved = labels[np.ix_(*clipped)]
    return np.where(inside[0][:, None, None] & inside[1][:, None] & inside[2], moved, 0)
