"""Probabilities of many prompts in one preprocessed scan, in bounded memory, the same for any bound.

The image is encoded once a window, all prompts are decoded at once (that is small), and only what is as large as a
volume is rationed: the weighted sums of probabilities. If those of all prompts fit into the memory allowed, one pass
over the windows does. If not, a first pass finds where each prompt's logits are positive at all: a weighted mean of
probabilities exceeds one half only where one of them does. Sums are then kept inside these boxes, for as many
prompts at once as fit, and windows that touch no box are left out. Rejected: as many passes over the whole scan as
there are groups of prompts, which encodes the image again for each; half-precision sums, which round.

Results do not depend on the grouping, to the last bit (with one window at a time): matrix products always have
:data:`MASK_CHUNK` columns, because libraries choose other kernels, which round differently, for few.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from satunet.devices import Precision, autocast_for
from satunet.network.model import ImageFeatures, mask_logits
from satunet.prediction.window import Axes, gaussian_weights, window_starts

MASK_CHUNK = 8
"""Prompts whose masks are computed at once in a window."""

Box = tuple[slice, slice, slice]
OnProgress = Callable[[int, int], object]


class Network(Protocol):
    """What is asked of a network; :class:`~satunet.network.model.PromptedUNet` is one."""

    def encode_image(self, image: Tensor) -> ImageFeatures:
        """(B, 1, X, Y, Z) → features."""
        ...

    def decode(self, features: ImageFeatures, queries: Tensor, modality: Tensor | None = None) -> tuple[Tensor, ...]:
        """(B, N, D) → (B, N, E) mask embeddings a scale, full resolution first."""
        ...


@dataclass(frozen=True, kw_only=True, eq=False)
class Probability:
    """Where a prompt's probability may exceed one half.

    Attributes:
        box: Place in the preprocessed scan, one voxel wider than needed where the scan goes on: a linear
            interpolation of the voxels inside reaches that far.
        values: float32 of the box's shape, on the CPU; ``None`` if no voxel exceeds one half.
    """

    box: Box
    values: Tensor | None


@dataclass(kw_only=True, eq=False)
class WindowedScan:
    """A scan, its windows and the queries to look for.

    Attributes:
        network: In evaluation mode, on ``device``.
        volume: (X, Y, Z) float32, the preprocessed scan; padded with zeros to the patch if it is smaller.
        queries: (N, D) float32 text embeddings.
        modality: Index into :data:`satunet.datasets.MODALITIES`.
        patch: Of a window.
        overlap: Share of a window that its neighbour covers too.
        device: Where to compute and to keep the sums.
        precision: Of the network; sums and mask products are float32.
        flips: Axes along which a window is mirrored, a tuple for each look at it; probabilities are averaged over
            1, 2, 4 or 8 looks. ``((),)`` looks once, unmirrored.
        batch: Windows that go through the network at once.
        memory_bytes: For the sums, and as much again for feature maps that are kept between passes.
        on_progress: Called with (windows done, windows); the second grows when more passes turn out to be needed.
            An exception in it ends the prediction.
    """

    network: Network
    volume: Tensor
    queries: Tensor
    modality: int
    patch: Axes
    overlap: float = 0.5
    device: torch.device
    precision: Precision = "auto"
    flips: tuple[tuple[int, ...], ...] = ((),)
    batch: int = 1
    memory_bytes: int = 1 << 30
    on_progress: OnProgress | None = None
    _features: dict[tuple[Axes, tuple[int, ...]], Tensor] = field(default_factory=dict)
    _embeddings: dict[tuple[Axes, tuple[int, ...]], Tensor] = field(default_factory=dict)
    _passes: int = 0
    _done: int = 0

    def __post_init__(self) -> None:
        self.padded, self.inside = pad_to(self.volume, self.patch)
        x, y, z = self.padded.shape
        self.starts = window_starts((x, y, z), self.patch, self.overlap)
        self.gauss = torch.from_numpy(gaussian_weights(tuple(self.patch))).to(self.device)
        self.queries = self.queries.to(self.device)

    def probabilities(self) -> Iterator[Probability]:
        """One a query, in their order."""
        whole = _volume_of(self.inside)
        count = len(self.queries)
        boxes: list[Box | None] = [self.inside] * count
        several = count * whole * 4 > self.memory_bytes and count > 1
        if several:
            boxes = self._find_boxes()
        groups = _groups(boxes, self.memory_bytes // 4)
        self._passes = len(groups) + several
        weight = self._sum_of_weights()
        for group in groups:
            sums = self._sums({k: box for k in group if (box := boxes[k]) is not None})
            for k in group:
                box = boxes[k]
                yield self._finish(sums.pop(k), weight[box], box) if box is not None else self._nothing()

    def _nothing(self) -> Probability:
        return Probability(box=(slice(0, 0),) * 3, values=None)

    @torch.inference_mode()
    def _finish(self, total: Tensor, weight: Tensor, box: Box) -> Probability:
        """From sums to a probability in the smallest box around what exceeds one half, and a voxel more."""
        tight = _box_of(total > 0.5 * weight)
        if tight is None:
            return self._nothing()
        wide = _wider(tight, total.shape)
        values = (total[wide] / weight[wide]).cpu()
        start = [b.start + w.start - i.start for b, w, i in zip(box, wide, self.inside, strict=True)]
        place = tuple(slice(s, s + n) for s, n in zip(start, values.shape, strict=True))
        return Probability(box=(place[0], place[1], place[2]), values=values)

    @torch.inference_mode()
    def _sum_of_weights(self) -> Tensor:
        # Summed up in the order of the probabilities, not as a product of three profiles: a mean of values of at most
        # one half is then at most one half to the last bit.
        weight = torch.zeros(self.padded.shape, device=self.device)
        for start in self.starts:
            weight[self._window(start)] += self.gauss
        return weight

    @torch.inference_mode()
    def _sums(self, boxes: dict[int, Box]) -> dict[int, Tensor]:
        """Weighted sums of the probabilities of some queries, each inside its box of the padded volume."""
        sums = {k: torch.zeros([s.stop - s.start for s in box], device=self.device) for k, box in boxes.items()}
        share = self.gauss / len(self.flips)  # exact: by a power of two
        touched: dict[Axes, dict[int, Box]] = {}
        for start in self.starts:
            window = self._window(start)
            touched[start] = {k: both for k, box in boxes.items() if (both := _intersection(box, window)) is not None}
        self._advance(sum(not found for found in touched.values()))
        for start, looks in self._encode([start for start in self.starts if touched[start]]):
            window = self._window(start)
            keys = list(touched[start])
            for features, embeddings in looks:
                for first in range(0, len(keys), MASK_CHUNK):
                    part = keys[first : first + MASK_CHUNK]
                    for k, logits in zip(part, self._logits(features, embeddings[part]), strict=True):
                        # The whole window, whatever part is wanted: vectorised functions round differently at ends.
                        weighted = logits.sigmoid().mul_(share)
                        place = touched[start][k]
                        sums[k][_relative(place, boxes[k])] += weighted[_relative(place, window)]
            self._advance()
        return sums

    @torch.inference_mode()
    def _find_boxes(self) -> list[Box | None]:
        """Box of each query's positive logits in the padded volume, a voxel wider, cut to the scan; or nothing."""
        boxes: list[Box | None] = [None] * len(self.queries)
        self._passes = 2  # at least
        for start, looks in self._encode(self.starts, keep=True):
            window = self._window(start)
            for features, embeddings in looks:
                for first in range(0, len(embeddings), MASK_CHUNK):
                    part = embeddings[first : first + MASK_CHUNK]
                    for k, logits in enumerate(self._logits(features, part), start=first):
                        found = _box_of(logits > 0)
                        if found is not None:
                            place = tuple(
                                slice(w.start + f.start, w.start + f.stop) for w, f in zip(window, found, strict=True)
                            )
                            boxes[k] = _union(boxes[k], place)
            self._advance()
        wider = [None if box is None else _wider(box, self.padded.shape) for box in boxes]
        return [None if box is None else _intersection(box, self.inside) for box in wider]

    def _encode(
        self, starts: Sequence[Axes], *, keep: bool = False
    ) -> Iterator[tuple[Axes, list[tuple[Tensor, Tensor]]]]:
        """Windows, each with its looks: full-resolution features (1, C, x, y, z), mask embeddings (N, E) of all queries.

        Features of mirrored looks are mirrored back.
        """
        for first in range(0, len(starts), self.batch):
            several = starts[first : first + self.batch]
            looks: dict[Axes, list[tuple[Tensor, Tensor]]] = {start: [] for start in several}
            for flip in self.flips:
                missing = [start for start in several if (start, flip) not in self._features]
                fresh = dict(zip(missing, self._run(missing, flip, keep=keep), strict=True)) if missing else {}
                for start in several:
                    kept = self._features.get((start, flip))
                    maps = fresh[start] if kept is None else kept.to(self.device)
                    looks[start].append((maps.float(), self._embeddings[start, flip]))
            yield from looks.items()

    def _run(self, starts: Sequence[Axes], flip: tuple[int, ...], *, keep: bool) -> list[Tensor]:
        """Features of windows; embeddings of their queries, and features to keep, are put aside."""
        axes = [axis - 3 for axis in flip]
        crops = torch.stack([self.padded[self._window(start)][None] for start in starts]).to(self.device)
        with autocast_for(self.device, self.precision):
            features = self.network.encode_image(crops.flip(axes) if axes else crops)
            if any((start, flip) not in self._embeddings for start in starts):
                modality = torch.full((len(starts),), self.modality, device=self.device)
                queries = self.queries[None].expand(len(starts), -1, -1)
                for start, found in zip(starts, self.network.decode(features, queries, modality)[0], strict=True):
                    self._embeddings.setdefault((start, flip), found.float())
        maps = features.maps[0].flip(axes) if axes else features.maps[0]
        per_window = maps[0].numel() * maps.element_size()
        if keep and per_window * len(self.starts) * len(self.flips) <= self.memory_bytes:
            self._features |= {(start, flip): maps[i : i + 1] for i, start in enumerate(starts)}
        return [maps[i : i + 1] for i in range(len(starts))]

    def _logits(self, features: Tensor, embeddings: Tensor) -> Tensor:
        """(n, E) → (n, x, y, z) float32; n at most :data:`MASK_CHUNK`."""
        count = len(embeddings)
        if count < MASK_CHUNK:
            embeddings = torch.cat((embeddings, embeddings.new_zeros(MASK_CHUNK - count, embeddings.shape[1])))
        return mask_logits(features, embeddings[None])[0, :count]

    def _window(self, start: Axes) -> Box:
        x, y, z = (slice(s, s + p) for s, p in zip(start, self.patch, strict=True))
        return x, y, z

    def _advance(self, windows: int = 1) -> None:
        self._done += windows
        if windows and self.on_progress is not None:
            self.on_progress(self._done, max(1, self._passes) * len(self.starts))


def pad_to(volume: Tensor, patch: Sequence[int]) -> tuple[Tensor, Box]:
    """Pad (X, Y, Z) with zeros to at least the patch, evenly; also where the volume is in the padded one.

    Zero is the mean of a normalised scan, and what training crops have outside of a scan.
    """
    widths: list[int] = []
    inside: list[slice] = []
    for n, p in zip(volume.shape, patch, strict=True):
        missing = max(0, p - n)
        before = missing // 2
        inside.append(slice(before, before + n))
        widths = [before, missing - before, *widths]  # torch pads the last axis first
    return torch.nn.functional.pad(volume, widths), (inside[0], inside[1], inside[2])


def _groups(boxes: Sequence[Box | None], limit: int) -> list[list[int]]:
    """Neighbouring queries whose boxes have at most ``limit`` voxels together, at least one query a group."""
    groups: list[list[int]] = []
    used = 0
    for k, box in enumerate(boxes):
        size = 0 if box is None else _volume_of(box)
        if not groups or used + size > limit:
            groups.append([])
            used = 0
        groups[-1].append(k)
        used += size
    return groups


def _box_of(mask: Tensor) -> Box | None:
    """Smallest box around the true voxels of (X, Y, Z); ``None`` if there are none."""
    plane = mask.any(dim=2)  # (X, Y)
    rows = plane.any(dim=1).nonzero()
    if len(rows) == 0:
        return None
    columns = plane.any(dim=0).nonzero()
    x = slice(int(rows[0]), int(rows[-1]) + 1)
    y = slice(int(columns[0]), int(columns[-1]) + 1)
    depth = mask[x, y].any(dim=0).any(dim=0).nonzero()
    return x, y, slice(int(depth[0]), int(depth[-1]) + 1)


def _wider(box: Box, shape: Sequence[int]) -> Box:
    x, y, z = (slice(max(0, s.start - 1), min(n, s.stop + 1)) for s, n in zip(box, shape, strict=True))
    return x, y, z


def _union(a: Box | None, b: Sequence[slice]) -> Box:
    if a is None:
        return b[0], b[1], b[2]
    x, y, z = (slice(min(p.start, q.start), max(p.stop, q.stop)) for p, q in zip(a, b, strict=True))
    return x, y, z


def _intersection(a: Box, b: Box) -> Box | None:
    x, y, z = (slice(max(p.start, q.start), min(p.stop, q.stop)) for p, q in zip(a, b, strict=True))
    return (x, y, z) if all(s.start < s.stop for s in (x, y, z)) else None


def _relative(box: Box, to: Box) -> Box:
    x, y, z = (slice(s.start - o.start, s.stop - o.start) for s, o in zip(box, to, strict=True))
    return x, y, z


def _volume_of(box: Box) -> int:
    return int(np.prod([s.stop - s.start for s in box]))
