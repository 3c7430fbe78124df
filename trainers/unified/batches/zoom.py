"""Zooming label maps: each voxel takes the label that covers most of it, however many labels there are.

nnU-Net's augmentation interpolates the mask of every label linearly and takes the largest value, which costs one
interpolation of the whole patch per label: 12 s for 100 labels in 144 × 144 × 96 voxels. A linear interpolation looks
at the eight voxels around a point, so at most eight labels can win, and where all eight have the same label, that label
wins. Only the other voxels, those at borders, are computed.
"""

from __future__ import annotations

import itertools
from typing import Any

import torch
from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
from jaxtyping import Float, Integer
from torch import Tensor
from torch.nn import functional

_PLANES = 8  # worked on at once: what is in between stays in the cache


class Zoom(SpatialTransform):
    """batchgeneratorsv2's transform, without rotation and deformation, whose cost does not grow with the labels."""

    def _apply_to_segmentation(self, segmentation: Tensor, **params: Any) -> Tensor:
        grid = params["grid"]
        if grid is None:
            result: Tensor = super()._apply_to_segmentation(segmentation, **params)
            return result
        sizes = segmentation.shape[1:]
        lines = (grid[:, 0, 0, 2], grid[0, :, 0, 1], grid[0, 0, :, 0])  # grid_sample counts axes from the last
        x, y, z = (((line + 1) * n - 1) / 2 for line, n in zip(lines, sizes, strict=True))
        return torch.stack([zoom_labels(channel, (x, y, z)) for channel in segmentation])


def zoom_labels(
    labels: Integer[Tensor, "x y z"], places: tuple[Float[Tensor, " u"], Float[Tensor, " v"], Float[Tensor, " w"]]
) -> Integer[Tensor, "u v w"]:
    """Labels at the points of a grid with axes along those of the label map.

    Args:
        labels: Label ids.
        places: Coordinates of the grid along each axis, in voxels; 0 is the centre of the first. Around the label map
            everything is 0.

    Returns:
        At each point the label whose mask, interpolated linearly, is largest; of two equally large ones that of the
        nearest voxel.
    """
    padded = functional.pad(labels, (1, 1, 1, 1, 1, 1))
    lower, upper, share = [], [], []
    for place, n in zip(places, labels.shape, strict=True):
        below = place.floor()
        lower.append((below.long() + 1).clamp(0, n + 1))
        upper.append((below.long() + 2).clamp(0, n + 1))
        share.append(place - below)
    result = torch.empty([len(p) for p in places], dtype=labels.dtype)
    for start in range(0, len(places[0]), _PLANES):
        planes = slice(start, start + _PLANES)
        ends = [(lower[0][planes], upper[0][planes]), (lower[1], upper[1]), (lower[2], upper[2])]
        result[planes] = _slab(padded, ends, [share[0][planes], share[1], share[2]])
    return result


def _slab(padded: Tensor, ends: list[tuple[Tensor, Tensor]], share: list[Tensor]) -> Tensor:
    corners = []
    for i in ends[0]:
        of_x = padded.index_select(0, i)
        for j in ends[1]:
            of_y = of_x.index_select(1, j)
            corners += [of_y.index_select(2, k) for k in ends[2]]
    result = corners[0]
    border = torch.zeros(result.shape, dtype=torch.bool)
    for corner in corners[1:]:
        border |= corner != result
    where = border.flatten().nonzero().squeeze(1)
    if not len(where):
        return result
    u, v, w = torch.unravel_index(where, result.shape)
    fractions = [s[i] for s, i in zip(share, (u, v, w), strict=True)]
    weights = torch.stack([_weight(fractions, which) for which in itertools.product((0, 1), repeat=3)])  # (8, n)
    seen = torch.stack([corner.flatten()[where] for corner in corners])  # (8, n) labels
    cover = torch.stack([(weights * (seen == label)).sum(0) for label in seen])  # (8, n) of each corner's label
    nearest = weights.argmax(0, keepdim=True)
    winner = torch.where(cover.gather(0, nearest) >= cover.amax(0) - 1e-6, nearest, cover.argmax(0, keepdim=True))
    result.view(-1)[where] = seen.gather(0, winner)[0]
    return result


def _weight(fractions: list[Tensor], which: tuple[int, ...]) -> Tensor:
    x, y, z = (f if upper else 1 - f for f, upper in zip(fractions, which, strict=True))
    return x * y * z
