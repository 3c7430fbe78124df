"""3D U-Nets that return feature maps instead of class logits: nnU-Net's plain U-Net and its residual-encoder U-Net.

Modules are named as in nnU-Net's network library and SAT's published checkpoints
(``encoder.stages.S.0.convs.I.conv``). The library's blocks register every layer under two names, ours under one;
checkpoints of both kinds can be loaded.

Shapes: B batch, C features, X Y Z voxels at full resolution, S stage.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from satunet.network.config import NetworkConfig
from satunet.network.cpu import training
from satunet.network.gpu import joined, normalise, one_channel


class ConvBlock(nn.Module):
    """Convolution → instance norm → leaky ReLU (optional).

    Attributes:
        channels_last: Whether to compute with :mod:`satunet.network.gpu`, with the same weights.
        trains_on_cpu: Whether to compute with :mod:`satunet.network.cpu.training` where it can.
        equal_inputs: Whether all input channels are equal, which both of these exploit.
    """

    channels_last = False
    trains_on_cpu = False
    equal_inputs = False

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: Sequence[int],
        stride: Sequence[int],
        *,
        bias: bool = True,
        activation: bool = True,
    ) -> None:
        super().__init__()
        padding = [k // 2 for k in kernel]
        self.conv = nn.Conv3d(inputs, outputs, tuple(kernel), tuple(stride), padding, bias=bias)  # type: ignore[arg-type]
        self.norm = nn.InstanceNorm3d(outputs, eps=1e-5, affine=True)
        self.nonlin = nn.LeakyReLU(inplace=True) if activation else nn.Identity()
        self.register_load_state_dict_pre_hook(_drop_aliases)  # type: ignore[no-untyped-call]

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, X, Y, Z) → (B, outputs, X/stride, …)."""
        if self.channels_last and (maps := self._channels_last(x)) is not None:
            return maps
        if self.trains_on_cpu and training.is_for(x):
            maps = training.block(x, self.conv, self.norm, self._slope, equal_inputs=self.equal_inputs)
            if maps is not None:
                return maps
        x = self._convolve(x)
        if x[0, 0].numel() > 1:
            # A single voxel has no variance, and torch refuses to normalise it: it is left unchanged.
            x = self.norm(x)
        result: Tensor = self.nonlin(x)
        return result

    def _convolve(self, x: Tensor) -> Tensor:
        """Convolve; in the type of the weights where oneDNN's gradient in bfloat16 is wrong.

        If the first axis has two voxels, oneDNN's gradient of the weights in bfloat16 reads uninitialised memory (torch
        2.13, CPU): it differs from call to call and is occasionally not finite.
        """
        if x.device.type == "cpu" and x.shape[2] == 2 and torch.is_grad_enabled():
            with torch.autocast("cpu", enabled=False):
                wide: Tensor = self.conv(x.to(self.conv.weight.dtype))
            return wide
        result: Tensor = self.conv(x)
        return result

    def _channels_last(self, x: Tensor) -> Tensor | None:
        """Result of ``forward`` on a GPU; ``None`` if it is a single voxel, which is not normalised."""
        conv = self.conv
        padding = [int(p) for p in conv.padding]
        extents = zip(x.shape[2:], padding, conv.kernel_size, conv.stride, strict=True)
        if all((n + 2 * p - k) // s == 0 for n, p, k, s in extents):
            return None
        x, weight = one_channel(x, conv.weight) if self.equal_inputs else (x, conv.weight)
        x = nn.functional.conv3d(x, weight, None, conv.stride, conv.padding)
        return normalise(x, self.norm, self._slope, conv.bias)

    @property
    def _slope(self) -> float | None:
        return float(self.nonlin.negative_slope) if isinstance(self.nonlin, nn.LeakyReLU) else None


class ConvStack(nn.Module):
    """Several blocks, the first with the stage's stride."""

    def __init__(self, count: int, inputs: int, outputs: int, kernel: Sequence[int], stride: Sequence[int]) -> None:
        super().__init__()
        blocks = [ConvBlock(inputs, outputs, kernel, stride)]
        blocks += [ConvBlock(outputs, outputs, kernel, (1, 1, 1)) for _ in range(count - 1)]
        self.convs = nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, X, Y, Z) → (B, outputs, X/stride, …)."""
        result: Tensor = self.convs(x)
        return result


class ResidualBlock(nn.Module):
    """Two convolutions and a shortcut around them (nnU-Net's ``BasicBlockD``).

    The shortcut averages if the block has a stride (ResNet-D of He et al. 2019, "Bag of Tricks") and projects if the
    number of features changes.
    """

    def __init__(self, inputs: int, outputs: int, kernel: Sequence[int], stride: Sequence[int]) -> None:
        super().__init__()
        self.conv1 = ConvBlock(inputs, outputs, kernel, stride)
        self.conv2 = ConvBlock(outputs, outputs, kernel, (1, 1, 1), activation=False)
        self.nonlin2 = nn.LeakyReLU(inplace=True)
        skip: list[nn.Module] = []
        if max(stride) > 1:
            skip.append(nn.AvgPool3d(tuple(stride), tuple(stride)))  # type: ignore[arg-type]
        if inputs != outputs:
            skip.append(ConvBlock(inputs, outputs, (1, 1, 1), (1, 1, 1), bias=False, activation=False))
        self.skip = nn.Sequential(*skip)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, X, Y, Z) → (B, outputs, X/stride, …)."""
        result: Tensor = self.nonlin2(self.conv2(self.conv1(x)) + self.skip(x))
        return result


class ResidualStack(nn.Module):
    """Several residual blocks, the first with the stage's stride."""

    def __init__(self, count: int, inputs: int, outputs: int, kernel: Sequence[int], stride: Sequence[int]) -> None:
        super().__init__()
        blocks = [ResidualBlock(inputs, outputs, kernel, stride)]
        blocks += [ResidualBlock(outputs, outputs, kernel, (1, 1, 1)) for _ in range(count - 1)]
        self.blocks = nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, X, Y, Z) → (B, outputs, X/stride, …)."""
        result: Tensor = self.blocks(x)
        return result


class ResidualEncoder(nn.Module):
    """The contracting half of nnU-Net's residual-encoder U-Net: a stem, then stages of residual blocks."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        inputs = config.features_per_stage[0]
        self.stem = ConvStack(1, config.in_channels, inputs, config.kernel_sizes[0], (1, 1, 1))
        stages = []
        for stage, features in enumerate(config.features_per_stage):
            stages.append(
                ResidualStack(
                    config.n_conv_per_stage[stage], inputs, features, config.kernel_sizes[stage], config.strides[stage]
                )
            )
            inputs = features
        self.stages = nn.Sequential(*stages)

    def forward(self, x: Tensor) -> list[Tensor]:
        """(B, in_channels, X, Y, Z) → one map per stage, full resolution first."""
        x = self.stem(x)
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps


class Encoder(nn.Module):
    """The contracting half of nnU-Net's plain U-Net."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        inputs = config.in_channels
        stages = []
        for stage, features in enumerate(config.features_per_stage):
            stack = ConvStack(
                config.n_conv_per_stage[stage], inputs, features, config.kernel_sizes[stage], config.strides[stage]
            )
            stages.append(nn.Sequential(stack))
            inputs = features
        self.stages = nn.Sequential(*stages)

    def forward(self, x: Tensor) -> list[Tensor]:
        """(B, in_channels, X, Y, Z) → one map per stage, full resolution first."""
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps


class Decoder(nn.Module):
    """The expanding half, with skip connections.

    Attributes:
        channels_last: Whether maps have channels last in memory.
    """

    channels_last = False

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        features, strides = config.features_per_stage, config.strides
        transpconvs, stages = [], []
        for step in range(1, len(features)):
            below, here = features[-step], features[-step - 1]
            stride = strides[-step]
            transpconvs.append(nn.ConvTranspose3d(below, here, stride, stride, bias=True))
            convs = config.n_conv_per_stage_decoder[step - 1]
            stages.append(ConvStack(convs, 2 * here, here, config.kernel_sizes[-step - 1], (1, 1, 1)))
        self.stages = nn.ModuleList(stages)
        self.transpconvs = nn.ModuleList(transpconvs)

    def forward(self, skips: list[Tensor]) -> list[Tensor]:
        """Encoder maps → one map per resolution, full resolution first (without the bottleneck)."""
        x = skips[-1]
        maps = []
        for step, (up, stage) in enumerate(zip(self.transpconvs, self.stages, strict=True)):
            skip = skips[-step - 2]
            if self.channels_last and not torch.is_grad_enabled():
                x = stage(joined(up, x, skip))  # type: ignore[arg-type]
            else:
                x = stage(torch.cat((up(x), skip), dim=1))
            maps.append(x)
        return maps[::-1]


class UNet(nn.Module):
    """Encoder and decoder, initialised as in nnU-Net: He initialisation; zeros in the last norm of residual blocks."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.encoder = ResidualEncoder(config) if config.backbone == "residual" else Encoder(config)
        self.decoder = Decoder(config)
        for module in self.modules():
            if isinstance(module, (nn.Conv3d, nn.ConvTranspose3d)):
                nn.init.kaiming_normal_(module.weight, a=1e-2)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for module in self.modules():
            if isinstance(module, ResidualBlock):
                nn.init.zeros_(module.conv2.norm.weight)  # every block starts as its shortcut

    def forward(self, x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Encoder maps and decoder maps, full resolution first."""
        skips = self.encoder(x)
        return skips, self.decoder(skips)


def use_channels_last(network: nn.Module) -> None:
    """Let all U-Nets in a network compute with :mod:`satunet.network.gpu`, with weights in its memory layout.

    Their images must have one channel, which is repeated if the network takes several.
    """
    network.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    for module in network.modules():
        if isinstance(module, (ConvBlock, Decoder)):
            module.channels_last = True
        elif isinstance(module, UNet):
            _first_block(module).equal_inputs = True


def use_cpu_training(network: nn.Module) -> None:
    """Let all U-Nets in a network compute with :mod:`satunet.network.cpu.training` where it can.

    Their images must have one channel, which is repeated if the network takes several.
    """
    network.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    for module in network.modules():
        if isinstance(module, ConvBlock):
            module.trains_on_cpu = True
        elif isinstance(module, UNet):
            _first_block(module).equal_inputs = True


def _first_block(network: UNet) -> ConvBlock:
    return next(block for block in network.encoder.modules() if isinstance(block, ConvBlock))


def _drop_aliases(module: nn.Module, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
    """Remove the second name of layers in nnU-Net's blocks from a state dict that is being loaded.

    ``all_modules.0`` is ``conv``, ``all_modules.1`` is ``norm``. A checkpoint whose two copies differ is refused.
    """
    errors: list[str] = rest[-1]
    for index, layer in enumerate(("conv", "norm")):
        for kind in ("weight", "bias"):
            alias, name = f"{prefix}all_modules.{index}.{kind}", f"{prefix}{layer}.{kind}"
            if alias in state_dict:
                value = state_dict.pop(alias)
                if not torch.equal(state_dict.setdefault(name, value), value):
                    errors.append(f"{name} and {alias} must be the same tensor, but they differ")
