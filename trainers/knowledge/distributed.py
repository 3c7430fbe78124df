"""Contrastive training on several processes: every process sees all embeddings, and its gradients are its own texts'.

The batch of a step is drawn whole and shared out, so that the loss, and up to rounding the weights after any number of
steps, are those of one process.
"""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Iterable, Iterator

import torch
import torch.distributed as dist
from torch import Tensor, nn


def rank() -> int:
    """Number of this process."""
    return dist.get_rank() if dist.is_initialized() else 0


def world() -> int:
    """Number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


@contextlib.contextmanager
def processes(device: torch.device) -> Iterator[None]:
    """Join the others if started by ``torchrun``, with NCCL on CUDA and gloo elsewhere."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        yield
        return
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield
        dist.barrier()
    finally:
        dist.destroy_process_group()


def share(count: int) -> slice:
    """Part of a batch that this process computes."""
    edges = [round(count * r / world()) for r in range(world() + 1)]
    return slice(edges[rank()], edges[rank() + 1])


def gather(own: Tensor, count: int) -> Tensor:
    """(count, D) embeddings of all processes, in order; gradients flow into this process's own."""
    if world() == 1:
        return own
    edges = [round(count * r / world()) for r in range(world() + 1)]
    sizes = [b - a for a, b in itertools.pairwise(edges)]
    longest = max(sizes)
    padded = own.new_zeros((longest, own.shape[1]))
    padded[: len(own)] = own.detach()
    parts = [torch.empty_like(padded) for _ in range(world())]
    dist.all_gather(parts, padded)
    rows = [part[:size] for part, size in zip(parts, sizes, strict=True)]
    rows[rank()] = own
    return torch.cat(rows)


def sum_gradients(modules: Iterable[nn.Module], shared: Iterable[nn.Parameter] = ()) -> None:
    """Add up gradients over processes; those of ``shared``, which every process computes whole, are averaged."""
    if world() == 1:
        return
    whole = list(shared)
    parameters = [p for m in modules for p in m.parameters() if p.requires_grad]
    for parameter in (*parameters, *whole):
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    flat = torch.cat([p.grad.flatten() for p in (*parameters, *whole) if p.grad is not None])
    dist.all_reduce(flat)
    start = 0
    for parameter in (*parameters, *whole):
        part = flat[start : start + parameter.numel()].view_as(parameter)
        parameter.grad = part / world() if any(parameter is w for w in whole) else part.clone()
        start += parameter.numel()
