"""The backbone on a CPU, faster than its modules one by one, without a compiler.

What costs time in PyTorch's eager mode on a CPU, and what is done instead:

- *Convolutions in float32* run close to the peak of the cores, so only fewer multiplications help: Winograd's F(4, 3)
  along the first spatial axis (Winograd 1980; Lavin & Gray, CVPR 2016) takes six 2D convolutions (oneDNN's) for four
  planes instead of twelve. One axis alone: transforms over several axes cost more memory traffic than they save
  without kernels of their own, and round more.
- *Instance norm* takes ten times as long as a copy. Sums over chunks that stay in the cache, then scale, shift and
  leaky ReLU chunk by chunk, are two passes over memory.
- *The convolution's bias* is dropped: the norm behind it subtracts it again.
- *Concatenation* of the skip connection is written to its place by the transposed convolution, which is a matrix
  product, because its stride equals its kernel.
- *The first convolution* sees one channel instead of the same channel three times.

Maps are (1, C, X, Y, Z) with channels last in memory. In bfloat16, convolutions are oneDNN's, and statistics float32.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from satunet.network.backbone import ConvBlock, ConvStack, ResidualBlock, ResidualStack, UNet
from satunet.network.team import scratch, side_by_side

_CHUNK_BYTES = 4 << 20
"""Of a map that a thread handles at once: small enough for a cache, large enough that calls cost little."""
_WINOGRAD_BYTES = (4 << 20) // 3
"""The same where the convolution is Winograd's: six planes of the input and six of the output lie beside every four."""

# F(4, 3) with the points 0, 1, −1, 2, −2 and ∞: input, weight and output transforms.
_INPUT = torch.tensor(
    [
        [4, 0, -5, 0, 1, 0],
        [0, -4, -4, 1, 1, 0],
        [0, 4, -4, -1, 1, 0],
        [0, -2, -1, 2, 1, 0],
        [0, 2, -1, -2, 1, 0],
        [0, 4, 0, -5, 0, 1],
    ],
    dtype=torch.float32,
)
_WEIGHT = torch.tensor(
    [
        [1 / 4, 0, 0],
        [-1 / 6, -1 / 6, -1 / 6],
        [-1 / 6, 1 / 6, -1 / 6],
        [1 / 24, 1 / 12, 1 / 6],
        [1 / 24, -1 / 12, 1 / 6],
        [0, 0, 1],
    ],
    dtype=torch.float64,
)
_OUTPUT = torch.tensor(
    [[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]], dtype=torch.float32
)


Normalize = Callable[[Tensor, Tensor, Tensor, float, float | None], None]
"""What :func:`normalize_` does; another engine may have its own."""
Planes = tuple[int, int]
"""First plane along X, and the one behind the last."""


class FusedBlock(nn.Module):
    """A :class:`ConvBlock` for inference.

    The map is made in pieces, a few planes each, by threads side by side; each adds up its statistics while it is in
    the cache. When all are there, the pieces are normalised.

    Args:
        block: The block; its weights are shared, not copied, until a layout of their own is needed.
        dtype: float32 or bfloat16.
        normalize: Instance norm and leaky ReLU in place, in another way than this module's.
        shared_input: Whether all input channels are the same channel, of which one is given.
    """

    def __init__(
        self, block: ConvBlock, dtype: torch.dtype, normalize: Normalize | None, *, shared_input: bool = False
    ) -> None:
        super().__init__()
        self.block = block
        self.dtype, self.normalize, self.shared_input = dtype, normalize, shared_input
        active = isinstance(block.nonlin, nn.LeakyReLU)
        self.negative_slope = float(block.nonlin.negative_slope) if active else None  # type: ignore[arg-type]

    @cached_property
    def _direct(self) -> Tensor:
        weight = self.block.conv.weight.detach()
        if self.shared_input:
            weight = weight.sum(1, keepdim=True)
        return weight.to(self.dtype).contiguous(memory_format=torch.channels_last_3d)

    @cached_property
    def _transformed(self) -> list[Tensor]:
        """Six (O, C, ky, kz) weights of 2D convolutions."""
        parts = torch.einsum("ka,ocayz->kocyz", _WEIGHT, self.block.conv.weight.detach().double())
        return [part.float().contiguous(memory_format=torch.channels_last) for part in parts]

    def forward(self, x: Tensor) -> Tensor:
        """(1, C, X, Y, Z) → (1, O, X/stride, …), channels last."""
        conv, norm = self.block.conv, self.block.norm
        padding = [int(p) for p in conv.padding]
        extents = zip(x.shape[2:], padding, conv.kernel_size, conv.stride, strict=True)
        shape = [(n + 2 * p - k) // s + 1 for n, p, k, s in extents]
        out = x.new_empty(*shape, conv.out_channels)
        if self._pays(x):
            source, weights = x[0].permute(1, 2, 3, 0), self._transformed
            pieces = pieces_of(out, 4, _WINOGRAD_BYTES)

            def fill(planes: Planes) -> None:
                winograd(source, weights, padding[1:], planes, out)
        else:
            weight, stride = self._direct, conv.stride
            pieces = pieces_of(out, 1, _CHUNK_BYTES)

            def fill(planes: Planes) -> None:
                direct(x, weight, stride, padding, planes, out)

        rows = out.view(-1, conv.out_channels)
        if self.normalize is not None and len(rows) > 1:
            side_by_side(fill, pieces)
            self.normalize(rows, norm.weight.detach(), norm.bias.detach(), norm.eps, self.negative_slope)
        elif len(rows) > 1:

            def fill_and_sum(planes: Planes) -> Moments:
                fill(planes)
                return Moments.of(out[slice(*planes)].view(-1, conv.out_channels))

            moments = Moments.together(side_by_side(fill_and_sum, pieces))
            scale, offset = moments.scale_and_offset(norm.weight.detach(), norm.bias.detach(), norm.eps)

            def scale_piece(planes: Planes) -> None:
                scale_(out[slice(*planes)].view(-1, conv.out_channels), scale, offset, self.negative_slope)

            side_by_side(scale_piece, pieces)
        else:  # one voxel has no variance
            side_by_side(fill, pieces)
            if conv.bias is not None:
                rows += conv.bias.detach().to(rows.dtype)
            if self.negative_slope is not None:
                nn.functional.leaky_relu_(rows, self.negative_slope)
        return out.permute(3, 0, 1, 2)[None]

    def _pays(self, x: Tensor) -> bool:
        """Whether Winograd's transforms cost less than they save."""
        outputs, inputs, kernel = self.block.conv.weight.shape[:3]
        if self.dtype is not torch.float32 or kernel != 3 or max(self.block.conv.stride) > 1 or self.shared_input:
            return False
        voxels = x[0, 0].numel()
        return min(inputs, outputs) >= 16 and x.shape[2] >= 8 and voxels >= max(4096, 16 * inputs)


def pieces_of(out: Tensor, multiple: int, size: int) -> list[Planes]:
    """Pieces of (X, Y, Z, O), of ``size`` bytes at most, if ``multiple`` planes are not more than that.

    There are enough for every thread to take some, however many the bytes allow: the last ones even out the waiting.
    """
    planes = out.shape[0]
    count = max(1, size // (out[0].numel() * out.element_size() * multiple))
    if out.numel() * out.element_size() >= _CHUNK_BYTES:
        count = min(count, max(1, -(-planes // (multiple * 3 * torch.get_num_threads()))))
    step = count * multiple
    return [(first, min(planes, first + step)) for first in range(0, planes, step)]


def winograd(x: Tensor, weights: list[Tensor], padding: Sequence[int], planes: Planes, out: Tensor) -> None:
    """Some planes of a convolution with a kernel of 3 along the first axis, stride 1, zero padding.

    Args:
        x: (X, Y, Z, C) float32, contiguous.
        weights: Six transformed (O, C, ky, kz).
        padding: Of the last two axes; the first has 1.
        planes: Which; the first is a multiple of 4.
        out: (X, Y, Z, O), where they are written.
    """
    extent, y, z, inputs = x.shape
    outputs = weights[0].shape[0]
    x, out = x.reshape(extent, -1), out.view(extent, -1)
    starts = range(planes[0], planes[1], 4)
    count = len(starts)
    spread = scratch("input", 6, count, x.shape[1])
    products = scratch("output", 6, count, out.shape[1])
    for i, start in enumerate(starts):
        low, high = max(0, start - 1), min(extent, start + 5)
        torch.mm(_INPUT[:, low - start + 1 : high - start + 1], x[low:high], out=spread[:, i])
    for k, weight in enumerate(weights):
        image = spread[k].view(count, y, z, inputs).permute(0, 3, 1, 2)
        result = convolve(image, weight, (1, 1), padding)
        products[k].view(count, y, z, outputs).copy_(result.permute(0, 2, 3, 1))
    for i, start in enumerate(starts):
        wanted = min(4, planes[1] - start)
        torch.mm(_OUTPUT[:wanted], products[:, i], out=out[start : start + wanted])


def direct(
    x: Tensor, weight: Tensor, stride: Sequence[int], padding: Sequence[int], planes: Planes, out: Tensor
) -> None:
    """Some planes of a convolution.

    Args:
        x: (1, C, X, Y, Z), channels last.
        weight: (O, C, kx, ky, kz).
        stride: Of each axis.
        padding: Of each axis, with zeros.
        planes: Which.
        out: (X', Y', Z', O), where they are written.
    """
    low = planes[0] * stride[0] - padding[0]
    high = (planes[1] - 1) * stride[0] - padding[0] + weight.shape[2]
    before, behind = max(0, -low), max(0, high - x.shape[2])
    part = x[:, :, max(0, low) : high]
    if before or behind:
        part = nn.functional.pad(part, (0, 0, 0, 0, before, behind))
    result = convolve(part, weight, stride, (0, *padding[1:]))
    out[slice(*planes)].copy_(result[0].permute(1, 2, 3, 0))


def convolve(x: Tensor, weight: Tensor, stride: Sequence[int], padding: Sequence[int]) -> Tensor:
    """A convolution by oneDNN; torch's own choice is a much slower one for few channels and for small maps."""
    if torch.backends.mkldnn.is_available() and x.dtype is torch.float32:
        ones = [1] * len(stride)
        result: Tensor = torch.ops.aten.mkldnn_convolution(x, weight, None, list(padding), list(stride), ones, 1)
        return result
    convolution = torch.conv2d if x.ndim == 4 else torch.conv3d
    return convolution(x, weight, None, stride, padding)  # type: ignore[arg-type]


@dataclass(frozen=True, kw_only=True, eq=False)
class Moments:
    """Statistics of the rows of a piece, or of all.

    Attributes:
        count: Rows.
        mean: (C,) float64.
        deviation: (C,) float64, sum of the squared distances from the mean.
    """

    count: int
    mean: Tensor
    deviation: Tensor

    @classmethod
    def of(cls, rows: Tensor) -> Moments:
        """Of (voxels, C), any floating type."""
        count, channels = rows.shape
        # Shifted by the mean of 64 voxels, so that a mean far from zero does not swallow the variance.
        step = max(1, count // 64)
        shift = rows[: step * 64 : step].float().mean(0)
        centred = scratch("centred", count, channels)
        if rows.dtype is torch.float32:
            torch.sub(rows, shift, out=centred)
        else:
            centred.copy_(rows).sub_(shift)
        sums = _column_sums(centred)
        deviation = _column_sums(centred.square_()) - sums.square() / count
        return cls(count=count, mean=shift + sums / count, deviation=deviation.clamp_min_(0))

    @classmethod
    def together(cls, parts: Sequence[Moments]) -> Moments:
        """Of all parts (Chan, Golub & LeVeque 1979)."""
        counts = torch.tensor([part.count for part in parts], dtype=torch.float64)[:, None]
        means = torch.stack([part.mean for part in parts])
        count = int(counts.sum())
        mean = (counts * means).sum(0) / count
        between = (counts * (means - mean).square()).sum(0)
        return cls(count=count, mean=mean, deviation=torch.stack([p.deviation for p in parts]).sum(0) + between)

    def scale_and_offset(self, gain: Tensor, offset: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        """(C,) float32 each: what instance norm multiplies with, and adds."""
        scale = gain / (self.deviation / self.count + eps).sqrt()
        return scale.float(), (offset - self.mean * scale).float()


def scale_(rows: Tensor, scale: Tensor, offset: Tensor, negative_slope: float | None) -> None:
    """Scale, shift and leaky ReLU of (voxels, C) in place, in float32: a scale rounded to bfloat16 shifts whole maps."""
    count, channels = rows.shape
    wide = count // 16 * 16
    # 16 voxels in a row, because an operator starts anew for every row.
    parts = [rows[:wide].view(-1, 16 * channels)] if wide else []
    parts += [rows[wide:]] if count > wide else []
    for part in parts:
        repeats = part.shape[1] // channels
        exact = part if part.dtype is torch.float32 else scratch("exact", *part.shape).copy_(part)
        torch.addcmul(offset.repeat(repeats), exact, scale.repeat(repeats), out=exact)
        if negative_slope is not None:
            nn.functional.leaky_relu_(exact, negative_slope)
        if exact is not part:
            part.copy_(exact)


def normalize_(rows: Tensor, gain: Tensor, offset: Tensor, eps: float, negative_slope: float | None) -> None:
    """Instance norm and leaky ReLU in place.

    Args:
        rows: (voxels, C), contiguous; any floating type, statistics are float32 in pieces and float64 together.
        gain: (C,) float32.
        offset: (C,) float32.
        eps: Added to the variance.
        negative_slope: Of the leaky ReLU; ``None`` for none.
    """
    parts = rows.split(max(1, _CHUNK_BYTES // (4 * rows.shape[1])))
    scale, moved = Moments.together([Moments.of(part) for part in parts]).scale_and_offset(gain, offset, eps)
    for part in parts:
        scale_(part, scale, moved, negative_slope)


def _column_sums(part: Tensor) -> Tensor:
    """(n, C) → (C,) float64; wide rows are summed faster than narrow ones."""
    n, channels = part.shape
    wide = n // 16
    if wide == 0:
        return part.sum(0, dtype=torch.float64)
    total = part[: wide * 16].view(wide, 16 * channels).sum(0).view(16, channels).double().sum(0)
    return total + part[wide * 16 :].sum(0) if n % 16 else total


def rows_of(x: Tensor) -> Tensor:
    """(1, C, X, Y, Z), channels last → (X·Y·Z, C), the same memory."""
    return x[0].permute(1, 2, 3, 0).view(-1, x.shape[1])


class FusedResidual(nn.Module):
    """A :class:`ResidualBlock` for inference."""

    def __init__(self, block: ResidualBlock, dtype: torch.dtype, normalize: Normalize | None) -> None:
        super().__init__()
        self.conv1 = FusedBlock(block.conv1, dtype, normalize)
        self.conv2 = FusedBlock(block.conv2, dtype, normalize)
        self.negative_slope = block.nonlin2.negative_slope
        self.skip = nn.Sequential(
            *(FusedBlock(m, dtype, normalize) if isinstance(m, ConvBlock) else m for m in block.skip)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(1, C, X, Y, Z) → (1, O, X/stride, …)."""
        y: Tensor = self.conv2(self.conv1(x))
        short = self.skip(x).contiguous(memory_format=torch.channels_last_3d)
        planes, others = y[0].permute(1, 2, 3, 0), short[0].permute(1, 2, 3, 0)

        def add(piece: Planes) -> None:
            nn.functional.leaky_relu_(planes[slice(*piece)].add_(others[slice(*piece)]), self.negative_slope)

        side_by_side(add, pieces_of(planes, 1, _CHUNK_BYTES))
        return y


def _fused(
    stack: nn.Module, dtype: torch.dtype, normalize: Normalize | None, *, shared_input: bool = False
) -> nn.Sequential:
    """Blocks of a stack for inference."""
    if isinstance(stack, nn.Sequential):
        (stack,) = stack
    if isinstance(stack, ResidualStack):
        return nn.Sequential(*(FusedResidual(block, dtype, normalize) for block in stack.blocks))  # type: ignore[arg-type]
    if not isinstance(stack, ConvStack):
        raise TypeError(f"no fused form of a {type(stack).__name__}")
    blocks: list[ConvBlock] = list(stack.convs)  # type: ignore[arg-type]
    return nn.Sequential(
        *(FusedBlock(b, dtype, normalize, shared_input=shared_input and i == 0) for i, b in enumerate(blocks))
    )


class FusedUp(nn.Module):
    """A transposed convolution whose stride is its kernel, and the concatenation behind it."""

    weight: Tensor
    bias: Tensor

    def __init__(self, up: nn.ConvTranspose3d, dtype: torch.dtype) -> None:
        super().__init__()
        inputs, outputs = up.weight.shape[:2]
        self.stride, self.outputs = up.stride, outputs
        matrix = up.weight.detach().permute(0, 2, 3, 4, 1).reshape(inputs, -1)  # (C, sx·sy·sz·O)
        self.register_buffer("weight", matrix.to(dtype).contiguous())
        self.register_buffer("bias", up.bias.detach().to(dtype))  # type: ignore[union-attr]

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """(1, C, x, y, z) and (1, S, X, Y, Z) → (1, O + S, X, Y, Z)."""
        a, b, c = x.shape[2:]
        i, j, k = self.stride
        both = x.new_empty(a, i, b, j, c, k, self.outputs + skip.shape[1])
        place, bias = both[..., : self.outputs], self.bias
        beside = both.view(a, i, b * j, c * k, -1)[..., self.outputs :]
        skips = skip[0].permute(1, 2, 3, 0).view(a, i, b * j, c * k, -1)

        def fill(plane: int) -> None:
            voxels = x[0, :, plane].permute(1, 2, 0).reshape(b * c, -1)
            values = (voxels @ self.weight).view(b, c, i, j, k, self.outputs)
            torch.add(values.permute(2, 0, 3, 1, 4, 5), bias, out=place[plane])
            beside[plane].copy_(skips[plane])

        side_by_side(fill, range(a))
        return both.view(a * i, b * j, c * k, -1).permute(3, 0, 1, 2)[None]


class FusedUNet(nn.Module):
    """A :class:`~satunet.network.backbone.UNet` for inference on a CPU, made from a trained one.

    Args:
        backbone: With its weights; it is left as it is.
        dtype: float32 or bfloat16.
        normalize: Instance norm and leaky ReLU; the one of this module if not given.
    """

    def __init__(self, backbone: UNet, dtype: torch.dtype, normalize: Normalize | None = None) -> None:
        super().__init__()
        self.dtype = dtype
        encoder, decoder = backbone.encoder, backbone.decoder
        stem = getattr(encoder, "stem", None)
        self.stem = None if stem is None else _fused(stem, dtype, normalize, shared_input=True)
        self.stages = nn.ModuleList(
            _fused(stage, dtype, normalize, shared_input=stem is None and number == 0)
            for number, stage in enumerate(encoder.stages)
        )
        self.ups = nn.ModuleList(FusedUp(up, dtype) for up in decoder.transpconvs)  # type: ignore[arg-type]
        self.decoder = nn.ModuleList(_fused(stage, dtype, normalize) for stage in decoder.stages)

    @torch.no_grad()
    def forward(self, image: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """As :meth:`UNet.forward`; of the input's channels, which are equal, only the first is looked at."""
        with torch.autocast("cpu", enabled=False):
            found = [self._one(one[None, :1]) for one in image]
        if len(found) == 1:
            return found[0]
        (skips, maps) = zip(*found, strict=True)
        return [torch.cat(s) for s in zip(*skips, strict=True)], [torch.cat(m) for m in zip(*maps, strict=True)]

    def _one(self, x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        x = x.to(self.dtype).contiguous(memory_format=torch.channels_last_3d)
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
