"""Convolutions on a CPU for a range of planes: oneDNN's own, or Winograd's algorithm along the first axis.

Maps are (1, C, X, Y, Z) with channels last in memory, or (X, Y, Z, C), which has the same layout.
"""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from satunet.network.cpu.team import onednn_is_arms, scratch

logger = logging.getLogger(__name__)

_trying = threading.Lock()

Planes = tuple[int, int]
"""First plane along X, and the plane after the last."""

CHUNK_BYTES = 4 << 20
"""Number of bytes of a map that a thread handles at once: few enough for the cache, enough that calls cost little."""
WINOGRAD_BYTES = (4 << 20) // 3
"""The same for Winograd's algorithm, which needs six planes of the input and six of the output for every four."""
MOST_WINOGRAD_BYTES = 256 << 20
"""Largest size of a thread's transformed planes in bytes; beyond it, oneDNN's convolution is used."""

# F(4, 3) with the points 0, 1, −1, 2, −2 and ∞: input, weight and output transforms.
INPUT = torch.tensor(
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
WEIGHT = torch.tensor(
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
OUTPUT = torch.tensor(
    [[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]], dtype=torch.float32
)


class Kernel:
    """Weights of a convolution in oneDNN's own layout, so that oneDNN need not convert them in every call.

    Args:
        weight: (O, C, ky, kz) or (O, C, kx, ky, kz), float32 or bfloat16.
        bias: (O,), of the same type.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        last = torch.channels_last if weight.ndim == 4 else torch.channels_last_3d
        self.size = tuple(weight.shape[2:])
        self.outputs = weight.shape[0]
        self._weight = weight.contiguous(memory_format=last)
        self._bias = bias
        self._tried = False

    def __call__(self, x: Tensor, stride: Sequence[int], padding: Sequence[int]) -> Tensor:
        """(N, C, …) → (N, O, …), both with channels last; the padding is zero."""
        if not self._tried:
            with _trying:
                if not self._tried:  # another thread was faster
                    self._put_in_order(x, stride, padding)
                    self._tried = True
        if self._weight.is_mkldnn:
            return self._by_onednn(self._weight, x, stride, padding)
        convolution = torch.conv2d if x.ndim == 4 else torch.conv3d
        return convolution(x, self._weight, self._bias, stride, padding)  # type: ignore[arg-type]

    def _put_in_order(self, x: Tensor, stride: Sequence[int], padding: Sequence[int]) -> None:
        """Convert the weights to oneDNN's layout for ``x``, unless oneDNN cannot compute with their type."""
        if onednn_is_arms():
            return  # convolutions of ARM's Compute Library take the usual layout
        try:
            ordered = torch.ops.mkldnn._reorder_convolution_weight(
                self._weight, list(padding), list(stride), [1] * len(stride), 1, list(x.shape)
            )
            self._by_onednn(ordered, x, stride, padding)
        except (AttributeError, RuntimeError) as error:
            logger.debug("convolutions without oneDNN's layout of weights: %s", str(error).partition("\n")[0])
        else:
            self._weight = ordered

    def _by_onednn(self, weight: Tensor, x: Tensor, stride: Sequence[int], padding: Sequence[int]) -> Tensor:
        ones = [1] * len(stride)
        result: Tensor = torch.ops.mkldnn._convolution_pointwise(
            x, weight, self._bias, list(padding), list(stride), ones, 1, "none", [], ""
        )
        return result


def transformed(weight: Tensor) -> list[Kernel]:
    """The six kernels of :func:`winograd` for (O, C, 3, ky, kz)."""
    parts = torch.einsum("ka,ocayz->kocyz", WEIGHT, weight.double())
    return [Kernel(part.float()) for part in parts]


def winograd_pays(conv: nn.Conv3d, extents: Sequence[int]) -> bool:
    """Whether Winograd's algorithm is faster than oneDNN's convolution of a map with these extents, in float32."""
    outputs, inputs, kernel = conv.weight.shape[:3]
    if kernel != 3 or max(conv.stride) > 1:
        return False
    voxels = math.prod(extents)
    if 6 * 4 * (inputs + outputs) * voxels // extents[0] > MOST_WINOGRAD_BYTES:
        return False
    return min(inputs, outputs) >= 16 and extents[0] >= 8 and voxels >= max(4096, 16 * inputs)


def pieces_of(out: Tensor, multiple: int, size: int) -> list[Planes]:
    """Ranges of planes of (X, Y, Z, O), of at most ``size`` bytes each unless ``multiple`` planes are already larger.

    A large map is cut into several pieces per thread, so that all threads finish at about the same time.
    """
    planes = out.shape[0]
    count = max(1, size // (out[0].numel() * out.element_size() * multiple))
    if out.numel() * out.element_size() >= CHUNK_BYTES:
        count = min(count, max(1, -(-planes // (multiple * 3 * torch.get_num_threads()))))
    step = count * multiple
    return [(first, min(planes, first + step)) for first in range(0, planes, step)]


def winograd(x: Tensor, kernels: Sequence[Kernel], padding: Sequence[int], planes: Planes, out: Tensor) -> None:
    """Compute some planes of a convolution with a kernel of 3 along the first axis, stride 1 and zero padding.

    Args:
        x: (X, Y, Z, C) float32, contiguous.
        kernels: Six transformed kernels with two axes (:func:`transformed`).
        padding: Padding of the last two axes; the first has 1.
        planes: Range of planes; the first is a multiple of 4.
        out: (X, Y, Z, O) array to write to.
    """
    extent, y, z, inputs = x.shape
    outputs = kernels[0].outputs
    x, out = x.reshape(extent, -1), out.view(extent, -1)
    starts = range(planes[0], planes[1], 4)
    count = len(starts)
    spread = scratch("input", 6, count, x.shape[1])
    products = scratch("output", 6, count, out.shape[1])
    for i, start in enumerate(starts):
        low, high = max(0, start - 1), min(extent, start + 5)
        torch.mm(INPUT[:, low - start + 1 : high - start + 1], x[low:high], out=spread[:, i])
    for k, kernel in enumerate(kernels):
        image = spread[k].view(count, y, z, inputs).permute(0, 3, 1, 2)
        result = kernel(image, (1, 1), padding)
        products[k].view(count, y, z, outputs).copy_(result.permute(0, 2, 3, 1))
    for i, start in enumerate(starts):
        wanted = min(4, planes[1] - start)
        torch.mm(OUTPUT[:wanted], products[:, i], out=out[start : start + wanted])


def direct(
    x: Tensor, kernel: Kernel, stride: Sequence[int], padding: Sequence[int], planes: Planes, out: Tensor
) -> None:
    """Compute some planes of a convolution.

    Args:
        x: (1, C, X, Y, Z), channels last.
        kernel: Kernel with three axes.
        stride: Stride along each axis.
        padding: Zero padding along each axis.
        planes: Range of planes.
        out: (X', Y', Z', O) array to write to.
    """
    low = planes[0] * stride[0] - padding[0]
    high = (planes[1] - 1) * stride[0] - padding[0] + kernel.size[0]
    if planes == (0, len(out)):
        part, along = x, padding[0]
    else:
        part, along = _planes_of(x, low, high), 0
    result = kernel(part, stride, (along, *padding[1:]))
    out[slice(*planes)].copy_(result[0].permute(1, 2, 3, 0))


def _planes_of(x: Tensor, low: int, high: int) -> Tensor:
    """Planes ``low`` to ``high`` of (1, C, X, Y, Z); planes outside the map are zero."""
    before, behind = max(0, -low), max(0, high - x.shape[2])
    found = x[:, :, max(0, low) : high]
    if not before and not behind:
        return found
    _, channels, _, y, z = x.shape
    part = scratch("padded", high - low, y, z, channels, dtype=x.dtype)
    part[:before].zero_()
    part[before : len(part) - behind].copy_(found[0].permute(1, 2, 3, 0))
    part[len(part) - behind :].zero_()
    return part.permute(3, 0, 1, 2)[None]
