"""Agreement of the looks at a scan on a query.

A look is one network's view of one window, possibly mirrored; looks overlap because neighbouring windows do. Votes are
counted per block, from the largest logits, which the engine computes anyway; memory limits do not change them.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class Votes:
    """Votes of the looks at blocks, collected layer by layer.

    Attributes:
        yes: (N,) float32, sum over blocks of the weights of the looks whose largest logit exceeds 0 (probability 0.5).
        all: (N,) float32, sum of the weights of all looks at those blocks in which at least one look does so.
        largest: (N,) float32, largest logit of each query.
    """

    yes: Tensor
    all: Tensor
    largest: Tensor
    _layers: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)

    @classmethod
    def none(cls, queries: int, device: torch.device) -> Votes:
        """Votes before the first look."""
        return cls(
            yes=torch.zeros(queries, device=device),
            all=torch.zeros(queries, device=device),
            largest=torch.full((queries,), -torch.inf, device=device),
        )

    def add(self, layer: int, places: Tensor, logits: Tensor, weight: Tensor, *, asked: Tensor, width: int) -> None:
        """Count a look.

        Args:
            layer: Number of the layer.
            places: (n,) blocks of the layer.
            logits: (N, n) largest logit of each query in each block.
            weight: (n,) weight of the window in each block.
            asked: (N,) boolean, queries that the network answers.
            width: Number of blocks in a layer.
        """
        if layer not in self._layers:
            empty = torch.zeros(len(self.yes), width, device=self.yes.device)
            self._layers[layer] = (empty, empty.clone())
        yes, every = self._layers[layer]
        weights = torch.where(asked[:, None], weight, 0.0)
        every[:, places] += weights
        yes[:, places] += torch.where(logits > 0, weights, 0.0)
        torch.maximum(self.largest, logits.amax(1).where(asked, -torch.inf), out=self.largest)

    def finish(self, layer: int) -> None:
        """Add up the votes of a layer that no later look touches."""
        if layer in self._layers:
            yes, every = self._layers.pop(layer)
            self.yes.add_(yes.sum(1))
            self.all.add_(torch.where(yes > 0, every, 0.0).sum(1))

    def peaks(self) -> list[float]:
        """Largest probability of each query over all looks."""
        return [float(p) for p in self.largest.sigmoid()]

    def agreements(self) -> list[float]:
        """For each query, the share of yes votes at the blocks with at least one yes; 0 if there are none."""
        return [float(a) for a in self.yes / self.all.clamp_min(torch.finfo(torch.float32).tiny)]
