"""Crops of a volume at any spacing, turned, stretched and bent, in one interpolation.

A crop's voxel ``i`` (counted from its middle) lies at ``A i s + d(i)`` millimetres from its centre: ``s`` is the
spacing, ``A`` a rotation with stretching, ``d`` a smooth random displacement. Images are interpolated linearly, label
ids take the nearest voxel. Volumes are (X, Y, Z) in RAS.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

_KNOTS = 5
"""Knots of the displacement along each axis."""


@dataclass(frozen=True, kw_only=True)
class Deformation:
    """How crops are deformed; zeros leave them as they are.

    Attributes:
        rotation_deg: Standard deviation of the turn about each axis, in degrees.
        stretch: Standard deviation of the logarithm of the stretching along each axis.
        warp: Standard deviation of the displacement, as a share of the crop's shortest side.
        mirror: Whether half of the crops are mirrored left to right.
    """

    rotation_deg: float = 0.0
    stretch: float = 0.0
    warp: float = 0.0
    mirror: bool = False


def crop_places(
    centre: Sequence[float],
    patch: Sequence[int],
    spacing_mm: Sequence[float],
    native_mm: Sequence[float],
    deformation: Deformation,
    rng: np.random.Generator,
    *,
    mirrored: bool = False,
    device: torch.device | str = "cpu",
    fineness: int = 1,
) -> Tensor:
    """Where the voxels of a crop lie in the volume.

    Args:
        centre: Voxel of the volume at the middle of the crop.
        patch: (X, Y, Z) voxels of the crop.
        spacing_mm: Spacing of the crop.
        native_mm: Spacing of the volume.
        deformation: Deformation settings.
        rng: Generator.
        mirrored: Whether to mirror along the first axis.
        device: Device of the result.
        fineness: Places along each side of a voxel of the crop.

    Returns:
        (X, Y, Z, 3) float32 voxel coordinates, ``fineness`` times as many along each axis.
    """
    matrix = _matrix(deformation, rng)
    patch, spacing_mm = [n * fineness for n in patch], [s / fineness for s in spacing_mm]
    if mirrored:
        matrix = matrix @ np.diag([-1.0, 1.0, 1.0])
    columns = [
        ((torch.arange(n, dtype=torch.float32, device=device) - (n - 1) / 2) * s)[:, None]
        * torch.from_numpy(matrix[:, a]).float().to(device)
        for a, (n, s) in enumerate(zip(patch, spacing_mm, strict=True))
    ]
    places = columns[0][:, None, None] + columns[1][None, :, None] + columns[2][None, None]
    if deformation.warp:
        side = min(n * s for n, s in zip(patch, spacing_mm, strict=True))
        knots = rng.normal(0, deformation.warp * side * rng.uniform(0, 1), (1, 3, _KNOTS, _KNOTS, _KNOTS))
        field = functional.interpolate(
            torch.from_numpy(knots).float().to(device),
            tuple(int(n) for n in patch),
            mode="trilinear",
            align_corners=True,
        )
        places = places + field[0].permute(1, 2, 3, 0)
    native = torch.tensor(native_mm, dtype=torch.float32, device=device)
    result: Tensor = places / native + torch.tensor(centre, dtype=torch.float32, device=device)
    return result


def _matrix(deformation: Deformation, rng: np.random.Generator) -> np.ndarray:
    turns = np.deg2rad(rng.normal(0, 1, 3) * deformation.rotation_deg)
    stretch = np.exp(np.clip(rng.normal(0, 1, 3), -2.5, 2.5) * deformation.stretch)
    matrix = np.diag(stretch)
    for axis, angle in enumerate(turns):
        a, b = [i for i in range(3) if i != axis]
        turn = np.eye(3)
        turn[a, a] = turn[b, b] = math.cos(angle)
        turn[a, b], turn[b, a] = -math.sin(angle), math.sin(angle)
        matrix = turn @ matrix
    return matrix


def sample(volume: Tensor, places: Tensor, *, labels: bool, outside: float = 0.0) -> Tensor:
    """Values of a volume at places.

    Args:
        volume: (X, Y, Z) of any type.
        places: (x, y, z, 3) voxel coordinates.
        labels: Take the nearest voxel instead of interpolating.
        outside: Value more than half a voxel outside the volume.

    Returns:
        (x, y, z): int64 for labels, float32 else.
    """
    if labels:
        return _nearest(volume, places, int(outside))
    size_of_all = torch.tensor(volume.shape, device=places.device)
    if volume.device.type == "cpu":  # only the part that the crop needs; a GPU would have to be waited for
        flat = places.reshape(-1, 3)
        low = flat.amin(0).floor().long().clamp_min(0)
        high = torch.minimum(flat.amax(0).ceil().long() + 1, size_of_all)
        low = torch.minimum(low, size_of_all - 1)
        high = torch.maximum(high, low + 1)
        part = volume[low[0] : high[0], low[1] : high[1], low[2] : high[2]].float()
        size = high - low
    else:
        low, part, size = torch.zeros_like(size_of_all), volume.float(), size_of_all
    inside = places - low
    grid = (2 * inside + 1) / size - 1
    values = functional.grid_sample(
        part[None, None],
        grid.flip(-1)[None],
        mode="bilinear",
        padding_mode="border",
        align_corners=False,
    )[0, 0]
    beyond = ((places < -0.5) | (places > size_of_all - 0.5)).any(-1)
    return values.masked_fill(beyond, outside)


def _nearest(volume: Tensor, places: Tensor, outside: int) -> Tensor:
    # Three times as fast as grid_sample, which also wants the whole volume in floating point.
    index, beyond = torch.zeros(places.shape[:3], dtype=torch.long, device=places.device), None
    for axis, n in enumerate(volume.shape):
        nearest = places[..., axis].round().long()
        out = (nearest < 0) | (nearest >= n)
        beyond = out if beyond is None else beyond | out
        index.mul_(n).add_(nearest.clamp_(0, n - 1))
    assert beyond is not None
    return volume.reshape(-1)[index].long().masked_fill(beyond, outside)
