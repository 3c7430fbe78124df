"""Grids in physical space.

Conventions, everywhere in satunet:

- The axes of a volume are its file's voxel axes (i, j, k), as nibabel gives them, never SimpleITK's (z, y, x).
- An affine is 4×4 float64 and maps voxel indices to millimetres in RAS+ (x to the right, y to the front, z up).
- An orientation such as ``"RAS"`` names, for every axis, the direction in which its index grows.

Rejected: SimpleITK's LPS with reversed axes. Two conventions meet in every project that mixes both libraries, and
SAT, nibabel and the NIfTI standard speak RAS.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from satunet.types import Axes, Box, Mask

SAME_PLACE = 0.1
"""Distance in voxels by which equal grids may differ. Rounding errors of headers add up to this over 500 voxels, and it
is a fifth of the half voxel by which a wrong convention shifts an image."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Grid:
    """Shape and affine of a volume; part of records (:mod:`satunet.jobs.records`).

    Attributes:
        shape: Voxels along (i, j, k).
        affine: 4×4 float64, voxel index → RAS+ millimetres.
    """

    shape: tuple[int, int, int]
    affine: NDArray[np.float64]

    def __post_init__(self) -> None:
        shape = tuple(int(n) for n in self.shape)
        affine = np.asarray(self.affine, dtype=np.float64)
        if len(shape) != 3 or min(shape) < 1:
            raise ValueError(f"a grid has three positive sizes, got {self.shape}")
        if affine.shape != (4, 4) or not np.isfinite(affine).all() or not _is_invertible(affine[:3, :3]):
            raise ValueError(f"a grid's affine is a finite, invertible 4×4 matrix, got {affine.tolist()}")
        object.__setattr__(self, "shape", shape)
        object.__setattr__(self, "affine", affine)

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Distance between voxel centres along (i, j, k), in millimetres."""
        i, j, k = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(i), float(j), float(k)

    @property
    def orientation(self) -> str:
        """Closest anatomical orientation of the axes, such as ``"RAS"`` or ``"LPI"``."""
        from nibabel.orientations import aff2axcodes

        return "".join(aff2axcodes(self.affine))

    @property
    def voxel_ml(self) -> float:
        """Volume of a voxel in millilitres."""
        return float(abs(np.linalg.det(self.affine[:3, :3])) / 1000.0)


def same_grid(a: Grid, b: Grid, *, tolerance: float = SAME_PLACE) -> bool:
    """Whether two grids have the same shape and the same position of every voxel.

    Args:
        a: A grid.
        b: Another.
        tolerance: Largest distance between the two centres of a voxel, in voxels of ``a`` along each axis.
    """
    if a.shape != b.shape:
        return False
    # Affine maps differ most at a corner, so that the eight corners bound the difference everywhere.
    corners = np.array(np.meshgrid(*[(0, n - 1) for n in a.shape], indexing="ij")).reshape(3, -1)
    homogeneous = np.vstack([corners, np.ones(corners.shape[1])])
    apart_mm = ((b.affine - a.affine) @ homogeneous)[:3]
    return bool(np.abs(np.linalg.solve(a.affine[:3, :3], apart_mm)).max() <= tolerance)


def _is_invertible(axes: NDArray[np.float64]) -> bool:
    """Whether three axes span space, in any unit; a flat box is refused, a small one is not."""
    lengths = np.linalg.norm(axes, axis=0)
    if not (lengths > 1e-9).all() or lengths.max() > 1e30:
        return False
    return abs(float(np.linalg.det(axes / lengths))) > 1e-4


def reorient(array: NDArray[Any], grid: Grid, orientation: str = "RAS") -> tuple[NDArray[Any], Grid]:
    """Flip and transpose a volume's axes to an orientation, without resampling.

    Args:
        array: (..., X, Y, Z), any dtype; its last three axes are those of ``grid``.
        grid: The grid of the last three axes.
        orientation: Three letters: one of R/L, one of A/P, one of S/I, in any order.

    Returns:
        The reoriented array (a view where numpy allows it) and its grid.

    Raises:
        ValueError: ``orientation`` is not a valid code, or the array's shape is not the grid's.
    """
    if array.shape[-3:] != grid.shape:
        raise ValueError(f"the array's last axes are {array.shape[-3:]}, the grid's shape is {grid.shape}")
    if len(orientation) != 3 or {frozenset(p) & frozenset(orientation) != set() for p in ("RL", "AP", "SI")} != {True}:
        raise ValueError(f"orientation {orientation!r}: allowed are three letters, one of R/L, one of A/P, one of S/I")
    import nibabel.orientations as nio

    transform = nio.ornt_transform(nio.io_orientation(grid.affine), nio.axcodes2ornt(tuple(orientation)))
    leading = array.ndim - 3
    # transform[i] = (axis of the result that input axis i becomes, flip)
    flipped = array
    for axis in range(3):
        if transform[axis, 1] < 0:
            flipped = np.flip(flipped, axis=leading + axis)
    order = np.argsort(transform[:, 0]).astype(int)
    turned = flipped.transpose(*range(leading), *(leading + order))
    affine = grid.affine @ nio.inv_ornt_aff(transform, grid.shape)
    i, j, k = turned.shape[-3:]
    return turned, Grid(shape=(i, j, k), affine=affine)


def extent_mm(grid: Grid, orientation: str = "RAS") -> tuple[float, float, float]:
    """Size of a grid in mm, from its first to its last voxel, along the axes of an orientation."""
    turned = reorient(np.broadcast_to(np.uint8(0), grid.shape), grid, orientation)[1]
    x, y, z = (n * s for n, s in zip(turned.shape, turned.spacing_mm, strict=True))
    return x, y, z


def box_of(mask: Mask) -> Box | None:
    """Smallest box around the true voxels of a mask.

    Args:
        mask: (X, Y, Z) truth values.

    Returns:
        ``None`` if no voxel is true.
    """
    spans = []
    for others in ((1, 2), (0, 2), (0, 1)):
        occupied = np.flatnonzero(mask.any(axis=others))
        if not len(occupied):
            return None
        spans.append(slice(int(occupied[0]), int(occupied[-1]) + 1))
    return spans[0], spans[1], spans[2]


def box_shape(box: Box) -> Axes:
    """Voxels of a box along each axis."""
    x, y, z = (side.stop - side.start for side in box)
    return x, y, z


def moved_box(box: Box, by: Sequence[int]) -> Box:
    """The box moved by ``by`` voxels along each axis."""
    x, y, z = (slice(side.start + step, side.stop + step) for side, step in zip(box, by, strict=True))
    return x, y, z


def wider_box(box: Box, shape: Sequence[int]) -> Box:
    """The box with a margin of one voxel, within a volume of ``shape``."""
    x, y, z = (slice(max(0, side.start - 1), min(n, side.stop + 1)) for side, n in zip(box, shape, strict=True))
    return x, y, z


def common_box(a: Box, b: Box) -> Box | None:
    """The part that two boxes share; ``None`` if they share none."""
    x, y, z = (slice(max(p.start, q.start), min(p.stop, q.stop)) for p, q in zip(a, b, strict=True))
    return (x, y, z) if all(side.start < side.stop for side in (x, y, z)) else None
