"""What every part of the GPU benchmark uses: time, memory, a report that is written as it grows, and a budget."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import os
import platform
import signal
import statistics
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from satunet.network.config import NetworkConfig

Axes = tuple[int, int, int]


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How large everything is."""

    nano: NetworkConfig
    pro: NetworkConfig
    patch: Axes = (288, 288, 96)
    training_patch: Axes = (288, 288, 64)
    training_batch: int = 2
    queries: int = 32
    checked_patch: Axes = (96, 96, 64)
    scan: Axes = (300, 300, 200)
    prompts: tuple[int, ...] = (5, 117, 497)
    matrix: int = 8192
    copied_bytes: int = 4 << 30
    loss_map: Axes = (192, 192, 96)
    folder_scans: int = 4

    @classmethod
    def full(cls) -> Sizes:
        """SAT's own sizes (sh/train_sat_nano.sh, data/inference_dataset.py)."""
        return cls(nano=NetworkConfig.nano(), pro=NetworkConfig.pro())

    @classmethod
    def small(cls) -> Sizes:
        """The same code in a minute of a CPU."""
        thin = dataclasses.replace(
            NetworkConfig.nano(),
            features_per_stage=(8, 8, 8, 16, 16, 16),
            mask_heads=((8, 8), (8, 8), (8, 8), (16, 16)),
        )
        return cls(
            nano=thin,
            pro=dataclasses.replace(thin, n_conv_per_stage=(3,) * 6, n_conv_per_stage_decoder=(3,) * 5, preset="pro"),
            patch=(64, 64, 32),
            training_patch=(64, 64, 32),
            queries=8,
            checked_patch=(64, 64, 32),
            scan=(80, 80, 40),
            matrix=256,
            copied_bytes=16 << 20,
            loss_map=(16, 16, 16),
            folder_scans=2,
        )


@dataclass(frozen=True)
class Measured:
    """What a call takes.

    Attributes:
        seconds: Median.
        spread: Least and most.
        peak_gb: Most memory of the GPU while it ran, of all that the process holds there; 0 on a CPU.
    """

    seconds: float
    spread: tuple[float, float]
    peak_gb: float

    def __str__(self) -> str:
        low, high = (1e3 * s for s in self.spread)
        memory = f", {self.peak_gb:.1f} GB" if self.peak_gb else ""
        return f"{1e3 * self.seconds:.1f} ms ({low:.1f} to {high:.1f}){memory}"


@dataclass
class Bench:
    """A run.

    Attributes:
        device: Device to measure on.
        sizes: See :class:`Sizes`.
        output: Text file that holds the same as what is printed.
        deadline: Deadline of the whole run, by :func:`time.monotonic`.
        peak: Measured rate of a large bfloat16 matrix product, operations per second.
        fused: Whether the engine ``fused`` is known to run there.
    """

    device: torch.device
    sizes: Sizes
    output: Path
    deadline: float
    peak: float = 0.0
    fused: bool = False
    failed: list[str] = field(default_factory=list)

    @property
    def cuda(self) -> bool:
        return self.device.type == "cuda"

    def say(self, line: str = "") -> None:
        """A line of the report, at once."""
        print(line, flush=True)
        with self.output.open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    def table(self, rows: Sequence[Sequence[str]]) -> None:
        """Rows of a table, the first of them its heads."""
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        for row in rows:
            cells = [row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))]
            self.say("  " + "  ".join(cells).rstrip())

    def header(self) -> None:
        card = torch.cuda.get_device_name(self.device) if self.cuda else "no GPU: a rehearsal on a CPU"
        versions = f"Python {platform.python_version()}, torch {torch.__version__}"
        if self.cuda:
            versions += f", cuDNN {torch.backends.cudnn.version()}"
        self.say(f"{card}, {_processor()}, {os.cpu_count()} cores, {versions}")

    def part(self, name: str, function: Callable[[Bench], None], limit: float) -> None:
        """Run a part; what is wrong with it is said, and the others go on."""
        left = self.deadline - time.monotonic()
        if left < 3:
            self.say(f"== {name}: left out, the time is up")
            return
        began = time.monotonic()
        self.say(f"== {name}")
        try:
            with _alarm(min(limit, left)):
                function(self)
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            self.failed.append(name)
            where = traceback.extract_tb(error.__traceback__)[-1]
            text = (str(error).strip() or type(error).__name__).splitlines()[0]
            self.say(f"  failed: {type(error).__name__}: {text[:300]} ({Path(where.filename).name}:{where.lineno})")
            error.__traceback__ = None
        self.clean()
        self.say(f"  ({time.monotonic() - began:.1f} s)")

    def clean(self) -> None:
        """Give up what nobody uses."""
        gc.collect()
        if self.cuda:
            torch.cuda.synchronize()
            torch.cuda.empty_cache()

    def wait(self) -> None:
        """Until the device has done what it was told."""
        if self.cuda:
            torch.cuda.synchronize()

    def time(self, call: Callable[[], object], *, budget: float = 1.0, most: int = 15, warm: int = 2) -> Measured:
        """Median of several calls after some that warm up; of one that is slow, fewer."""
        for _ in range(warm):
            call()
        self.wait()
        if self.cuda:
            torch.cuda.reset_peak_memory_stats()
        taken: list[float] = []
        began = time.monotonic()
        while len(taken) < 2 or (len(taken) < most and time.monotonic() - began < budget):
            if self.cuda:
                start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                start.record()
                call()
                end.record()
                torch.cuda.synchronize()
                taken.append(start.elapsed_time(end) / 1e3)
            else:
                started = time.perf_counter()
                call()
                taken.append(time.perf_counter() - started)
        peak = torch.cuda.max_memory_allocated() / 2**30 if self.cuda else 0.0
        return Measured(statistics.median(taken), (min(taken), max(taken)), peak)

    def once(self, call: Callable[[], Any]) -> tuple[float, float, Any]:
        """Wall seconds, peak GB on the GPU, and what the call gives."""
        self.wait()
        if self.cuda:
            torch.cuda.reset_peak_memory_stats()
        started = time.perf_counter()
        found = call()
        self.wait()
        seconds = time.perf_counter() - started
        return seconds, torch.cuda.max_memory_allocated() / 2**30 if self.cuda else 0.0, found

    def busy(self, call: Callable[[], object]) -> str:
        """Share of the time in which the GPU computes or copies, and what takes it most; by its own profiler."""
        if not self.cuda:
            call()
            return "not known on a CPU"
        from torch.autograd import DeviceType
        from torch.profiler import ProfilerActivity, profile

        call()
        self.wait()
        with profile(activities=[ProfilerActivity.CUDA]) as profiler:
            started = time.perf_counter()
            call()
            self.wait()
            wall = time.perf_counter() - started
        sums: dict[str, list[float]] = {}
        for event in profiler.profiler.kineto_results.events():  # type: ignore[union-attr]
            if event.device_type() == DeviceType.CUDA:
                sums.setdefault(event.name(), []).append(event.duration_ns() / 1e9)
        total = sum(sum(v) for v in sums.values())
        lines = [f"busy {100 * total / wall:.0f} % of {1e3 * wall:.1f} ms ({sum(map(len, sums.values()))} kernels)"]
        for name, values in sorted(sums.items(), key=lambda item: -sum(item[1]))[:10]:
            lines.append(f"    {1e3 * sum(values):8.2f} ms  {len(values):6d}  {name[:100]}")
        return "\n".join(lines)


@contextlib.contextmanager
def _alarm(seconds: float) -> Iterator[None]:
    def ring(*_: Any) -> None:
        raise TimeoutError(f"its time of {seconds:.0f} s is up")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
