"""The contrastive loss with several positives per row."""

from __future__ import annotations

import torch
from torch import Tensor


def contrastive_loss(
    anchors: Tensor, positives: Tensor, ids: Tensor, scale: Tensor, ignored: Tensor | None = None
) -> Tensor:
    """Cross-entropy in both directions; pairs of one id are positives, and the positives of a row share its target.

    Args:
        anchors: (n, D) embeddings of unit length, in any precision: autocast may have made bfloat16.
        positives: (n, D) embeddings of unit length, in any precision.
        ids: (n,) concept that both mean.
        scale: Factor of the cosines, 1 / temperature.
        ignored: (n, n) pairs (anchor, positive) that are neither positive nor negative.

    Returns:
        A scalar in float32; 0 for rows without any negative.
    """
    # Cosines times a scale of up to 100 need more than bfloat16's three digits, and the two sides may come in different
    # precisions.
    with torch.autocast(anchors.device.type, enabled=False):
        logits = scale.float() * anchors.float() @ positives.float().T  # (n, n)
    same = ids[:, None] == ids[None, :]
    if ignored is not None:
        logits = logits.masked_fill(ignored & ~same, float("-inf"))
    return (_one_way(logits, same) + _one_way(logits.T, same.T)) / 2


def _one_way(logits: Tensor, same: Tensor) -> Tensor:
    log_probability = torch.log_softmax(logits, dim=1).masked_fill(~same, 0.0)
    return -(log_probability.sum(1) / same.sum(1)).mean()
