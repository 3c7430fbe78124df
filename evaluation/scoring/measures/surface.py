"""Surfaces of voxel masks, and the distances between two of them.

A surface is made of the 2×2×2 neighbourhoods of voxels that hold both foreground and background: one element each, at
the corner that its eight voxels share, with the area that marching cubes gives it in physical units. This is the
definition of the normalised surface Dice of Nikolov et al. (arXiv 1809.04430) and of the area-weighted distances of
its published implementation, with which these functions agree.

Most elements of a good prediction lie on the reference's surface or one voxel beside it. So the search for the nearest
element first looks at the places around an element, nearest first, and uses a tree only if there is none. A distance
transform of the whole box, as in other implementations, takes as long for a perfect prediction as for a useless one.

Arrays are (X, Y, Z) in voxel axes; ``spacing_mm`` has their order. Everything outside an array is background.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from satunet.evaluation.scoring.measures.marching import surface_areas

_MOST_STEPS = 600
"""Number of places within a tolerance above which the tree is quicker than looking at each."""
_USUAL_STEPS = 150
"""Approximate number of places to look at before using the tree when all distances are wanted."""
_SLAB_VOXELS = 1 << 20


@dataclass(frozen=True, kw_only=True, eq=False)
class Surface:
    """A surface inside a box, with a margin around it that holds no element.

    Attributes:
        present: (X + 2 + 2 mx, Y + 2 + 2 my, Z + 2 + 2 mz) bool: places of elements; m is the margin.
        places: (n,) int64 flat indices of the elements in ``present``, ascending.
        codes: (n,) uint8 neighbourhood codes of the elements.
    """

    present: NDArray[np.bool_]
    places: NDArray[np.int64]
    codes: NDArray[np.uint8]

    def areas(self, spacing_mm: Sequence[float]) -> NDArray[np.float64]:
        """(n,) area of each element, in mm²."""
        return np.asarray(surface_areas(spacing_mm)[self.codes])


def surface_codes(mask: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Neighbourhood code of every voxel corner.

    Args:
        mask: (X, Y, Z) boolean.

    Returns:
        (X + 1, Y + 1, Z + 1) uint8: entry (i, j, k) tells which of the voxels (i-1..i, j-1..j, k-1..k) are foreground,
        one bit each, 0 for none and 255 for all; every other value is a surface element.
    """
    return _codes(np.pad(mask, 1).view(np.uint8))


def find_surface(mask: NDArray[np.bool_], margin: Sequence[int] = (0, 0, 0)) -> Surface:
    """The surface of a mask.

    Args:
        mask: (X, Y, Z) boolean.
        margin: Number of places without an element around the box, on either side of each axis.
    """
    shape = tuple(n + 2 + 2 * m for n, m in zip(mask.shape, margin, strict=True))
    volume = np.zeros(shape, dtype=np.uint8)
    volume[tuple(slice(m + 1, m + 1 + n) for n, m in zip(mask.shape, margin, strict=True))] = mask
    step = max(1, _SLAB_VOXELS // (shape[1] * shape[2]))
    codes = np.zeros((min(step, shape[0] - 1), *shape[1:]), dtype=np.uint8)
    places, found_codes = [], []
    # In slabs, and in place: a slab's voxels are not needed once its codes are known. The last planes hold no voxel.
    for first in range(0, shape[0] - 1, step):
        last = min(first + step, shape[0] - 1)
        slab = codes[: last - first]
        slab[:, :-1, :-1] = _codes(volume[first : last + 1])
        # 0 and 255 are not surface; they are the only codes that become 1 or 0 when one is added.
        np.greater(slab + np.uint8(1), 1, out=volume[first:last].view(bool))
        found = np.flatnonzero(volume[first:last])
        found_codes.append(slab.ravel()[found])
        places.append(found + first * shape[1] * shape[2])
    present = volume.view(bool)
    return Surface(present=present, places=np.concatenate(places), codes=np.concatenate(found_codes))


def touched(mask: NDArray[np.bool_], margin: Sequence[int] = (0, 0, 0)) -> NDArray[np.bool_]:
    """Places at which an element would have a voxel of the mask among its eight.

    Args:
        mask: (X, Y, Z) boolean.
        margin: Margin, as for :func:`find_surface`.

    Returns:
        Boolean array with the shape and places of :attr:`Surface.present`.
    """
    shape = tuple(n + 2 + 2 * m for n, m in zip(mask.shape, margin, strict=True))
    volume = np.zeros(shape, dtype=np.uint8)
    volume[tuple(slice(m + 1, m + 1 + n) for n, m in zip(mask.shape, margin, strict=True))] = mask
    found = np.zeros(shape, dtype=bool)
    found[:-1, :-1, :-1] = _codes(volume) > 0
    return found


def steps_within(spacing_mm: Sequence[float], radius_mm: float) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Steps to the places around an element, nearest first.

    Returns:
        (n, 3) steps along the axes, and (n,) their lengths in mm; all that are at most ``radius_mm`` long.
    """
    x, y, z = (float(s) for s in spacing_mm)
    return _steps(x, y, z, float(radius_mm))


def search_radius(spacing_mm: Sequence[float], tolerance_mm: float | None) -> float:
    """Radius to look around each element before using a tree.

    Args:
        spacing_mm: Distance between voxel centres along each axis.
        tolerance_mm: Largest distance that matters; ``None`` if all distances are wanted.
    """
    voxel = math.prod(float(s) for s in spacing_mm)
    usual = math.pow(_USUAL_STEPS * voxel * 3 / (4 * math.pi), 1 / 3)
    if tolerance_mm is None:
        return usual
    expected = 4 / 3 * math.pi * tolerance_mm**3 / voxel
    return tolerance_mm if expected <= _MOST_STEPS else usual


def margin_of(spacing_mm: Sequence[float], radius_mm: float) -> tuple[int, int, int]:
    """Margin that a surface needs so that every step of a radius stays inside."""
    # As for the steps themselves: a step of exactly the radius belongs to it, whatever the division's last bit says.
    x, y, z = (int(radius_mm / s + 1e-6) for s in spacing_mm)
    return x, y, z


def distances(
    a: Surface, b: Surface, *, spacing_mm: Sequence[float], radius_mm: float, most_mm: float = math.inf
) -> NDArray[np.float64]:
    """Distance of every element of ``a`` to the nearest element of ``b``.

    Args:
        a: A surface.
        b: Another, in the same box, with the same margin: at least that of :func:`margin_of`.
        spacing_mm: Distance between voxel centres along each axis.
        radius_mm: Distance within which to look around each element before a tree is used.
        most_mm: Distances above this do not matter and may be given as ``inf``.

    Returns:
        (n,) float64 in mm, in the order of ``a.places``; ``inf`` if ``b`` is empty.
    """
    found = np.full(len(a.places), math.inf)
    if not len(b.places):
        return found
    steps, lengths = steps_within(spacing_mm, radius_mm)
    _, height, depth = a.present.shape
    strides = np.array([height * depth, depth, 1])
    flat = b.present.ravel()
    alone = np.arange(len(a.places))
    places = a.places
    for step, length in zip((steps @ strides).tolist(), lengths.tolist(), strict=True):
        if length > most_mm or not len(alone):
            break
        hit = flat[places + step]
        if hit.any():
            found[alone[hit]] = length
            np.logical_not(hit, out=hit)
            alone, places = alone[hit], places[hit]
    if len(alone) and most_mm > radius_mm:
        found[alone] = _by_tree(a, b, alone, spacing_mm, most_mm)
    return found


def _by_tree(
    a: Surface, b: Surface, which: NDArray[np.int64], spacing_mm: Sequence[float], most_mm: float
) -> NDArray[np.float64]:
    from scipy.spatial import cKDTree

    spacing = np.asarray(spacing_mm, dtype=np.float64)
    to = np.stack(np.unravel_index(b.places, b.present.shape), axis=1)
    at = np.stack(np.unravel_index(a.places[which], a.present.shape), axis=1)
    tree = cKDTree(to * spacing, balanced_tree=False, compact_nodes=False)
    bound = most_mm * (1 + 1e-9) if math.isfinite(most_mm) else math.inf
    _, nearest = tree.query(at * spacing, distance_upper_bound=bound)
    found = np.full(len(which), math.inf)
    near = nearest < len(to)
    # Recomputed from whole steps: differences of products would make equal distances differ in their last bits.
    found[near] = _lengths(at[near] - to[nearest[near]], spacing)
    return found


def _lengths(steps: NDArray[Any], spacing: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(np.sqrt(np.square(steps * spacing).sum(axis=1)), dtype=np.float64)


def _codes(padded: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Codes of a 0/1 volume padded by one voxel along every axis: two, four, then eight voxels go into a byte."""
    pairs = padded[:, :, 1:] << np.uint8(1)
    pairs |= padded[:, :, :-1]
    fours = pairs[:, 1:] << np.uint8(2)
    fours |= pairs[:, :-1]
    codes: NDArray[np.uint8] = fours[1:] << np.uint8(4)
    codes |= fours[:-1]
    return codes


@lru_cache(maxsize=64)
def _steps(x: float, y: float, z: float, radius_mm: float) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    spacing = np.array([x, y, z])
    reach = margin_of((x, y, z), radius_mm)
    axes = [np.arange(-r, r + 1) for r in reach]
    steps = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)
    lengths = _lengths(steps, spacing)
    order = np.argsort(lengths, kind="stable")
    order = order[lengths[order] <= radius_mm]
    return steps[order], lengths[order]
