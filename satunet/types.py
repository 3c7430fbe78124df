"""Names for arrays and their axes, used in signatures; the tests check the shapes.

Axes x, y, z are a volume's voxel axes (i, j, k), see :mod:`satunet.geometry`; ``n`` counts prompts or classes, ``d``
the values of an embedding.
"""

from __future__ import annotations

from typing import Any, NewType, TypeAlias

import numpy as np
from jaxtyping import Bool, Float32, Float64, Integer, Shaped

Axes: TypeAlias = tuple[int, int, int]
"""One integer per voxel axis: a shape, a position, a stride."""

SpacingMm: TypeAlias = tuple[float, float, float]
"""Distance between voxel centres along the axes of an array, in millimetres."""

Box: TypeAlias = tuple[slice, slice, slice]
"""Part of a volume: ``volume[box]``; the slices have starts and stops, but no steps."""

# np.ndarray is spelled out below, because jaxtyping cannot resolve the alias NDArray since numpy 2.5.
Volume: TypeAlias = Shaped[np.ndarray[Any, np.dtype[Any]], "x y z"]
"""Intensities, in any number type."""

LabelMap: TypeAlias = Integer[np.ndarray[Any, np.dtype[np.integer[Any]]], "x y z"]
"""Label ids; 0 is background."""

Mask: TypeAlias = Bool[np.ndarray[Any, np.dtype[np.bool_]], "x y z"]
"""Whether each voxel belongs to a structure."""

Affine: TypeAlias = Float64[np.ndarray[Any, np.dtype[np.float64]], "4 4"]
"""Voxel index → RAS+ millimetres, homogeneous."""

Embeddings: TypeAlias = Float32[np.ndarray[Any, np.dtype[np.float32]], "n d"]
"""One row per text."""

PackedFloats = NewType("PackedFloats", np.ndarray[Any, np.dtype[np.float32]])
"""Many numbers along one axis; a record's file holds them as base64 of little-endian float32, a third of the size of a
list."""
