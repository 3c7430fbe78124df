"""Measures of a mask: volume, surface, axes, intensities, and on CT the shares of tissues by HU range.

Volume, surface, axes, mean and deviation follow the definitions of the Image Biomarker Standardisation Initiative
(arXiv 1612.07003), so that they agree with radiomics software and have DICOM codes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from satunet.geometry import Grid
from satunet.prediction.masks.boxed import BoxedMask

HU_CLASSES = {"air": (-math.inf, -200.0), "fat": (-200.0, -30.0), "soft": (-30.0, 150.0), "dense": (150.0, math.inf)}
"""Name of a share → its range in HU (lower bound included): air and lung, fat, soft tissue and fluid, bone and
contrast agent."""


@dataclass(frozen=True, kw_only=True)
class Measures:
    """Measures of a mask that is not empty.

    Attributes:
        volume_ml: Number of voxels times their volume (IBSI YEKZ).
        surface_cm2: Area of the surface midway between voxels inside and outside, by marching cubes (IBSI C0JK); voxel steps
            make it up to a tenth larger than a smooth surface.
        major_axis_mm: Four standard deviations of the voxels' centres along their first principal axis (IBSI TDIC). A
            solid ellipsoid is 1.118 (half the root of 5) times as long.
        minor_axis_mm: The same along the second axis (IBSI P9VJ).
        least_axis_mm: The same along the third axis (IBSI 7J51).
        mean: Mean intensity; in HU on CT.
        deviation: Standard deviation of the intensity over all voxels of the mask.
        air: Share of voxels below -200 HU; this and the following shares are ``None`` if the scan is not CT.
        fat: Share of voxels from -200 to -30 HU.
        soft: Share of voxels from -30 to 150 HU.
        dense: Share of voxels at or above 150 HU.
    """

    volume_ml: float
    surface_cm2: float
    major_axis_mm: float
    minor_axis_mm: float
    least_axis_mm: float
    mean: float
    deviation: float
    air: float | None = None
    fat: float | None = None
    soft: float | None = None
    dense: float | None = None


def measure(mask: BoxedMask, grid: Grid, image: NDArray[Any], *, hu_offset: float | None = None) -> Measures | None:
    """Measure a mask; ``None`` if it has no voxel.

    Args:
        mask: Mask in the scan's grid.
        grid: Grid of the scan.
        image: (X, Y, Z) voxels of the scan.
        hu_offset: Offset of a CT's stored values from HU (:func:`~satunet.images.hounsfield.hounsfield_offset`);
            ``None`` for other modalities.
    """
    inside = mask.inside
    if not inside.any():
        return None
    values = image[mask.box][inside].astype(np.float64)
    shares: dict[str, float | None] = {}
    if hu_offset is not None:
        values -= hu_offset
        shares = {name: float(((values >= low) & (values < high)).mean()) for name, (low, high) in HU_CLASSES.items()}
    major, minor, least = _axes_mm(inside, grid)
    return Measures(
        volume_ml=int(inside.sum()) * grid.voxel_ml,
        surface_cm2=_surface_mm2(inside, grid) / 100,
        major_axis_mm=major,
        minor_axis_mm=minor,
        least_axis_mm=least,
        mean=float(values.mean()),
        deviation=float(values.std()),
        **shares,
    )


def _axes_mm(inside: NDArray[np.bool_], grid: Grid) -> tuple[float, float, float]:
    """Lengths of the principal axes, from sums over planes: a list of positions would be far larger than the mask."""
    count = int(np.count_nonzero(inside))
    if count < 2:
        return 0.0, 0.0, 0.0
    covariance, places = np.zeros((3, 3)), []
    for axis in range(3):
        profile = inside.sum(axis=tuple(a for a in range(3) if a != axis), dtype=np.float64)
        index = np.arange(profile.size)
        places.append(index - profile @ index / count)
        covariance[axis, axis] = profile @ places[axis] ** 2
    for a, b in ((0, 1), (0, 2), (1, 2)):
        plane = inside.sum(axis=3 - a - b, dtype=np.float64)
        covariance[a, b] = covariance[b, a] = places[a] @ plane @ places[b]
    axes = grid.affine[:3, :3]
    # Sample covariance (divided by the number of voxels minus one), as in the published reference values.
    variances = np.linalg.eigvalsh(axes @ covariance @ axes.T / (count - 1))
    least, minor, major = 4 * np.sqrt(variances.clip(0))
    return float(major), float(minor), float(least)


def _surface_mm2(inside: NDArray[np.bool_], grid: Grid) -> float:
    from skimage.measure import marching_cubes, mesh_surface_area

    vertices, faces, *_ = marching_cubes(np.pad(inside, 1).astype(np.float32), 0.5)
    return float(mesh_surface_area(vertices @ grid.affine[:3, :3].T, faces))
