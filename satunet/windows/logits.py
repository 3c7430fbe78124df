"""Logits of prompts in blocks of a window: products of mask embeddings and the features of voxels.

For most pairs of prompt and block, only the largest logit is needed, with a bound of its error
(:func:`largest_logits`). The few pairs that matter are computed in units of one block and up to :data:`MASK_CHUNK`
prompts (:func:`units_of`, :func:`block_logits`). The products always have that many rows, because libraries choose
kernels by size, and different kernels round differently.
"""

from __future__ import annotations

import torch
from torch import Tensor

from satunet.windows.blocks import VOXELS

MASK_CHUNK = 8
"""Number of prompts whose probabilities in a block are computed at once."""

_SCREEN_BYTES = 256 << 20
_NORM_ROWS = 4096


def with_offsets(embeddings: Tensor, channels: int, offsets: Tensor) -> Tensor:
    """(B, N, C) or (B, N, C + 1) embeddings, with (N,) offsets added to the bias of the logits → (B, N, C + 1)."""
    bias = offsets[None, :, None].expand(*embeddings.shape[:2], 1)
    if embeddings.shape[-1] > channels:
        bias = bias + embeddings[..., channels:]
    return torch.cat((embeddings[..., :channels], bias), dim=-1)


def vector_lengths(features: Tensor) -> Tensor:
    """(C, x, y, z) features in any precision → (x, y, z) float32 Euclidean lengths of their vectors."""
    voxels = features.permute(1, 2, 3, 0)
    if features.device.type != "cpu" or not voxels.is_contiguous():
        whole: Tensor = torch.linalg.vector_norm(features, dim=0, dtype=torch.float32)
        return whole
    rows = voxels.reshape(-1, features.shape[0])
    # Half-precision rows are converted piece by piece, so that they stay in the cache.
    pieces = [rows] if rows.dtype == torch.float32 else rows.split(_NORM_ROWS)
    return torch.cat([torch.linalg.vector_norm(piece.float(), dim=1) for piece in pieces]).view(voxels.shape[:3])


def largest_logits(blocks: Tensor, longest: Tensor, embeddings: Tensor) -> tuple[Tensor, Tensor]:
    """Largest logit of each query in each block, and a bound of its error.

    Args:
        blocks: (n, C, V) features, in whatever precision the network computes.
        longest: (n,) float32, length of the longest feature vector of each block.
        embeddings: (N, C) or (N, C + 1) float32; the last is a bias.

    Returns:
        (N, n) float32 each.
    """
    count, channels = len(blocks), blocks.shape[1]
    weights = embeddings[:, :channels].to(blocks.dtype)
    largest = torch.empty(len(weights), count, device=blocks.device)
    if blocks.device.type == "cpu":
        # One block at a time, so that its logits stay in the cache.
        logits = torch.empty(len(weights), VOXELS, dtype=blocks.dtype)
        for i, block in enumerate(blocks):
            largest[:, i] = torch.mm(weights, block, out=logits).amax(1)
    else:
        step = max(1, _SCREEN_BYTES // (len(weights) * VOXELS * blocks.element_size()))
        for i in range(0, count, step):
            largest[:, i : i + step] = torch.matmul(weights, blocks[i : i + step]).amax(2).T
    if embeddings.shape[1] > channels:
        largest += embeddings[:, channels:]
    # Bound for the rounding of the weights, the result, and the sum in float32.
    width = embeddings[:, :channels].norm(dim=1)
    return largest, (torch.finfo(blocks.dtype).eps + 1e-5) * width[:, None] * longest + 1e-5


def units_of(wanted: Tensor) -> tuple[Tensor, Tensor]:
    """Group pairs of query and block into units of one block and up to :data:`MASK_CHUNK` queries.

    Args:
        wanted: (N, n) boolean.

    Returns:
        (u,) block of each unit; (u, MASK_CHUNK) queries, padded with -1.
    """
    counts = wanted.sum(0)
    block, query = wanted.T.nonzero(as_tuple=True)
    rank = torch.arange(len(block), device=block.device) - (counts.cumsum(0) - counts)[block]
    per_block = (counts + MASK_CHUNK - 1) // MASK_CHUNK
    unit = (per_block.cumsum(0) - per_block)[block] + rank // MASK_CHUNK
    units = torch.arange(len(counts), device=block.device).repeat_interleave(per_block)
    keys = torch.full((len(units), MASK_CHUNK), -1, device=block.device)
    keys[unit, rank % MASK_CHUNK] = query
    return units, keys


def block_logits(blocks: Tensor, embeddings: Tensor) -> Tensor:
    """(u, C, V) features and (u, MASK_CHUNK, C or C + 1) embeddings → (u, MASK_CHUNK, V)."""
    channels = blocks.shape[1]
    if embeddings.shape[2] > channels:
        return torch.baddbmm(embeddings[..., channels:], embeddings[..., :channels], blocks)
    return torch.bmm(embeddings, blocks)
