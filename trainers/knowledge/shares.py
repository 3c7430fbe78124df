"""Contrastive training on several processes: every process sees all embeddings, with gradients for its own texts.

The batch of a step is drawn as a whole and divided, so that the loss and, up to rounding, the weights after any number
of steps equal those of a single process. Without torchrun, every function here acts as for a single process.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch import distributed as dist

from satunet.compute.distributed import rank, world_size


def share(count: int) -> slice:
    """Part of a batch that this process computes."""
    edges = _edges(count)
    return slice(edges[rank()], edges[rank() + 1])


def shares(count: int) -> list[int]:
    """Sizes of all processes' parts of a batch."""
    return [b - a for a, b in itertools.pairwise(_edges(count))]


def sizes_of(own: int, device: torch.device) -> list[int]:
    """Number of rows of each process."""
    if world_size() == 1:
        return [own]
    parts = [torch.zeros(1, dtype=torch.int64, device=device) for _ in range(world_size())]
    dist.all_gather(parts, torch.tensor([own], device=device))
    return [int(part) for part in parts]


def gather(own: Tensor, sizes: list[int]) -> Tensor:
    """Rows of all processes, in order; gradients flow into this process's own.

    Args:
        own: (n, …) rows of this process.
        sizes: Number of rows of each process.
    """
    if world_size() == 1:
        return own
    padded = own.new_zeros((max(sizes), *own.shape[1:]))
    padded[: len(own)] = own.detach()
    parts = [torch.empty_like(padded) for _ in range(world_size())]
    dist.all_gather(parts, padded)
    rows = [part[:size] for part, size in zip(parts, sizes, strict=True)]
    rows[rank()] = own
    return torch.cat(rows)


def sum_gradients(parameters: Iterable[nn.Parameter], computed_by_all: Iterable[nn.Parameter] = ()) -> None:
    """Add up gradients over processes; those that every process computes in full are averaged."""
    if world_size() == 1:
        return
    own = [p for p in parameters if p.requires_grad]
    whole = list(computed_by_all)
    for parameter in (*own, *whole):
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    flat = torch.cat([p.grad.flatten() for p in (*own, *whole) if p.grad is not None])
    dist.all_reduce(flat)
    start = 0
    for parameter in (*own, *whole):
        part = flat[start : start + parameter.numel()].view_as(parameter)
        parameter.grad = part / world_size() if any(parameter is w for w in whole) else part.clone()
        start += parameter.numel()


def _edges(count: int) -> list[int]:
    return [round(count * r / world_size()) for r in range(world_size() + 1)]
