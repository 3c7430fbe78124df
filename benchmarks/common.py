"""What every comparison prints: hardware, versions, medians and ratios."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path


def header(*packages: str) -> None:
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        lines = [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        model = lines[0].partition(":")[2].strip() if lines else model
    versions = ", ".join(f"{p} {importlib.metadata.version(p)}" for p in packages)
    print(f"{model}, {os.cpu_count()} cores, Python {platform.python_version()}, {versions}")


def seconds(function: Callable[[], object], repeats: int = 3) -> float:
    """Median wall time."""
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        function()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def compare(what: str, ours: float, peer: float, name: str) -> None:
    print(f"{what}: satunet {ours * 1e3:.1f} ms, {name} {peer * 1e3:.1f} ms, {peer / ours:.1f} times as fast")
