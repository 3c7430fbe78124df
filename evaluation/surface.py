"""Surfaces of voxel masks, and how much of two of them lies close together.

A surface is made of the 2×2×2 neighbourhoods of voxels that hold both foreground and background: one element each, at
the corner that its eight voxels share, with the area that marching cubes gives it in physical units. This is the
definition of the normalised surface Dice of Nikolov et al. (arXiv 1809.04430), whose published implementation these
functions agree with; areas are derived from geometry here instead of being listed.

Arrays are (X, Y, Z) in voxel axes; ``spacing_mm`` has their order. Outside of an array is background.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

Point = tuple[float, float, float]

_CORNERS = tuple((x, y, z) for x in (0, 1) for y in (0, 1) for z in (0, 1))
_MOST_OFFSETS = 600
"""Above this many voxels in the tolerance's ball, one distance transform is quicker than looking at each."""


def surface_codes(mask: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Neighbourhood code of every voxel corner.

    Args:
        mask: (X, Y, Z) boolean.

    Returns:
        (X + 1, Y + 1, Z + 1) uint8: entry (i, j, k) tells which of the voxels (i-1..i, j-1..j, k-1..k) are foreground,
        one bit each, 0 for none and 255 for all; every other value is a surface element.
    """
    padded = np.pad(mask, 1).view(np.uint8)
    codes: NDArray[np.uint8] = np.zeros([n + 1 for n in mask.shape], dtype=np.uint8)
    for bit, corner in enumerate(_CORNERS):
        window = tuple(slice(c, c + n) for c, n in zip(corner, codes.shape, strict=True))
        codes |= padded[window] << np.uint8(bit)
    return codes


def surface_areas(spacing_mm: Sequence[float]) -> NDArray[np.float64]:
    """Area of the surface element of each neighbourhood code.

    Args:
        spacing_mm: Distance between voxel centres along each axis.

    Returns:
        (256,) float64, in mm²; 0 for the codes 0 and 255, which are no surface.
    """
    x, y, z = (float(s) for s in spacing_mm)
    codes, vectors = _triangles()
    # A triangle's area vector scales component by component with the two spacings across the component's axis.
    areas = np.linalg.norm(vectors * np.array([y * z, x * z, x * y]), axis=1)
    return np.bincount(codes, weights=areas, minlength=256).astype(np.float64)


def close_area(
    a: NDArray[np.uint8], b: NDArray[np.uint8], *, spacing_mm: Sequence[float], tolerance_mm: float
) -> tuple[float, float]:
    """Area of surface ``a`` that lies within a distance of surface ``b``.

    Args:
        a: Codes of a surface, as :func:`surface_codes` gives them.
        b: Codes of the other surface, same shape.
        spacing_mm: Distance between voxel centres along each axis.
        tolerance_mm: The distance, from element to nearest element; equality is close.

    Returns:
        Area of ``a`` that is close, and whole area of ``a``, in mm². Both are 0 if ``a`` has no surface; nothing is
        close if ``b`` has none.
    """
    is_a, is_b = _is_surface(a), _is_surface(b)
    areas = surface_areas(spacing_mm)[a[is_a]]
    close = _within(is_a, is_b, spacing_mm=spacing_mm, tolerance_mm=tolerance_mm)
    return float(areas[close].sum()), float(areas.sum())


def _is_surface(codes: NDArray[np.uint8]) -> NDArray[np.bool_]:
    return np.asarray((codes != 0) & (codes != 255))


def _within(
    is_a: NDArray[np.bool_], is_b: NDArray[np.bool_], *, spacing_mm: Sequence[float], tolerance_mm: float
) -> NDArray[np.bool_]:
    """For each element of ``a``, in the order of boolean indexing: whether one of ``b`` is close."""
    spacing = np.asarray(spacing_mm, dtype=np.float64)
    if not is_b.any():
        return np.zeros(int(is_a.sum()), dtype=bool)
    reach = np.minimum(np.floor(tolerance_mm / spacing) + 1, is_a.shape).astype(int)
    if np.prod(2 * reach + 1) > 2 * _MOST_OFFSETS:
        from scipy import ndimage

        distance: NDArray[Any] = ndimage.distance_transform_edt(~is_b, sampling=spacing.tolist())
        return np.asarray(distance[is_a] <= tolerance_mm, dtype=bool)
    steps = np.array(list(itertools.product(*(range(-r, r + 1) for r in reach))))
    lengths = np.sqrt(np.square(steps * spacing).sum(axis=1))
    order = np.argsort(lengths, kind="stable")
    steps = steps[order[lengths[order] <= tolerance_mm]]

    padded = np.pad(is_b, [(r, r) for r in reach])
    strides = np.array([padded.shape[1] * padded.shape[2], padded.shape[2], 1])
    positions = (np.argwhere(is_a) + reach) @ strides
    flat = padded.ravel()
    close = np.zeros(len(positions), dtype=bool)
    open_ = np.arange(len(positions))
    for shift in steps @ strides:  # nearest first: most elements of a good prediction end early
        hit = flat[positions[open_] + shift]
        close[open_[hit]] = True
        open_ = open_[~hit]
        if not len(open_):
            break
    return close


@lru_cache(maxsize=1)
def _triangles() -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Code and area vector (unit spacing) of every triangle of every neighbourhood."""
    codes, vectors = [], []
    for code in range(1, 255):
        inside = {corner: bool(code >> bit & 1) for bit, corner in enumerate(_CORNERS)}
        for polygon in _polygons(inside):
            points = np.array(polygon)
            candidates = [_area_vectors(points, t) for t in _triangulations(0, len(points) - 1)]
            # Polygons that are not flat can be filled in several ways; the largest on the unit cube is the one in
            # use. Rounding makes the choice independent of the last bits.
            best = max(candidates, key=lambda v: round(float(np.linalg.norm(v, axis=1).sum()), 9))
            codes += [code] * len(best)
            vectors.append(best)
    return np.array(codes), np.concatenate(vectors)


def _polygons(inside: dict[tuple[int, int, int], bool]) -> Iterator[list[Point]]:
    """Closed polygons through the midpoints of the cube's edges that separate inside corners from outside corners."""
    # A face with two inside corners on its diagonal can be cut in two ways. Cutting off the kind of corner that the
    # cube has fewer of makes a mask and its complement have one surface.
    cut_off_inside = sum(inside.values()) <= 4
    neighbours: dict[Point, list[Point]] = {}
    for axis, side in itertools.product(range(3), (0, 1)):
        ring = [_on_face(axis, side, p, q) for p, q in ((0, 0), (0, 1), (1, 1), (1, 0))]
        # Edge i of the face joins corners i and i + 1.
        middles: list[Point] = [
            ((a[0] + b[0]) / 2, (a[1] + b[1]) / 2, (a[2] + b[2]) / 2)
            for a, b in zip(ring, ring[1:] + ring[:1], strict=True)
        ]
        crossed = [i for i in range(4) if inside[ring[i]] != inside[ring[(i + 1) % 4]]]
        if len(crossed) == 4:
            segments = [((i - 1) % 4, i) for i in range(4) if inside[ring[i]] == cut_off_inside]
        else:
            segments = [(crossed[0], crossed[1])] if crossed else []
        for a, b in segments:
            neighbours.setdefault(middles[a], []).append(middles[b])
            neighbours.setdefault(middles[b], []).append(middles[a])
    while neighbours:
        start, (following, _) = next(iter(neighbours.items()))
        polygon = [start]
        while following != start:
            polygon.append(following)
            following = next(p for p in neighbours[following] if p != polygon[-2])
        for point in polygon:
            del neighbours[point]
        yield polygon


def _on_face(axis: int, side: int, p: int, q: int) -> tuple[int, int, int]:
    corner = [p, q]
    corner.insert(axis, side)
    return corner[0], corner[1], corner[2]


def _triangulations(first: int, last: int) -> Iterator[list[tuple[int, int, int]]]:
    """Every way to cut the polygon of the points ``first..last`` into triangles."""
    if last - first < 2:
        yield []
        return
    for middle in range(first + 1, last):
        for left in _triangulations(first, middle):
            for right in _triangulations(middle, last):
                yield [*left, (first, middle, last), *right]


def _area_vectors(points: NDArray[np.float64], triangles: list[tuple[int, int, int]]) -> NDArray[np.float64]:
    a, b, c = (points[list(corner)] for corner in zip(*triangles, strict=True))
    return np.asarray(np.cross(b - a, c - a) / 2, dtype=np.float64)
