"""Training steps on a CPU in float32: convolutions by Winograd's algorithm, norms in two passes over memory.

PyTorch's eager mode loses time in three places (profiled: one core with AVX2, features 32 to 224):

- *Convolutions and their gradients* are two thirds of a step. F(4, 3) along the first spatial axis
  (:mod:`satunet.network.cpu.convolutions`) halves the multiplications of all three: the gradient of the input is a
  convolution with the flipped kernel, and that of the weights is the sum of six products of transformed maps (Lavin &
  Gray, CVPR 2016, section 4.3), which are matrix products here because oneDNN's own gradients of weights run at half
  the speed of its convolutions.
- *Instance norm* copies from channels last to channels first and back, forward and backward: a sixth of a step.
- *The first convolution* sees the same channel several times.

Maps are (B, C, X, Y, Z) with channels last in memory. Gradients differ from PyTorch's by rounding alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from satunet.network.cpu.convolutions import (
    CHUNK_BYTES,
    INPUT,
    OUTPUT,
    WEIGHT,
    WINOGRAD_BYTES,
    Planes,
    pieces_of,
    transformed,
    winograd,
    winograd_pays,
)
from satunet.network.cpu.norms import Moments, row_groups, scale_
from satunet.network.cpu.team import scratch, side_by_side


def is_for(x: Tensor) -> bool:
    """Whether these blocks compute with a map: on a CPU, in float32."""
    return x.device.type == "cpu" and x.dtype is torch.float32 and not torch.is_autocast_enabled("cpu")


def block(
    x: Tensor, conv: nn.Conv3d, norm: nn.InstanceNorm3d, negative_slope: float | None, *, equal_inputs: bool = False
) -> Tensor | None:
    """Convolution, instance norm and leaky ReLU if there is a slope.

    Args:
        x: (B, C, X, Y, Z) float32.
        conv: The convolution.
        norm: Affine instance norm without running statistics.
        negative_slope: Slope of the leaky ReLU; ``None`` for no leaky ReLU.
        equal_inputs: Whether all channels of ``x`` are equal.

    Returns:
        (B, O, X', Y', Z'), channels last; ``None`` if it is a single voxel, which is not normalised.
    """
    weight, padding = conv.weight, [int(p) for p in conv.padding]
    if equal_inputs:
        x, weight = x[:, :1], weight.sum(1, keepdim=True)
    if not equal_inputs and winograd_pays(conv, x.shape[2:]):
        maps = convolve(x, weight, padding)
    else:
        maps = nn.functional.conv3d(x, weight, None, conv.stride, padding)
        if maps[0, 0].numel() == 1:
            return None
    return normalise(maps, norm, negative_slope, conv.bias)


def convolve(x: Tensor, weight: Tensor, padding: Sequence[int]) -> Tensor:
    """A convolution with stride 1 and padding 1 along the first axis, without a bias.

    Args:
        x: (B, C, X, Y, Z) float32.
        weight: (O, C, 3, ky, kz) float32; ``ky`` and ``kz`` are odd.
        padding: Padding of the three axes with zeros: half of the kernel.

    Returns:
        (B, O, X, Y, Z), channels last.
    """
    result: Tensor = _Convolve.apply(x, weight, tuple(padding))  # type: ignore[no-untyped-call]
    return result


class _Convolve(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, padding: tuple[int, int, int]) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last_3d)
        ctx.save_for_backward(x, weight)
        ctx.padding = padding
        return _convolved(x, weight, padding)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        gradient = outputs[0].contiguous(memory_format=torch.channels_last_3d)
        of_x = of_weight = None
        if ctx.needs_input_grad[0]:
            of_x = _convolved(gradient, weight.transpose(0, 1).flip(2, 3, 4), ctx.padding)
        if ctx.needs_input_grad[1]:
            of_weight = _gradient_of_weight(x, gradient, weight.shape)
        return of_x, of_weight, None


def _convolved(x: Tensor, weight: Tensor, padding: Sequence[int]) -> Tensor:
    """The convolution of (B, C, X, Y, Z) with channels last."""
    y = _empty_like(x, weight.shape[0])
    kernels = transformed(weight.detach())
    for source, target in zip(_planes(x), _planes(y), strict=True):

        def fill(planes: Planes, source: Tensor = source, target: Tensor = target) -> None:
            winograd(source, kernels, padding[1:], planes, target)

        side_by_side(fill, pieces_of(target, 4, WINOGRAD_BYTES))
    return y


def _gradient_of_weight(x: Tensor, gradient: Tensor, shape: Sequence[int]) -> Tensor:
    """Gradient of (O, C, 3, ky, kz) weights: the transpose of the transforms that :func:`winograd` makes of them."""
    outputs, inputs, _, ky, kz = shape
    total = torch.zeros(6, ky, inputs, kz, outputs, dtype=torch.float64, device="cpu")
    for source, given in zip(_planes(x), _planes(gradient), strict=True):

        def products(planes: Planes, source: Tensor = source, given: Tensor = given) -> Tensor:
            return _products(source, given, planes, ky, kz)

        for part in side_by_side(products, pieces_of(given, 4, WINOGRAD_BYTES)):
            total += part
    return torch.einsum("ka,kyczo->ocayz", WEIGHT, total).float()


def _products(x: Tensor, gradient: Tensor, planes: Planes, ky: int, kz: int) -> Tensor:
    """Gradients of the six transformed kernels of some planes, (6, ky, C, kz, O).

    Args:
        x: (X, Y, Z, C).
        gradient: (X, Y, Z, O).
        planes: Range of planes; the first is a multiple of 4.
        ky: Size of the kernel along the second axis.
        kz: Size along the third.
    """
    extent, y, z, inputs = x.shape
    outputs = gradient.shape[-1]
    flat, given = x.reshape(extent, -1), gradient.reshape(extent, -1)
    starts = range(planes[0], planes[1], 4)
    spread = scratch("input", 6, len(starts), flat.shape[1])
    wanted = scratch("output", 6, len(starts), given.shape[1])
    for i, start in enumerate(starts):
        low, high = max(0, start - 1), min(extent, start + 5)
        torch.mm(INPUT[:, low - start + 1 : high - start + 1], flat[low:high], out=spread[:, i])
        count = min(4, planes[1] - start)
        torch.mm(OUTPUT[:count].T, given[start : start + count], out=wanted[:, i])
    found = torch.zeros(6, ky, inputs, kz * outputs, dtype=torch.float32, device="cpu")
    shifted = scratch("shifted", len(starts), y, z, kz, outputs)
    for k in range(6):
        _shift(wanted[k].view(len(starts), y, z, outputs), shifted)
        rows, columns = spread[k].view(len(starts), y * z, inputs), shifted.view(len(starts), y * z, kz * outputs)
        for at in range(ky):
            away = (at - ky // 2) * z  # the voxel of the input lies so many rows behind that of the output
            first, last = max(0, -away), y * z - max(0, away)
            for image, target in zip(rows, columns, strict=True):
                found[k, at].addmm_(image[first + away : last + away].T, target[first:last])
    return found.view(6, ky, inputs, kz, outputs)


def _shift(maps: Tensor, out: Tensor) -> None:
    """(N, Y, Z, O) → (N, Y, Z, kz, O): where an output's voxel meets the kernel's column, seen from the input's voxel.

    Column ``c`` of the kernel joins the output at ``z`` with the input at ``z + c - kz // 2``.
    """
    z, kz = out.shape[2:4]
    for column in range(kz):
        away = column - kz // 2
        first, last = max(0, away), z + min(0, away)
        place = out[:, :, :, column]
        place[:, :, :first] = 0
        place[:, :, last:] = 0
        place[:, :, first:last] = maps[:, :, first - away : last - away]


def normalise(x: Tensor, norm: nn.InstanceNorm3d, negative_slope: float | None, bias: Tensor | None = None) -> Tensor:
    """Instance norm, then leaky ReLU if there is a slope.

    Args:
        x: (B, C, X, Y, Z) float32, at least two voxels.
        norm: Affine instance norm without running statistics.
        negative_slope: Slope of the leaky ReLU; ``None`` for no leaky ReLU.
        bias: (C,) bias of the preceding convolution, which the norm cancels; its gradient is zero.

    Returns:
        (B, C, X, Y, Z), channels last.
    """
    result: Tensor = _Normalise.apply(x, norm.weight, norm.bias, bias, norm.eps, negative_slope)  # type: ignore[no-untyped-call]
    return result


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
        y = _empty_like(x, x.shape[1])
        means, inverses = [], []
        for source, target in zip(_planes(x), _planes(y), strict=True):
            pieces = pieces_of(target, 1, CHUNK_BYTES)

            def moments(planes: Planes, source: Tensor = source) -> Moments:
                return Moments.of(_rows(source, planes))

            found = Moments.together(side_by_side(moments, pieces))
            scale, offset = found.scale_and_offset(weight.detach(), bias.detach(), eps)

            def fill(
                planes: Planes,
                source: Tensor = source,
                target: Tensor = target,
                by: Tensor = scale,
                to: Tensor = offset,
            ) -> None:
                rows = _rows(target, planes)
                scale_(rows.copy_(_rows(source, planes)), by, to, negative_slope)

            side_by_side(fill, pieces)
            means.append(found.mean)
            inverses.append((found.deviation / found.count + eps).rsqrt())
        ctx.save_for_backward(x, y, weight, torch.stack(means), torch.stack(inverses))
        ctx.negative_slope = negative_slope
        ctx.subtracted = None if subtracted is None else subtracted.shape
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor | None, ...]:
        x, y, weight, means, inverses = ctx.saved_tensors
        gradient = outputs[0].contiguous(memory_format=torch.channels_last_3d)
        of_x = _empty_like(x, x.shape[1])
        of_weight, of_bias = (torch.zeros(len(weight), dtype=torch.float64, device="cpu") for _ in range(2))
        maps = zip(_planes(x), _planes(y), _planes(gradient), _planes(of_x), means, inverses, strict=True)
        for source, result, given, place, mean, inverse in maps:
            pieces = pieces_of(source, 1, CHUNK_BYTES)
            arrays, centre = (source, result, given, place), mean.float()

            def sums(planes: Planes, arrays: Sequence[Tensor] = arrays, centre: Tensor = centre) -> Tensor:
                return _through_activation(centre, ctx.negative_slope, *(_rows(a, planes) for a in arrays))

            plain, product = torch.stack(side_by_side(sums, pieces)).sum(0)
            of_bias += plain
            of_weight += product * inverse
            # (gradient - mean(gradient) - normal * mean(gradient * normal)) * weight / deviation as a sum of multiples
            # of the gradient, of x - mean = normal * deviation, and of 1.
            count = source.shape[0] * source.shape[1] * source.shape[2]
            outer = inverse * weight.double()
            factors = (outer, -outer * inverse**2 * product / count, -outer * plain / count)

            def finish(
                planes: Planes, source: Tensor = source, place: Tensor = place, centre: Tensor = centre,
                factors: Sequence[Tensor] = tuple(f.float() for f in factors),
            ) -> None:  # fmt: skip
                for at, there in zip(row_groups(_rows(place, planes)), row_groups(_rows(source, planes)), strict=True):
                    middle, a, b, c = (f.repeat(at.shape[1] // len(f)) for f in (centre, *factors))
                    torch.addcmul(c, at, a, out=at)
                    at.addcmul_(torch.sub(there, middle, out=scratch("centred", *at.shape)), b)

            side_by_side(finish, pieces)
        of_subtracted = None if ctx.subtracted is None else weight.new_zeros(ctx.subtracted)
        return of_x, of_weight.to(weight.dtype), of_bias.to(weight.dtype), of_subtracted, None, None


def _through_activation(
    centre: Tensor, negative_slope: float | None, x: Tensor, y: Tensor, gradient: Tensor, place: Tensor
) -> Tensor:
    """Write the gradient before the leaky ReLU to ``place``; returns the sums of it and of it times ``x - centre``.

    Args:
        centre: (C,) mean of ``x``.
        negative_slope: Slope of the leaky ReLU; ``None`` for no leaky ReLU.
        x: (V, C) rows of the norm's input.
        y: The block's result: its sign is that of the leaky ReLU's input.
        gradient: Gradient of the block's result.
        place: Rows to write to.

    Returns:
        (2, C) float64.
    """
    channels = x.shape[1]
    total = torch.zeros(2, channels, dtype=torch.float64, device="cpu")
    for source, result, given, at in zip(*(row_groups(a) for a in (x, y, gradient, place)), strict=True):
        if negative_slope is None:
            at.copy_(given)
        else:
            torch.ops.aten.leaky_relu_backward.grad_input(given, result, negative_slope, True, grad_input=at)
        middle = centre.repeat(at.shape[1] // channels)
        product = torch.sub(source, middle, out=scratch("centred", *at.shape)).mul_(at)
        for sums, values in zip(total, (at, product), strict=True):
            sums += values.sum(0).view(-1, channels).double().sum(0)
    return total


def _empty_like(x: Tensor, channels: int) -> Tensor:
    b, _, *extents = x.shape
    return torch.empty(b, *extents, channels, dtype=x.dtype, device=x.device).permute(0, 4, 1, 2, 3)


def _planes(x: Tensor) -> list[Tensor]:
    """(B, C, X, Y, Z) with channels last → B views of (X, Y, Z, C)."""
    return [sample.permute(1, 2, 3, 0) for sample in x.detach()]


def _rows(maps: Tensor, planes: Planes) -> Tensor:
    """Some planes of (X, Y, Z, C) as (voxels, C)."""
    return maps[slice(*planes)].view(-1, maps.shape[-1])
