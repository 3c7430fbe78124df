"""Sums of probabilities in blocks that exist only where a prompt's probability is not negligible.

The windows sweep the scan along one axis, and the blocks form layers perpendicular to it. A layer is finished once no
later window touches it; of a finished layer, only the blocks in or next to a structure are kept. Memory is therefore
proportional to the volume of the structures found, not to the number of prompts.

Shapes: C features, V voxels of a block, P places (blocks) of a layer, N queries.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from satunet.types import Axes

BLOCK: Axes = (16, 16, 8)
VOXELS = int(np.prod(BLOCK))
BLOCK_BYTES = 4 * VOXELS


class Scratch:
    """Reused memory: the page faults of a few fresh megabytes cost more than copying data into them."""

    def __init__(self) -> None:
        self._memory = torch.empty(0)

    def rows(self, count: int, like: Tensor) -> Tensor:
        """Uninitialised (count, C) tensor of the same type as the (m, C) rows ``like``, valid until the next call."""
        size = count * like.shape[1]
        if len(self._memory) < size or self._memory.dtype != like.dtype:
            self._memory = torch.empty(size, dtype=like.dtype)
        return self._memory[:size].view(count, like.shape[1])


@dataclass(frozen=True, kw_only=True)
class Tiling:
    """Blocks over a volume.

    Attributes:
        shape: Shape of the volume.
        sweep: Axis along which the windows proceed and the layers are stacked.
    """

    shape: Axes
    sweep: int

    @cached_property
    def counts(self) -> Axes:
        """Number of blocks along each axis; the last ones may extend beyond the volume."""
        x, y, z = (-(-n // b) for n, b in zip(self.shape, BLOCK, strict=True))
        return x, y, z

    @property
    def layers(self) -> int:
        """Number of layers."""
        return self.counts[self.sweep]

    @property
    def across(self) -> tuple[int, int]:
        """The two axes within a layer."""
        first, second = (axis for axis in range(3) if axis != self.sweep)
        return first, second

    @property
    def places(self) -> int:
        """Number of blocks in a layer; their numbers run fastest along the second axis of :attr:`across`."""
        first, second = self.across
        return self.counts[first] * self.counts[second]

    def layers_of(self, start: Axes, patch: Axes) -> range:
        """Layers that a window touches."""
        first, size = start[self.sweep], BLOCK[self.sweep]
        return range(first // size, -(-(first + patch[self.sweep]) // size))

    def places_of(self, start: Axes, patch: Axes) -> Tensor:
        """Places that a window touches in each of its layers, (n,) int64."""
        ranges = [torch.arange(start[a] // BLOCK[a], -(-(start[a] + patch[a]) // BLOCK[a])) for a in self.across]
        return (ranges[0][:, None] * self.counts[self.across[1]] + ranges[1]).flatten()

    def cut(
        self, window: Tensor, start: Axes, layer: int, *, repeat_edges: bool, scratch: Scratch | None = None
    ) -> Tensor:
        """Cut a window's part of a layer into blocks, in the order of :meth:`places_of`.

        Args:
            window: (C, x, y, z), values of the window.
            start: First voxel of the window in the volume.
            layer: Number of a layer that the window touches.
            repeat_edges: Whether a block's voxels outside the window repeat the nearest one inside; else they are 0.
            scratch: Memory that the result may use; the next cut with the same one overwrites it.

        Returns:
            (n, C, V).
        """
        patch = window.shape[1:]
        if repeat_edges and window.device.type == "cpu" and window.permute(1, 2, 3, 0).is_contiguous():
            # Channels last in memory, like the CPU engine's maps: a voxel's channels are copied once, in one piece.
            # Padding and rearranging would take twenty times as long.
            rows = window.permute(1, 2, 3, 0).reshape(-1, window.shape[0])
            voxels = self._voxels((patch[0], patch[1], patch[2]), start, layer)
            out = None if scratch is None else scratch.rows(len(voxels), rows)
            return torch.index_select(rows, 0, voxels, out=out).view(-1, VOXELS, window.shape[0]).transpose(1, 2)
        widths: list[int] = []
        for axis in range(3):
            if axis == self.sweep:
                low, high = layer * BLOCK[axis] - start[axis], (layer + 1) * BLOCK[axis] - start[axis]
                before, after = max(0, -low), max(0, high - patch[axis])
                first = max(0, low)
                window = window.narrow(axis + 1, first, min(high, patch[axis]) - first)
            else:
                before, after = start[axis] % BLOCK[axis], -(start[axis] + patch[axis]) % BLOCK[axis]
            widths = [before, after, *widths]  # torch pads the last axis first
        if any(widths):
            window = functional.pad(window[None], widths, mode="replicate" if repeat_edges else "constant")[0]
        channels = window.shape[0]
        split = [n for size, b in zip(window.shape[1:], BLOCK, strict=True) for n in (size // b, b)]
        blocks = window.reshape(channels, *split).permute(1, 3, 5, 0, 2, 4, 6)
        return blocks.reshape(-1, channels, VOXELS)

    def _voxels(self, patch: Axes, start: Axes, layer: int) -> Tensor:
        """(n · V,) index of the window's nearest voxel, for each voxel of a layer's blocks that the window touches."""
        sides = []
        for axis in range(3):
            size, end = BLOCK[axis], start[axis] + patch[axis]
            first, last = (layer, layer + 1) if axis == self.sweep else (start[axis] // size, -(-end // size))
            inside = torch.arange(first * size, last * size).sub_(start[axis]).clamp_(0, patch[axis] - 1)
            sides.append(inside.reshape(-1, size))
        x, y, z = sides
        planes = x[:, None, None, :, None, None] * patch[1] + y[None, :, None, None, :, None]
        return (planes * patch[2] + z[None, None, :, None, None, :]).flatten()

    def coordinates(self, layer: int, places: Tensor) -> Tensor:
        """(n,) places of a layer → (n, 3) block indices."""
        second = self.counts[self.across[1]]
        found = torch.empty(len(places), 3, dtype=torch.int64)
        found[:, self.sweep] = layer
        found[:, self.across[0]] = places // second
        found[:, self.across[1]] = places % second
        return found

    def widened(self, marked: Tensor) -> Tensor:
        """(n, layers, P) boolean → the same with all neighbours of marked blocks marked as well."""
        count, layers, _ = marked.shape
        if count * layers == 0:
            return marked
        first, second = self.across
        grid = marked.reshape(count, 1, layers, self.counts[first], self.counts[second])
        return (functional.max_pool3d(grid.float(), 3, 1, 1) > 0).reshape(marked.shape)


@dataclass(kw_only=True, eq=False)
class Layer:
    """Sums of a layer that later windows may still touch.

    Attributes:
        rows: (N, P) int32, row of each block in ``sums``; -1 where a block does not exist.
        sums: (capacity, V) float32 weighted sums of probabilities.
        used: Number of rows in use.
    """

    rows: Tensor
    sums: Tensor
    used: int = 0

    @classmethod
    def empty(cls, queries: int, places: int, device: torch.device) -> Layer:
        """A layer without blocks."""
        return cls(
            rows=torch.full((queries, places), -1, dtype=torch.int32, device=device),
            sums=torch.zeros(0, VOXELS, device=device),
        )

    def add(self, keys: Tensor, places: Tensor, values: Tensor) -> int:
        """Add (n, V) to the blocks of n distinct (query, place) pairs and return the number of new blocks."""
        rows = self.rows[keys, places]
        fresh = rows < 0
        count = int(fresh.sum())
        if self.used + count > len(self.sums):
            more = max(self.used + count, 2 * len(self.sums)) - len(self.sums)
            self.sums = torch.cat((self.sums, self.sums.new_zeros(more, VOXELS)))
        if count:
            numbers = torch.arange(self.used, self.used + count, dtype=torch.int32, device=rows.device)
            self.rows[keys[fresh], places[fresh]] = numbers
            rows = self.rows[keys, places]
            self.used += count
        self.sums.index_add_(0, rows.long(), values)
        return count

    def drop(self, keys: Tensor) -> None:
        """Discard the blocks of some queries."""
        self.rows[keys] = -1
        there = self.rows >= 0
        kept = self.rows[there]
        self.sums = self.sums[kept.long()]
        self.used = len(kept)
        self.rows[there] = torch.arange(self.used, dtype=torch.int32, device=kept.device)

    def counts(self) -> Tensor:
        """(N,) number of blocks of each query."""
        return (self.rows >= 0).sum(1)

    def means(self, weight: Tensor, level: float = 0.5) -> FinishedLayer:
        """Divide all blocks by the sum of weights; the layer's sums are consumed.

        Args:
            weight: (P, V) sum of weights.
            level: Probability above which a block is part of a structure.
        """
        keys, places = (self.rows >= 0).nonzero(as_tuple=True)
        values = self.sums[self.rows[keys, places].long()]
        self.sums = self.sums[:0]
        values /= weight[places].clamp_min_(torch.finfo(torch.float32).tiny)
        alive = torch.zeros_like(self.rows, dtype=torch.bool)
        alive[keys, places] = (values > level).any(1)
        return FinishedLayer(keys=keys, places=places, values=values, alive=alive)


@dataclass(kw_only=True, eq=False)
class FinishedLayer:
    """Probabilities of a layer.

    Attributes:
        keys: (n,) query of each block, ascending.
        places: (n,) place of each block.
        values: (n, V) float32.
        alive: (N, P) boolean, whether any voxel of the block exceeds the requested level.
    """

    keys: Tensor
    places: Tensor
    values: Tensor
    alive: Tensor

    def keep(self, stays: Tensor) -> None:
        """Discard the blocks that are not marked in ``stays``, (n,) boolean."""
        self.keys, self.places, self.values = self.keys[stays], self.places[stays], self.values[stays]


@dataclass(kw_only=True, eq=False)
class Structures:
    """Blocks of finished layers in and next to structures, on the CPU.

    Layers are appended in order; whether a block lies next to a structure is known once the next layer is appended.

    Attributes:
        tiling: Tiling of the volume.
        active: (N,) boolean, queries whose blocks are kept.
    """

    tiling: Tiling
    active: Tensor
    _recent: list[FinishedLayer] = field(default_factory=list)
    _next: int = 0
    _kept: list[tuple[int, Tensor, Tensor, Tensor]] = field(default_factory=list)

    @property
    def blocks(self) -> int:
        """Number of blocks held."""
        return sum(len(keys) for _, keys, *_ in self._kept) + sum(len(layer.keys) for layer in self._recent)

    def counts(self) -> Tensor:
        """(N,) number of blocks of each query."""
        keys = [keys for _, keys, *_ in self._kept] + [layer.keys.cpu() for layer in self._recent]
        return torch.bincount(torch.cat([torch.zeros(0, dtype=torch.int64), *keys]), minlength=len(self.active))

    def append(self, layer: FinishedLayer) -> None:
        """Append the next layer."""
        self._recent.append(layer)
        if len(self._recent) > 1:
            self._keep(len(self._recent) - 2)
        if len(self._recent) > 2:
            del self._recent[0]

    def close(self) -> None:
        """Finish after the last layer."""
        if self._recent:
            self._keep(len(self._recent) - 1)
        self._recent.clear()

    def drop_inactive(self) -> None:
        """Discard the blocks of queries that are no longer active."""
        kept = []
        for number, owner, places, values in self._kept:
            stays = self.active[owner]
            kept.append((number, owner[stays], places[stays], values[stays]))
        self._kept = kept
        for layer in self._recent:
            layer.keep(self.active.to(layer.keys.device)[layer.keys])

    def dense(self, key: int) -> tuple[Tensor, Axes] | None:
        """Probabilities of a query in the box of its blocks and their neighbours, and the first voxel of that box."""
        found, pieces = [], []
        for number, owner, places, values in self._kept:
            first, last = (int(i) for i in torch.searchsorted(owner, torch.tensor([key, key + 1])))
            if last > first:
                found.append(self.tiling.coordinates(number, places[first:last]))
                pieces.append(values[first:last])
        if not found:
            return None
        where = torch.cat(found)
        low = (where.amin(0) - 1).clamp_min(0)
        high = torch.minimum(where.amax(0) + 2, torch.tensor(self.tiling.counts))
        sizes = (high - low).tolist()
        grid = torch.zeros(*sizes, VOXELS)
        grid[tuple((where - low).T)] = torch.cat(pieces)
        volume = grid.reshape(*sizes, *BLOCK).permute(0, 3, 1, 4, 2, 5)
        x, y, z = (int(n) * b for n, b in zip(low, BLOCK, strict=True))
        return volume.reshape([n * b for n, b in zip(sizes, BLOCK, strict=True)]), (x, y, z)

    def _keep(self, index: int) -> None:
        """Keep those blocks of a recent layer that are in or next to a structure of this or a neighbouring layer."""
        layer = self._recent[index]
        around = torch.stack([other.alive for other in self._recent[max(0, index - 1) : index + 2]], dim=1)
        wanted = self.tiling.widened(around.any(1, keepdim=True))[:, 0]
        stays = wanted[layer.keys, layer.places]
        if stays.any():
            kept = (layer.keys[stays].cpu(), layer.places[stays].cpu(), layer.values[stays].cpu())
            self._kept.append((self._next, *kept))
        self._next += 1
        layer.keep(stays & False)  # the next layer needs only the positions of structures in this one


def sweep_axis(starts: Sequence[Axes]) -> int:
    """The axis along which windows start at the most positions, so that layers are finished as early as possible."""
    return max(range(3), key=lambda axis: len({start[axis] for start in starts}))
