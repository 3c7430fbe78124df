"""What a label map of organs lacks before it can be painted: a body around the organs, a spine, lungs above the
liver.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

BONE, CANAL, AIR = 200, 201, 202
"""Ids of tissues that are painted and that nobody labelled."""
FILLER = 210
"""First id of the regions between the organs."""
MUSCLE = 209


def between(
    tissues: NDArray[np.int64], inside: int, one: int, other: int, spacing_mm: tuple[float, float, float]
) -> NDArray[np.bool_]:
    """Voxels of ``inside`` 1.5 to 3.5 mm from ``one`` and at most 5 mm from ``other``; (X, Y, Z)."""
    result = np.zeros(tissues.shape, bool)
    places = np.argwhere(tissues == one)
    if not len(places):
        return result
    box = tuple(
        slice(max(0, int(low - 12 / s)), int(high + 12 / s))
        for low, high, s in zip(places.min(0), places.max(0), spacing_mm, strict=True)
    )
    part = tissues[box]
    near = ndimage.distance_transform_edt(part != one, sampling=spacing_mm)
    far = ndimage.distance_transform_edt(part != other, sampling=spacing_mm)
    result[box] = (part == inside) & (near >= 1.5) & (near <= 3.5) & (far <= 5)
    return result


def hull_of_slices(mask: NDArray[np.bool_], spacing_mm: tuple[float, float, float]) -> NDArray[np.bool_]:
    """Convex hull of every axial slice of (X, Y, Z), with 30 mm of slices above and below in it."""
    from scipy.spatial import ConvexHull, QhullError

    reach = max(1, round(30 / spacing_mm[2]))
    grown = ndimage.maximum_filter1d(mask.astype(np.uint8), 2 * reach + 1, axis=2) > 0
    result = np.zeros_like(mask)
    x, y = np.meshgrid(np.arange(mask.shape[0]), np.arange(mask.shape[1]), indexing="ij")
    for z in range(mask.shape[2]):
        points = np.argwhere(grown[:, :, z])
        if len(points) < 10:
            continue
        try:
            hull = ConvexHull(points[ConvexHull(points).vertices])
        except QhullError:
            continue
        inside = np.ones(x.shape, bool)
        for a, b, c in hull.equations:
            inside &= a * x + b * y + c <= 1e-6
        result[:, :, z] = inside
    return result


def depth_outside(hull: NDArray[np.bool_], spacing_mm: tuple[float, float, float]) -> NDArray[np.int16]:
    """Millimetres from each voxel to the hull in its slice, 0 inside, at most 200."""
    depth = np.full(hull.shape, 200, np.int16)
    for z in range(hull.shape[2]):
        if hull[:, :, z].any():
            found = ndimage.distance_transform_edt(~hull[:, :, z], sampling=spacing_mm[:2])
            depth[:, :, z] = np.minimum(found, 200)
    return depth


def add_spine(
    tissues: NDArray[np.int64], vessels: tuple[int, ...], spacing_mm: tuple[float, float, float]
) -> NDArray[np.int64]:
    """Put vertebrae behind the great vessels: a cylinder of bone with a canal behind it, in every slice that shows one.

    Args:
        tissues: (X, Y, Z) ids in RAS; 0 where nobody labelled.
        vessels: Ids of aorta and inferior vena cava.
        spacing_mm: Spacing of the array.
    """
    result = tissues.copy()
    shown = np.isin(tissues, vessels)
    slices = np.flatnonzero(shown.any((0, 1)))
    if not len(slices):
        return result
    centres = np.array([np.argwhere(shown[:, :, z]).mean(0) for z in slices])
    backs = np.array([np.percentile(np.argwhere(shown[:, :, z])[:, 1], 10) for z in slices])
    smooth = 30 / spacing_mm[2]
    mid = ndimage.gaussian_filter1d(centres[:, 0], smooth, mode="nearest")
    back = ndimage.gaussian_filter1d(backs, smooth, mode="nearest")
    x, y = np.meshgrid(np.arange(tissues.shape[0]), np.arange(tissues.shape[1]), indexing="ij")
    for z in range(tissues.shape[2]):
        i = int(np.clip(np.searchsorted(slices, z), 0, len(slices) - 1))
        right = (x - mid[i]) * spacing_mm[0]
        behind = (back[i] - y) * spacing_mm[1]
        free = result[:, :, z] == 0
        body = (right / 23) ** 2 + ((behind - 20) / 17) ** 2 < 1
        canal = (right / 10) ** 2 + ((behind - 46) / 9) ** 2 < 1
        arch = ((right / 20) ** 2 + ((behind - 48) / 16) ** 2 < 1) & (behind > 36)
        spinous = (np.abs(right) < 4) & (behind > 55) & (behind < 80)
        muscle = ((np.abs(right) - 32) / 26) ** 2 + ((behind - 55) / 24) ** 2 < 1
        result[:, :, z][free & muscle] = MUSCLE
        result[:, :, z][free & (body | arch | spinous)] = BONE
        result[:, :, z][free & canal] = CANAL
    return result


def add_lungs(
    tissues: NDArray[np.int64], liver: int, hull: NDArray[np.bool_], spacing_mm: tuple[float, float, float]
) -> NDArray[np.int64]:
    """Put lungs around the dome of the liver: what is free, inside the hull and higher than 35 mm under its top."""
    slices = np.flatnonzero((tissues == liver).any((0, 1)))
    if not len(slices):
        return tissues
    start = int(slices[-1] - 35 / spacing_mm[2])
    result = tissues.copy()
    near = ndimage.binary_erosion(hull, iterations=max(1, round(8 / spacing_mm[0])))
    above = np.zeros(tissues.shape, bool)
    above[:, :, max(0, start) :] = True
    result[(tissues == 0) & above & near] = AIR
    return result
