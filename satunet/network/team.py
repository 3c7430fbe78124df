"""Threads that compute pieces of a layer side by side, each piece with one thread of torch's own.

torch splits every operator among its threads and waits for the slowest at its end. A network has thousands of
operators; where another process uses the cores too, each of these waits may last a time slice. Here, a layer is cut
into pieces that are taken one by one by whichever thread is free: threads wait once a layer.
"""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch
from torch import Tensor

Piece = TypeVar("Piece")
Result = TypeVar("Result")

_own = threading.local()


def side_by_side(work: Callable[[Piece], Result], pieces: Sequence[Piece]) -> list[Result]:
    """``[work(piece) for piece in pieces]``, in inference mode, by as many threads as torch has here.

    With too few pieces to keep the threads busy, the caller does them, with torch's threads inside each operator.
    """
    threads = torch.get_num_threads()
    if threads == 1 or len(pieces) < threads:
        return [_in_inference_mode(work, piece) for piece in pieces]
    return list(_pool(threads).map(functools.partial(_in_inference_mode, work), pieces))


def scratch(name: str, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Memory of this thread that keeps its pages from call to call; its content is whatever was left there.

    Fresh memory of a megabyte or more costs a page fault every 4 KB, which takes longer than filling it.
    """
    kept: dict[tuple[str, torch.dtype], Tensor] = _own.__dict__.setdefault("scratch", {})
    size = 1
    for extent in shape:
        size *= extent
    memory = kept.get((name, dtype))
    if memory is None or memory.numel() < size:
        with torch.inference_mode(False):  # to be written to in any mode
            memory = kept[name, dtype] = torch.empty(size, dtype=dtype)
    return memory[:size].view(shape)


def _in_inference_mode(work: Callable[[Piece], Result], piece: Piece) -> Result:
    with torch.inference_mode():  # a thread starts without the modes of the one that asked
        return work(piece)


@functools.cache
def _pool(threads: int) -> ThreadPoolExecutor:
    pool = ThreadPoolExecutor(threads, thread_name_prefix="satunet-layer")
    started = threading.Barrier(threads)

    def start(_: int) -> None:
        torch.get_num_threads()  # a new thread's first operator would set the number, were it not asked for before
        torch.set_num_threads(1)
        started.wait()  # or one thread would start for all

    list(pool.map(start, range(threads)))
    torch.set_num_threads(threads)  # the number is this thread's own, but new threads begin with the one set last
    return pool


os.register_at_fork(after_in_child=_pool.cache_clear)  # a fork has no threads but one
