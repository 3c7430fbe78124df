"""A classification of single voxels, in addition to the loss over whole masks.

Dice and cross-entropy of many small structures say little to a fresh network: nearly every voxel is background to
nearly every query. Voxels are drawn about evenly from the structures of a crop, and each has to be told apart from all
other structures that were asked for. This pulls texts and features together in fewer steps, for a few thousand dot
products. But small structures are drawn more often than they occur, and masks come out too large: a training has to end
without this loss.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def voxel_loss(
    features: Tensor, embeddings: Tensor, labels: Tensor, membership: Tensor, shown: Tensor, *, count: int = 4096
) -> Tensor:
    """Cross-entropy of drawn voxels over the structures of their crop and the background, averaged over the crops.

    Args:
        features: (B, C, X, Y, Z) at full resolution.
        embeddings: (B, N, C + 1) mask embeddings with a bias.
        labels: (B, X, Y, Z) label ids; negative where nobody labelled.
        membership: (B, N, L) ids that make up each query; unions of several ids take no part.
        shown: (B, N) queries that the crop shows.
        count: Voxels to draw per crop.
    """
    total = features.new_zeros((), dtype=torch.float32)
    for b in range(len(labels)):
        ids = labels[b].reshape(-1).long()
        parts = ((membership[b].sum(1) == 1) & shown[b]).nonzero()[:, 0]
        background = len(parts)
        table = torch.full((membership.shape[-1],), -1, device=ids.device)
        table[membership[b, parts].int().argmax(1)] = torch.arange(background, device=ids.device)
        table[0] = background
        target = torch.where(ids < 0, -1, table[ids.clamp_min(0)])
        known = (target >= 0).nonzero()[:, 0]
        if not background or not len(known):
            continue
        sizes = torch.bincount(target[known], minlength=background + 1).clamp_min(1)
        # Not quite evenly: a voxel of a structure of a hundred voxels would be drawn forty times.
        chosen = known[torch.multinomial(sizes[target[known]].float() ** -0.75, count, replacement=True)]
        values = features[b].reshape(features.shape[1], -1)[:, chosen].float()
        queries = embeddings[b, parts].float()
        logits = queries[:, :-1] @ values + queries[:, -1:]
        logits = torch.cat((logits, torch.zeros_like(logits[:1])))
        total = total + functional.cross_entropy(logits.T, target[chosen])
    return total / len(labels)
