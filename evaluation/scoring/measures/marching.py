"""Area of the surface element of every 2×2×2 neighbourhood, as marching cubes gives it.

The published normalised surface Dice (Nikolov et al., arXiv 1809.04430) lists these areas; here they are derived from
geometry. Arrays are in voxel axes (X, Y, Z); ``spacing_mm`` has their order.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Point = tuple[float, float, float]

CORNERS = tuple((x, y, z) for x in (0, 1) for y in (0, 1) for z in (0, 1))
"""Corners of a neighbourhood; the position of a corner here is its bit in a code."""


def surface_areas(spacing_mm: Sequence[float]) -> NDArray[np.float64]:
    """Area of the surface element of each neighbourhood code.

    Args:
        spacing_mm: Distance between voxel centres along each axis.

    Returns:
        (256,) float64, in mm²; 0 for the codes 0 and 255, which have no surface.
    """
    x, y, z = (float(s) for s in spacing_mm)
    return _areas(x, y, z).copy()


@lru_cache(maxsize=64)
def _areas(x: float, y: float, z: float) -> NDArray[np.float64]:
    codes, vectors = _triangles()
    # A triangle's area vector scales component by component with the two spacings across the component's axis.
    areas = np.linalg.norm(vectors * np.array([y * z, x * z, x * y]), axis=1)
    return np.bincount(codes, weights=areas, minlength=256).astype(np.float64)


@lru_cache(maxsize=1)
def _triangles() -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Code and area vector (unit spacing) of every triangle of every neighbourhood."""
    codes, vectors = [], []
    for code in range(1, 255):
        inside = {corner: bool(code >> bit & 1) for bit, corner in enumerate(CORNERS)}
        for polygon in _polygons(inside):
            points = np.array(polygon)
            candidates = [_area_vectors(points, t) for t in _triangulations(0, len(points) - 1)]
            # Polygons that are not flat can be filled in several ways; the one that is largest on the unit cube is
            # used. Rounding makes the choice independent of the last bits.
            best = max(candidates, key=lambda v: round(float(np.linalg.norm(v, axis=1).sum()), 9))
            codes += [code] * len(best)
            vectors.append(best)
    return np.array(codes), np.concatenate(vectors)


def _polygons(inside: dict[tuple[int, int, int], bool]) -> Iterator[list[Point]]:
    """Closed polygons through the midpoints of the cube's edges that separate inside corners from outside corners."""
    # A face with two inside corners on its diagonal can be cut in two ways. Cutting off the rarer kind of corner gives
    # a mask and its complement the same surface.
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
