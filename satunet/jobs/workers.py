"""Where a job over many items runs: in this process, in worker processes, or on a Dask cluster.

Worker processes come from pebble: it survives a worker that dies (out of memory, a crash in a C library) and says
which item that worker held, whereas the standard library's pool breaks as a whole. Scheduling over several machines is
left to Dask.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import multiprocessing
import os
import queue
import re
import threading
import uuid
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, NoReturn, TypeVar

from satunet.errors import EnvironmentProblemError, SatunetError, UserError

Item = TypeVar("Item")
Result = TypeVar("Result")
Needs = Callable[[Any], int]
"""Function that returns the bytes of memory that an item will need."""

_ENDED_ITSELF = 70
"""Exit code of a worker whose code ended the process with exit code 0."""

logger = logging.getLogger(__name__)

_SHARE_OF_MEMORY = 0.8
_CONNECT_SECONDS = 30


@dataclass(frozen=True, kw_only=True)
class Workers:
    """Processes or cluster to run on.

    Attributes:
        processes: Number of worker processes on this machine; with 0 or 1, everything runs in this process.
        memory_gb: Memory that they may need together; most of the free memory if not given.
        scheduler: Address of a Dask scheduler (``tcp://host:8786``) whose workers to use instead.
    """

    processes: int = 1
    memory_gb: float | None = None
    scheduler: str | None = None

    def __post_init__(self) -> None:
        if self.processes < 0:
            raise UserError(f"processes must be at least 0, got {self.processes}")
        if self.memory_gb is not None and self.memory_gb <= 0:
            raise UserError(f"memory must be a positive number of GB, got {self.memory_gb}")


@dataclass(frozen=True, kw_only=True)
class Outcome(Generic[Item, Result]):
    """Outcome of one item: a result, or the error that ended it."""

    item: Item
    result: Result | None = None
    error: BaseException | None = None


def outcomes(
    function: Callable[[Item], Result], items: list[Item], workers: Workers, needs: Needs | None = None
) -> Iterator[Outcome[Item, Result]]:
    """Run ``function`` on every item; outcomes come as they end.

    Args:
        function: A function that can be pickled.
        items: Items to run it on.
        workers: Workers to use.
        needs: Function that returns the bytes that an item will need; items run at the same time as far as memory
            allows. An item that needs more than all memory runs alone.

    Raises:
        UserError: The cluster cannot be reached, or has no workers.
        EnvironmentProblemError: Dask is not installed, or a worker has another version of satunet.
    """
    if workers.scheduler is not None:
        return _on_cluster(function, items, workers.scheduler, needs)
    if workers.processes <= 1:
        return _in_process(function, items)
    limit = None
    if needs is not None:
        free = available_memory()
        limit = int(workers.memory_gb * 1e9) if workers.memory_gb else int(free * _SHARE_OF_MEMORY) if free else None
    return _in_pool(function, items, workers.processes, needs, limit)


def available_memory() -> int | None:
    """Free memory in bytes, within the limit of a container; ``None`` if it is unknown."""
    found: list[int] = []
    with contextlib.suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        found.append(int(next(line for line in lines if line.startswith("MemAvailable")).split()[1]) * 1024)
    for limit, used in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ):
        with contextlib.suppress(OSError, ValueError):
            # The page cache counts as used, but is freed when needed; half of it is a fair guess.
            most, now = int(Path(limit).read_text()), int(Path(used).read_text())
            found.append(max(most - now, most // 2))
    if not found:
        with contextlib.suppress(OSError, ValueError, AttributeError):
            found.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2)
    return min(found, default=None)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error, or its cause, says that memory ran out; torch says so only in its message."""
    earlier: BaseException | None = error
    while earlier is not None:
        said = isinstance(earlier, RuntimeError) and re.search(_NO_MEMORY, str(earlier), re.IGNORECASE)
        if isinstance(earlier, MemoryError) or getattr(earlier, "errno", None) == errno.ENOMEM or said:
            return True
        earlier = earlier.__cause__ or earlier.__context__
    return False


def reason_of(error: BaseException) -> str:
    """What an error says, in one line for people: "out of memory" whatever the library calls it, and the class of the
    error before its text if it is not satunet's own.
    """
    said = str(error).strip() or type(error).__name__
    if is_out_of_memory(error):
        return said if "out of memory" in said.lower() else f"out of memory ({said})"
    return (
        said if isinstance(error, SatunetError) or said == type(error).__name__ else f"{type(error).__name__}: {said}"
    )


_NO_MEMORY = (
    r"can't allocate memory|not enough memory|cannot allocate memory|out of memory|bad_alloc|can't start new thread"
    # ITK, and oneDNN if it gets no memory for the code that it generates
    r"|failed to allocate memory|could not create a primitive$|could not (create|initialize) a memory"
)


def _in_process(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Outcome[Item, Result]]:
    for item in items:
        try:
            result = function(item)
        except (Exception, SystemExit) as error:  # a library that exits ends its item, not the job
            yield Outcome(item=item, error=_as_error(error))
        else:
            yield Outcome(item=item, result=result)


class _Admission(Generic[Item]):
    """Admits items as far as slots and memory allow, the largest that fits first."""

    def __init__(self, items: Iterable[Item], slots: int, needs: Needs | None, limit: int | None) -> None:
        self._source = iter(items)
        self._slots, self._needs, self._limit = slots, needs, limit
        self._waiting: list[tuple[int, Item]] = []
        self._running = self._used = 0
        self._closed = False
        self._changed = threading.Condition()

    def next(self) -> tuple[int, Item] | None:
        """Wait for room; returns the next item with its need, or ``None`` at the end."""
        for item in self._source:
            self._waiting.append((self._need(item), item))
            if len(self._waiting) >= 8 * self._slots:  # looks ahead without reading all headers first
                break
        with self._changed:
            while not self._closed and self._waiting:
                fitting = [i for i, (need, _) in enumerate(self._waiting) if self._fits(need)]
                if fitting:
                    need, item = self._waiting.pop(max(fitting, key=lambda i: self._waiting[i][0]))
                    self._running += 1
                    self._used += need
                    return need, item
                self._changed.wait()
        return None

    def left(self, need: int) -> None:
        """Give back the slot and memory of an item that has ended."""
        with self._changed:
            self._running -= 1
            self._used -= need
            self._changed.notify_all()

    def close(self) -> None:
        """Admit nothing more."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _fits(self, need: int) -> bool:
        if self._running == 0:
            return True
        return self._running < self._slots and (self._limit is None or self._used + need <= self._limit)

    def _need(self, item: Item) -> int:
        if self._needs is None or self._limit is None:
            return 0
        try:
            need = self._needs(item)
        except Exception as error:  # a bad file: the worker will say what is wrong with it
            logger.debug("no estimate of memory: %s", error)
            return 0
        if need > self._limit:
            logger.warning("%.1f GB needed of %.1f GB: runs alone, and may fail", need / 1e9, self._limit / 1e9)
        return need


def _in_pool(
    function: Callable[[Item], Result], items: list[Item], processes: int, needs: Needs | None, limit: int | None
) -> Iterator[Outcome[Item, Result]]:
    """Run in worker processes. A pool breaks when a worker dies between two items; a new pool then continues."""
    waiting, in_vain = items, 0
    while waiting:
        lost: list[Item] = []
        with contextlib.closing(_in_one_pool(function, waiting, processes, needs, limit)) as ended:
            for outcome in ended:
                if isinstance(outcome.error, BrokenProcessPool):
                    lost.append(outcome.item)
                else:
                    yield outcome
        in_vain = in_vain + 1 if len(lost) == len(waiting) else 0
        if in_vain == _ATTEMPTS:
            reason = "the worker processes died before they began; out of memory is the usual cause"
            for item in lost:
                yield Outcome(item=item, error=EnvironmentProblemError(reason))
            return
        waiting = lost


_ATTEMPTS = 3
"""Number of consecutive pools that may break without finishing an item."""


def _in_one_pool(
    function: Callable[[Item], Result], items: list[Item], processes: int, needs: Needs | None, limit: int | None
) -> Generator[Outcome[Item, Result], None, None]:
    """Outcomes of one pool; items that were left when it broke have the error ``BrokenProcessPool``."""
    from pebble import ProcessExpired, ProcessPool

    context = multiprocessing.get_context("spawn")  # fork is unsafe once torch or OpenMP threads run
    finished: queue.Queue[tuple[Item, Any]] = queue.Queue()
    # If memory is limited, admitted items must run at once; otherwise some may wait pickled.
    admission = _Admission(items, processes if needs else 2 * processes, needs, limit)
    pool = ProcessPool(max_workers=min(processes, max(1, len(items))), context=context, initializer=_start_worker)

    def feed() -> None:
        while (admitted := admission.next()) is not None:
            need, item = admitted
            try:
                future = pool.schedule(function, args=(item,))
            except Exception as error:  # the pool is broken, or has been stopped
                admission.left(need)
                broken: Future[Any] = Future()
                broken.set_exception(BrokenProcessPool(str(error)))
                finished.put((item, broken))
                continue

            def done(future: Any, item: Item = item, need: int = need) -> None:
                admission.left(need)
                finished.put((item, future))

            future.add_done_callback(done)

    feeder = threading.Thread(target=feed, daemon=True)
    feeder.start()
    try:
        for _ in items:
            item, future = finished.get()
            try:
                yield Outcome(item=item, result=future.result())
            except ProcessExpired as error:
                reason = f"the worker process died (exit code {error.exitcode}); out of memory is the usual cause"
                yield Outcome(item=item, error=EnvironmentProblemError(reason))
            except (Exception, SystemExit) as error:
                yield Outcome(item=item, error=_as_error(error))
        pool.close()
    finally:
        admission.close()
        if pool.active:  # interrupted, or the caller stopped early: running items are abandoned
            pool.stop()
        pool.join()
        feeder.join(timeout=5)


def _as_error(error: BaseException) -> Exception:
    if isinstance(error, Exception):
        return error
    return RuntimeError(f"the code that worked on it ended its process (exit code {getattr(error, 'code', None)!r})")


def _start_worker() -> None:
    """Prepare a worker before its first item."""
    _die_with_parent()
    end = os._exit

    def never_well(status: int) -> NoReturn:
        # pebble mistakes a worker that exits with 0 for a retired one, and waits for its item forever.
        end(status or _ENDED_ITSELF)

    os._exit = never_well


def _die_with_parent() -> None:
    """End this worker when its parent ends, even by SIGKILL, which the parent cannot catch."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _on_cluster(
    function: Callable[[Item], Result], items: list[Item], address: str, needs: Needs | None
) -> Iterator[Outcome[Item, Result]]:
    """Run on a Dask cluster; workers that declare ``MEMORY`` in bytes get as much at once as that allows."""
    try:
        from distributed import Client, KilledWorker, as_completed
    except ImportError as error:
        raise EnvironmentProblemError("--scheduler needs Dask: pip install 'satunet[cluster]'") from error
    try:
        client = Client(address, timeout=_CONNECT_SECONDS, set_as_default=False)
    except (OSError, ValueError) as error:
        raise UserError(
            f"no Dask scheduler answers at {address!r} ({error}); start one with 'dask scheduler'"
        ) from error
    with client:
        threads, memory = _cluster_of(client, address)
        job = uuid.uuid4().hex[:8]
        waiting = iter(enumerate(items))
        held: dict[str, Item] = {}

        def submit() -> Any:
            for number, item in waiting:
                resources = None
                if needs is not None and memory is not None:
                    with contextlib.suppress(Exception):  # a bad file: the worker will say what is wrong with it
                        resources = {"MEMORY": min(needs(item), memory)}
                key = f"satunet-{job}-{number}"
                held[key] = item
                return client.submit(function, item, key=key, pure=False, resources=resources)
            return None

        # The number of submitted items is limited, so that waiting items do not fill the scheduler's memory.
        first = [future for _ in range(2 * threads) if (future := submit()) is not None]
        running = as_completed(first, loop=client.loop)
        for future in running:
            item = held.pop(future.key)
            try:
                outcome = Outcome(item=item, result=future.result())
            except KilledWorker as error:
                reason = f"the Dask workers that held it died ({error})"
                outcome = Outcome(item=item, error=EnvironmentProblemError(reason))
            except Exception as error:
                outcome = Outcome(item=item, error=error)
            future.release()
            following = submit()
            if following is not None:
                running.add(following)
            yield outcome


def _cluster_of(client: Any, address: str) -> tuple[int, int | None]:
    """Threads of a cluster, and the largest ``MEMORY`` of a worker if all declare one."""
    import asyncio

    from satunet import __version__

    try:
        client.wait_for_workers(1, timeout=_CONNECT_SECONDS)
    except (TimeoutError, asyncio.TimeoutError) as error:
        raise UserError(f"the Dask scheduler at {address!r} has no workers; start some with 'dask worker'") from error
    others = {worker: version for worker, version in client.run(_version).items() if version != __version__}
    if others:
        raise EnvironmentProblemError(f"this is satunet {__version__}; Dask workers have another version: {others}")
    workers = client.scheduler_info(n_workers=-1)["workers"].values()
    memories = [int(worker.get("resources", {}).get("MEMORY", 0)) for worker in workers]
    return sum(int(worker["nthreads"]) for worker in workers), max(memories) if all(memories) else None


def _version() -> str:
    from satunet import __version__

    return __version__
