"""Convolution blocks on a GPU: channels last in memory, instance norm and leaky ReLU in as few passes as possible.

Tensor cores need channels last, but torch's instance norm copies to channels first and back. Therefore, maps are
normalised here as rows of (voxels, C). The statistics come from the kernels of torch's synchronised batch norm, with
the rows of one sample as a batch. Scale, shift and leaky ReLU are one kernel if Triton is available (it comes with
torch for CUDA), else two. The convolution's bias is omitted: the norm would subtract it again, and adding it costs a
pass over the map.

For the backward pass, only the convolution's output and the block's result are kept; the latter is also the input that
the next convolution keeps.

The first convolution sees one channel instead of several equal ones, padded with channels of zeros: tensor cores
process channels in groups of eight, and cuDNN's kernels for fewer channels are many times slower.

The results were checked against float64 on a CPU, and the CUDA branches against the source of the kernels: the first
two results of ``batch_norm_backward_reduce`` are plain sums (of the gradient, and of the gradient times x - mean), the
last two are the gradients of weight and bias, and ``batch_norm_backward_elemt`` divides by the count.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from satunet.network import triton_kernels

_BLOCK = 4096
"""Number of elements per program of the Triton kernel."""
_CHANNELS = 8
"""Number of float16 or bfloat16 channels that tensor cores process at once."""


@functools.cache
def trouble(device: torch.device) -> str | None:
    """Reason why these blocks cannot run on a device; ``None`` if they can. Tested once, with a small map.

    Triton compiles at first use and needs a C compiler, among other things that may be missing.
    """
    if device.type == "cuda" and triton_kernels.scale_and_leaky_relu is None:
        return "Triton is not installed"
    try:
        with torch.inference_mode(False), torch.enable_grad(), torch.autocast(device.type, enabled=False):
            x = torch.arange(2 * 16 * 60, dtype=torch.float64, device="cpu").sin().add(0.5).view(2, 16, 3, 4, 5)
            norm, gradient = nn.InstanceNorm3d(16, affine=True, dtype=torch.float64, device="cpu"), x.flip(2)
            x.requires_grad_()
            expected = nn.functional.leaky_relu(norm(x), 0.01)
            (of_x,) = torch.autograd.grad(expected, x, gradient)
            for dtype, tolerance in ((torch.float32, 1e-4), (torch.bfloat16, 5e-2), (torch.float16, 1e-2)):
                here = x.detach().to(device, dtype).requires_grad_()
                found = normalise(here, norm.to(device, torch.float32), 0.01)
                (of_here,) = torch.autograd.grad(found, here, gradient.to(device, dtype))
                for ours, theirs in ((found, expected), (of_here, of_x)):
                    if not torch.allclose(ours.detach().cpu().double(), theirs.detach(), rtol=0, atol=tolerance):
                        return f"results in {dtype} are wrong"
    except Exception as error:  # the driver, the compiler, a full disk: there are countless causes
        return (str(error).strip() or type(error).__name__).splitlines()[0]
    return None


def one_channel(x: Tensor, weight: Tensor, channels: int | None = None) -> tuple[Tensor, Tensor]:
    """Input and weight of an equivalent one-channel convolution, for an image whose channels are all equal.

    Args:
        x: (B, C, X, Y, Z) with equal channels.
        weight: (O, C, kx, ky, kz).
        channels: Number of channels of the result; all but the first are zeros. If not given, the fastest number is
            taken: 8 for float16 and bfloat16 on CUDA, else 1.

    Returns:
        (B, channels, X, Y, Z), channels last, and (O, channels, kx, ky, kz).
    """
    kind = x.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
    if channels is None:
        channels = _CHANNELS if x.is_cuda and dtype in (torch.float16, torch.bfloat16) else 1
    weight = weight.sum(1, keepdim=True)
    if channels == 1:
        return x[:, :1], weight
    padded = torch.zeros(len(x), *x.shape[2:], channels, dtype=dtype, device=x.device)
    padded[..., 0] = x[:, 0]
    weight = nn.functional.pad(weight, (0, 0, 0, 0, 0, 0, 0, channels - 1))
    return padded.permute(0, 4, 1, 2, 3), weight.contiguous(memory_format=torch.channels_last_3d)


def joined(up: nn.ConvTranspose3d, x: Tensor, skip: Tensor) -> Tensor:
    """``torch.cat((up(x), skip), 1)`` without gradients, channels last; the addition of the bias copies into place.

    Args:
        up: Transposed convolution whose stride equals its kernel size.
        x: (B, C, x, y, z).
        skip: (B, S, X, Y, Z).
    """
    y = nn.functional.conv_transpose3d(x, up.weight, None, up.stride)
    both = torch.empty(len(y), *y.shape[2:], y.shape[1] + skip.shape[1], dtype=y.dtype, device=y.device)
    both = both.permute(0, 4, 1, 2, 3)
    place = both[:, : y.shape[1]]
    if up.bias is None:
        place.copy_(y)
    else:
        torch.add(y, up.bias.to(y.dtype).view(1, -1, 1, 1, 1), out=place)
    both[:, y.shape[1] :].copy_(skip)
    return both


def average_to(maps: Tensor, grid: tuple[int, int, int]) -> Tensor:
    """Mean over equal boxes, (B, C, X, Y, Z), channels last → (B, C, *grid).

    The first axis is averaged by a matrix product, which reads the map once at the speed of memory, and whose backward
    pass writes it once; after that, little is left for the other axes.
    """
    b, c, *shape = maps.shape
    size, *others = (n // cells for n, cells in zip(shape, grid, strict=True))
    rows = maps.permute(0, 2, 3, 4, 1).reshape(b, shape[0], -1)  # (B, X, Y·Z·C)
    share = 0.5 ** (size - 1).bit_length()  # a power of two is exact in any precision; it keeps sums small
    matrix = torch.eye(grid[0], dtype=maps.dtype, device=maps.device).mul_(share).repeat_interleave(size, 1)
    sums = torch.bmm(matrix.expand(b, -1, -1), rows).view(b, grid[0], grid[1], others[0], grid[2], others[1], c)
    means = sums.mean((3, 5))
    if share * size != 1:
        means = means * (1 / (share * size))
    return means.permute(0, 4, 1, 2, 3)


def normalise(x: Tensor, norm: nn.InstanceNorm3d, negative_slope: float | None, bias: Tensor | None = None) -> Tensor:
    """Instance norm, then leaky ReLU if there is a slope.

    Args:
        x: (B, C, X, Y, Z), channels last; without gradients, it is overwritten with the result.
        norm: Affine instance norm without running statistics.
        negative_slope: Slope of the leaky ReLU; ``None`` for no leaky ReLU.
        bias: (C,) bias of the preceding convolution, which the norm cancels, so that its gradient is zero.
    """
    if torch.is_grad_enabled():
        result: Tensor = _Normalise.apply(x, norm.weight, norm.bias, bias, norm.eps, negative_slope)  # type: ignore[no-untyped-call]
        return result
    x = x.contiguous(memory_format=torch.channels_last_3d)
    for rows in _rows(x):
        _forward(rows, norm.weight, norm.bias, norm.eps, negative_slope, rows)
    return x


def _forward(
    rows: Tensor, weight: Tensor, bias: Tensor, eps: float, negative_slope: float | None, out: Tensor
) -> tuple[Tensor, Tensor]:
    """Write the result for (V, C) rows to ``out``; returns their mean and 1 / standard deviation, (C,) each."""
    mean, inverse = _statistics(rows, eps)
    scale = inverse * weight
    _scale(rows, scale, bias - mean * scale, negative_slope, out)
    return mean, inverse


class _Normalise(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        subtracted: Tensor | None,
        eps: float,
        negative_slope: float | None,
    ) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last_3d)
        y = torch.empty_like(x)
        statistics: list[Tensor] = []
        for source, target in zip(_rows(x), _rows(y), strict=True):
            statistics += _forward(source, weight, bias, eps, negative_slope, target)
        ctx.save_for_backward(x, y, weight, *statistics)
        ctx.negative_slope = negative_slope
        ctx.subtracted = None if subtracted is None else (subtracted.shape, subtracted.dtype)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor | None, ...]:
        x, y, weight, *statistics = ctx.saved_tensors
        gradient = outputs[0].contiguous(memory_format=torch.channels_last_3d)
        if ctx.negative_slope is not None:
            gradient = torch.ops.aten.leaky_relu_backward(gradient, y, ctx.negative_slope, True)
        of_x = torch.empty_like(x)
        of_weight, of_bias = torch.zeros_like(weight), torch.zeros_like(weight)
        for b, (rows, given, place) in enumerate(zip(_rows(x), _rows(gradient), _rows(of_x), strict=True)):
            found, dw, db = _backward(given, rows, statistics[2 * b], statistics[2 * b + 1], weight)
            place.copy_(found)
            of_weight += dw
            of_bias += db
        of_subtracted = None
        if ctx.subtracted is not None:
            shape, dtype = ctx.subtracted
            of_subtracted = torch.zeros(shape, dtype=dtype, device=x.device)
        return of_x, of_weight, of_bias, of_subtracted, None, None


def _rows(x: Tensor) -> list[Tensor]:
    """(B, C, X, Y, Z) with channels last → B views of (X·Y·Z, C)."""
    return [sample.permute(1, 2, 3, 0).view(-1, x.shape[1]) for sample in x]


def _on_gpu(rows: Tensor) -> bool:
    return rows.is_cuda


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _statistics(rows: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Mean and 1 / standard deviation of each column, in float32 or wider."""
    if _on_gpu(rows):
        mean, inverse = torch.batch_norm_stats(rows, eps)
        return mean, inverse
    variance, mean = torch.var_mean(_wide(rows), 0, correction=0)
    return mean, (variance + eps).rsqrt()


def _scale(rows: Tensor, scale: Tensor, offset: Tensor, negative_slope: float | None, out: Tensor) -> None:
    """Scale and shift columns, then apply leaky ReLU; in float32 or wider, whatever the type of the rows."""
    kernel = triton_kernels.scale_and_leaky_relu if _on_gpu(rows) else None
    if kernel is not None:
        slope = 1.0 if negative_slope is None else negative_slope
        with torch.cuda.device_of(rows):
            kernel[(-(-rows.numel() // _BLOCK),)](rows, out, scale, offset, rows.numel(), slope, rows.shape[1], _BLOCK)
        return
    if _on_gpu(rows):
        zeros, ones = torch.zeros_like(scale), torch.ones_like(scale)
        out.copy_(torch.batch_norm_elemt(rows, scale, offset, zeros, ones, 0.0))
    else:
        out.copy_(torch.addcmul(offset, _wide(rows), scale))
    if negative_slope is not None:
        nn.functional.leaky_relu_(out, negative_slope)


def _backward(
    gradient: Tensor, rows: Tensor, mean: Tensor, inverse: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of the norm's input, (V, C), and of its weight and bias, (C,) each."""
    if _on_gpu(rows):
        sums, products, of_weight, of_bias = torch.batch_norm_backward_reduce(
            gradient, rows, mean, inverse, weight, True, True, True
        )
        count = torch.full((1,), len(rows), dtype=torch.int32, device=rows.device)
        found = torch.batch_norm_backward_elemt(gradient, rows, mean, inverse, weight, sums, products, count)
        return found, of_weight, of_bias
    given, normal = _wide(gradient), (_wide(rows) - mean) * inverse
    of_weight, of_bias = (given * normal).sum(0), given.sum(0)
    found = (given - of_bias / len(rows) - normal * of_weight / len(rows)) * (inverse * weight)
    return found.to(rows.dtype), of_weight, of_bias
