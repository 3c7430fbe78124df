"""Choosing and painting planes through a scan with label maps on top.

Axial and coronal planes follow the radiological convention, with the patient's right on the left; in sagittal planes,
the patient faces left. Pixels are square in millimetres. Arrays are (X, Y, Z) with the axes right, anterior, superior.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from satunet.geometry import Grid
from satunet.images.colours import colours_of
from satunet.types import Box

PANEL = 288
"""Default width and height of a plane in pixels."""

_MARGIN_MM = 12.0
_SOFT_TISSUE = (-200.0, 300.0)
_LUNG = (-1100.0, 300.0)
_FILL = 0.38


def class_index_map(
    masks: Mapping[str, NDArray[np.bool_]], classes: Sequence[str], shape: Sequence[int]
) -> NDArray[np.uint16]:
    """One label map of masks that may overlap: value i + 1 is ``classes[i]``, and smaller masks lie on top.

    Args:
        masks: Class → (X, Y, Z) mask; a class without a mask is absent.
        classes: All classes.
        shape: (X, Y, Z).
    """
    labels = np.zeros(tuple(shape), dtype=np.uint16)
    sizes = {name: int(np.count_nonzero(mask)) for name, mask in masks.items()}
    for name in sorted(masks, key=lambda n: (-sizes[n], n)):
        labels[masks[name]] = classes.index(name) + 1
    return labels


def palette(classes: Sequence[str]) -> NDArray[np.float32]:
    """(n + 1, 3) colours between 0 and 1: black for the background, then the colours of the classes."""
    return np.divide([(0, 0, 0), *colours_of(classes)], 255, dtype=np.float32)


def structures_box(maps: Sequence[NDArray[np.uint16]], grid: Grid) -> Box:
    """Box around all structures, with a margin; within the scan, each side is at least half as long as the longest."""
    found = [np.array([(w.min(), w.max() + 1) for w in np.nonzero(m)]) for m in maps if m.any()]
    spacing, shape = np.array(grid.spacing_mm), np.array(grid.shape)
    if not found:
        return slice(0, grid.shape[0]), slice(0, grid.shape[1]), slice(0, grid.shape[2])
    low = np.min([f[:, 0] for f in found], axis=0) * spacing
    high = np.max([f[:, 1] for f in found], axis=0) * spacing
    length = high - low
    margin = _MARGIN_MM + 0.08 * length.max() + np.maximum(0, 0.5 * length.max() - length) / 2
    first = np.maximum(0, np.floor((low - margin) / spacing)).astype(int)
    last = np.minimum(shape, np.ceil((high + margin) / spacing)).astype(int)
    x, y, z = (slice(int(a), int(b)) for a, b in zip(first, last, strict=True))
    return x, y, z


def fullest_slices(labels: NDArray[np.uint16], n: int) -> list[int]:
    """For each axis, the slice that shows the most: many classes, and large areas."""
    if not labels.any():
        return [s // 2 for s in labels.shape]
    where = np.nonzero(labels)
    values = labels[where].astype(np.int64)
    best = []
    for axis in range(3):
        areas = np.bincount(where[axis] * (n + 1) + values, minlength=labels.shape[axis] * (n + 1))
        best.append(int(np.sqrt(areas.reshape(labels.shape[axis], n + 1)).sum(axis=1).argmax()))
    return best


def intensity_window(values: NDArray[Any], shown: NDArray[np.bool_], modality: str | None) -> tuple[float, float]:
    """The intensities shown as black and as white.

    Args:
        values: Intensities of the part that is shown.
        shown: Mask of the structures in it.
        modality: Modality of the scan. CT has a fixed window, the lung window if the structures consist of air; other
            modalities are stretched between percentiles.
    """
    if modality == "ct":
        inside = values[shown]
        return _LUNG if inside.size and float(np.median(inside)) < -300 else _SOFT_TISSUE
    low, high = (float(v) for v in np.percentile(values, (1, 99.5)))
    return (low, high) if high > low else (low, low + 1)


def cut_plane(
    volume: NDArray[Any],
    labels: NDArray[np.uint16],
    axis: int,
    index: int,
    box: Box,
    spacing_mm: Sequence[float],
    panel: int = PANEL,
) -> tuple[NDArray[np.float32], NDArray[np.uint16]]:
    """Scan and labels of a plane, both (panel, panel), with the first row at the top."""
    where: list[slice | int] = list(box)
    where[axis] = index
    across, up = (a for a in range(3) if a != axis)
    # A row starts at the patient's right (in a sagittal plane, the front), a column at the front (or the top).
    gray = np.flip(volume[tuple(where)].T, (0, 1))
    shown = np.flip(labels[tuple(where)].T, (0, 1))
    height_mm, width_mm = gray.shape[0] * spacing_mm[up], gray.shape[1] * spacing_mm[across]
    scale = panel / max(height_mm, width_mm)
    size = max(1, round(height_mm * scale)), max(1, round(width_mm * scale))
    top, left = (panel - size[0]) // 2, (panel - size[1]) // 2
    frame = np.full((panel, panel), -np.inf, dtype=np.float32)  # below any window: black
    frame_labels = np.zeros((panel, panel), dtype=np.uint16)
    inside = slice(top, top + size[0]), slice(left, left + size[1])
    frame[inside] = _resize(gray.astype(np.float32), size)
    rows, columns = (
        np.minimum((np.arange(m) + 0.5) * n / m, n - 1).astype(int) for m, n in zip(size, gray.shape, strict=True)
    )
    frame_labels[inside] = shown[np.ix_(rows, columns)]
    return frame, frame_labels


def paint(
    gray: NDArray[np.float32], labels: NDArray[np.uint16], window: tuple[float, float], colours: NDArray[np.float32]
) -> NDArray[np.uint8]:
    """(panel, panel, 3) RGB picture in which classes have a light fill and an outline."""
    level = np.clip((gray - window[0]) / (window[1] - window[0]), 0, 1)[..., None]
    edge = np.zeros(labels.shape, dtype=bool)
    for axis in (0, 1):
        changes = np.diff(labels, axis=axis) != 0
        first, second = [slice(None), slice(None)], [slice(None), slice(None)]
        first[axis], second[axis] = slice(None, -1), slice(1, None)
        edge[tuple(first)] |= changes
        edge[tuple(second)] |= changes
    strength = np.where(labels > 0, np.where(edge, 0.95, _FILL), 0.0)[..., None]
    mixed = level * (1 - strength) + colours[labels] * strength
    return np.asarray(np.rint(255 * mixed), dtype=np.uint8)


def _resize(gray: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.float32]:
    """Linear interpolation between pixel centres."""
    result = gray
    for axis, m in enumerate(size):
        n = result.shape[axis]
        at = np.clip((np.arange(m) + 0.5) * n / m - 0.5, 0, n - 1)
        lower = np.minimum(at.astype(int), max(0, n - 2))
        share = (at - lower).astype(np.float32)
        share = share[:, None] if axis == 0 else share[None]
        low, high = result.take(lower, axis), result.take(np.minimum(lower + 1, n - 1), axis)
        result = low * (1 - share) + high * share
    return result
