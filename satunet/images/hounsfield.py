"""CT in Hounsfield units, whatever a file adds to them: everything that reads a CT's voxels asks here."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

_WITHOUT_INTERCEPT = 1024.0
_BONE = 1100
_ABOVE_LUNG = 300
_LEAST_TISSUE = 0.02
_MOSTLY_SOFT = 0.65


def hounsfield_offset(volume: NDArray[Any]) -> float:
    """What a CT's voxels are above their HU: 0, or 1024 in unsigned DICOM values without their intercept.

    Such a file has no negative voxel: air lies at 0, lung below 300, and of everything else most in a narrow band around
    1024, where water and soft tissue then are. In HU these values are dense bone, which never comes without a negative
    voxel of fat or air beside it; in MRI, tissues spread over the whole range. Measured on 109 real scans: 78 % and more
    of what exceeds 300 lies there in CT with an offset, 49 % and less in MRI and PET. Clipped to [-500, 1000] HU as it
    is, such a scan would lose all soft tissue.

    Args:
        volume: A whole scan, of any shape; zeros around it make no difference.
    """
    if volume.size == 0 or volume.min() < 0 or volume.max() < _BONE:
        return 0.0
    flat = volume.ravel(order="K")  # in the order of memory: no copy
    positive = flat[flat > 0]
    tissue = positive[positive > _ABOVE_LUNG]
    if tissue.size < _LEAST_TISSUE * positive.size:
        return 0.0
    soft = np.count_nonzero((tissue >= 850) & (tissue <= 1200))
    return _WITHOUT_INTERCEPT if soft > _MOSTLY_SOFT * tissue.size else 0.0


def to_hounsfield(volume: NDArray[Any]) -> NDArray[Any]:
    """A CT's voxels in HU: the same array where they are that already, else float32."""
    offset = hounsfield_offset(volume)
    return volume.astype(np.float32) - np.float32(offset) if offset else volume
