"""Resampling of images and label maps to another number of voxels over the same extent.

Images are resampled by nnunetv2's own function (order 3, slices apart where voxels are anisotropic). Label maps give
the same result as nnU-Net's (linear interpolation of every label's indicator, at least one half wins), but each
label is computed inside its own bounding box, so that the cost does not grow with the number of labels times the
volume.

Voxel centres sit at (i + 0.5) · size_in / size_out − 0.5, edges are repeated.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import find_objects

Shape = tuple[int, int, int]
Spacing = tuple[float, float, float]


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
        ``shape``, float32.
    """
    if volume.shape == shape:
        return volume.astype(np.float32)
    from nnunetv2.preprocessing.resampling.default_resampling import resample_data_or_seg_to_shape

    resampled = resample_data_or_seg_to_shape(
        volume[None].astype(np.float32), shape, spacing_mm, target_mm, is_seg=False, order=3, order_z=0,
        force_separate_z=None,
    )  # fmt: skip
    return np.asarray(resampled[0], dtype=np.float32)


def resample_labels(
    labels: NDArray[np.unsignedinteger[Any]], shape: Shape, spacing_mm: Spacing, target_mm: Spacing
) -> NDArray[np.unsignedinteger[Any]]:
    """Resample a label map; the result is nnU-Net's.

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
    flat = _separate_axis(spacing_mm, target_mm)
    weights = [interpolation_matrix(n, m, nearest=axis == flat) for axis, (n, m) in enumerate(zip(labels.shape, shape, strict=True))]
    result = np.zeros(shape, dtype=labels.dtype)
    for label, box in enumerate(find_objects(labels), start=1):
        if box is None:
            continue
        out_box, parts = [], []
        for axis, piece in enumerate(box):
            matrix = weights[axis][:, piece]
            rows = np.flatnonzero(matrix.any(axis=1))
            if rows.size == 0:  # a structure between two sampled slices
                break
            out_box.append(slice(int(rows[0]), int(rows[-1]) + 1))
            parts.append(matrix[rows[0] : rows[-1] + 1])
        if len(parts) < 3:
            continue
        share = (labels[box] == label).astype(np.float32)
        share = np.tensordot(parts[0], share, axes=(1, 0))
        share = np.tensordot(share, parts[1], axes=(1, 1))  # (x, z_in, y)
        share = np.tensordot(share, parts[2], axes=(1, 1))  # (x, y, z)
        # float32 weights sum to one only nearly; nnU-Net computes in float64 and takes exact halves
        result[tuple(out_box)][share >= 0.5 - 1e-6] = label
    return result


def interpolation_matrix(size: int, wanted: int, *, nearest: bool = False) -> NDArray[np.float32]:
    """(wanted, size) matrix that takes one axis from ``size`` to ``wanted`` voxels, linearly or by nearest voxel."""
    centre = (np.arange(wanted) + 0.5) * (size / wanted) - 0.5
    matrix = np.zeros((wanted, size), dtype=np.float32)
    rows = np.arange(wanted)
    if nearest:
        matrix[rows, np.clip(np.floor(centre + 0.5).astype(int), 0, size - 1)] = 1
        return matrix
    low = np.floor(centre).astype(int)
    fraction = (centre - low).astype(np.float32)
    np.add.at(matrix, (rows, np.clip(low, 0, size - 1)), 1 - fraction)
    np.add.at(matrix, (rows, np.clip(low + 1, 0, size - 1)), fraction)
    return matrix


def _separate_axis(spacing_mm: Spacing, target_mm: Spacing) -> int | None:
    """The axis along which nnU-Net takes the nearest slice, if voxels are anisotropic enough."""
    from nnunetv2.preprocessing.resampling.default_resampling import determine_do_sep_z_and_axis

    separate, axis = determine_do_sep_z_and_axis(None, spacing_mm, target_mm)
    return int(axis) if separate and axis is not None else None
