"""Resampling of images and label maps to another number of voxels over the same extent.

The results are those of nnU-Net's default resampling: cubic splines for images, for label maps the label whose
linearly interpolated indicator is largest; where voxels are anisotropic, slices are resampled one by one and the
nearest slice is taken across them. Splines are separable, so each axis is one small matrix here: about twenty times
faster than interpolating voxel by voxel. A label map is looked at from every new voxel's eight neighbours, of which
only those on boundaries differ, so that the cost does not grow with the number of labels.

Voxel centres sit at (i + 0.5) · size_in / size_out − 0.5, edges are repeated.
"""

from __future__ import annotations

import itertools
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import spline_filter1d

Shape = tuple[int, int, int]
Spacing = tuple[float, float, float]

_EDGE = 12
"""Voxels by which edges are repeated before the spline prefilter; what is farther away weighs less than 1e-6."""
_TIE = 1e-9
"""Shares closer than this are tied: sums of products are exact only to the last bits."""


def new_shape(shape: Shape, spacing_mm: Spacing, target_mm: Spacing) -> Shape:
    """Voxels along each axis at another spacing; at least one."""
    x, y, z = (max(1, round(n * s / t)) for n, s, t in zip(shape, spacing_mm, target_mm, strict=True))
    return x, y, z


def resample_image(volume: NDArray[Any], shape: Shape, spacing_mm: Spacing, target_mm: Spacing) -> NDArray[np.float32]:
    """Resample an image as nnU-Net does by default.

    Args:
        volume: (X, Y, Z), any numeric type.
        shape: Voxels wanted.
        spacing_mm: Spacing of ``volume``; decides, with the next, whether slices are kept apart.
        target_mm: Spacing wanted.

    Returns:
        ``shape``, float32; splines do not overshoot the range of the volume (of the slice, where slices are apart).
    """
    result = volume.astype(np.float32)
    if volume.shape == shape:
        return result
    slices = separate_axis(spacing_mm, target_mm)
    in_slice = tuple(axis for axis in range(3) if axis != slices)
    low, high = result.min(axis=in_slice, keepdims=True), result.max(axis=in_slice, keepdims=True)
    # Axes that shrink most come first: the others then have less to do.
    for axis in sorted(in_slice, key=lambda a: shape[a] / volume.shape[a]):
        if volume.shape[axis] != shape[axis]:
            result = _along(_cubic_matrix(volume.shape[axis], shape[axis]), result, axis)
    result = np.clip(result, low, high)
    if slices is not None:
        result = np.take(result, _nearest_index(volume.shape[slices], shape[slices]), axis=slices)
    return np.ascontiguousarray(result)


def resample_labels(
    labels: NDArray[np.unsignedinteger[Any]], shape: Shape, spacing_mm: Spacing, target_mm: Spacing
) -> NDArray[np.unsignedinteger[Any]]:
    """Resample a label map as nnU-Net does by default.

    A voxel takes the label with the largest share of it; a tie goes to the nearest voxel's label.

    Args:
        labels: (X, Y, Z) ids, 0 is background.
        shape: Voxels wanted.
        spacing_mm: Spacing of ``labels``.
        target_mm: Spacing wanted.

    Returns:
        ``shape``, of the type of ``labels``.
    """
    if labels.shape == shape:
        return labels
    slices = separate_axis(spacing_mm, target_mm)
    axes = [_neighbours(n, m, axis == slices) for axis, (n, m) in enumerate(zip(labels.shape, shape, strict=True))]
    corners = list(itertools.product((0, 1), repeat=3))

    result = labels[np.ix_(*(index[0] for index, _ in axes))]
    boundary = np.zeros(shape, dtype=bool)
    for corner in corners[1:]:
        boundary |= labels[np.ix_(*(index[side] for (index, _), side in zip(axes, corner, strict=True)))] != result
    places = np.nonzero(boundary)
    if places[0].size == 0:
        return result

    ids, shares = [], []
    for corner in corners:
        neighbour = [(index[side][place], share[side][place])
                     for (index, share), side, place in zip(axes, corner, places, strict=True)]  # fmt: skip
        ids.append(labels[tuple(index for index, _ in neighbour)])
        (_, x), (_, y), (_, z) = neighbour
        shares.append(x * y * z)
    nearest_axes = (_nearest_index(n, m) for n, m in zip(labels.shape, shape, strict=True))
    nearest = labels[tuple(index[place] for index, place in zip(nearest_axes, places, strict=True))]
    result[places] = _largest(ids, shares, nearest)
    return result


def _largest(
    ids: list[NDArray[Any]], shares: list[NDArray[np.float64]], nearest: NDArray[Any]
) -> NDArray[np.unsignedinteger[Any]]:
    """The id with the largest sum of shares; of equal ones the nearest voxel's, else the smallest."""
    best = np.full(nearest.shape, -1.0)
    winner = nearest.copy()
    for candidate in ids:
        share = _TIE * (candidate == nearest)
        for other, part in zip(ids, shares, strict=True):
            share += part * (other == candidate)
        wins = (share > best + _TIE / 2) | ((np.abs(share - best) <= _TIE / 2) & (candidate < winner))
        best[wins] = share[wins]
        winner[wins] = candidate[wins]
    return winner


def interpolation_matrix(size: int, wanted: int) -> NDArray[np.float32]:
    """(wanted, size) matrix that takes one axis from ``size`` to ``wanted`` voxels, linearly."""
    centre = _centres(size, wanted)
    matrix = np.zeros((wanted, size), dtype=np.float32)
    rows = np.arange(wanted)
    low = np.floor(centre).astype(int)
    fraction = (centre - low).astype(np.float32)
    np.add.at(matrix, (rows, np.clip(low, 0, size - 1)), 1 - fraction)
    np.add.at(matrix, (rows, np.clip(low + 1, 0, size - 1)), fraction)
    return matrix


def separate_axis(spacing_mm: Spacing, target_mm: Spacing) -> int | None:
    """The axis along which nnU-Net takes the nearest slice: the one more than three times coarser than the finest.

    The present spacing decides; if it has no such axis, the wanted one. Two equally coarse axes are no slices.
    """
    for spacing in (spacing_mm, target_mm):
        coarsest = max(spacing)
        if coarsest / min(spacing) > 3:
            axes = [axis for axis in range(3) if coarsest / spacing[axis] == 1]
            return axes[0] if len(axes) == 1 else None
    return None


@lru_cache(maxsize=64)
def _cubic_matrix(size: int, wanted: int) -> NDArray[np.float32]:
    """(wanted, size) matrix of interpolation by cubic B-splines (Unser, IEEE Signal Processing Magazine 1999).

    Spline coefficients are linear in the samples, so those of the unit vectors give all others.
    """
    unit = np.pad(np.eye(size), ((_EDGE, _EDGE), (0, 0)), mode="edge")
    coefficients = spline_filter1d(unit, order=3, axis=0, mode="nearest")
    centre = _centres(size, wanted)
    low = np.floor(centre).astype(int)
    t = (centre - low)[:, None]
    pieces = ((1 - t) ** 3, 4 - 6 * t**2 + 3 * t**3, 1 + 3 * t + 3 * t**2 - 3 * t**3, t**3)
    matrix = sum(piece * coefficients[low - 1 + k + _EDGE] for k, piece in enumerate(pieces))
    return np.asarray(matrix / 6, dtype=np.float32)


def _centres(size: int, wanted: int) -> NDArray[np.float64]:
    return np.asarray((np.arange(wanted) + 0.5) * (size / wanted) - 0.5, dtype=np.float64)


def _neighbours(
    size: int, wanted: int, nearest: bool
) -> tuple[tuple[NDArray[np.intp], NDArray[np.intp]], tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """Lower and upper neighbour of every new voxel along an axis, and their shares."""
    if nearest:
        index = _nearest_index(size, wanted)
        return (index, index), (np.ones(wanted), np.zeros(wanted))
    centre = _centres(size, wanted)
    low = np.floor(centre).astype(np.intp)
    upper = centre - low
    return (np.clip(low, 0, size - 1), np.clip(low + 1, 0, size - 1)), (1 - upper, upper)


def _nearest_index(size: int, wanted: int) -> NDArray[np.intp]:
    return np.clip(np.floor(_centres(size, wanted) + 0.5).astype(np.intp), 0, size - 1)


def _along(matrix: NDArray[np.float32], volume: NDArray[Any], axis: int) -> NDArray[np.float32]:
    """Multiply one axis of a volume by a matrix."""
    return np.moveaxis(np.tensordot(matrix, volume, axes=(1, axis)), 0, axis)
