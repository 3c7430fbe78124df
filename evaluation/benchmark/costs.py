"""What predictions cost: wall time and peak memory, kept beside them."""

from __future__ import annotations

import ctypes
import gc
import os
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from satunet.errors import SatunetError
from satunet.jobs.files import read_json, write_json

RUNS = "runs.json"
_SAMPLE_SECONDS = 0.02


class Meter:
    """Wall time and peak memory of a block: of the GPU if one is used, else of this process.

    Attributes:
        seconds: Wall time.
        memory_bytes: Peak; ``None`` where nothing tells.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self.memory_bytes: int | None = None
        self._stop = threading.Event()

    def __enter__(self) -> Meter:
        cuda = _cuda()
        if cuda is not None:
            cuda.reset_peak_memory_stats()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._started = time.monotonic()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds = time.monotonic() - self._started
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
    """Give memory that nothing holds any more back to the system and the GPU, so that it is not counted for the next."""
    gc.collect()
    cuda = _cuda()
    if cuda is not None:
        cuda.empty_cache()
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's; other libraries have none
        if trim is not None:
            trim(0)


def record_run(folder: Path, *, scans: int, seconds: float, memory_bytes: int | None) -> None:
    """Add a run to those that made a folder of predictions."""
    runs = [*runs_of(folder), {"scans": scans, "seconds": round(seconds, 3), "memory_bytes": memory_bytes}]
    write_json(folder / RUNS, {"runs": runs})


def runs_of(folder: Path) -> list[dict[str, Any]]:
    """The runs that made a folder of predictions."""
    return list(read_object(folder / RUNS).get("runs", []))


def seconds_per_scan(folders: Sequence[Path]) -> float | None:
    """Mean over all scans of all runs."""
    runs = [run for folder in folders for run in runs_of(folder) if run.get("scans")]
    scans = sum(int(run["scans"]) for run in runs)
    return sum(float(run["seconds"]) for run in runs) / scans if scans else None


def peak_memory(folders: Sequence[Path]) -> int | None:
    """The most of all runs."""
    return max(
        (int(m) for folder in folders for run in runs_of(folder) if (m := run.get("memory_bytes"))), default=None
    )


def read_object(file: Path) -> Mapping[str, Any]:
    """A JSON object, empty if the file is not there or none."""
    try:
        content = read_json(file)
    except (OSError, ValueError, SatunetError):
        return {}
    return content if isinstance(content, dict) else {}


def _cuda() -> Any:
    torch = sys.modules.get("torch")
    return torch.cuda if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized() else None


def _resident_bytes() -> int | None:
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except (OSError, ValueError, IndexError):
        return None
    return pages * os.sysconf("SC_PAGE_SIZE")
