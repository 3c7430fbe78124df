"""Little memory, and worker processes that the kernel kills, in every command.

    python -m tests.drills.starved --times 4 --record

With little memory (``RLIMIT_AS``: an allowance beside what an interpreter with all modules has; one that was enough is not
exceeded by the next) a command ends well, or says in a sentence that there is none. A worker of its pool gets SIGKILL, as from
the kernel's killer of large processes: the command ends in time, and says which item is missing. Nothing temporary stays, and the same command, undisturbed, does the rest.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.drills.children import table
from tests.drills.faults import import_what_it_imported, put
from tests.drills.record import finish
from tests.drills.stages import STAGES, Stage, prepare, run_forked, set_environment, stages, start_forked
from tests.drills.trees import differences, temporary, tree

LIMIT_SECONDS = 300.0
"""After which a command hangs, however busy the machine is."""
KINDS = ("memory", "killed worker")
_MOST, _LEAST = 256 << 20, 1 << 20
"""Bytes that a command is allowed beside what the interpreter has: at first at most, and at the end."""
POOLED = ("fingerprint", "preprocess", "train", "evaluate", "convert", "benchmark")
"""Commands with worker processes."""


@dataclass
class Figures:
    """What became of commands.

    Attributes:
        counts: (stage, what was done, how it ended) → number.
        bad: What must not have happened, a line each.
    """

    counts: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    bad: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """A table."""
        outcomes = ("done", "told", "aborted", "bad")
        rows = [["", *(f"{kind}: {outcome}" for kind in KINDS for outcome in outcomes)]]
        for stage in STAGES:
            if any(name == stage for name, _, _ in self.counts):
                rows.append([stage, *(str(self.counts[stage, kind, o]) for kind in KINDS for o in outcomes)])
        return table(rows)


def drill(
    work: Path, *, names: Sequence[str] = STAGES, kinds: Sequence[str] = KINDS, times: int = 2, seed: int = 0
) -> Figures:
    """Starve commands.

    Args:
        work: An empty folder.
        names: Stages; the others run once, undisturbed.
        kinds: What to do to them.
        times: How often each.
        seed: Of the memory and of the moments.
    """
    run, modules, figures = work / "run", work / "modules.json", Figures()
    set_environment(run)
    prepare(run)
    for stage in stages(run):
        stage.before()
        put(run, work / "start")
        code = run_forked(
            stage.arguments, work / "told", _nothing, lambda: modules.write_text(json.dumps(sorted(sys.modules)))
        )
        if code != 0:
            raise RuntimeError(
                f"{stage.name}: undisturbed, it ended with {code}: {(work / 'told').read_text()[-2000:]}"
            )
        expected = tree(run)
        put(run, work / "end")
        if stage.name in names:
            import_what_it_imported(modules)
            chance = random.Random(f"{seed}-{stage.name}")
            for kind in kinds:
                if kind == "memory" or stage.name in POOLED:
                    allowance = _MOST
                    for _ in range(times):
                        put(work / "start", run)
                        given = int(chance.random() * allowance)
                        outcome, told = _disturb(stage, kind, work, chance, given, expected)
                        if kind == "memory" and outcome == "done":
                            allowance = max(given, _LEAST)
                        figures.counts[stage.name, kind, outcome] += 1
                        if outcome in ("bad", "aborted"):
                            figures.bad += [f"{stage.name}, {kind}: {told}"] if outcome == "bad" else []
                            print(f"{stage.name}, {kind}, {outcome}: {told}", flush=True)
        put(work / "end", run)
        if stage.name == max(names, key=STAGES.index):
            break
    return figures


def _disturb(
    stage: Stage, kind: str, work: Path, chance: random.Random, allowance: int, expected: dict[str, str]
) -> tuple[str, str]:
    told, run = work / "told", work / "run"
    if kind == "memory":
        limit = _address_space() + allowance
        what = f"{allowance / (1 << 20):.1f} MiB more than the interpreter has"
        child = start_forked(stage.arguments, told, lambda: _limit(limit), _unlimit)
    else:
        what = "worker killed"
        child = start_forked(_with_workers(stage), told, _nothing, _nothing)
        time.sleep(0.05)
        _kill_a_worker(child, chance.random() * 1.5)
    code = _ended(child)
    text = told.read_text(errors="replace")
    outcome = "done" if code == 0 else "told"
    if code is None:
        return "bad", f"{what}: hangs: {text[-500:]}"
    if code in (-signal.SIGABRT, -signal.SIGSEGV) or (code == 127 and "thread-local data: ABORT" in text):
        outcome = "aborted"  # a library in C++ that does not check, or the loader of libraries
    elif "Traceback (most recent call last)" in text:
        return "bad", f"{what}: traceback: {text[-1500:]}"
    elif code not in (0, 1, 2):
        return "bad", f"{what}: ended with {code}: {text[-500:]}"
    elif code != 0 and not any(word in text.lower() for word in ("memory", "died", "killed")):
        return "bad", f"{what}: ended with {code}, and does not say why: {text[-500:]}"
    if outcome != "aborted" and (left := temporary(run)):
        return "bad", f"{what}: left {left[0]}"
    again = run_forked(stage.again if code != 0 or stage.name != "export" else ("--version",), told, _nothing, _nothing)
    if again != 0:
        return "bad", f"{what}: the next run ended with {again}: {told.read_text(errors='replace')[-500:]}"
    if other := differences(expected, tree(run)):
        return "bad", f"{what}: after the next run, {'; '.join(other[:3])}"
    return outcome, f"{what}: {text[-200:]}"


def _with_workers(stage: Stage) -> tuple[str, ...]:
    """The command with two worker processes."""
    given = list(stage.arguments)
    for option, count in (("-np", "2"), ("--workers", "1")):
        if option in given:
            given[given.index(option) + 1] = count
    return tuple(given) if given != list(stage.arguments) else (*given, "-np", "2")


def _kill_a_worker(parent: int, delay: float) -> None:
    """SIGKILL to the first worker process of a command, some time after it was started; none may come."""
    end = time.monotonic() + 60
    while time.monotonic() < end and Path(f"/proc/{parent}/stat").exists():
        for task in Path(f"/proc/{parent}/task").glob("*/children"):
            with contextlib.suppress(OSError):
                for child in task.read_text().split():
                    if "spawn_main" in Path(f"/proc/{child}/cmdline").read_text().replace("\0", " "):
                        time.sleep(delay)
                        os.kill(int(child), signal.SIGKILL)
                        return
        if Path(f"/proc/{parent}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
            return
        time.sleep(0.02)


def _ended(child: int) -> int | None:
    """Exit code of a process; ``None``, and it is killed, if it hangs."""
    end = time.monotonic() + LIMIT_SECONDS
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


def _address_space() -> int:
    """Bytes of this process's address space."""
    return int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")


def _limit(size: int) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (size, hard))


def _unlimit() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (hard, hard))


def _nothing() -> None:
    pass


def main() -> int:
    """Run the drill from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=STAGES)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--times", type=int, default=2, help="how often each")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--record", action="store_true", help="put the figures into benchmarks/results/drills.txt")
    options = parser.parse_args()
    work = Path(tempfile.mkdtemp())  # no TemporaryDirectory: it would go when a forked process ends
    begin = time.monotonic()
    try:
        figures = drill(work, names=options.stages, kinds=options.kinds, times=options.times, seed=options.seed)
    finally:
        shutil.rmtree(work)
    title = "Little memory, and killed workers" if options.record else None
    return finish(
        f"{sum(figures.counts.values())} commands, seed {options.seed}",
        begin,
        figures.lines(),
        bad=bool(figures.bad),
        title=title,
    )


if __name__ == "__main__":
    sys.exit(main())
