"""Instance norm and leaky ReLU of maps with channels last, as rows of (voxels, C), in pieces.

The statistics of a piece are computed while it is in the cache; those of all pieces are combined in float64, in the
order of the pieces.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from satunet.network.cpu.team import scratch

_GROUP = 16
"""Number of voxels treated as one row of 16·C values: operators have a cost per row, and sums get shorter."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Moments:
    """Statistics of the rows of a piece, or of all pieces.

    Attributes:
        count: Number of rows.
        mean: (C,) float64 mean of the rows.
        deviation: (C,) float64 sum of the squared differences from the mean.
    """

    count: int
    mean: Tensor
    deviation: Tensor

    @classmethod
    def of(cls, rows: Tensor) -> Moments:
        """Moments of (voxels, C) rows, float32 or bfloat16, by torch's batch norm, which computes the mean first."""
        count, channels = rows.shape
        groups = count // _GROUP
        parts = []
        if groups:
            image = rows[: groups * _GROUP].view(1, groups, 1, _GROUP * channels).permute(0, 3, 1, 2)
            # With running statistics (which are not used), torch keeps the statistics of bfloat16 in float32.
            unused = torch.zeros(2, _GROUP * channels, dtype=torch.float32, device="cpu")
            mean, variance = torch.batch_norm_update_stats(image, unused[0], unused[1], 0.0)
            means = mean.view(_GROUP, channels).double()
            within = groups * variance.view(_GROUP, channels).double().sum(0)
            centre = means.mean(0)
            between = groups * (means - centre).square().sum(0)
            parts.append(cls(count=groups * _GROUP, mean=centre, deviation=within + between))
        if count % _GROUP:
            rest = rows[groups * _GROUP :].double()
            mean = rest.mean(0)
            parts.append(cls(count=len(rest), mean=mean, deviation=(rest - mean).square().sum(0)))
        return parts[0] if len(parts) == 1 else cls.together(parts)

    @classmethod
    def together(cls, parts: Sequence[Moments]) -> Moments:
        """Combined moments of all parts (Chan, Golub & LeVeque 1979)."""
        counts = torch.tensor([part.count for part in parts], dtype=torch.float64, device="cpu")[:, None]
        means = torch.stack([part.mean for part in parts])
        count = int(counts.sum())
        mean = (counts * means).sum(0) / count
        between = (counts * (means - mean).square()).sum(0)
        return cls(count=count, mean=mean, deviation=torch.stack([p.deviation for p in parts]).sum(0) + between)

    def scale_and_offset(self, gain: Tensor, offset: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        """Scale and offset of the instance norm, (C,) float32 each."""
        scale = gain / (self.deviation / self.count + eps).sqrt()
        return scale.float(), (offset - self.mean * scale).float()


def scale_(rows: Tensor, scale: Tensor, offset: Tensor, negative_slope: float | None) -> None:
    """Scale, shift and leaky ReLU of (voxels, C) in place, in float32: scales rounded to bfloat16 shift whole maps."""
    channels = rows.shape[1]
    for part in row_groups(rows):
        repeats = part.shape[1] // channels
        exact = part if part.dtype is torch.float32 else scratch("exact", *part.shape).copy_(part)
        torch.addcmul(offset.repeat(repeats), exact, scale.repeat(repeats), out=exact)
        if negative_slope is not None:
            nn.functional.leaky_relu_(exact, negative_slope)
        if exact is not part:
            part.copy_(exact)


def row_groups(rows: Tensor) -> list[Tensor]:
    """(voxels, C) as a view of (groups, 16·C), and of the remaining voxels, (rest, C)."""
    count, channels = rows.shape
    wide = count // _GROUP * _GROUP
    parts = [rows[:wide].view(-1, _GROUP * channels)] if wide else []
    return parts + ([rows[wide:]] if count > wide else [])


@dataclass(frozen=True)
class Norm:
    """Functions that normalise maps; an engine may substitute functions with the same result.

    Attributes:
        moments: Function that computes the moments of a piece, like :meth:`Moments.of`.
        scale: Function that normalises rows in place, like :func:`scale_`.
        in_pieces: Whether threads call ``scale`` for pieces in parallel; else it is called once for the whole map.
    """

    moments: Callable[[Tensor], Moments] = Moments.of
    scale: Callable[[Tensor, Tensor, Tensor, float | None], None] = scale_
    in_pieces: bool = True
