"""Many numbered mutations, each tried in a child process that may crash or hang without ending the drill.

A process tries them one after the other and says before and after each which it is: a crash or a hang is known by its
number, and the drill goes on behind it in a new process.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import resource
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from satunet.errors import SatunetError

SECONDS = 20.0
"""Of a processor's time, after which trying one counts as a hang …"""
STILL = 300.0
"""… or of the clock's: a busy machine is no hang, a process that waits for ever is one."""
AT_ONCE = 2500
"""Mutations that a process tries: its start takes as long as some hundreds of them."""
MEMORY = 4 << 30
BAD = ("missed", "not repaired", "crash", "hang", "traceback", "file not named", "checksum missed", "much memory")


@dataclass
class Figures:
    """What became of mutations.

    Attributes:
        good: Outcomes that may be.
        counts: (kind, outcome) → number.
        bad: Number of a mutation that must not have ended so → what it was.
        slowest: Seconds of the slowest.
    """

    good: tuple[str, ...] = ("same", "refused", "other place", "other voxels")
    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    bad: dict[int, str] = field(default_factory=dict)
    slowest: float = 0.0

    def count(self, entry: dict[str, object]) -> None:
        """Take in what a process told of a mutation."""
        self.counts[str(entry["kind"]), str(entry["outcome"])] += 1
        self.slowest = max(self.slowest, float(str(entry["seconds"])))
        if entry["outcome"] in BAD:
            told = f"{entry['kind']}, {entry['way']}: {entry['outcome']} {entry.get('told', '')}"
            self.bad[int(str(entry["n"]))] = told

    def lines(self) -> list[str]:
        """A table."""
        kinds = sorted({kind for kind, _ in self.counts})
        outcomes = [*self.good, *(b for b in BAD if any(o == b for _, o in self.counts))]
        rows = [["", "mutations", *outcomes]]
        for kind in [*kinds, "all"]:
            own = [sum(n for (k, o), n in self.counts.items() if kind in (k, "all") and o == what) for what in outcomes]
            rows.append([kind, str(sum(own)), *map(str, own)])
        return [*table(rows), f"bad: {len(self.bad)}; slowest: {self.slowest:.1f} s"]


def table(rows: list[list[str]]) -> list[str]:
    """Lines of a table: the first column to the left, the others to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return ["  ".join(c.ljust(w) if not i else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True)))
            for row in rows]  # fmt: skip


def try_all(command: list[str], mutations: int, figures: Figures, at_once: int = AT_ONCE) -> Figures:
    """Try the mutations 0 … in processes.

    Args:
        command: What starts one, but for the numbers of the first mutation and of the one behind the last.
        mutations: How many.
        figures: To count in.
        at_once: How many a process tries.
    """
    first = 0
    while first < mutations:
        first = _batch(command, first, min(mutations, first + at_once), figures)
    return figures


def _batch(command: list[str], first: int, end: int, figures: Figures) -> int:
    """Try some in one process; returns the number behind the last that ended."""
    with subprocess.Popen(
        [*command, str(first), str(end)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, encoding="utf-8",
        cwd=Path(__file__).parents[2],
    ) as child:  # fmt: skip
        lines: queue.Queue[str] = queue.Queue()
        threading.Thread(target=_pump, args=(child.stdout, lines), daemon=True).start()
        running: dict[str, object] | None = None
        done = first
        silent = True
        for line in _until_silent(lines, child.pid):
            if not line:
                silent = False
                break
            entry = json.loads(line)
            if "outcome" in entry:
                figures.count(entry)
                running, done = None, entry["n"] + 1
            else:
                running = entry
        if done < end:
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(timeout=0 if silent else STILL)  # one that crashes takes its time to end
            outcome = "hang" if child.poll() is None else "crash"
            child.kill()
            if running is None:
                raise RuntimeError(f"the drill's own process ended with {child.wait()} before mutation {done}")
            figures.count({**running, "outcome": outcome, "seconds": 0.0, "told": f"code {child.wait()}"})
            done = int(str(running["n"])) + 1
    return done


def _pump(stream: object, lines: queue.Queue[str]) -> None:
    for line in stream:  # type: ignore[attr-defined]
        lines.put(line)
    lines.put("")


def _until_silent(lines: queue.Queue[str], pid: int) -> Iterator[str]:
    """Lines of a process, until it hangs; an empty one says that it has ended."""
    since, spent = time.monotonic(), 0.0
    while True:
        try:
            line = lines.get(timeout=1.0)
        except queue.Empty:
            if time.monotonic() - since > STILL or _processor_seconds(pid) - spent > SECONDS:
                return
            continue
        since, spent = time.monotonic(), _processor_seconds(pid)
        yield line


def _processor_seconds(pid: int) -> float:
    """Time that a process has computed; 0 where that cannot be known."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def limit_memory() -> None:
    """In a process that tries mutations: what a header or a number asks for is not given without end."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))


def say(n: int, kind: str, way: str, attempt: Callable[[], tuple[str, str]]) -> None:
    """Try a mutation, and tell the drill before and after it.

    Args:
        n: Its number.
        kind: What is damaged.
        way: How.
        attempt: Returns the outcome, and what was said.
    """
    stream = sys.__stdout__
    assert stream is not None
    print(json.dumps({"n": n, "kind": kind, "way": way}), flush=True, file=stream)
    begin = time.monotonic()
    outcome, told = attempt()
    seconds = time.monotonic() - begin
    entry = {"n": n, "kind": kind, "way": way, "outcome": outcome, "told": told, "seconds": seconds}
    print(json.dumps(entry), flush=True, file=stream)


def refusal(error: BaseException, named: tuple[str, ...]) -> tuple[str, str]:
    """What an error counts as.

    Args:
        error: That reading raised.
        named: Texts of which one has to be in its message.
    """
    if isinstance(error, SatunetError):
        return ("refused" if any(n in str(error) for n in named) else "file not named"), str(error)[:300]
    if isinstance(error, MemoryError):
        return "much memory", str(error)[:300]
    place = error.__traceback__
    where = ""
    while place is not None:
        file = Path(place.tb_frame.f_code.co_filename)
        if "site-packages" not in file.parts and "tests" not in file.parts and "lib" not in file.parts:
            where = f"{file.name}:{place.tb_lineno}"
        place = place.tb_next
    return "traceback", f"{type(error).__name__} at {where}: {error}"[:300]
