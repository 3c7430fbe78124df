"""The backbone on a CPU, faster than running its modules one by one, and without a compiler.

What PyTorch's eager mode spends time on, and how that is avoided here:

- *Convolutions in float32* run close to the peak of the cores, so that only fewer multiplications help: Winograd's
  F(4, 3) along the first spatial axis (Winograd 1980; Lavin & Gray, CVPR 2016) takes six 2D convolutions (oneDNN's) for
  four planes instead of twelve. It is used along one axis only: without special kernels, transforms over several axes
  cost more memory traffic than they save, and they round more.
- *Instance norm* takes ten times as long as a copy. Here it is two passes over memory: statistics of pieces while they
  are in the cache, then scale, shift and leaky ReLU piece by piece.
- *Fresh memory* for every map costs more than the norm, so memory is reused (:mod:`satunet.network.cpu.arena`).
- *Weights* are converted to oneDNN's layout once, not in every call
  (:class:`satunet.network.cpu.convolutions.Kernel`).
- *The convolution's bias* is dropped, because the norm that follows subtracts it again.
- *Concatenation* of the skip connection needs no pass of its own: the transposed convolution, a matrix product because
  its stride equals its kernel size, writes its result into the joined map.
- *The first convolution* sees one channel instead of three equal ones, always in float32: bfloat16 matrix units gain
  nothing with one channel, and the image is not rounded.

Maps are (1, C, X, Y, Z) with channels last in memory. In bfloat16, convolutions are oneDNN's where available, else
torch's, and statistics are float32. Weights must not be changed once the network has run: norms would use the new
weights, but convolutions would not.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor, nn

from satunet.network.backbone import ConvBlock, ConvStack, ResidualBlock, ResidualStack, UNet
from satunet.network.cpu.arena import Arena
from satunet.network.cpu.convolutions import (
    CHUNK_BYTES,
    WINOGRAD_BYTES,
    Kernel,
    Planes,
    direct,
    pieces_of,
    transformed,
    winograd,
    winograd_pays,
)
from satunet.network.cpu.norms import Moments, Norm
from satunet.network.cpu.team import scratch, side_by_side


@dataclass(frozen=True)
class Setup:
    """Settings shared by all layers of a network.

    Attributes:
        dtype: Type of the maps, float32 or bfloat16.
        norm: Functions that normalise pieces.
        arena: Memory for maps.
    """

    dtype: torch.dtype
    norm: Norm = field(default_factory=Norm)
    arena: Arena = field(default_factory=Arena)


class FusedBlock(nn.Module):
    """A :class:`ConvBlock` for inference.

    Threads compute the map in pieces of a few planes and sum up the statistics of each piece while it is in the cache.
    When all pieces are computed, they are normalised.

    Args:
        block: The block; its weights are shared, and copied only if another layout is needed.
        setup: Settings of the network.
        shared_input: Whether all input channels are equal, so that only one is passed, in float32.
    """

    def __init__(self, block: ConvBlock, setup: Setup, *, shared_input: bool = False) -> None:
        super().__init__()
        self.block, self.setup, self.shared_input = block, setup, shared_input
        active = isinstance(block.nonlin, nn.LeakyReLU)
        self.negative_slope = float(block.nonlin.negative_slope) if active else None  # type: ignore[arg-type]

    @cached_property
    def _direct(self) -> Kernel:
        weight = self.block.conv.weight.detach()
        if self.shared_input:
            return Kernel(weight.sum(1, keepdim=True))
        return Kernel(weight.to(self.setup.dtype))

    @cached_property
    def _transformed(self) -> list[Kernel]:
        return transformed(self.block.conv.weight.detach())

    def forward(self, x: Tensor) -> Tensor:
        """(1, C, X, Y, Z) → (1, O, X/stride, …), channels last."""
        conv, norm = self.block.conv, self.block.norm
        padding = [int(p) for p in conv.padding]
        extents = zip(x.shape[2:], padding, conv.kernel_size, conv.stride, strict=True)
        shape = [(n + 2 * p - k) // s + 1 for n, p, k, s in extents]
        out = self.setup.arena.empty(*shape, conv.out_channels, dtype=self.setup.dtype)
        if self._pays(x):
            source, kernels = x[0].permute(1, 2, 3, 0), self._transformed
            pieces = pieces_of(out, 4, WINOGRAD_BYTES)

            def fill(planes: Planes) -> None:
                winograd(source, kernels, padding[1:], planes, out)
        else:
            kernel, stride = self._direct, conv.stride
            pieces = pieces_of(out, 1, CHUNK_BYTES)

            def fill(planes: Planes) -> None:
                direct(x, kernel, stride, padding, planes, out)

        rows, tools = out.view(-1, conv.out_channels), self.setup.norm
        if len(rows) > 1:

            def fill_and_sum(planes: Planes) -> Moments:
                fill(planes)
                return tools.moments(out[slice(*planes)].view(-1, conv.out_channels))

            moments = Moments.together(side_by_side(fill_and_sum, pieces))
            scale, offset = moments.scale_and_offset(norm.weight.detach(), norm.bias.detach(), norm.eps)

            def scale_piece(planes: Planes) -> None:
                tools.scale(out[slice(*planes)].view(-1, conv.out_channels), scale, offset, self.negative_slope)

            side_by_side(scale_piece, pieces if tools.in_pieces else [(0, len(out))])
        else:  # a single voxel has no variance
            side_by_side(fill, pieces)
            if conv.bias is not None:
                rows += conv.bias.detach().to(rows.dtype)
            if self.negative_slope is not None:
                nn.functional.leaky_relu_(rows, self.negative_slope)
        return out.permute(3, 0, 1, 2)[None]

    def _pays(self, x: Tensor) -> bool:
        """Whether Winograd's algorithm saves more than its transforms cost."""
        return (
            self.setup.dtype is torch.float32 and not self.shared_input and winograd_pays(self.block.conv, x.shape[2:])
        )


class FusedPool(nn.Module):
    """Average pooling whose kernel is its stride; torch's supports neither bfloat16 nor channels last on a CPU."""

    def __init__(self, pool: nn.AvgPool3d, setup: Setup) -> None:
        super().__init__()
        self.stride: tuple[int, int, int] = tuple(pool.kernel_size)  # type: ignore[arg-type,assignment]
        self.setup = setup

    def forward(self, x: Tensor) -> Tensor:
        """(1, C, X, Y, Z) → (1, C, X // stride, …), channels last."""
        i, j, k = self.stride
        a, b, c = (n // s for n, s in zip(x.shape[2:], self.stride, strict=True))
        parts = x[0, :, : a * i, : b * j, : c * k].permute(1, 2, 3, 0).unflatten(0, (a, i))
        out = self.setup.arena.empty(a, b, c, x.shape[1], dtype=self.setup.dtype)

        def fill(planes: Planes) -> None:
            some = parts[slice(*planes)]
            total = scratch("pooled", len(some), b, c, x.shape[1])
            for number, place in enumerate(itertools.product(range(i), range(j), range(k))):
                values = some[:, place[0], place[1] :: j, place[2] :: k]
                if number:
                    total.add_(values)
                else:
                    total.copy_(values)
            out[slice(*planes)].copy_(total.mul_(1 / (i * j * k)))

        side_by_side(fill, pieces_of(out, 1, CHUNK_BYTES))
        return out.permute(3, 0, 1, 2)[None]


class FusedResidual(nn.Module):
    """A :class:`ResidualBlock` for inference."""

    def __init__(self, block: ResidualBlock, setup: Setup) -> None:
        super().__init__()
        self.conv1 = FusedBlock(block.conv1, setup)
        self.conv2 = FusedBlock(block.conv2, setup)
        self.negative_slope = block.nonlin2.negative_slope
        self.skip = nn.Sequential()
        for module in block.skip:
            if isinstance(module, ConvBlock):
                self.skip.append(FusedBlock(module, setup))
            elif isinstance(module, nn.AvgPool3d):
                self.skip.append(FusedPool(module, setup))
            else:
                raise TypeError(f"no fused form of a {type(module).__name__}")

    def forward(self, x: Tensor) -> Tensor:
        """(1, C, X, Y, Z) → (1, O, X/stride, …)."""
        y: Tensor = self.conv2(self.conv1(x))
        short = self.skip(x)
        planes, others = y[0].permute(1, 2, 3, 0), short[0].permute(1, 2, 3, 0)

        def add(piece: Planes) -> None:
            nn.functional.leaky_relu_(planes[slice(*piece)].add_(others[slice(*piece)]), self.negative_slope)

        side_by_side(add, pieces_of(planes, 1, CHUNK_BYTES))
        return y


def _fused(stack: nn.Module, setup: Setup, *, shared_input: bool = False) -> nn.Sequential:
    """The blocks of a stack, converted for inference."""
    if isinstance(stack, nn.Sequential):
        (stack,) = stack
    if isinstance(stack, ResidualStack):
        return nn.Sequential(*(FusedResidual(block, setup) for block in stack.blocks))  # type: ignore[arg-type]
    if not isinstance(stack, ConvStack):
        raise TypeError(f"no fused form of a {type(stack).__name__}")
    blocks: list[ConvBlock] = list(stack.convs)  # type: ignore[arg-type]
    return nn.Sequential(*(FusedBlock(b, setup, shared_input=shared_input and i == 0) for i, b in enumerate(blocks)))


class FusedUp(nn.Module):
    """A transposed convolution whose stride is its kernel, and the concatenation that follows it.

    Every voxel becomes sx·sy·sz voxels by one matrix product for each offset in x and y; its rows are read and written
    in memory order.
    """

    def __init__(self, up: nn.ConvTranspose3d, setup: Setup) -> None:
        super().__init__()
        self.stride, self.outputs, self.arena = up.stride, up.out_channels, setup.arena
        self._up, self._dtype = up, setup.dtype

    @cached_property
    def _kernels(self) -> list[list[Kernel]]:
        """One kernel for each offset in x and y, (sz·O, C, 1, 1)."""
        matrix = self._up.weight.detach().permute(2, 3, 4, 1, 0).flatten(2, 3).to(self._dtype)  # (sx, sy, sz·O, C)
        bias = self._up.bias.detach().repeat(self.stride[2]).to(self._dtype)  # type: ignore[union-attr]
        return [[Kernel(rows[:, :, None, None], bias) for rows in of_x] for of_x in matrix]

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """(1, C, x, y, z) and (1, S, X, Y, Z) → (1, O + S, X, Y, Z)."""
        a, b, c = x.shape[2:]
        i, j, k = self.stride
        both = self.arena.empty(a, i, b, j, c, k, self.outputs + skip.shape[1], dtype=x.dtype)
        place = both[..., : self.outputs]
        beside = both.view(a, i, b * j, c * k, -1)[..., self.outputs :]
        skips = skip[0].permute(1, 2, 3, 0).view(a, i, b * j, c * k, -1)
        images, kernels = x[0].transpose(0, 1), self._kernels

        def fill(planes: Planes) -> None:
            some = slice(*planes)
            for at_x in range(i):
                for at_y in range(j):
                    values = kernels[at_x][at_y](images[some], (1, 1), (0, 0)).permute(0, 2, 3, 1)
                    place[some, at_x, :, at_y].copy_(values.view(-1, b, c, k, self.outputs))
            beside[some].copy_(skips[some])

        side_by_side(fill, pieces_of(both, 1, 2 * CHUNK_BYTES))
        return both.view(a * i, b * j, c * k, -1).permute(3, 0, 1, 2)[None]


class FusedUNet(nn.Module):
    """A :class:`~satunet.network.backbone.UNet` for inference on a CPU, made from a trained one.

    Args:
        backbone: Backbone with its weights; it is not changed.
        dtype: Type of the maps, float32 or bfloat16.
        norm: Functions that normalise pieces; the ordinary :class:`~satunet.network.cpu.norms.Norm` if not given.
    """

    def __init__(self, backbone: UNet, dtype: torch.dtype, norm: Norm | None = None) -> None:
        super().__init__()
        self.dtype = dtype
        setup = Setup(dtype, norm or Norm())
        encoder, decoder = backbone.encoder, backbone.decoder
        stem = getattr(encoder, "stem", None)
        self.stem = None if stem is None else _fused(stem, setup, shared_input=True)
        self.stages = nn.ModuleList(
            _fused(stage, setup, shared_input=stem is None and number == 0)
            for number, stage in enumerate(encoder.stages)
        )
        self.ups = nn.ModuleList(FusedUp(up, setup) for up in decoder.transpconvs)  # type: ignore[arg-type]
        self.decoder = nn.ModuleList(_fused(stage, setup) for stage in decoder.stages)

    @torch.no_grad()
    def forward(self, image: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Like :meth:`UNet.forward`; the input's channels must be equal, and only the first is read."""
        with torch.autocast("cpu", enabled=False):
            found = [self._one(one[None, :1]) for one in image]
        if len(found) == 1:
            return found[0]
        (skips, maps) = zip(*found, strict=True)
        return [torch.cat(s) for s in zip(*skips, strict=True)], [torch.cat(m) for m in zip(*maps, strict=True)]

    def _one(self, x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        x = x.float().contiguous(memory_format=torch.channels_last_3d)
        if self.stem is not None:
            x = self.stem(x)
        skips = []
        for stage in self.stages:
            x = stage(x)
            skips.append(x)
        maps = []
        for step, (up, stage) in enumerate(zip(self.ups, self.decoder, strict=True)):
            x = stage(up(x, skips[-step - 2]))
            maps.append(x)
        return skips, maps[::-1]
