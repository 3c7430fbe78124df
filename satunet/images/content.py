"""Identity of a scan by its voxels alone."""

from __future__ import annotations

import hashlib

import numpy as np

from satunet.geometry import reorient
from satunet.images.hounsfield import hounsfield_offset
from satunet.images.image import Image


def voxel_digest(image: Image) -> str:
    """Hash of a scan's voxels, independent of the file's name, format, axis order, data type and compression.

    The voxels are hashed in RAS order as float32, a CT in HU.

    Returns:
        32 hexadecimal digits; ``""`` for a constant volume, which identifies no scan.
    """
    if image.array.min() == image.array.max():
        return ""
    turned, _ = reorient(image.array, image.grid, "RAS")
    voxels = np.array(turned, dtype="<f4", order="C")  # a copy, to work on in place
    if offset := hounsfield_offset(image.array):
        voxels -= np.float32(offset)
    digest = hashlib.blake2b(repr(voxels.shape).encode(), digest_size=16)
    digest.update(voxels.data)
    return digest.hexdigest()
