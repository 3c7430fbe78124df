"""CT in Hounsfield units, whatever a file adds to them: everything that reads a CT's voxels asks here."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

_WITHOUT_INTERCEPT = 1024.0


def hounsfield_offset(volume: NDArray[Any]) -> float:
    """What a CT's voxels are above their HU: 0, or 1024 in unsigned DICOM values without their intercept.

    Such a file has no negative voxel, and a good part of it lies where water and soft tissue then are, around 1024.
    In HU these values are dense bone, which never comes without a negative voxel of fat or air beside it. Clipped to
    [-500, 1000] HU as it is, such a scan would lose all soft tissue.

    Args:
        volume: A whole scan, of any shape; zeros around it make no difference.
    """
    if volume.min() < 0:
        return 0.0
    positive = volume[volume > 0]
    soft = np.count_nonzero((positive >= 850) & (positive <= 1200))
    return _WITHOUT_INTERCEPT if soft > 0.25 * max(1, positive.size) else 0.0


def to_hounsfield(volume: NDArray[Any]) -> NDArray[Any]:
    """A CT's voxels in HU: the same array where they are that already, else float32."""
    offset = hounsfield_offset(volume)
    return volume.astype(np.float32) - np.float32(offset) if offset else volume
