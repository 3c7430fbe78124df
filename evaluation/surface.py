"""Surfaces of masks, and how far they are apart, in millimetres.

The surface of a mask is what marching cubes draws at one half: every 2×2×2 neighbourhood of voxels holds a patch of
it whose area depends on which of the eight corners are inside. Distances are those between the centres of such
neighbourhoods. This is the definition of Nikolov et al. 2018 (arXiv 1809.04430), which SAT and DeepMind's package
surface-distance use; the tests hold the two equal to 1e-6.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt

Mask = NDArray[np.bool_]
Spacing = tuple[float, float, float]

# Bit of each corner of a neighbourhood, by its offset (x, y, z).
_BITS = np.array([[[128, 64], [32, 16]], [[8, 4], [2, 1]]], dtype=np.uint8)


@dataclass(frozen=True, kw_only=True, eq=False)
class SurfaceDistances:
    """Surface patches of two masks.

    Attributes:
        reference_mm: Distance of each reference patch to the nearest predicted one.
        reference_area: Area of each reference patch in mm².
        prediction_mm: Distance of each predicted patch to the nearest reference one.
        prediction_area: Area of each predicted patch in mm².
    """

    reference_mm: NDArray[np.float64]
    reference_area: NDArray[np.float64]
    prediction_mm: NDArray[np.float64]
    prediction_area: NDArray[np.float64]

    def surface_dice(self, tolerance_mm: float) -> float:
        """Share of both surfaces that lies within ``tolerance_mm`` of the other (NSD)."""
        near = self.reference_area[self.reference_mm <= tolerance_mm].sum()
        near += self.prediction_area[self.prediction_mm <= tolerance_mm].sum()
        return float(near / (self.reference_area.sum() + self.prediction_area.sum()))


def surface_distances(reference: Mask, prediction: Mask, spacing_mm: Spacing) -> SurfaceDistances:
    """Distances between the surfaces of two masks.

    Args:
        reference: (X, Y, Z); not empty. What lies outside the array counts as outside the mask.
        prediction: (X, Y, Z); not empty.
        spacing_mm: Of both.
    """
    areas = surface_areas(spacing_mm)
    codes = [neighbour_codes(mask) for mask in (reference, prediction)]
    borders = [(code != 0) & (code != 255) for code in codes]
    to_reference, to_prediction = (distance_transform_edt(~border, sampling=spacing_mm) for border in borders)
    return SurfaceDistances(
        reference_mm=to_prediction[borders[0]],
        reference_area=areas[codes[0][borders[0]]],
        prediction_mm=to_reference[borders[1]],
        prediction_area=areas[codes[1][borders[1]]],
    )


def neighbour_codes(mask: Mask) -> NDArray[np.uint8]:
    """Which corners of each 2×2×2 neighbourhood are inside: (X, Y, Z) → (X + 1, Y + 1, Z + 1) codes 0…255."""
    padded = np.pad(mask, 1)
    x, y, z = (n + 1 for n in mask.shape)
    codes = np.zeros((x, y, z), dtype=np.uint8)
    for i in (0, 1):
        for j in (0, 1):
            for k in (0, 1):
                codes += padded[i : i + x, j : j + y, k : k + z] * _BITS[i, j, k]
    return codes


@lru_cache(maxsize=64)
def surface_areas(spacing_mm: Spacing) -> NDArray[np.float64]:
    """Area in mm² of the surface in a neighbourhood, by its code: (256,).

    A configuration with more than half of its corners inside has the surface of its complement: where marching cubes
    may connect two corners or keep them apart, that decides it the same way for a mask and for its background.
    """
    from skimage.measure import marching_cubes

    areas = np.zeros(256)
    for code in range(1, 255):
        few = code if code.bit_count() <= 4 else 255 - code
        cube = ((few & _BITS) > 0).astype(np.float32)
        vertices, faces, _, _ = marching_cubes(cube, 0.5, spacing=spacing_mm, method="lorensen")
        triangles = vertices[faces].astype(np.float64)
        normals = np.cross(triangles[:, 1] - triangles[:, 0], triangles[:, 2] - triangles[:, 0])
        areas[code] = np.linalg.norm(normals, axis=1).sum() / 2
    return areas
