"""Convolution blocks on a GPU: channels last in memory, instance norm and leaky ReLU in as few passes as possible.

Tensor cores want channels last. Torch's instance norm wants channels first, and copies there and back; so maps are
normalised here as rows of (voxels, C). Statistics are those of torch's batch norm (the kernels that synchronised batch
norm has): one sample's rows are one batch. Scale, shift and leaky ReLU are one kernel where Triton is there (it comes
with torch for CUDA), else two. The convolution's bias is left out: the norm subtracts it again, and adding it costs a
pass over the map.

Backward keeps the convolution's output and the result, which the next convolution keeps anyway, and nothing else.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from satunet.network import triton_kernels

_BLOCK = 4096
"""Numbers that a program of the Triton kernel handles."""


def normalise(x: Tensor, norm: nn.InstanceNorm3d, negative_slope: float | None) -> Tensor:
    """Instance norm, then leaky ReLU if there is a slope.

    Args:
        x: (B, C, X, Y, Z), channels last; without gradients, the result takes its place.
        norm: Affine, without running statistics.
        negative_slope: Slope of the leaky ReLU; ``None``: there is none.
    """
    if torch.is_grad_enabled():
        result: Tensor = _Normalise.apply(x, norm.weight, norm.bias, norm.eps, negative_slope)  # type: ignore[no-untyped-call]
        return result
    x = x.contiguous(memory_format=torch.channels_last_3d)
    for rows in _rows(x):
        _forward(rows, norm.weight, norm.bias, norm.eps, negative_slope, rows)
    return x


def _forward(
    rows: Tensor, weight: Tensor, bias: Tensor, eps: float, negative_slope: float | None, out: Tensor
) -> tuple[Tensor, Tensor]:
    """Write the result of (V, C) rows to ``out``; their mean and 1 / standard deviation, (C,) each."""
    mean, inverse = _statistics(rows, eps)
    scale = inverse * weight
    _scale(rows, scale, bias - mean * scale, negative_slope, out)
    return mean, inverse


class _Normalise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float, negative_slope: float | None) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last_3d)
        y = torch.empty_like(x)
        statistics: list[Tensor] = []
        for source, target in zip(_rows(x), _rows(y), strict=True):
            statistics += _forward(source, weight, bias, eps, negative_slope, target)
        ctx.save_for_backward(x, y, weight, *statistics)
        ctx.negative_slope = negative_slope
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
        return of_x, of_weight, of_bias, None, None


def _rows(x: Tensor) -> list[Tensor]:
    """(B, C, X, Y, Z) with channels last → B views of (X·Y·Z, C)."""
    return [sample.permute(1, 2, 3, 0).view(-1, x.shape[1]) for sample in x]


def _statistics(rows: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Mean and 1 / standard deviation of each column, float32."""
    if rows.is_cuda:
        mean, inverse = torch.batch_norm_stats(rows, eps)
        return mean, inverse
    variance, mean = torch.var_mean(rows.float(), 0, correction=0)
    return mean, (variance + eps).rsqrt()


def _scale(rows: Tensor, scale: Tensor, offset: Tensor, negative_slope: float | None, out: Tensor) -> None:
    """Scale and shift columns, then leaky ReLU, in float32 whatever the rows are."""
    kernel = triton_kernels.scale_and_leaky_relu if rows.is_cuda else None
    if kernel is not None:
        slope = 1.0 if negative_slope is None else negative_slope
        with torch.cuda.device_of(rows):
            kernel[(-(-rows.numel() // _BLOCK),)](rows, out, scale, offset, rows.numel(), slope, rows.shape[1], _BLOCK)
        return
    if rows.is_cuda:
        zeros, ones = torch.zeros_like(scale), torch.ones_like(scale)
        out.copy_(torch.batch_norm_elemt(rows, scale, offset, zeros, ones, 0.0))
    else:
        out.copy_(torch.addcmul(offset, rows.float(), scale))
    if negative_slope is not None:
        nn.functional.leaky_relu_(out, negative_slope)


def _backward(
    gradient: Tensor, rows: Tensor, mean: Tensor, inverse: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of the norm's input (V, C), weight and bias (C,)."""
    if rows.is_cuda:
        sums, products, of_weight, of_bias = torch.batch_norm_backward_reduce(
            gradient, rows, mean, inverse, weight, True, True, True
        )
        count = torch.full((1,), len(rows), dtype=torch.int32, device=rows.device)
        found = torch.batch_norm_backward_elemt(gradient, rows, mean, inverse, weight, sums, products, count)
        return found, of_weight, of_bias
    given, normal = gradient.float(), (rows.float() - mean) * inverse
    of_weight, of_bias = (given * normal).sum(0), given.sum(0)
    found = (given - of_bias / len(rows) - normal * of_weight / len(rows)) * (inverse * weight)
    return found.to(rows.dtype), of_weight, of_bias
