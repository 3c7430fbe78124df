"""The thread that computes: all work of networks in a process is done by one of its threads.

Each thread that runs an operator of torch in parallel gets a team of OpenMP threads of its own, which lasts as long as
the thread. As soon as a process has more of them than cores, GNU's OpenMP lets them sleep after each operator instead
of waiting actively for the next one; a product of small matrices then takes five times as long. So it is not enough
that threads which share a network take turns: one and the same thread has to do the work.
"""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


def in_network_thread(work: Callable[Arguments, Result], *args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
    """Result of ``work(*args, **kwargs)``, computed by the thread of this process that works with networks.

    Calls wait for each other. A call from within such work is part of that work.

    Args:
        work: Function to call.
        args: Its positional arguments.
        kwargs: Its named arguments.

    Raises:
        Exception: Any error that ``work`` raises.
    """
    if threading.current_thread().name.startswith(_NAME):
        return work(*args, **kwargs)
    return _network_thread().submit(work, *args, **kwargs).result()


_NAME = "satunet-network"


@functools.cache
def _network_thread() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(1, thread_name_prefix=_NAME)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_network_thread.cache_clear)  # a forked process has only one thread
