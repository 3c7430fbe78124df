"""Ids of label maps, however large: brain atlases have some above 600 million, and tables up to there fit nowhere."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

_SMALL = 1 << 16


def dense_ids(labels: NDArray[np.integer[Any]]) -> tuple[Sequence[int], NDArray[np.integer[Any]]]:
    """The ids of a label map and, for each voxel, the place of its id among them; 0 has the place 0.

    Args:
        labels: Ids that are not negative, of any shape.

    Returns:
        Ids, 0 first whether it occurs or not; small ones are all listed, up to the highest. Places, of the shape of
        ``labels``: the same array where ids are small.
    """
    highest = int(labels.max(initial=0))
    if highest < _SMALL:
        return range(highest + 1), labels
    ids, places = np.unique(labels, return_inverse=True)
    if ids[0]:
        ids, places = np.concatenate([[0], ids]), places + 1
    return [int(i) for i in ids], places.reshape(labels.shape).astype(np.int32)
