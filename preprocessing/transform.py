"""Preprocessing of one scan and its inverse, shared by training and prediction.

Forward: reorient to the plan's orientation → crop to the box of nonzero voxels → normalise the intensities by modality
→ resample to the plan's spacing. Backward: resample to the cropped shape → paste into the full shape → reorient to the
file's axes. Volumes are (X, Y, Z) in the axes of :mod:`satunet.geometry`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from satunet.errors import GridMismatchError
from satunet.geometry import Grid, box_of, box_shape, reorient, same_grid
from satunet.images.hounsfield import to_hounsfield
from satunet.images.image import Image
from satunet.plan import Normalization, UnifiedPlan
from satunet.preprocessing.resampling import (
    Shape,
    Spacing,
    new_shape,
    resample_image,
    resample_labels,
)
from satunet.types import Box

_PIECE = 1 << 20


@dataclass(frozen=True, kw_only=True, eq=False)
class ScanGeometry:
    """Position of a preprocessed scan in its file; part of a scan's record.

    Attributes:
        original: Grid of the file.
        orientation: Orientation of the preprocessed scan.
        crop: Part of the reoriented volume that was kept.
        shape: Shape of the preprocessed scan.
        spacing_mm: Spacing of the preprocessed scan, as planned.
    """

    original: Grid
    orientation: str
    crop: Box
    shape: Shape
    spacing_mm: Spacing

    @cached_property
    def turned(self) -> Grid:
        """Grid of the file after its axes were turned."""
        _, turned = reorient(np.broadcast_to(np.uint8(0), self.original.shape), self.original, self.orientation)
        return turned

    @property
    def cropped_shape(self) -> Shape:
        """Shape of the crop before resampling."""
        return box_shape(self.crop)

    @property
    def grid(self) -> Grid:
        """Grid of the preprocessed scan in physical space."""
        step = np.array(self.cropped_shape) / np.array(self.shape)
        start = np.array([s.start for s in self.crop])
        to_turned = np.eye(4)
        to_turned[:3, :3] = np.diag(step)
        to_turned[:3, 3] = start + step / 2 - 0.5  # centre of the first new voxel, in turned voxels
        return Grid(shape=self.shape, affine=self.turned.affine @ to_turned)


@dataclass(frozen=True, kw_only=True, eq=False)
class PreprocessedImage:
    """A scan as the network sees it.

    Attributes:
        array: (1, X, Y, Z) float32.
        geometry: Geometry that leads back to the scan's file.
    """

    array: NDArray[np.float32]
    geometry: ScanGeometry


def preprocess_image(
    image: Image,
    *,
    modality: str,
    plan: UnifiedPlan,
    orientation: str | None = None,
    normalization: Normalization | None = None,
) -> PreprocessedImage:
    """Reorient, crop, normalise and resample a scan.

    Args:
        image: The scan.
        modality: Modality, which decides the normalisation.
        plan: Plan with spacing and normalisations.
        orientation: Target orientation; the plan's if not given.
        normalization: Normalisation of the scan's channel; the modality's if not given.
    """
    normalization = normalization or plan.normalization_of(modality)
    orientation = orientation or plan.orientation
    volume, turned = reorient(image.array, image.grid, orientation)
    crop = nonzero_box(volume)
    volume = volume[crop]
    spacing = turned.spacing_mm
    shape = new_shape(box_shape(crop), spacing, plan.spacing_mm)
    if modality == "ct":
        volume = to_hounsfield(volume)
    # Normalised first, so that bounds and statistics are those of the scan itself.
    array = resample_image(normalize(volume, normalization), shape, spacing, plan.spacing_mm)
    geometry = ScanGeometry(
        original=image.grid,
        orientation=orientation,
        crop=crop,
        shape=shape,
        spacing_mm=plan.spacing_mm,
    )
    return PreprocessedImage(array=np.ascontiguousarray(array[None]), geometry=geometry)


def preprocess_labels(labels: Image, geometry: ScanGeometry) -> NDArray[np.unsignedinteger[Any]]:
    """Preprocess a label map like its scan.

    Returns:
        (1, X, Y, Z) in the smallest unsigned type for its ids.

    Raises:
        GridMismatchError: The label map is on another grid than the scan.
    """
    if not same_grid(labels.grid, geometry.original):
        path = labels.path or "label map"
        raise GridMismatchError(path, f"shape {labels.grid.shape}, the scan has {geometry.original.shape}")
    ids = labels.array.astype(np.min_scalar_type(int(labels.array.max(initial=0))), copy=False)
    turned, _ = reorient(ids, labels.grid, geometry.orientation)
    cropped = turned[geometry.crop]
    resampled = resample_labels(cropped, geometry.shape, geometry.turned.spacing_mm, geometry.spacing_mm)
    return np.ascontiguousarray(resampled[None])


def restore(volume: NDArray[Any], geometry: ScanGeometry, *, order: int = 1) -> NDArray[np.float32]:
    """Bring a volume from the preprocessed grid back to the file's grid.

    Args:
        volume: (X, Y, Z) of the preprocessed scan: probabilities, or a mask as 0 and 1.
        geometry: Geometry of that scan.
        order: 1 interpolates linearly, 0 takes the nearest voxel.

    Returns:
        float32, of the file's shape; 0 outside the crop.
    """
    import torch
    from torch.nn import functional

    if volume.shape != geometry.shape:
        raise ValueError(f"the volume's shape {volume.shape} is not the preprocessed scan's {geometry.shape}")
    tensor = torch.from_numpy(np.ascontiguousarray(volume, dtype=np.float32))[None, None]
    if volume.shape != geometry.cropped_shape:
        if order == 0:
            tensor = functional.interpolate(tensor, geometry.cropped_shape, mode="nearest-exact")
        else:
            tensor = functional.interpolate(tensor, geometry.cropped_shape, mode="trilinear", align_corners=False)
    full = np.zeros(geometry.turned.shape, dtype=np.float32)
    full[geometry.crop] = tensor[0, 0].numpy()
    back, _ = reorient(full, geometry.turned, geometry.original.orientation)
    return np.ascontiguousarray(back)


def nonzero_box(volume: NDArray[Any]) -> Box:
    """Smallest box around all nonzero voxels; the whole volume if all are zero."""
    x, y, z = volume.shape
    return box_of(volume != 0) or (slice(0, x), slice(0, y), slice(0, z))


def normalize(volume: NDArray[Any], scheme: Normalization) -> NDArray[np.float32]:
    """Clip and normalise the intensities, as :class:`~satunet.plan.Normalization` says.

    A constant volume becomes zero.

    Args:
        volume: Array of any numeric type.
        scheme: Normalisation; the plan has one per modality.

    Returns:
        A new array of the same shape.
    """
    values: NDArray[np.float32] = volume.astype(np.float32)  # a copy, worked on in place: volumes are large
    inside = filled_nonzero(volume) if scheme.nonzero else None
    if scheme.clip is not None:
        np.clip(values, *scheme.clip, out=values)
    elif scheme.percentiles is not None:
        low, high = np.percentile(values, scheme.percentiles)
        np.clip(values, low, high, out=values)
    if scheme.unit_range:
        offset, scale = float(values.min()), float(values.max() - values.min())
    elif scheme.mean is not None and scheme.std is not None:
        offset, scale = scheme.mean, scheme.std
    else:
        offset, scale = mean_and_std(values if inside is None else values[inside])
    values -= np.float32(offset)
    values /= np.float32(max(scale, 1e-8))
    if inside is not None:
        values *= inside
    return values


def mean_and_std(values: NDArray[np.float32]) -> tuple[float, float]:
    """Mean and standard deviation in float64, without temporary arrays as large as the volume."""
    flat = values.ravel(order="K")
    pieces = [slice(start, start + _PIECE) for start in range(0, flat.size, _PIECE)]
    mean = math.fsum(float(flat[piece].sum(dtype=np.float64)) for piece in pieces) / flat.size
    squares = math.fsum(float(np.square(flat[piece].astype(np.float64) - mean).sum()) for piece in pieces)
    return mean, math.sqrt(squares / flat.size)


def filled_nonzero(volume: NDArray[Any]) -> NDArray[np.bool_]:
    """Nonzero voxels and the holes that they enclose, which nnU-Net regards as the inside of a masked scan."""
    from scipy.ndimage import binary_fill_holes

    nonzero = volume != 0
    return np.asarray(binary_fill_holes(nonzero)) if nonzero.any() else ~nonzero
