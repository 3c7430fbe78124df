"""Threads that compute pieces of a layer side by side, each piece with one thread of torch's own.

torch splits every operator among its threads and waits for the slowest at its end. A network has thousands of
operators; where another process uses the cores too, each of these waits may last a time slice. Here, a layer is cut
into pieces that are taken one by one by whichever thread is free: threads wait once a layer.
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
    """``[work(piece) for piece in pieces]``, in inference mode, by as many threads as torch has here.

    With too few pieces to keep half of the threads busy, the caller does them, with torch's threads inside each
    operator; as it does where threads cannot be started (a limit of the system, a program that is ending).
    """
    threads = torch.get_num_threads()
    pool = _pool(threads) if 1 < threads <= 2 * len(pieces) and len(pieces) > 1 and _may_run_side_by_side() else None
    run = functools.partial(_in_inference_mode, work)
    futures: list[Future[Result]] = []
    if pool is not None:
        with contextlib.suppress(RuntimeError):  # at the end of a program, nothing more is taken
            for piece in pieces:
                futures.append(pool.submit(run, piece))
    return [future.result() for future in futures] + [run(piece) for piece in pieces[len(futures) :]]


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
            memory = kept[name, dtype] = torch.empty(size, dtype=dtype, device="cpu")
    return memory[:size].view(shape)


def _in_inference_mode(work: Callable[[Piece], Result], piece: Piece) -> Result:
    with torch.inference_mode():  # a thread starts without the modes of the one that asked
        return work(piece)


@functools.cache
def _pool(threads: int) -> ThreadPoolExecutor | None:
    """Threads with one thread of torch's own each; ``None`` if they cannot be started."""
    pool = ThreadPoolExecutor(threads, thread_name_prefix="satunet-layer")
    started = threading.Barrier(threads)

    def start(_: int) -> None:
        torch.get_num_threads()  # a new thread's first operator would set the number, were it not asked for before
        torch.set_num_threads(1)
        started.wait()  # or one thread would start for all

    try:
        list(pool.map(start, range(threads)))
    except RuntimeError as error:
        started.abort()  # those that did start would wait for the others for ever
        pool.shutdown(wait=False)
        logger.warning("layers are computed without %d threads side by side: %s", threads, error)
        return None
    finally:
        torch.set_num_threads(threads)  # the number is this thread's own, but new threads begin with the one set last
    return pool


@functools.cache
def _may_run_side_by_side() -> bool:
    """Not with the Compute Library of ARM, whose convolutions do not promise to be safe beside each other."""
    return not onednn_is_arms()


def onednn_is_arms() -> bool:
    """Whether oneDNN computes by ARM's Compute Library."""
    try:
        return bool(torch.ops.mkldnn._is_mkldnn_acl_supported())
    except (AttributeError, RuntimeError):
        return False


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)  # a fork has no threads but one
