"""Dice + binary cross-entropy over all queries and scales, without an array of queries × volume.

Logits exist for one chunk of queries at a time. Their gradient is known in closed form, so the forward pass of a chunk
leaves behind the gradients of the feature map and of the mask embeddings, and nothing else: memory does not grow with
the number of queries, and the backward pass is one multiplication. Recomputing each chunk under autograd
(checkpointing) was rejected: it gives the same numbers, but reads and writes every logit about twenty times.

For the logits l, p = sigmoid(l), the target t and V voxels, a query's loss is (SAT, arXiv 2312.17183)::

    1 - (2 Σ p t + s) / (Σ p² + Σ t + s)  +  (1/V) Σ (softplus(l) - l t)        s = 1e-7

and with numerator A and denominator D of the Dice term, its gradient::

    d/dl = p (1 - p) (2 p A / D² - 2 t / D)  +  (p - t) / V

Shapes: B batch, N queries, C features, L label ids, V voxels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Integer
from torch import Tensor
from torch.autograd.function import once_differentiable

SMOOTH = 1e-7
IGNORED = -1
"""Label id of unlabelled voxels, which count in no sum."""
_FACTORS = 32  # 2⁻³² is far from the smallest number of float32, and 32 roundings are 2e-6 of a logarithm
CPU_BLOCK = 8192
"""Voxels worked on at once on a CPU: 32 queries × 8192 voxels are 1 MB, which stays in the cache."""


class PromptedLoss(NamedTuple):
    """Result of :func:`prompted_loss`.

    Attributes:
        total: The loss, with gradients.
        of_query: (B, N) loss of each query, weighted over the scales, detached; 0 where not valid.
        dice: (B, N) Dice loss of each query at full resolution, detached; 0 where not valid.
    """

    total: Float[Tensor, ""]
    of_query: Float[Tensor, "b n"]
    dice: Float[Tensor, "b n"]


def prompted_loss(
    maps: Sequence[Float[Tensor, "b _ _ _ _"]],
    embeddings: Sequence[Float[Tensor, "b n _"]],
    labels: Integer[Tensor, "b x y z"],
    membership: Bool[Tensor, "b n l"],
    valid: Bool[Tensor, "b n"],
    scale_weights: Sequence[float] | None = None,
    *,
    chunk: int = 32,
    count: float | None = None,
    ignored: bool | None = None,
) -> PromptedLoss:
    """The segmentation loss, averaged over the valid queries and weighted over the scales.

    Computed in float32 whatever the type of the features (float64 for float64), so it may stand inside or outside
    an autocast region. Without a valid query the loss is 0 and its gradients are zeros.

    Args:
        maps: Feature maps (B, C_s, X_s, Y_s, Z_s) of each scale, full resolution first.
        embeddings: Mask embeddings of each scale: (B, N, C_s), or (B, N, C_s + 1) whose last entry is a bias.
        labels: Label ids at full resolution, each in [0, L) or :data:`IGNORED`; lower scales take the nearest voxel.
        membership: ``membership[b, n, l]``: label id ``l`` belongs to query ``n``. A union is a row with several.
        valid: Queries that count; the others fill up the batch. Kept on the CPU, so that nothing waits for a GPU.
        scale_weights: Weights of the scales; 1, 1/2, 1/4, … if not given. They are normalised to sum 1.
        chunk: Queries whose logits exist at once.
        count: Number by which the sum over the queries is divided; the number of valid ones if not given. With several
            processes, the mean of their gradients is that of all queries if each divides by all / processes.
        ignored: Whether any voxel is ignored. Looked up if not given, which has to wait for a GPU.

    Raises:
        ValueError: No scale, different numbers of weights and scales, embeddings that do not fit the features, or a
            label id outside [0, L) that is not :data:`IGNORED`.
    """
    labels = labels.long()
    _check(maps, embeddings, scale_weights)
    if labels.device.type == "cpu":  # on other devices, looking would have to wait, and indexing checks
        lowest, highest = (int(v) for v in torch.aminmax(labels))
        if lowest < IGNORED or highest >= membership.shape[-1]:
            raise ValueError(
                f"label ids must be in [0, {membership.shape[-1]}) or {IGNORED}, got {lowest} to {highest}"
            )
    if ignored is None:
        ignored = bool((labels == IGNORED).any())
    weights = [0.5**s for s in range(len(maps))] if scale_weights is None else [float(w) for w in scale_weights]
    divisor = max(1.0, float(valid.sum())) if count is None else count
    total = torch.zeros((), dtype=_work_type(maps[0]), device=maps[0].device)
    of_query = torch.zeros(valid.shape, dtype=total.dtype, device=total.device)
    dice_full = None
    for weight, feature_map, embedding in zip(weights, maps, embeddings, strict=True):
        small = _nearest(labels, feature_map.shape[2:])
        loss, losses, dice = _QueryLoss.apply(feature_map, embedding, small, membership, valid, chunk, ignored)  # type: ignore[no-untyped-call]
        share = weight / sum(weights)
        total = total + loss * (share / divisor)
        of_query += losses * share
        dice_full = dice if dice_full is None else dice_full
    assert dice_full is not None
    return PromptedLoss(total, of_query, dice_full)


class _QueryLoss(torch.autograd.Function):
    """Summed loss of the valid queries at one scale; gradients are made in the forward pass, chunk by chunk."""

    @staticmethod
    def forward(
        ctx: Any,
        feature_map: Tensor,
        embedding: Tensor,
        labels: Tensor,
        membership: Tensor,
        valid: Tensor,
        chunk: int,
        ignored: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        batch, channels = feature_map.shape[:2]
        work = _work_type(feature_map)
        needs_gradient = ctx.needs_input_grad[0] or ctx.needs_input_grad[1]
        losses = torch.zeros(embedding.shape[:2], dtype=work, device=embedding.device)
        dices = torch.zeros_like(losses)
        map_gradient = torch.zeros(feature_map.shape, dtype=work, device=feature_map.device) if needs_gradient else None
        embedding_gradient = torch.zeros_like(embedding, dtype=work) if needs_gradient else None
        with torch.autocast(feature_map.device.type, enabled=False):
            for b in range(batch):
                voxels = feature_map[b].reshape(channels, -1).to(work)  # (C, V)
                ids = labels[b].reshape(-1)
                known = (ids != IGNORED).nonzero().squeeze(1) if ignored else None
                if known is not None:
                    if not len(known):
                        continue  # nobody labelled this crop
                    voxels, ids = voxels[:, known], ids[known]
                # Voxels of each label id; torch.bincount would do, but waits for a GPU.
                sizes = torch.zeros(membership.shape[-1], dtype=torch.long, device=ids.device)
                sizes = sizes.scatter_add_(0, ids, torch.ones_like(ids)).to(work)
                chosen = valid[b].nonzero().squeeze(1).to(feature_map.device, non_blocking=True)
                for part in torch.split(chosen, chunk):
                    members = membership[b, part].to(work)
                    queries = _Chunk(embedding[b, part].to(work), voxels, members, ids, sizes)
                    losses[b, part], dices[b, part] = queries.losses()
                    if map_gradient is not None and embedding_gradient is not None:
                        flat = map_gradient[b].view(channels, -1)
                        if known is None:
                            embedding_gradient[b, part] = queries.gradients(flat)
                        else:
                            own = torch.zeros_like(voxels)
                            embedding_gradient[b, part] = queries.gradients(own)
                            flat.index_add_(1, known, own)
        ctx.gradients = (map_gradient, embedding_gradient)
        ctx.types = (feature_map.dtype, embedding.dtype)
        ctx.mark_non_differentiable(losses, dices)
        return losses.sum(), losses, dices

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor | None, ...]:
        gradients = [
            (gradient * outputs[0]).to(kind) if needed else None
            for gradient, kind, needed in zip(ctx.gradients, ctx.types, ctx.needs_input_grad[:2], strict=True)
        ]
        return (*gradients, None, None, None, None, None)


class _Chunk:
    """Probabilities, losses and gradients of n queries on one sample, block of voxels by block of voxels.

    The Dice gradient needs sums over all voxels, so there are two passes: the first keeps the probabilities (n, V),
    the second turns them into gradients.
    """

    def __init__(self, weights: Tensor, voxels: Tensor, membership: Tensor, ids: Tensor, sizes: Tensor) -> None:
        """Take (n, C) or (n, C + 1) embeddings, (C, V) features, (n, L) zeros and ones, (V,) ids, (L,) their counts."""
        self.channels, self.count = voxels.shape
        self.weights = weights[:, : self.channels].contiguous()
        self.bias = weights[:, self.channels :]  # (n, 1), or (n, 0) without a bias
        self.voxels, self.membership, self.ids, self.sizes = voxels, membership, ids, sizes
        self.p = voxels.new_empty((len(weights), self.count))

    def losses(self) -> tuple[Tensor, Tensor]:
        """The loss and its Dice part of each query, (n,) each.

        With m = max(p, 1 - p), softplus(l) = max(l, 0) - log m, and m lies in [1/2, 1]: logarithms are taken of
        products of :data:`_FACTORS` of them, which costs a fifth of softplus.
        """
        overlap = self.voxels.new_zeros(len(self.weights))
        squares, entropy = torch.zeros_like(overlap), torch.zeros_like(overlap)
        for block in self._blocks():
            logits = self.weights @ self.voxels[:, block]
            if self.bias.shape[1]:
                logits += self.bias
            target = self._target(block)
            p = torch.sigmoid(logits, out=self.p[:, block])
            overlap += torch.linalg.vecdot(p, target)
            squares += torch.linalg.vecdot(p, p)
            entropy -= torch.linalg.vecdot(logits, target)
            entropy += logits.clamp_min_(0).sum(1)
            entropy -= _sum_of_logs((p - 0.5).abs_().add_(0.5))
        self.numerator = 2 * overlap + SMOOTH
        self.denominator = squares + self.membership @ self.sizes + SMOOTH
        dice = 1 - self.numerator / self.denominator
        return dice + entropy / self.count, dice

    def gradients(self, map_gradient: Tensor) -> Tensor:
        """Add d loss / d features to (C, V) ``map_gradient``, return d loss / d embeddings; after :meth:`losses`."""
        of_p = (2 * self.numerator / self.denominator**2)[:, None]
        of_target = (-2 / self.denominator)[:, None]
        of_weights, of_bias = torch.zeros_like(self.weights), torch.zeros_like(self.bias)
        for block in self._blocks():
            p, target = self.p[:, block], self._target(block)
            gradient = (p * of_p).addcmul_(target, of_target).mul_(torch.addcmul(p, p, p, value=-1))
            gradient.add_(p, alpha=1 / self.count).sub_(target, alpha=1 / self.count)
            map_gradient[:, block].addmm_(self.weights.T, gradient)
            of_weights.addmm_(gradient, self.voxels[:, block].T)
            of_bias += gradient.sum(1, keepdim=True)
        return torch.cat((of_weights, of_bias), dim=1)

    def _target(self, block: slice) -> Tensor:
        # index_select is five times faster here than the same thing as membership[:, ids].
        return self.membership.index_select(1, self.ids[block])

    def _blocks(self) -> Iterator[slice]:
        size = CPU_BLOCK if self.voxels.device.type == "cpu" else self.count
        for start in range(0, self.count, size):
            yield slice(start, start + size)


def _sum_of_logs(m: Tensor) -> Tensor:
    """Sums of the logarithms of (n, V) values in [1/2, 1] → (n,)."""
    whole = m.shape[1] // _FACTORS * _FACTORS
    logs = m[:, :whole].unflatten(1, (_FACTORS, -1)).prod(1).log_().sum(1) if whole else m.new_zeros(len(m))
    return logs + m[:, whole:].log().sum(1)


def _work_type(feature_map: Tensor) -> torch.dtype:
    return torch.float64 if feature_map.dtype == torch.float64 else torch.float32


def _nearest(labels: Tensor, shape: Sequence[int]) -> Tensor:
    """Label ids at a lower resolution, by nearest neighbour; (B, X, Y, Z) → (B, *shape)."""
    small = labels
    for axis, size in enumerate(shape, start=1):
        if labels.shape[axis] != size:
            # The voxel at the centre of each coarse voxel, as torch's "nearest-exact" takes it.
            centres = (torch.arange(size, device=labels.device) + 0.5) * (labels.shape[axis] / size)
            small = small.index_select(axis, centres.long())
    return small


def _check(maps: Sequence[Tensor], embeddings: Sequence[Tensor], scale_weights: Sequence[float] | None) -> None:
    if not maps or len(maps) != len(embeddings):
        raise ValueError(
            f"expected at least one scale and one mask embedding per scale, got {len(embeddings)} for {len(maps)}"
        )
    if scale_weights is not None and (len(scale_weights) != len(maps) or not sum(scale_weights) > 0):
        raise ValueError(f"{len(maps)} scales need as many weights, with a positive sum, got {scale_weights}")
    for scale, (feature_map, embedding) in enumerate(zip(maps, embeddings, strict=True)):
        channels, width = feature_map.shape[1], embedding.shape[-1]
        if width not in (channels, channels + 1):
            raise ValueError(
                f"scale {scale}: mask embeddings must have {channels} entries, or one more with a bias, got {width}"
            )
