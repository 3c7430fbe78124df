"""Threads that compute pieces of a layer in parallel, each with a single torch thread.

torch splits every operator among its threads and waits for the slowest thread at the end. A network has thousands of
operators, and if another process uses the cores, too, each of these waits may last a time slice. Here, a layer is cut
into pieces that free threads take one by one, so that threads wait only once per layer.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch
from torch import Tensor

Piece = TypeVar("Piece")
Result = TypeVar("Result")

logger = logging.getLogger(__name__)
_own = threading.local()


def side_by_side(work: Callable[[Piece], Result], pieces: Sequence[Piece]) -> list[Result]:
    """``[work(piece) for piece in pieces]``, in inference mode, by as many threads as torch uses.

    If there are too few pieces to keep half of the threads busy, or if threads cannot be started (a limit of the
    system, a program that is ending), the caller computes them, with torch's threads inside each operator.
    """
    threads = torch.get_num_threads()
    pool = _pool(threads) if 1 < threads <= 2 * len(pieces) and len(pieces) > 1 and _may_run_side_by_side() else None
    run = functools.partial(_in_inference_mode, work)
    futures: list[Future[Result]] = []
    if pool is not None:
        with contextlib.suppress(RuntimeError):  # at the end of a program, the pool takes no more work
            for piece in pieces:
                futures.append(pool.submit(run, piece))
    return [future.result() for future in futures] + [run(piece) for piece in pieces[len(futures) :]]


def scratch(name: str, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Memory of this thread, with arbitrary content, that keeps its pages from call to call.

    Fresh memory of a megabyte or more costs a page fault per 4 KB, which takes longer than filling it.
    """
    kept: dict[tuple[str, torch.dtype], Tensor] = _own.__dict__.setdefault("scratch", {})
    size = 1
    for extent in shape:
        size *= extent
    memory = kept.get((name, dtype))
    if memory is None or memory.numel() < size:
        with torch.inference_mode(False):  # so that it can be written to in any mode
            memory = kept[name, dtype] = torch.empty(size, dtype=dtype, device="cpu")
    return memory[:size].view(shape)


def _in_inference_mode(work: Callable[[Piece], Result], piece: Piece) -> Result:
    with torch.inference_mode():  # a thread does not inherit the caller's mode
        return work(piece)


@functools.cache
def _pool(threads: int) -> ThreadPoolExecutor | None:
    """Threads with a single torch thread each; ``None`` if they cannot be started."""
    pool = ThreadPoolExecutor(threads, thread_name_prefix="satunet-layer")
    started = threading.Barrier(threads)

    def start(_: int) -> None:
        torch.get_num_threads()  # initialises torch in this thread; its first operator would otherwise reset the number
        torch.set_num_threads(1)
        started.wait()  # else a single thread could run all of these

    try:
        list(pool.map(start, range(threads)))
    except RuntimeError as error:
        started.abort()  # else the started threads would wait for the others forever
        pool.shutdown(wait=False)
        logger.warning("layers are computed without %d threads side by side: %s", threads, error)
        return None
    finally:
        torch.set_num_threads(threads)  # the number is per thread, but new threads begin with the one that was set last
    return pool


@functools.cache
def _may_run_side_by_side() -> bool:
    """Whether convolutions are thread-safe; those of ARM's Compute Library do not promise to be."""
    return not onednn_is_arms()


def onednn_is_arms() -> bool:
    """Whether oneDNN uses ARM's Compute Library."""
    try:
        return bool(torch.ops.mkldnn._is_mkldnn_acl_supported())
    except (AttributeError, RuntimeError):
        return False


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)  # a forked process has only one thread
