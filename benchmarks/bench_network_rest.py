"""What of SAT-Nano's backbone is not convolution, in bfloat16 on a CPU: our engines against a compiled network.

Where matrix units (AMX) make convolutions fast, the rest decides: norms, activations, copies, fresh memory. It needs no
matrix units to be measured: here, each convolution is replaced by one that only fills its result with zeros. The other
side is the usual design: the modules in bfloat16, channels last, with a norm of two loops, under ``torch.compile``.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable, Sequence
from unittest import mock

import torch
from bench_network import Run
from common import header
from torch import Tensor, nn

from satunet.network import NetworkConfig
from satunet.network.backbone import UNet
from satunet.network.cpu.convolutions import Kernel
from satunet.network.cpu.fused import FusedUNet
from satunet.network.engines import compiled_norm, compiler


def zeros(x: Tensor, outputs: int, extents: Sequence[int]) -> Tensor:
    """(N, outputs, …), channels last."""
    return torch.zeros(x.shape[0], *extents, outputs, dtype=x.dtype).movedim(-1, 1)


def filled(self: Kernel, x: Tensor, stride: Sequence[int], padding: Sequence[int]) -> Tensor:
    extents = zip(x.shape[2:], padding, self.size, stride, strict=True)
    return zeros(x, self.outputs, [(n + 2 * p - k) // s + 1 for n, p, k, s in extents])


@torch.library.custom_op("satunet_benchmark::zeros", mutates_args=())
def opaque_zeros(x: Tensor, outputs: int, extents: list[int]) -> Tensor:
    return zeros(x, outputs, extents)  # a compiler would not make a map of a constant


@opaque_zeros.register_fake
def _(x: Tensor, outputs: int, extents: list[int]) -> Tensor:
    return torch.empty(x.shape[0], *extents, outputs, dtype=x.dtype).movedim(-1, 1)


class Zeros(nn.Module):
    def __init__(self, conv: nn.Conv3d | nn.ConvTranspose3d) -> None:
        super().__init__()
        self.outputs, self.stride = conv.out_channels, conv.stride
        self.grows = isinstance(conv, nn.ConvTranspose3d)

    def forward(self, x: Tensor) -> Tensor:
        pairs = zip(x.shape[2:], self.stride, strict=True)
        found: Tensor = opaque_zeros(x, self.outputs, [n * s if self.grows else -(-n // s) for n, s in pairs])
        return found


class TwoLoops(nn.Module):
    """Instance norm with statistics in float32, for a compiler to fuse."""

    def __init__(self, norm: nn.InstanceNorm3d) -> None:
        super().__init__()
        self.gain, self.offset, self.eps = norm.weight, norm.bias, norm.eps

    def forward(self, x: Tensor) -> Tensor:
        values = x.float()
        variance, mean = torch.var_mean(values, (2, 3, 4), keepdim=True, correction=0)
        scale = self.gain[:, None, None, None] * torch.rsqrt(variance + self.eps)
        return ((values - mean) * scale + self.offset[:, None, None, None]).to(x.dtype)


def usual(net: UNet) -> Callable[[Tensor], object]:
    net = copy.deepcopy(net)
    for module in list(net.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, (nn.Conv3d, nn.ConvTranspose3d)):
                setattr(module, name, Zeros(child))
            elif isinstance(child, nn.InstanceNorm3d):
                setattr(module, name, TwoLoops(child))
    compiled = torch.compile(net)
    return lambda x: compiled(x.bfloat16().contiguous(memory_format=torch.channels_last_3d))


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--shape", type=int, nargs=3, default=(128, 128, 96))
    parser.add_argument("--repeats", type=int, default=7)
    arguments = parser.parse_args()
    header("torch")
    net = UNet(NetworkConfig.nano()).eval()
    x = torch.randn(1, 1, *arguments.shape).expand(-1, 3, -1, -1, -1).contiguous()
    runs: dict[str, Run] = {"fused": FusedUNet(net, torch.bfloat16)}
    if compiler() is not None:
        runs["compile"] = FusedUNet(net, torch.bfloat16, compiled_norm())
        runs = {"usual design, compiled": usual(net), **runs}
    times: dict[str, list[float]] = {name: [] for name in runs}
    with mock.patch.object(Kernel, "__call__", filled):
        for turn in range(arguments.repeats + 1):
            for name, run in runs.items():
                started = time.perf_counter()
                run(x)
                if turn:  # the first compiles
                    times[name].append(time.perf_counter() - started)
    threads = torch.get_num_threads()
    print(f"Without convolutions, bfloat16, one patch of {tuple(arguments.shape)}, {threads} threads, medians:")
    first = statistics.median(next(iter(times.values())))
    for name, found in times.items():
        own = statistics.median(found)
        print(f"{name}: {own:.2f} s (from {min(found):.2f} to {max(found):.2f}), {own / first:.2f} of the first")


if __name__ == "__main__":
    main()
