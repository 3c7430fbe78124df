"""Dice + binary cross-entropy over all queries and scales, without an array of queries × volume.

Logits exist for one chunk of queries at a time. Their gradient is known in closed form, so the forward pass of a
chunk leaves behind the gradients of the feature map and of the mask embeddings, and nothing else: memory does not
grow with the number of queries, and no logit is computed twice.

For the logits l, p = sigmoid(l), the target t and V voxels, a query's loss is (SAT, arXiv 2312.17183)::

    1 − (2 Σ p t + s) / (Σ p² + Σ t + s)  +  (1/V) Σ (softplus(l) − l t)        s = 1e-7

Shapes: B batch, N queries, C features, L label ids, V voxels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

SMOOTH = 1e-7


def prompted_loss(
    maps: Sequence[Float[Tensor, "b c x y z"]],
    embeddings: Sequence[Float[Tensor, "b n e"]],
    labels: Int[Tensor, "b x y z"],
    membership: Bool[Tensor, "b n l"],
    valid: Bool[Tensor, "b n"],
    scale_weights: Sequence[float] | None = None,
    *,
    chunk: int = 32,
) -> tuple[Float[Tensor, ""], Float[Tensor, "b n"]]:
    """The segmentation loss, averaged over the valid queries and weighted over the scales.

    Args:
        maps: Feature maps of each scale, full resolution first.
        embeddings: Mask embeddings of each scale: (B, N, C), or (B, N, C + 1) whose last entry is a bias.
        labels: Label ids at full resolution, each in [0, L).
        membership: ``membership[b, n, l]``: label id ``l`` belongs to query ``n``. A union is a row with several.
        valid: Queries that count; the others fill up the batch.
        scale_weights: Weights of the scales; 1, 1/2, 1/4, … if not given. They are normalised to sum 1.
        chunk: Queries whose logits exist at once.

    Returns:
        The loss, and the Dice loss of each query at full resolution, detached (0 where not valid).
    """
    weights = torch.tensor(scale_weights or [0.5**s for s in range(len(maps))], dtype=torch.float64)
    weights = weights / weights.sum()
    count = valid.sum().clamp_min(1)
    total: Tensor | None = None
    dice_full: Tensor | None = None
    for scale, (feature_map, embedding) in enumerate(zip(maps, embeddings, strict=True)):
        small = _nearest(labels, feature_map.shape[2:])
        per_query, dice = _QueryLoss.apply(feature_map, embedding, small, membership, valid, chunk)
        contribution = per_query.sum() / count * float(weights[scale])
        total = contribution if total is None else total + contribution
        dice_full = dice if dice_full is None else dice_full
    if total is None or dice_full is None:
        raise ValueError("the loss needs at least one scale")
    return total, dice_full


def plain_loss(
    logits: Float[Tensor, "b n x y z"], targets: Float[Tensor, "b n x y z"]
) -> tuple[Float[Tensor, "b n"], Float[Tensor, "b n"]]:
    """The formula as it stands, for one scale: Dice loss and cross-entropy of each query. Costs N volumes."""
    flat, t = logits.flatten(2), targets.flatten(2)
    p = flat.sigmoid()
    dice = 1 - (2 * (p * t).sum(-1) + SMOOTH) / ((p * p).sum(-1) + t.sum(-1) + SMOOTH)
    return dice, functional.binary_cross_entropy_with_logits(flat, t, reduction="none").mean(-1)


class _QueryLoss(torch.autograd.Function):
    """Loss of every query at one scale; gradients are made in the forward pass, chunk by chunk."""

    @staticmethod
    def forward(
        ctx: Any,
        feature_map: Tensor,
        embedding: Tensor,
        labels: Tensor,
        membership: Tensor,
        valid: Tensor,
        chunk: int,
    ) -> tuple[Tensor, Tensor]:
        batch, channels = feature_map.shape[:2]
        queries = embedding.shape[1]
        work = torch.float64 if feature_map.dtype == torch.float64 else torch.float32
        needs_gradient = ctx.needs_input_grad[0] or ctx.needs_input_grad[1]
        losses = feature_map.new_zeros((batch, queries), dtype=work)
        dices = torch.zeros_like(losses)
        map_gradient = torch.zeros_like(feature_map, dtype=work) if needs_gradient else None
        embedding_gradient = torch.zeros_like(embedding, dtype=work) if needs_gradient else None
        with torch.autocast(feature_map.device.type, enabled=False):
            for b in range(batch):
                voxels = feature_map[b].reshape(channels, -1).to(work)  # (C, V)
                ids = labels[b].reshape(-1)
                chosen = valid[b].nonzero().squeeze(1)
                for part in chosen.split(chunk):
                    weights = embedding[b, part].to(work)
                    rows = membership[b, part].to(work)
                    loss, dice, gradient = _chunk(weights, voxels, rows, ids, needs_gradient)
                    losses[b, part], dices[b, part] = loss, dice
                    if gradient is not None and map_gradient is not None and embedding_gradient is not None:
                        map_gradient[b].view(channels, -1).addmm_(weights[:, :channels].T, gradient)
                        embedding_gradient[b, part, :channels] = gradient @ voxels.T
                        if embedding.shape[-1] > channels:
                            embedding_gradient[b, part, channels] = gradient.sum(1)
        ctx.gradients = (map_gradient, embedding_gradient)
        ctx.types = (feature_map.dtype, embedding.dtype)
        ctx.valid = valid
        ctx.mark_non_differentiable(dices)
        return losses, dices

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor | None, ...]:
        map_gradient, embedding_gradient = ctx.gradients
        map_type, embedding_type = ctx.types
        # The gradients above are of the sum over queries. Every caller in this module averages, so the incoming
        # gradient is one number for all valid queries of a scale.
        incoming = outputs[0][ctx.valid]
        factor = incoming[0] if incoming.numel() else outputs[0].new_zeros(())
        return (
            (map_gradient * factor).to(map_type),
            (embedding_gradient * factor).to(embedding_type),
            None,
            None,
            None,
            None,
        )


def _chunk(
    weights: Tensor, voxels: Tensor, membership: Tensor, ids: Tensor, needs_gradient: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Losses of n queries and d loss / d logits.

    Args:
        weights: (n, C) or (n, C + 1) mask embeddings.
        voxels: (C, V) features.
        membership: (n, L) zeros and ones.
        ids: (V,) label ids.
        needs_gradient: Whether to make the (n, V) gradient.
    """
    channels, count = voxels.shape
    logits = weights[:, :channels] @ voxels
    if weights.shape[1] > channels:
        logits += weights[:, channels:]
    target = membership.index_select(1, ids)  # (n, V)
    p = logits.sigmoid()
    intersection = torch.einsum("nv,nv->n", p, target)
    squares = torch.einsum("nv,nv->n", p, p)
    positive = target.sum(1)
    # softplus(l) − l t = −logsigmoid(l) + l (1 − t) = −logsigmoid(−l) − l t
    agreement = torch.einsum("nv,nv->n", logits, target)
    entropy = (functional.softplus(logits).sum(1) - agreement) / count
    numerator = 2 * intersection + SMOOTH
    denominator = squares + positive + SMOOTH
    dice = 1 - numerator / denominator
    gradient: Tensor | None = None
    if needs_gradient:
        # d dice / dp = −2 t / D + 2 p N / D²; dp / dl = p (1 − p); d entropy / dl = (p − t) / V
        slope = p * (2 * numerator / denominator**2)[:, None]
        slope.addcmul_(target, (-2 / denominator)[:, None].expand_as(target))
        gradient = p.sub(target).div_(count)
        gradient.addcmul_(slope, p.mul_(1 - p))
    return dice + entropy, dice, gradient


def _nearest(labels: Tensor, shape: Sequence[int]) -> Tensor:
    """Label ids at a lower resolution, by nearest neighbour; (B, X, Y, Z) → (B, *shape), int64."""
    if tuple(labels.shape[1:]) == tuple(shape):
        return labels.long()
    small = labels
    for axis, size in enumerate(shape, start=1):
        ratio = labels.shape[axis] / size
        index = ((torch.arange(size, device=labels.device) + 0.5) * ratio).floor().long()
        small = small.index_select(axis, index)
    return small.long()
