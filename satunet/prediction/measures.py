"""Measures of a mask: volume, surface, axes, intensities, and on CT the shares of tissues by their HU."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from satunet.geometry import Grid
from satunet.images.hounsfield import hounsfield_offset
from satunet.prediction.masks.boxed import BoxedMask

HU_CLASSES = {"air": (-math.inf, -200.0), "fat": (-200.0, -30.0), "soft": (-30.0, 150.0), "dense": (150.0, math.inf)}
"""Share of the mask → HU from (inclusive) and to: air and lung, fat, soft tissue and fluid, bone and contrast medium."""


@dataclass(frozen=True, kw_only=True)
class Measures:
    """Of a mask that has voxels.

    Attributes:
        volume_ml: Voxels times their volume.
        surface_cm2: Area of the surface through the middle between voxels inside and outside (marching cubes of
            the voxels, as IBSI has it: steps make that of a smooth body up to a tenth larger).
        longest_mm: Longest axis of the ellipsoid with the same second moments.
        middle_mm: Its middle axis.
        shortest_mm: Its shortest axis.
        mean: Mean intensity, on CT in HU.
        deviation: Standard deviation of the intensity.
        air: Share of voxels below -200 HU; this and what follows ``None`` where the scan is no CT.
        fat: Share from -200 to -30 HU.
        soft: Share from -30 to 150 HU.
        dense: Share from 150 HU on.
    """

    volume_ml: float
    surface_cm2: float
    longest_mm: float
    middle_mm: float
    shortest_mm: float
    mean: float
    deviation: float
    air: float | None = None
    fat: float | None = None
    soft: float | None = None
    dense: float | None = None


def measure(mask: BoxedMask, grid: Grid, image: NDArray[Any], modality: str | None) -> Measures | None:
    """Measure a mask; ``None`` if it has no voxel.

    Args:
        mask: In the scan's grid.
        grid: Of the scan.
        image: (X, Y, Z) its voxels.
        modality: Of the scan; on CT, intensities are in HU.
    """
    inside = mask.inside
    if not inside.any():
        return None
    values = image[mask.box][inside].astype(np.float64)
    shares: dict[str, float | None] = {}
    if modality == "ct":
        values -= hounsfield_offset(image)
        shares = {name: float(((values >= low) & (values < high)).mean()) for name, (low, high) in HU_CLASSES.items()}
    longest, middle, shortest = _axes_mm(inside, grid)
    return Measures(
        volume_ml=int(inside.sum()) * grid.voxel_ml,
        surface_cm2=_surface_mm2(inside, grid) / 100,
        longest_mm=longest,
        middle_mm=middle,
        shortest_mm=shortest,
        mean=float(values.mean()),
        deviation=float(values.std()),
        **shares,
    )


def _axes_mm(inside: NDArray[np.bool_], grid: Grid) -> tuple[float, float, float]:
    """Axes of the solid ellipsoid whose second moments are those of the voxels, each a small box of its own."""
    places = np.argwhere(inside) @ grid.affine[:3, :3].T
    covariance = np.cov(places.T, bias=True).reshape(3, 3)
    covariance += grid.affine[:3, :3] @ grid.affine[:3, :3].T / 12  # of a voxel around its centre
    shortest, middle, longest = 2 * np.sqrt(5 * np.linalg.eigvalsh(covariance))
    return float(longest), float(middle), float(shortest)


def _surface_mm2(inside: NDArray[np.bool_], grid: Grid) -> float:
    from skimage.measure import marching_cubes, mesh_surface_area

    vertices, faces, *_ = marching_cubes(np.pad(inside, 1).astype(np.float32), 0.5)
    return float(mesh_surface_area(vertices @ grid.affine[:3, :3].T, faces))
