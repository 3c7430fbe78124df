"""Several processes (torchrun, DDP): rank and device of this process, and exchange with the others.

Without torchrun, every function behaves as in a single process and exchanges nothing.
"""

from __future__ import annotations

import contextlib
import datetime
import os
from collections.abc import Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch import distributed as dist

from satunet.errors import UserError

Item = TypeVar("Item")


def rank() -> int:
    """Number of this process; 0 is the one that writes files."""
    return dist.get_rank() if _running() else 0


def world_size() -> int:
    """Number of processes that train together."""
    return dist.get_world_size() if _running() else 1


def launched() -> bool:
    """Whether torchrun started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def first() -> bool:
    """Whether this is the first of the processes that torchrun started, even before they are connected."""
    return os.environ.get("RANK", "0") == "0"


def own_device(device: str) -> str:
    """Name of this process's device: each process that torchrun starts on a machine takes its own GPU."""
    rank = os.environ.get("LOCAL_RANK")
    if rank is None or device not in ("auto", "cuda") or not torch.cuda.is_available():
        return device
    return f"cuda:{int(rank) % torch.cuda.device_count()}"


def log_name() -> str:
    """Name of this process's log file."""
    return "train.log" if first() else f"train_rank{os.environ['RANK']}.log"


@contextlib.contextmanager
def process_group(device: torch.device) -> Iterator[torch.device]:
    """Join the processes that torchrun started, for the length of the block.

    Args:
        device: Requested device; each process takes the GPU of its local rank.

    Yields:
        The device of this process.

    Raises:
        UserError: There are more processes on this machine than GPUs.
    """
    if not launched() or _running():
        yield device
        return
    if device.type == "cuda":
        local = int(os.environ.get("LOCAL_RANK", "0"))
        if local >= torch.cuda.device_count():
            raise UserError(
                f"process {local} of this machine has no GPU of its own, because there are only {torch.cuda.device_count()}; "
                "lower --nproc_per_node"
            )
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
    # During validation, processes wait while others predict whole scans, longer than the default of a few minutes.
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=datetime.timedelta(hours=2))
    try:
        yield device
        dist.barrier()  # the first process to leave would close the connections of the others
    finally:
        dist.destroy_process_group()


def barrier() -> None:
    """Wait for all processes."""
    if _running():
        dist.barrier()


def gather(item: Item) -> list[Item]:
    """Collect the items of all processes on each of them, in the order of the ranks; an item can be anything
    picklable.
    """
    if not _running():
        return [item]
    found: list[Any] = [None] * world_size()
    dist.all_gather_object(found, item)
    return found


def total(value: float, device: torch.device) -> float:
    """Sum over the processes."""
    if not _running():
        return value
    summed: Tensor = torch.tensor([value], dtype=torch.float64, device=device)
    dist.all_reduce(summed)
    return float(summed)


@contextlib.contextmanager
def first_process_first() -> Iterator[None]:
    """The first process runs the block before the others, which then find the files that it wrote."""
    if rank() > 0:
        barrier()
    try:
        yield
    finally:
        if rank() == 0:
            barrier()


def _running() -> bool:
    return dist.is_available() and dist.is_initialized()
