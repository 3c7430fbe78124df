"""The query decoder: text queries attend to the image's memory tokens, but not to each other.

Without self-attention, a query's result does not depend on the other queries: any number of prompts can be decoded in
chunks, with the same result as all at once.

Shapes: B batch, N queries, T memory tokens, D query width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from satunet.network.config import NetworkConfig


class QueryDecoderLayer(nn.Module):
    """Pre-norm cross-attention and feed-forward.

    The published checkpoints contain ``norm1``, but their forward pass does not use it: it belongs to the
    self-attention that SAT left out.
    """

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        d = config.query_dim
        self.multihead_attn = nn.MultiheadAttention(d, config.num_heads, config.dropout, batch_first=True)
        self.linear1 = nn.Linear(d, config.feedforward_dim)
        self.linear2 = nn.Linear(config.feedforward_dim, d)
        self.norm1 = nn.LayerNorm(d)
        self.norm2 = nn.LayerNorm(d)
        self.norm3 = nn.LayerNorm(d)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, queries: Tensor, keys: Tensor, memory: Tensor) -> Tensor:
        """(B, N, D) queries, (B, T, D) keys and values → (B, N, D)."""
        attended, _ = self.multihead_attn(self.norm2(queries), keys, memory, need_weights=False)
        queries = queries + self.dropout(attended)
        hidden = torch.relu(self.linear1(self.norm3(queries)))
        result: Tensor = queries + self.dropout(self.linear2(self.dropout(hidden)))
        return result


class QueryDecoder(nn.Module):
    """A stack of layers and a final norm."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList([QueryDecoderLayer(config) for _ in range(config.num_query_layers)])
        self.norm = nn.LayerNorm(config.query_dim)

    def forward(self, queries: Tensor, memory: Tensor, position: Tensor) -> Tensor:
        """(B, N, D) queries, (B, T, D) memory, (T, D) position encoding of the keys → (B, N, D)."""
        keys = memory + position
        for layer in self.layers:
            queries = layer(queries, keys, memory)
        result: Tensor = self.norm(queries)
        return result


def position_encoding(shape: tuple[int, int, int], width: int, *, device: torch.device) -> Tensor:
    """Sinusoidal 3D position encoding: a third of the width per axis, sine and cosine interleaved.

    It equals ``PositionalEncoding3D`` of the package positional-encodings, which SAT uses (Vaswani et al. 2017,
    section 3.5, along each axis).

    Returns:
        (X·Y·Z, width) float32; the last axis of ``shape`` runs fastest.
    """
    channels = -(-width // 6) * 2
    frequency = 10000.0 ** (-torch.arange(0, channels, 2, device=device, dtype=torch.float32) / channels)
    parts = []
    for axis, size in enumerate(shape):
        angle = torch.arange(size, device=device, dtype=torch.float32)[:, None] * frequency
        waves = torch.stack((angle.sin(), angle.cos()), dim=-1).flatten(-2)  # (size, channels)
        view = [1, 1, 1, channels]
        view[axis] = size
        parts.append(waves.view(view).expand(*shape, channels))
    return torch.cat(parts, dim=-1)[..., :width].reshape(-1, width)
