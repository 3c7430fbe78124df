"""Costs of predictions: wall time and peak memory, saved beside them.

Every competitor is timed with the same number of threads: nnunetv2 limits its own to ``nnUNet_def_n_proc`` while it
predicts, so this is the limit for all.
"""

from __future__ import annotations

import ctypes
import gc
import math
import os
import sys
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from satunet.errors import SatunetError
from satunet.jobs.files import read_json, write_json

RUNS = "runs.json"
_SAMPLE_SECONDS = 0.02


THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS",
)


def threads_for_all() -> int:
    """Threads that every competitor predicts with: those of torch, at most those that nnunetv2 allows itself."""
    import torch
    from nnunetv2.configuration import default_num_processes

    return max(1, min(torch.get_num_threads(), int(default_num_processes)))


class Meter:
    """Wall time and peak memory of a block, with the same number of threads for every competitor.

    Attributes:
        seconds: Wall time.
        memory_bytes: Peak memory of the GPU if one is used, else of this process; ``None`` if it cannot be measured.
        threads: Threads that torch has in the block.
    """

    def __init__(self) -> None:
        self.threads = threads_for_all()
        self.seconds = 0.0
        self.memory_bytes: int | None = None
        self._stop = threading.Event()

    def __enter__(self) -> Meter:
        import torch

        cuda = _cuda()
        if cuda is not None:
            cuda.reset_peak_memory_stats()
        self._usual_threads = torch.get_num_threads()
        torch.set_num_threads(self.threads)
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._started = time.monotonic()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        import torch

        self.seconds = time.monotonic() - self._started
        torch.set_num_threads(self._usual_threads)
        self._stop.set()
        self._thread.join()
        cuda = _cuda()
        if cuda is not None and cuda.max_memory_allocated():
            self.memory_bytes = int(cuda.max_memory_allocated())

    def _sample(self) -> None:
        while True:
            now = _resident_bytes()
            if now is not None:
                self.memory_bytes = max(self.memory_bytes or 0, now)
            if self._stop.wait(_SAMPLE_SECONDS):
                return


def free_memory() -> None:
    """Return unused memory to the system and the GPU, so that the next competitor is not charged for it."""
    gc.collect()
    cuda = _cuda()
    if cuda is not None:
        cuda.empty_cache()
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's; other libraries have none
        if trim is not None:
            trim(0)


def record_run(folder: Path, *, cases: int, scans: int, seconds: float, memory_bytes: int | None, threads: int) -> None:
    """Add a run to those that made a folder of predictions; a run that predicted nothing is not added.

    Args:
        folder: The folder.
        cases: Number of cases for which the run made a prediction.
        scans: Number of scans for which it made one: channels of cases, if these are predicted separately.
        seconds: Wall time.
        memory_bytes: Peak memory.
        threads: Number of threads that prediction was allowed.
    """
    if not scans:
        return
    run = {
        "cases": cases, "scans": scans, "seconds": round(seconds, 3), "memory_bytes": memory_bytes, "threads": threads,
    }  # fmt: skip
    write_json(folder / RUNS, {"runs": [*runs_of(folder), run]}, sealed=True)


def runs_of(folder: Path) -> list[dict[str, Any]]:
    """The runs that made a folder of predictions; unreadable entries are left out, because costs are not results."""
    runs = read_object(folder / RUNS).get("runs")
    return [run for run in runs if _is_run(run)] if isinstance(runs, list) else []


def _is_run(run: Any) -> bool:
    """Whether an entry has the form that :func:`record_run` writes."""
    if not isinstance(run, dict):
        return False
    counts = [run.get(key) for key in ("cases", "scans", "memory_bytes", "threads")]
    seconds = run.get("seconds")
    return (
        all(count is None or (type(count) is int and 0 <= count < 1 << 63) for count in counts)
        and isinstance(seconds, (int, float))
        and 0 <= seconds < math.inf
    )


def cost_of_runs(folders: Sequence[Path], *, channel_by_channel: bool = False) -> dict[str, Any]:
    """Time, memory and threads of all runs that made some folders, as fields of a cost; unknown values are ``None``.

    Args:
        folders: The folders.
        channel_by_channel: Whether channels were predicted separately, so that a case may be several scans.
    """
    runs = [run for folder in folders for run in runs_of(folder)]
    threads = {int(run["threads"]) for run in runs if run.get("threads")}
    return {
        "seconds_per_case": _seconds_per(runs, "cases"),
        "seconds_per_scan": _seconds_per(runs, "scans") if channel_by_channel else None,
        "memory_bytes": max((int(m) for run in runs if (m := run.get("memory_bytes"))), default=None),
        "threads": max(threads) if len(threads) == 1 else None,
    }


def _seconds_per(runs: Sequence[Mapping[str, Any]], what: str) -> float | None:
    counted = [run for run in runs if run.get(what)]
    count = sum(int(run[what]) for run in counted)
    return sum(float(run["seconds"]) for run in counted) / count if count else None


def read_object(file: Path) -> Mapping[str, Any]:
    """The JSON object in a file; empty if there is no such file or it holds none."""
    try:
        content = read_json(file)
    except (OSError, ValueError, SatunetError):
        return {}
    return content if isinstance(content, dict) else {}


def size_of(files: Iterable[Path]) -> int:
    """Bytes of those files that exist."""
    return sum(f.stat().st_size for f in files if f.is_file())


def _cuda() -> Any:
    torch = sys.modules.get("torch")
    return torch.cuda if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized() else None


def _resident_bytes() -> int | None:
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except (OSError, ValueError, IndexError):
        return None
    return pages * os.sysconf("SC_PAGE_SIZE")
