"""How far the looks at a scan agree about a query: neighbouring windows, mirrored ones, the networks of an ensemble.

Counted in blocks, from the largest logits that the search for structures computes anyway; the same for any memory.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class Votes:
    """Votes of the looks at blocks, a layer at a time.

    Attributes:
        yes: (N,) float32, weights of the looks whose largest logit of a block exceeds 0, a probability of one half.
        all: (N,) float32, weights of all looks at the blocks in which some look's does.
        largest: (N,) float32, largest logit of each query.
    """

    yes: Tensor
    all: Tensor
    largest: Tensor
    _layers: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)

    @classmethod
    def none(cls, queries: int, device: torch.device) -> Votes:
        """No look yet."""
        return cls(
            yes=torch.zeros(queries, device=device),
            all=torch.zeros(queries, device=device),
            largest=torch.full((queries,), -torch.inf, device=device),
        )

    def add(self, layer: int, places: Tensor, logits: Tensor, weight: Tensor, *, asked: Tensor, width: int) -> None:
        """Count a look.

        Args:
            layer: The layer that it is at.
            places: (n,) blocks of the layer.
            logits: (N, n) largest logit of each query in each of them.
            weight: (n,) of the window there.
            asked: (N,) boolean, queries that the network answers.
            width: Blocks of a layer.
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
        """No further look touches the layer."""
        if layer in self._layers:
            yes, every = self._layers.pop(layer)
            self.yes.add_(yes.sum(1))
            self.all.add_(torch.where(yes > 0, every, 0.0).sum(1))

    def peaks(self) -> list[float]:
        """Of each query, its largest probability in any look."""
        return [float(p) for p in self.largest.sigmoid()]

    def agreements(self) -> list[float]:
        """Of each query, the share of yes among the looks at blocks where there is one; 0 if there is none."""
        return [float(a) for a in self.yes / self.all.clamp_min(torch.finfo(torch.float32).tiny)]
