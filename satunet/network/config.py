"""Configuration of a network as plain data, without importing torch, so that plans can be read and printed quickly."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from satunet.errors import PlanError
from satunet.types import Axes


@dataclass(frozen=True, kw_only=True)
class NetworkConfig:
    """A text-prompted U-Net.

    Attributes:
        preset: ``"nano"`` or ``"pro"``: one of SAT's published networks; ``"auto"``: a planned network.
        in_channels: Number of input channels of the first convolution; a scan's single channel is repeated.
        features_per_stage: Number of features of each encoder stage, full resolution first.
        strides: Stride of each stage along each axis; that of the first stage is (1, 1, 1).
        kernel_sizes: Kernel size of each stage along each axis.
        n_conv_per_stage: Number of convolutions in each encoder stage; in a residual backbone, of residual blocks (two
            convolutions each).
        n_conv_per_stage_decoder: Number of convolutions in each decoder stage, lowest resolution first.
        query_dim: Width of the query decoder.
        num_query_layers: Number of cross-attention layers.
        num_heads: Number of attention heads.
        feedforward_dim: Hidden width of each layer's feed-forward network.
        dropout: Dropout in the query decoder.
        memory_hidden_dim: Hidden width of the layer that makes memory tokens.
        mask_heads: (hidden, out) of the mask head of each supervised scale, full resolution first; ``out`` equals
            the features of the decoder at that scale.
        text_dim: Width of the text embeddings.
        adapter: Way from text embeddings to queries. ``"none"``: the embeddings are the queries; ``"modality"``: a
            learned embedding of the scan's modality is added (SAT); ``"whitened_projection"``: whitening, a learned
            projection, and the modality embedding.
        num_modalities: Number of rows of the adapter's modality embedding.
        backbone: ``"plain"``: nnU-Net's plain U-Net; ``"residual"``: its residual-encoder U-Net.
    """

    preset: str
    in_channels: int
    features_per_stage: tuple[int, ...]
    strides: tuple[Axes, ...]
    kernel_sizes: tuple[Axes, ...]
    n_conv_per_stage: tuple[int, ...]
    n_conv_per_stage_decoder: tuple[int, ...]
    query_dim: int
    num_query_layers: int
    num_heads: int
    feedforward_dim: int
    dropout: float
    memory_hidden_dim: int
    mask_heads: tuple[tuple[int, int], ...]
    text_dim: int
    adapter: str
    num_modalities: int = 5
    backbone: str = "plain"

    def __post_init__(self) -> None:
        stages = len(self.features_per_stage)
        if self.preset not in ("auto", "nano", "pro"):
            raise PlanError(f"network preset {self.preset!r}; allowed are auto, nano, pro")
        if self.adapter not in ("none", "modality", "whitened_projection"):
            raise PlanError(f"network adapter {self.adapter!r}; allowed are none, modality, whitened_projection")
        if self.backbone not in ("plain", "residual"):
            raise PlanError(f"network backbone {self.backbone!r}; allowed are plain, residual")
        if self.backbone != "plain" and self.preset != "auto":
            raise PlanError(f"the preset {self.preset!r} is a published network with a plain backbone")
        lengths = (len(self.strides), len(self.kernel_sizes), len(self.n_conv_per_stage))
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name not in ("preset", "adapter", "dropout", "backbone") and min(_numbers(value), default=1) < 1:
                raise PlanError(f"network: every number of {field.name} must be at least 1, got {value}")
        if stages < 2 or set(lengths) != {stages} or len(self.n_conv_per_stage_decoder) != stages - 1:
            raise PlanError(
                f"a network of {stages} stages (at least 2) needs as many strides, kernels and convolutions, and one "
                f"less in the decoder; got {lengths} and {len(self.n_conv_per_stage_decoder)}"
            )
        if tuple(self.strides[0]) != (1, 1, 1):
            raise PlanError(
                f"the stride of the first stage, at full resolution, must be (1, 1, 1), got {self.strides[0]}"
            )
        if any(k % 2 == 0 for kernel in self.kernel_sizes for k in kernel):
            raise PlanError(f"kernels must be odd to keep the size of a map, got {self.kernel_sizes}")
        if self.query_dim % self.num_heads:
            raise PlanError(f"query_dim must be divisible by the {self.num_heads} heads, got {self.query_dim}")
        if not 0 <= self.dropout < 1:
            raise PlanError(f"dropout must be in [0, 1), got {self.dropout}")
        if not 1 <= len(self.mask_heads) < stages:
            raise PlanError(
                f"a network of {stages} stages has 1 to {stages - 1} mask heads; got {len(self.mask_heads)}"
            )
        outs = tuple(out for _, out in self.mask_heads)
        if outs != self.features_per_stage[: len(outs)]:
            raise PlanError(f"mask heads give {outs} features, the decoder has {self.features_per_stage[: len(outs)]}")
        if self.adapter != "whitened_projection" and self.text_dim != self.query_dim:
            raise PlanError(f"without a projection, text_dim ({self.text_dim}) must equal query_dim ({self.query_dim})")

    @property
    def divisor(self) -> Axes:
        """Divisor of the patch size along each axis: the product of the strides."""
        x = y = z = 1
        for stride in self.strides:
            x, y, z = x * stride[0], y * stride[1], z * stride[2]
        return x, y, z

    @property
    def scales(self) -> tuple[Axes, ...]:
        """Down-sampling factors along the axes for each supervised scale, full resolution first."""
        factors: list[Axes] = []
        x = y = z = 1
        for stride in self.strides[: len(self.mask_heads)]:
            x, y, z = x * stride[0], y * stride[1], z * stride[2]
            factors.append((x, y, z))
        return tuple(factors)

    @classmethod
    def nano(cls) -> NetworkConfig:
        """SAT-Nano: 110.28 M parameters (arXiv 2312.17183)."""
        return cls._published(
            "nano", (64, 64, 128, 256, 512, 768), 2, 768, ((256, 64), (256, 64), (384, 128), (512, 256))
        )

    @classmethod
    def pro(cls) -> NetworkConfig:
        """SAT-Pro: 477.09 M parameters, as the published code builds it (arXiv 2312.17183)."""
        return cls._published(
            "pro", (128, 128, 256, 512, 1024, 1536), 3, 1536, ((384, 128), (384, 128), (512, 256), (512, 512))
        )

    @classmethod
    def auto(
        cls,
        *,
        features_per_stage: Sequence[int],
        strides: Sequence[Sequence[int]],
        kernel_sizes: Sequence[Sequence[int]],
        text_dim: int,
        n_conv_per_stage: Sequence[int] | None = None,
        n_conv_per_stage_decoder: Sequence[int] | None = None,
        query_dim: int = 192,
        num_query_layers: int = 2,
        num_scales: int = 3,
        backbone: str = "plain",
    ) -> NetworkConfig:
        """A planned network.

        By default, a plain backbone has two convolutions per stage; a residual backbone has as many residual blocks as
        nnU-Net's ResEnc presets, and one convolution per decoder stage.

        Raises:
            PlanError: The values contradict each other.
        """
        stages = len(features_per_stage)
        features = tuple(int(f) for f in features_per_stage)
        residual = backbone == "residual"
        return cls(
            preset="auto",
            backbone=backbone,
            in_channels=1,
            features_per_stage=features,
            strides=tuple(_axes(s) for s in strides),
            kernel_sizes=tuple(_axes(k) for k in kernel_sizes),
            n_conv_per_stage=tuple(n_conv_per_stage or (_blocks(stages) if residual else (2,) * stages)),
            n_conv_per_stage_decoder=tuple(n_conv_per_stage_decoder or ((1,) if residual else (2,)) * (stages - 1)),
            query_dim=query_dim,
            num_query_layers=num_query_layers,
            num_heads=max(h for h in (8, 6, 4, 2, 1) if query_dim % h == 0),
            feedforward_dim=2 * query_dim,
            dropout=0.0,
            memory_hidden_dim=query_dim,
            mask_heads=tuple((query_dim, f) for f in features[: min(num_scales, stages - 1)]),
            text_dim=text_dim,
            adapter="whitened_projection",
        )

    @classmethod
    def _published(
        cls, preset: str, features: tuple[int, ...], convs: int, hidden: int, heads: tuple[tuple[int, int], ...]
    ) -> NetworkConfig:
        stages = len(features)
        return cls(
            preset=preset,
            in_channels=3,
            features_per_stage=features,
            strides=((1, 1, 1),) + ((2, 2, 2),) * (stages - 1),
            kernel_sizes=((3, 3, 3),) * stages,
            n_conv_per_stage=(convs,) * stages,
            n_conv_per_stage_decoder=(convs,) * (stages - 1),
            query_dim=768,
            num_query_layers=6,
            num_heads=8,
            feedforward_dim=2048,
            dropout=0.1,
            memory_hidden_dim=hidden,
            mask_heads=heads,
            text_dim=768,
            adapter="none",
        )


def _blocks(stages: int) -> tuple[int, ...]:
    """Residual blocks per stage, as in nnU-Net's ResEnc planners."""
    return ((1, 3, 4) + (6,) * stages)[:stages]


def _axes(values: Sequence[int]) -> Axes:
    x, y, z = (int(v) for v in values)
    return x, y, z


def _numbers(value: Any) -> list[int]:
    return [n for v in value for n in _numbers(v)] if isinstance(value, tuple) else [value]


def _tuples(value: Any) -> Any:
    return tuple(_tuples(v) for v in value) if isinstance(value, (list, tuple)) else value
