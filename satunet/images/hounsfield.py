"""CT in Hounsfield units, also from files that store it with an offset; every reader of CT voxels uses this module."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

_WITHOUT_INTERCEPT = 1024.0
OFFSETS = frozenset({0.0, _WITHOUT_INTERCEPT})
"""All values that :func:`hounsfield_offset` can return."""
_BONE = 1100
_ABOVE_LUNG = 300
_LEAST_TISSUE = 0.02
_MOSTLY_SOFT = 0.65


def hounsfield_offset(volume: NDArray[Any]) -> float:
    """Offset of a CT's voxels from HU: 0, or 1024 if a file holds unsigned DICOM values without their intercept.

    A file with the offset has no negative voxel: air lies at 0, lung below 300, and most of the rest in a narrow band
    around 1024, where water and soft tissue then are. In HU, values in that band are dense bone, and a scan of bone
    always has negative voxels of fat or air as well; in MRI, tissues spread over the whole range. Measured on 109 real
    scans: of the voxels above 300, at least 78 % lie in the band in CT with an offset, and at most 49 % in MRI and PET.
    If the offset were not removed, clipping to [-500, 1000] HU would erase all soft tissue.

    Args:
        volume: A whole scan, of any shape; padding with zeros makes no difference.
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
    """A CT's voxels in HU: the same array if it has no offset, else a new one in float32."""
    offset = hounsfield_offset(volume)
    return volume.astype(np.float32) - np.float32(offset) if offset else volume
