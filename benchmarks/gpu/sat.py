"""SAT's network as its code builds and runs it: the peer.

Backbone: ``PlainConvUNet`` of dynamic-network-architectures with SAT's arguments; the query decoder is DETR's,
which makes (and returns) attention weights; masks are an einsum of every voxel with every query. SAT runs under
autocast in float16, with cuDNN's deterministic algorithms and without its benchmark (train.py, inference.py).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from satunet.network.config import NetworkConfig
from satunet.network.decoder import position_encoding


class SatGraph(nn.Module):
    """Weights have the names of :class:`satunet.network.model.PromptedUNet`."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        from dynamic_network_architectures.architectures.unet import PlainConvUNet

        stages, d = len(config.features_per_stage), config.query_dim
        self.backbone = PlainConvUNet(
            config.in_channels, stages, config.features_per_stage, nn.Conv3d, 3, (1,) + (2,) * (stages - 1),
            config.n_conv_per_stage, 1, config.n_conv_per_stage_decoder, True, nn.InstanceNorm3d,
            {"eps": 1e-5, "affine": True}, None, None, nn.LeakyReLU, None, True,
        )  # fmt: skip
        self.backbone.decoder.seg_layers = nn.ModuleList()
        self.pools = [nn.AvgPool3d(2**k, 2**k) for k in range(stages - 1, 0, -1)]
        hidden = config.memory_hidden_dim
        self.projection_layer = nn.Sequential(
            nn.Linear(sum(config.features_per_stage), hidden), nn.GELU(), nn.Linear(hidden, d), nn.GELU()
        )
        self.transformer_decoder = nn.Module()
        self.transformer_decoder.layers = nn.ModuleList(_Layer(config) for _ in range(config.num_query_layers))
        self.transformer_decoder.norm = nn.LayerNorm(d)
        heads = [
            nn.Sequential(nn.Linear(d, mid), nn.GELU(), nn.Linear(mid, out), nn.GELU())
            for mid, out in config.mask_heads
        ]
        self.mask_embed_proj, self.mid_mask_embed_proj = heads[0], nn.ModuleList(heads[1:])
        self.width = d

    def take(self, network: nn.Module) -> SatGraph:
        """The weights of a network of ours, all of them."""
        missing, unexpected = self.load_state_dict(network.state_dict(), strict=False)
        left = [m for m in missing if "all_modules" not in m and "decoder.encoder" not in m]
        assert not left and not unexpected, (left[:3], unexpected[:3])
        return self

    def features(self, image: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
        """(B, 3, X, Y, Z) → (T, B, D) tokens, (T, 1, D) their places, maps, full resolution first."""
        decoder = self.backbone.decoder
        skips = self.backbone.encoder(image)
        x, maps = skips[-1], []
        for step, (up, stage) in enumerate(zip(decoder.transpconvs, decoder.stages, strict=True)):
            x = stage(torch.cat((up(x), skips[-step - 2]), 1))
            maps.append(x)
        pooled = [*(pool(skip) for pool, skip in zip(self.pools, skips, strict=False)), skips[-1]]
        grid = tuple(int(n) for n in skips[-1].shape[2:])
        tokens = self.projection_layer(torch.cat(pooled, 1).flatten(2).transpose(1, 2)).transpose(0, 1)
        places = position_encoding(grid, self.width, device=image.device)[:, None]  # type: ignore[arg-type]
        return tokens, places, maps[::-1]

    def logits(self, queries: Tensor, features: tuple[Tensor, Tensor, list[Tensor]], scales: int) -> list[Tensor]:
        """(B, N, D) queries → (B, N, x, y, z) at each of so many scales."""
        tokens, places, maps = features
        x = queries.transpose(0, 1)
        for layer in self.transformer_decoder.layers:  # type: ignore[union-attr]
            x, _ = layer(x, tokens, places)
        x = self.transformer_decoder.norm(x).transpose(0, 1)  # type: ignore[operator]
        projections = [self.mask_embed_proj, *self.mid_mask_embed_proj][:scales]
        return [
            torch.einsum("bcxyz,bnc->bnxyz", m, projection(x)) for m, projection in zip(maps, projections, strict=False)
        ]

    def forward(self, image: Tensor, queries: Tensor, scales: int = 4) -> list[Tensor]:
        """What SAT trains."""
        return self.logits(queries, self.features(image), scales)


class _Layer(nn.Module):
    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        d = config.query_dim
        self.multihead_attn = nn.MultiheadAttention(d, config.num_heads, config.dropout)
        self.linear1, self.linear2 = nn.Linear(d, config.feedforward_dim), nn.Linear(config.feedforward_dim, d)
        self.norm1, self.norm2, self.norm3 = nn.LayerNorm(d), nn.LayerNorm(d), nn.LayerNorm(d)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, memory: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
        attended, weights = self.multihead_attn(self.norm2(x), memory + places, memory)
        x = x + self.dropout(attended)
        return x + self.dropout(self.linear2(self.dropout(torch.relu(self.linear1(self.norm3(x)))))), weights


@contextlib.contextmanager
def as_sat_runs(device: torch.device) -> Iterator[None]:
    """float16 (bfloat16 on a CPU) and cuDNN as SAT sets it."""
    cudnn: Any = torch.backends.cudnn
    before = cudnn.benchmark, cudnn.deterministic
    cudnn.benchmark, cudnn.deterministic = False, True
    try:
        with torch.autocast(device.type, torch.float16 if device.type == "cuda" else torch.bfloat16):
            yield
    finally:
        cudnn.benchmark, cudnn.deterministic = before


def plain_loss(logits: Sequence[Tensor], masks: Tensor) -> Tensor:
    """Dice and cross-entropy by autograd, weighted over the scales as SAT does; masks (B, N, X, Y, Z) float32."""
    weights = torch.tensor([0.5**s for s in range(len(logits))])
    total = torch.zeros((), device=masks.device)
    for weight, values in zip((weights / weights.sum()).tolist(), logits, strict=True):
        small = functional.interpolate(masks, size=values.shape[2:], mode="nearest")
        p, t = torch.sigmoid(values).flatten(2), small.flatten(2)
        dice = 1 - (2 * (p * t).sum(2) + 1e-7) / ((p.pow(2) + t.pow(2)).sum(2) + 1e-7)
        entropy = functional.binary_cross_entropy_with_logits(values, small, reduction="none").mean((2, 3, 4))
        total = total + weight * (dice + entropy).mean()
    return total
