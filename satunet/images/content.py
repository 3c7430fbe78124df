"""What a scan is by its voxels alone."""

from __future__ import annotations

import hashlib

import numpy as np

from satunet.geometry import reorient
from satunet.images.hounsfield import hounsfield_offset
from satunet.images.image import Image


def voxel_digest(image: Image) -> str:
    """Hash of a scan's voxels, the same whatever the file's name, format, axes, number type and compression.

    Returns:
        32 letters; empty for a constant volume, which is no one's scan.
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
