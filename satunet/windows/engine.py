"""Probabilities of many prompts in one preprocessed scan, in bounded memory; results do not depend on the bound.

The image is encoded once per window, and all prompts are decoded at once (the embeddings are small). Volume-sized data
is kept in the blocks of :mod:`satunet.windows.blocks`. Most prompts are absent from most blocks. Therefore the largest
logit of each prompt in each block is computed first, without storing the logits, and only the few pairs of block and
prompt that are not negligible become float32 probabilities and sums.

A block's probabilities in a window count as zero if none reaches :data:`NEGLIGIBLE`, which makes a mean over windows
smaller by at most that much. If the blocks of all prompts still do not fit into the allowed memory (a network that is
unsure of everything), the largest prompts are postponed. By the end of the pass it is known in which windows they are
positive, and further passes over only these windows sum them up, in groups that fit.

A window outside the box of all voxels that are brighter than the darkest of the scan is not encoded: it counts as a look
with a probability of zero.

Rejected: sums of all prompts over the whole scan; a first pass that finds where prompts are and a second one that
sums them up, which encodes every window twice; half-precision sums, which round.

With one window at a time, results are bit-identical for any memory and grouping: matrix products that enter a result
always have the same number of rows and whole blocks of voxels (:mod:`satunet.windows.logits`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from satunet.compute.devices import Precision
from satunet.geometry import common_box, moved_box, wider_box
from satunet.network.model import ImageFeatures
from satunet.types import Axes, Box
from satunet.windows.blocks import BLOCK, BLOCK_BYTES, VOXELS, Layer, Scratch, Structures, Tiling, sweep_axis
from satunet.windows.logits import block_logits, largest_logits, units_of, vector_lengths, with_offsets
from satunet.windows.precision import look_in
from satunet.windows.starts import gaussian_weights, pad_to, window_starts
from satunet.windows.votes import Votes

NEGLIGIBLE = 1e-3
"""Probabilities of a block in a window count as zero if none of them is larger."""

_LEAST_LOGIT = math.log(NEGLIGIBLE / (1 - NEGLIGIBLE))
_UNITS = {"cpu": 64, "cuda": 512}
"""Number of blocks computed at once, each for up to MASK_CHUNK prompts; many on a GPU, which idles between calls."""
_DARKER = 1e-3
"""Difference of normalised intensities (their standard deviation is 1) below which voxels are equally dark."""

OnProgress = Callable[[int, int], object]


@runtime_checkable
class Network(Protocol):
    """The interface of a network that the engine uses; :class:`~satunet.network.model.PromptedUNet` has it."""

    def encode_image(self, image: Tensor) -> ImageFeatures:
        """(B, 1, X, Y, Z) → features."""
        ...

    def decode(self, features: ImageFeatures, queries: Tensor, modality: Tensor | None = None) -> tuple[Tensor, ...]:
        """(B, N, D) → (B, N, E) mask embeddings per scale, full resolution first."""
        ...


@dataclass(frozen=True, kw_only=True, eq=False)
class Probability:
    """A prompt's probability, in the box where it may exceed the requested level (one half for masks).

    Attributes:
        box: Position in the preprocessed scan, with a margin of one voxel inside the scan, because linear
            interpolation reaches that far.
        values: float32 of the box's shape, on the CPU; ``None`` if no voxel exceeds the level.
        peak: Largest probability in any look at any window, even if below the level. A look is one network's view of
            one window, mirrored or not.
        agreement: Share of looks that exceed one half, weighted as the windows are, over the blocks in which at least
            one look does; 0 if none does.
    """

    box: Box
    values: Tensor | None
    peak: float = 0.0
    agreement: float = 0.0


@dataclass(frozen=True, kw_only=True, eq=False)
class Member:
    """A network of an ensemble, and its queries; or a further way of looking with the same network.

    Attributes:
        network: Network in evaluation mode, on the scan's device.
        queries: (N, D) float32 text embeddings, of the network's own text encoder.
        asked: (N,) boolean, queries that it answers; all if not given.
        offsets: (N,) float32, added to the logits of each query; nothing if not given.
        flips: Its looks at a window, as in :class:`WindowedScan`; the scan's if not given.
    """

    network: Network
    queries: Tensor
    asked: Tensor | None = None
    offsets: Tensor | None = None
    flips: tuple[tuple[int, ...], ...] | None = None


@dataclass(kw_only=True, eq=False)
class WindowedScan:
    """A scan, its windows and the queries to look for.

    Attributes:
        network: Network in evaluation mode, on ``device``.
        volume: (X, Y, Z) float32, the preprocessed scan; it is padded with zeros to the patch if it is smaller.
        queries: (N, D) float32 text embeddings.
        asked: (N,) boolean, queries that ``network`` answers; all if not given.
        offsets: (N,) float32, added to the logits of ``network``; nothing if not given.
        others: Further networks for the same scan, windows and queries (folds of a training); a query's probability is
            the mean over the looks of all that answer it.
        modality: Index of the modality in :data:`satunet.datasets.raw.MODALITIES`.
        patch: Size of a window.
        overlap: Share of a window that is also covered by its neighbour.
        device: Device for computation and sums.
        precision: Precision of the network, by :mod:`satunet.windows.precision`; probabilities and sums are float32.
        flips: For each look at a window, the axes along which it is mirrored. ``((),)`` looks once, unmirrored.
        batch: Number of windows per forward pass.
        memory_bytes: Memory for the blocks of all prompts together; a single prompt may need more.
        level: Probability above which a voxel is part of a structure: one half for masks, lower if probabilities are
            averaged later.
        on_progress: Called with (windows done, windows); the second number grows if more passes turn out to be needed.
            An exception in the function ends the prediction.
    """

    network: Network
    volume: Tensor
    queries: Tensor
    asked: Tensor | None = None
    offsets: Tensor | None = None
    others: Sequence[Member] = ()
    modality: int
    patch: Axes
    overlap: float = 0.5
    device: torch.device
    precision: Precision = "auto"
    flips: tuple[tuple[int, ...], ...] = ((),)
    batch: int = 1
    memory_bytes: int = 1 << 30
    level: float = 0.5
    on_progress: OnProgress | None = None
    _passes: int = 1
    _done: int = 0

    def __post_init__(self) -> None:
        padded, self.inside = pad_to(self.volume, self.patch)
        self.padded = padded.to(self.device)  # once, because sending each window separately would keep a GPU waiting
        x, y, z = self.padded.shape
        starts = window_starts((x, y, z), self.patch, self.overlap)
        self.tiling = Tiling(shape=(x, y, z), sweep=sweep_axis(starts))
        self.starts = sorted(starts, key=lambda start: (start[self.tiling.sweep], start))
        self.empty = self._empty()
        self.gauss = torch.from_numpy(gaussian_weights(tuple(self.patch))).to(self.device)
        first = Member(network=self.network, queries=self.queries, asked=self.asked, offsets=self.offsets)
        self.members = tuple(self._here(member) for member in (first, *self.others))
        looks = sum(m.asked.int() * len(m.flips) for m in self.members if m.asked is not None and m.flips is not None)
        # (N,) weight of a look in the mean of each query; exact for 1, 2, 4 or 8 looks
        self.shares = 1.0 / torch.as_tensor(looks, device=self.device).clamp_min(1)

    def _empty(self) -> frozenset[Axes]:
        """Windows outside the box of all voxels that are brighter than the darkest: the air around a body in CT, the
        surroundings of a stripped brain. Dark windows inside that box are looked at, because lungs are as dark as air
        after clipping.
        """
        box = _box_of(self.padded > float(self.volume.min()) + _DARKER) if self.volume.numel() else None
        if box is None:
            return frozenset(self.starts)
        return frozenset(start for start in self.starts if common_box(self._window(start), box) is None)

    def _here(self, member: Member) -> Member:
        asked = torch.ones(len(member.queries), dtype=torch.bool) if member.asked is None else member.asked
        return replace(
            member,
            queries=member.queries.to(self.device),
            asked=asked.to(self.device),
            offsets=None if member.offsets is None else member.offsets.to(self.device),
            flips=member.flips or self.flips,
        )

    def probabilities(self) -> Iterator[tuple[int, Probability]]:
        """Yield the number and the probability of each query; queries that take further passes come last."""
        first = _Pass(scan=self, keys=torch.arange(len(self.queries)))
        structures = first.run()
        peaks, agreements = first.votes.peaks(), first.votes.agreements()

        def found(structures: Structures, place: int, k: int) -> tuple[int, Probability]:
            known = self._probability(structures, place)
            return k, replace(known, peak=peaks[k], agreement=agreements[k])

        put_off = (~first.active).nonzero()[:, 0]
        for k in first.active.nonzero()[:, 0].tolist():
            yield found(structures, k, k)
        del structures
        allowed = self.tiling.widened(first.positive[put_off.to(self.device)])
        groups = _groups(allowed.sum((1, 2)).tolist(), self.memory_bytes // BLOCK_BYTES)
        self._passes = 1 + len(groups)
        for group in groups:
            keys = put_off[group]
            structures = _Pass(scan=self, keys=keys, allowed=allowed[torch.tensor(group)]).run()
            for i, k in enumerate(keys.tolist()):
                yield found(structures, i, k)

    def advance(self, windows: int = 1) -> None:
        """Count windows as done, and report progress."""
        self._done += windows
        if windows and self.on_progress is not None:
            self.on_progress(self._done, self._passes * len(self.starts))

    @torch.inference_mode()
    def look(self, starts: Sequence[Axes], flip: tuple[int, ...], member: Member) -> tuple[Tensor, Tensor]:
        """Run a member on windows: full-resolution features (B, C, x, y, z), mirrored back; embeddings (B, N, E)."""
        axes = [axis - 3 for axis in flip]
        crops = torch.stack([self.padded[self._window(start)][None] for start in starts]).to(self.device)
        modality = torch.full((len(starts),), self.modality, device=self.device)
        several = member.queries[None].expand(len(starts), -1, -1)

        def run() -> tuple[Tensor, Tensor]:
            features = member.network.encode_image(crops.flip(axes) if axes else crops)
            return features.maps[0], member.network.decode(features, several, modality)[0].float()

        maps, embeddings = look_in(member.network, self.device, self.precision, run)
        if member.offsets is not None:
            embeddings = with_offsets(embeddings, maps.shape[1], member.offsets)
        return maps.flip(axes) if axes else maps, embeddings

    def _probability(self, structures: Structures, key: int) -> Probability:
        """A query's probability in the smallest box around the voxels that exceed the level, plus one voxel."""
        nothing = Probability(box=(slice(0, 0),) * 3, values=None)
        found = structures.dense(key)
        if found is None:
            return nothing
        values, start = found
        x, y, z = (slice(s, s + n) for s, n in zip(start, values.shape, strict=True))
        box = common_box((x, y, z), self.inside)
        if box is None:
            return nothing
        values = values[_relative(box, (x, y, z))]
        tight = _box_of(values > self.level)
        if tight is None:
            return nothing
        wide = wider_box(tight, values.shape)
        first = [b.start + w.start - i.start for b, w, i in zip(box, wide, self.inside, strict=True)]
        x, y, z = (slice(f, f + w.stop - w.start) for f, w in zip(first, wide, strict=True))
        return Probability(box=(x, y, z), values=values[wide].clone())

    def _window(self, start: Axes) -> Box:
        x, y, z = (slice(s, s + p) for s, p in zip(start, self.patch, strict=True))
        return x, y, z


@dataclass(kw_only=True, eq=False)
class _Pass:
    """One sweep of the windows through the scan.

    Attributes:
        scan: The scan.
        keys: (n,) numbers of the queries of this pass.
        allowed: (N, layers, P) boolean, blocks that may matter; all if not given.
        active: (N,) boolean on the CPU, queries that have not been postponed.
        positive: (N, layers, P) boolean, blocks in which a probability may exceed the level in some window.
        votes: Agreement of the looks, from a first pass.
    """

    scan: WindowedScan
    keys: Tensor
    allowed: Tensor | None = None
    active: Tensor = field(init=False)
    positive: Tensor = field(init=False)
    votes: Votes = field(init=False)

    def __post_init__(self) -> None:
        tiling, count = self.scan.tiling, len(self.keys)
        self.active = torch.ones(count, dtype=torch.bool)
        self.positive = torch.zeros(count, tiling.layers, tiling.places, dtype=torch.bool, device=self.scan.device)
        self.votes = Votes.none(count, self.scan.device)
        self._structures = Structures(tiling=tiling, active=self.active)
        self._layers: dict[int, Layer] = {}
        self._gauss: dict[tuple[int, Axes], Tensor] = {}
        self._scratch = Scratch()
        self._finished = 0

    @torch.inference_mode()
    def run(self) -> Structures:
        """Go through the windows; returns the structures of the queries that are still active at the end."""
        scan, keys = self.scan, self.keys.to(self.scan.device)
        starts = [start for start in scan.starts if self._matters(start)]
        scan.advance(len(scan.starts) - len(starts))
        for first in range(0, len(starts), scan.batch):
            several = starts[first : first + scan.batch]
            self._finish(several[0][scan.tiling.sweep] // BLOCK[scan.tiling.sweep])
            for member, flip in ((m, flip) for m in scan.members for flip in m.flips or ()):
                assert member.asked is not None  # WindowedScan gave every member its own
                asked = member.asked[keys]
                if not asked.any():
                    continue
                for start, features, embeddings in zip(several, *scan.look(several, flip, member), strict=True):
                    lengths = vector_lengths(features)
                    for number in scan.tiling.layers_of(start, scan.patch):
                        self._add(number, start, features, lengths, embeddings[keys], asked)
                    del features  # large, and not needed while the next window is encoded
            self._gauss.clear()
            scan.advance(len(several))
        self._finish(scan.tiling.layers)
        self._structures.close()
        return self._structures

    def _matters(self, start: Axes) -> bool:
        if start in self.scan.empty:
            return False
        if self.allowed is None:
            return True
        layers = self.scan.tiling.layers_of(start, self.scan.patch)
        places = self.scan.tiling.places_of(start, self.scan.patch).to(self.allowed.device)
        return bool(self.allowed[:, layers.start : layers.stop, places].any())

    def _finish(self, until: int) -> None:
        """Turn the sums of layers that no later window touches into probabilities."""
        for number in range(self._finished, until):
            self.votes.finish(number)
            layer = self._layers.pop(number, None) or self._new_layer()
            self._structures.append(layer.means(self._weight(number), self.scan.level))
        self._finished = max(self._finished, until)

    def _new_layer(self) -> Layer:
        return Layer.empty(len(self.keys), self.scan.tiling.places, self.scan.device)

    def _weight(self, number: int) -> Tensor:
        """(P, V) sum of all windows' weights."""
        # Summed in the same order as the probabilities, not as a product of three profiles, so that a mean of values
        # of at most one half never exceeds one half by rounding.
        scan = self.scan
        weight = torch.zeros(scan.tiling.places, VOXELS, device=self.scan.device)
        for start in scan.starts:
            if number in scan.tiling.layers_of(start, scan.patch):
                places = scan.tiling.places_of(start, scan.patch).to(weight.device)
                weight[places] += scan.tiling.cut(scan.gauss[None], start, number, repeat_edges=False)[:, 0]
        return weight

    def _weights(self, number: int, start: Axes) -> Tensor:
        """(n, V) weights of a window in a layer, the same for all its looks."""
        found = self._gauss.get((number, start))
        if found is None:
            found = self.scan.tiling.cut(self.scan.gauss[None], start, number, repeat_edges=False)[:, 0]
            self._gauss[number, start] = found
        return found

    def _add(
        self, number: int, start: Axes, features: Tensor, lengths: Tensor, embeddings: Tensor, asked: Tensor
    ) -> None:
        """Add a look's probabilities in one layer.

        Args:
            number: Number of the layer.
            start: First voxel of the window.
            features: (C, x, y, z) features of the window.
            lengths: (x, y, z) of their vectors.
            embeddings: (n, C) or (n, C + 1) mask embeddings of the pass's queries.
            asked: (n,) boolean, queries that the look answers.
        """
        tiling, patch = self.scan.tiling, self.scan.patch
        blocks = tiling.cut(features, start, number, repeat_edges=True, scratch=self._scratch)  # (n, C, V)
        places = tiling.places_of(start, patch).to(blocks.device)
        longest = tiling.cut(lengths[None], start, number, repeat_edges=True).amax((1, 2))
        largest, error = largest_logits(blocks, longest, embeddings)
        level = math.log(self.scan.level / (1 - self.scan.level))
        self.positive[:, number, places] |= (largest > level - error) & asked[:, None]
        if self.allowed is None:
            weight = self._weights(number, start).amax(1)
            self.votes.add(number, places, largest, weight, asked=asked, width=tiling.places)
        wanted = (largest > _LEAST_LOGIT - error) & (self.active.to(blocks.device) & asked)[:, None]
        if self.allowed is not None:
            wanted &= self.allowed[:, number, places]
        if not wanted.any():
            return
        weights = self._weights(number, start)
        shares = self.scan.shares[self.keys.to(self.scan.device)]
        layer = self._layers.get(number) or self._layers.setdefault(number, self._new_layer())
        units, keys = units_of(wanted)
        step = _UNITS.get(blocks.device.type, 64)
        for first in range(0, len(units), step):
            unit, key = units[first : first + step], keys[first : first + step]
            logits = block_logits(blocks[unit].float(), embeddings[key])  # (u, MASK_CHUNK, V)
            matters = (key >= 0) & (logits.amax(-1) > _LEAST_LOGIT) & self.active.to(key.device)[key]
            owner = unit[:, None].expand_as(key)[matters]
            values = logits[matters].sigmoid_().mul_(weights[owner]).mul_(shares[key[matters], None])
            layer.add(key[matters], places[owner], values)
            self._make_room()

    def _make_room(self) -> None:
        """Postpone the largest queries if memory is short; the groups of further passes are known to fit."""
        if self.allowed is not None:
            return
        most = self.scan.memory_bytes // BLOCK_BYTES
        used = self._structures.blocks + sum(layer.used for layer in self._layers.values())
        if used <= most or int(self.active.sum()) <= 1:
            return
        counts = self._structures.counts() + sum(layer.counts().cpu() for layer in self._layers.values())
        order = counts.argsort(descending=True, stable=True)[: int(self.active.sum()) - 1]
        put_off = order[: int((used - counts[order].cumsum(0) > most // 2).sum()) + 1]
        self.active[put_off] = False
        for layer in self._layers.values():
            layer.drop(put_off.to(layer.rows.device))
        self._structures.drop_inactive()


def _groups(sizes: Sequence[int], limit: int) -> list[list[int]]:
    """Group consecutive items so that the sizes in a group add up to at most ``limit``; at least one item per group."""
    groups: list[list[int]] = []
    used = 0
    for k, size in enumerate(sizes):
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


def _relative(box: Box, to: Box) -> Box:
    return moved_box(box, [-side.start for side in to])
