"""Dense numbering of label ids: some brain atlases have ids above 600 million, too many for lookup tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

_SMALL = 1 << 16


def dense_ids(labels: NDArray[np.integer[Any]]) -> tuple[Sequence[int], NDArray[np.integer[Any]]]:
    """The ids of a label map and, for each voxel, the position of its id among them; 0 has the position 0.

    Args:
        labels: Ids that are not negative, of any shape.

    Returns:
        The ids, always beginning with 0; if the highest is small, all numbers up to it. The positions, in the shape of
        ``labels``; if ids are small, ``labels`` itself.
    """
    highest = int(labels.max(initial=0))
    if highest < _SMALL:
        return range(highest + 1), labels
    ids, places = np.unique(labels, return_inverse=True)
    if ids[0]:
        ids, places = np.concatenate([[0], ids]), places + 1
    return [int(i) for i in ids], places.reshape(labels.shape).astype(np.int32)
