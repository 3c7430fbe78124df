"""Outlines of masks along the borders of pixels.

Contours from scikit-image run along the borders of pixels, so that exactly the mask's pixels have their centres inside.
Rejected: rt-utils, whose contours run through the centres of the outermost pixels, half a pixel inside the mask.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def outlines(plane: NDArray[np.bool_]) -> list[NDArray[np.float64]]:
    """Closed outlines of a plane's true pixels, along the borders of pixels.

    Args:
        plane: (I, J).

    Returns:
        (n, 2) points (i, j) of each outline; the last point does not repeat the first. A hole is part of the outline
        around it, joined to it by a channel that is passed once in each direction.
    """
    from skimage.measure import approximate_polygon, find_contours, points_in_poly

    # Pixels are connected only if they share an edge, so that outlines never cross.
    found = [approximate_polygon(c, 1e-6)[:-1] - 1 for c in find_contours(np.pad(plane, 1).astype(np.float32), 0.5)]
    outer = [points for points in found if _area(points) > 0]
    for hole in (points for points in found if _area(points) < 0):
        around = [k for k, points in enumerate(outer) if points_in_poly(hole[:1], points)[0]]
        k = min(around, key=lambda k: abs(_area(outer[k])))
        a, b = _channel(outer[k], hole)
        outer[k] = np.concatenate((outer[k][: a + 1], hole[b:], hole[: b + 1], outer[k][a:]))
    return outer


def _channel(outer: NDArray[np.float64], hole: NDArray[np.float64]) -> tuple[int, int]:
    """Indices of the nearest points of two outlines with no pixel centre between them, which would lie on a border."""
    distance = ((outer[:, None] - hole[None]) ** 2).sum(2)
    order = distance.argsort(axis=None, kind="stable")
    for nearest in order:
        a, b = (int(i) for i in np.unravel_index(nearest, distance.shape))
        share = np.linspace(0, 1, 2 + int(20 * np.sqrt(distance[a, b])))[:, None]
        line = outer[a] * (1 - share) + hole[b] * share
        if np.linalg.norm(line - np.rint(line), axis=1).min() > 0.1:
            return a, b
    a, b = (int(i) for i in np.unravel_index(order[0], distance.shape))
    return a, b


def _area(points: NDArray[np.float64]) -> float:
    """Signed area: positive for outer outlines, negative for holes."""
    i, j = points.T
    return float((np.roll(i, -1) * j - i * np.roll(j, -1)).sum() / 2)
