"""Resampling of images and label maps to another number of voxels over the same extent.

The results are those of nnU-Net's default resampling: cubic splines for images; for label maps, the label whose
linearly interpolated indicator is largest. If voxels are anisotropic, slices are resampled one by one, and the nearest
slice is used across them. Splines are separable, so that each axis is one small matrix, which is about twenty times
faster than interpolating voxel by voxel. Each voxel of a new label map depends on eight neighbours, which differ only
at boundaries, so that the cost does not grow with the number of labels.

Voxel centres are at (i + 0.5) · size_in / size_out − 0.5; edges are repeated.
"""

from __future__ import annotations

import itertools
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

Shape = tuple[int, int, int]
Spacing = tuple[float, float, float]

_EDGE = 12
"""Voxels by which edges are repeated before the spline prefilter; farther voxels have weights below 1e-6."""
_REACH = 14
"""Voxels on either side on which a spline's value depends; the sum of all farther weights is below 1e-7."""
_ROWS = 64
_PIECE = 1 << 18
"""Number of boundary voxels processed at once; each takes a few hundred bytes."""


def new_shape(shape: Shape, spacing_mm: Spacing, target_mm: Spacing) -> Shape:
    """Voxels along each axis at another spacing; at least one."""
    x, y, z = (max(1, round(n * s / t)) for n, s, t in zip(shape, spacing_mm, target_mm, strict=True))
    return x, y, z


def resample_image(volume: NDArray[Any], shape: Shape, spacing_mm: Spacing, target_mm: Spacing) -> NDArray[np.float32]:
    """Resample an image as nnU-Net does by default.

    Args:
        volume: (X, Y, Z), any numeric type.
        shape: Target shape.
        spacing_mm: Spacing of ``volume``; with ``target_mm``, it decides whether slices are resampled separately.
        target_mm: Target spacing.

    Returns:
        Array of ``shape``, float32, clipped to the range of the volume (of each slice, if they are separate).
    """
    result: NDArray[np.float32] = volume.astype(np.float32, copy=False)
    if volume.shape == shape:
        return np.array(result, order="C")
    slices = separate_axis(spacing_mm, target_mm)
    in_slice = tuple(axis for axis in range(3) if axis != slices)
    low, high = result.min(axis=in_slice, keepdims=True), result.max(axis=in_slice, keepdims=True)
    # Axes that shrink most come first, which leaves less work for the others.
    changed = [axis for axis in in_slice if volume.shape[axis] != shape[axis]]
    sizes = volume.shape
    del volume  # freed, if the caller does not keep it, before the last and largest step
    for axis in sorted(changed, key=lambda a: shape[a] / sizes[a]):
        result = _along(_cubic_matrix(sizes[axis], shape[axis]), result, axis)
    if changed:
        np.clip(result, low, high, out=result)
    if slices is not None:
        result = np.take(result, _nearest_index(sizes[slices], shape[slices]), axis=slices)
    return np.ascontiguousarray(result)


def resample_labels(
    labels: NDArray[np.unsignedinteger[Any]], shape: Shape, spacing_mm: Spacing, target_mm: Spacing
) -> NDArray[np.unsignedinteger[Any]]:
    """Resample a label map as nnU-Net does by default.

    A voxel gets the label with the largest share of it; a tie goes to the nearest voxel's label if that is among the
    tied ones, else to the smallest id. Shares are sums of doubles in a fixed order, regardless of the memory layout, so
    that ties are decided exactly as in nnU-Net.

    Args:
        labels: (X, Y, Z) ids, 0 is background.
        shape: Target shape.
        spacing_mm: Spacing of ``labels``.
        target_mm: Target spacing.

    Returns:
        Array of ``shape``, with the type of ``labels``.
    """
    if labels.shape == shape:
        return labels
    slices = separate_axis(spacing_mm, target_mm)
    axes = [_neighbours(n, m, axis == slices) for axis, (n, m) in enumerate(zip(labels.shape, shape, strict=True))]
    corners = list(itertools.product((0, 1), repeat=3))
    order = [0, 1, 2] if labels.flags.c_contiguous or not labels.T.flags.c_contiguous else [2, 1, 0]
    # Values are gathered in memory order, but summed in the order of the axes, which decides ties.
    stored = labels.transpose(order)

    def gather(corner: tuple[int, ...]) -> NDArray[Any]:
        return stored[np.ix_(*(axes[axis][0][corner[axis]] for axis in order))]

    result: NDArray[np.unsignedinteger[Any]] = gather(corners[0])
    boundary = np.zeros(result.shape, dtype=bool)
    for corner in corners[1:]:
        boundary |= gather(corner) != result
    flat = np.flatnonzero(boundary)
    nearest_axes = [_nearest_index(n, m) for n, m in zip(labels.shape, shape, strict=True)]
    for start in range(0, flat.size, _PIECE):
        there = np.unravel_index(flat[start : start + _PIECE], result.shape)
        places = tuple(there[axis] for axis in order)
        ids, shares = [], []
        for corner in corners:
            neighbour = [(index[side][place], share[side][place])
                         for (index, share), side, place in zip(axes, corner, places, strict=True)]  # fmt: skip
            ids.append(labels[tuple(index for index, _ in neighbour)])
            (_, x), (_, y), (_, z) = neighbour
            shares.append(x * y * z)
        nearest = labels[tuple(index[place] for index, place in zip(nearest_axes, places, strict=True))]
        result[there] = _largest(ids, shares, nearest)
    return result.transpose(order)


def _largest(
    ids: list[NDArray[Any]], shares: list[NDArray[np.float64]], nearest: NDArray[Any]
) -> NDArray[np.unsignedinteger[Any]]:
    """The id with the largest sum of shares; among equal ones the nearest voxel's, else the smallest."""

    def share_of(candidate: NDArray[Any]) -> NDArray[np.float64]:
        share = np.zeros(candidate.shape)
        for other, part in zip(ids, shares, strict=True):
            share += part * (other == candidate)
        return share

    best, winner = share_of(ids[0]), ids[0].copy()
    for candidate in ids[1:]:
        share = share_of(candidate)
        wins = (share > best) | ((share == best) & (candidate < winner))
        best[wins] = share[wins]
        winner[wins] = candidate[wins]
    return np.where(share_of(nearest) == best, nearest, winner)


def interpolation_matrix(size: int, wanted: int) -> NDArray[np.float32]:
    """(wanted, size) matrix that linearly interpolates one axis from ``size`` to ``wanted`` voxels."""
    centre = _centres(size, wanted)
    matrix = np.zeros((wanted, size), dtype=np.float32)
    rows = np.arange(wanted)
    low = np.floor(centre).astype(int)
    fraction = (centre - low).astype(np.float32)
    np.add.at(matrix, (rows, np.clip(low, 0, size - 1)), 1 - fraction)
    np.add.at(matrix, (rows, np.clip(low + 1, 0, size - 1)), fraction)
    return matrix


def separate_axis(spacing_mm: Spacing, target_mm: Spacing) -> int | None:
    """The axis along which nnU-Net takes the nearest slice: one that is more than three times coarser than the finest.

    The current spacing decides or, if it has no such axis, the target spacing. Two equally coarse axes do not count.
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
    from scipy.ndimage import spline_filter1d  # imported here, because the start of prediction does not need it

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
    """Lower and upper neighbour of every new voxel along an axis, and their weights."""
    if nearest:
        index = _nearest_index(size, wanted)
        return (index, index), (np.ones(wanted), np.zeros(wanted))
    centre = np.clip(_centres(size, wanted), 0, size - 1)
    low = np.floor(centre).astype(np.intp)
    upper = centre - low
    return (np.clip(low, 0, size - 1), np.clip(low + 1, 0, size - 1)), (1 - upper, upper)


def _nearest_index(size: int, wanted: int) -> NDArray[np.intp]:
    return np.clip(np.floor(_centres(size, wanted) + 0.5).astype(np.intp), 0, size - 1)


def _along(matrix: NDArray[np.float32], volume: NDArray[Any], axis: int) -> NDArray[np.float32]:
    """Multiply one axis of a volume by a banded matrix, for any memory layout.

    Each block of rows is multiplied with only the columns in its band, so that the work is proportional to the number
    of voxels rather than to its product with the length of the axis.
    """
    if not volume.flags.c_contiguous and volume.T.flags.c_contiguous:
        return _along(matrix, volume.T, 2 - axis).T
    volume = np.ascontiguousarray(volume)
    wanted, size = matrix.shape
    x, y, z = (wanted if a == axis else n for a, n in enumerate(volume.shape))
    result = np.empty((x, y, z), dtype=np.float32)
    for start in range(0, wanted, _ROWS):
        rows = slice(start, min(start + _ROWS, wanted))
        first, last = (round((end + 0.5) * size / wanted - 0.5) for end in (rows.start, rows.stop - 1))
        columns = slice(max(0, first - _REACH), min(size, last + _REACH + 1))
        block = matrix[rows, columns]
        if axis == 0:
            np.matmul(block, volume[columns].reshape(-1, y * z), out=result[rows].reshape(-1, y * z))
        elif axis == 1:
            np.matmul(block, volume[:, columns], out=result[:, rows])
        else:
            result[:, :, rows] = (volume.reshape(x * y, size)[:, columns] @ block.T).reshape(x, y, -1)
    return result
