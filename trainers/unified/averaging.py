"""Weights averaged over the steps, which are better than the last ones as long as the learning rate is high."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn


class WeightAverage:
    """A moving average of a network's weights.

    Args:
        network: Network whose weights are averaged; buffers are those of the last step.
        kept: Share of the average that a step keeps, once there are enough steps: at step t it is no more than
            (1 + t) / (10 + t), so that the first weights are forgotten soon.
    """

    def __init__(self, network: nn.Module, kept: float) -> None:
        self.network, self.kept = network, kept
        self.average = copy.deepcopy(network).requires_grad_(False)

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take the weights of a step, counted from 0, into the average."""
        kept = min(self.kept, (1 + step) / (10 + step))
        torch._foreach_lerp_([*self.average.parameters()], [*self.network.parameters()], 1 - kept)

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Give the network the averaged weights within the block."""
        own = {name: value.clone() for name, value in self.network.state_dict().items()}
        self.network.load_state_dict(self.average.state_dict())
        try:
            yield
        finally:
            self.network.load_state_dict(own)

    def restore(self, last: Mapping[str, Tensor]) -> None:
        """Continue a run: the network holds the averaged weights, ``last`` are those of the run's last step."""
        self.average.load_state_dict(self.network.state_dict())
        self.network.load_state_dict(dict(last))
