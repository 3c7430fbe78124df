"""A kill, a disk that fails, a disk that is full, a disk that is read-only: at every event of every long command.

    python -m tests.drills.faults --events 20 --record
    python -m tests.drills.faults --stages predict --faults kill --events 0      # 0: every event (of writes in a row, three)

An event is a call by which a process changes a file or folder (``events.c`` counts them). For each event and fault the
command runs from the same beginning and meets the fault there; then the same command runs again without it. What has to
hold is told by :func:`wrong`.
"""

from __future__ import annotations

import argparse
import ctypes
import errno
import importlib
import itertools
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.drills.record import finish
from tests.drills.stages import STAGES, Stage, prepare, run_forked, set_environment, stages
from tests.drills.trees import differences, temporary, tree

SOURCE = Path(__file__).with_name("events.c")
FAULTS = {"kill": (2, 0), "EIO": (3, errno.EIO), "ENOSPC": (4, errno.ENOSPC), "EROFS": (5, errno.EROFS)}
"""Name → how the event is made to fail. A bad block fails once; a full disk refuses all that takes room from then on, one
that has become read-only refuses everything."""
_COUNT = 1


def compiled(folder: Path) -> Path | None:
    """The library that counts events; ``None`` where there is no compiler."""
    compiler = next((c for c in ("cc", "gcc", "clang") if shutil.which(c)), None)
    if compiler is None or sys.platform != "linux":
        return None
    library = folder / "events.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", str(library), str(SOURCE), "-ldl"], check=True)
    return library


@dataclass
class Figures:
    """What became of faults.

    Attributes:
        events: Stage → events of an undisturbed run.
        counts: (stage, fault, how it ended) → number.
        bad: What must not have happened, a line each.
    """

    events: dict[str, int] = field(default_factory=dict)
    counts: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    bad: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """A table: how many faults were survived, of how many."""
        rows = [["", "events", *FAULTS]]
        for stage, events in self.events.items():
            cells = []
            for fault in FAULTS:
                own = {how: n for (s, f, how), n in self.counts.items() if (s, f) == (stage, fault)}
                cells.append(f"{own.get('good', 0)} of {sum(own.values())}" if own else "-")
            rows.append([stage, str(events), *cells])
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        return ["  ".join(c.ljust(w) if not i else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True)))
                for row in rows]  # fmt: skip


def drill(
    work: Path, *, names: Sequence[str] = STAGES, faults: Sequence[str] = tuple(FAULTS), events: int = 5, seed: int = 0
) -> Figures:
    """Run every stage with faults; this process must have been started with the library (:func:`compiled`).

    Args:
        work: An empty folder.
        names: Stages to disturb; the others run once, undisturbed.
        faults: Which faults.
        events: How many events of each stage, drawn by the seed; 0 takes all (:func:`telling`).
        seed: Of the draw.
    """
    run, figures = work / "run", Figures()
    set_environment(run)
    prepare(run)
    for stage in stages(run):
        stage.before()
        start = work / "start"
        put(run, start)
        journal, told = work / "journal", work / "told"
        journal.unlink(missing_ok=True)
        code = _run(stage.arguments, told, run, _COUNT, 0, 0, journal)
        if code != 0:
            raise RuntimeError(f"{stage.name}: undisturbed, it ended with {code}: {told.read_text()[-2000:]}")
        lines = journal.read_text().splitlines()
        expected = tree(run)
        import_what_it_imported(journal.with_suffix(".modules"))
        put(run, work / "end")
        if stage.name in names:
            figures.events[stage.name] = len(lines)
            print(f"{stage.name}: {len(lines)} events", flush=True)
            chance = random.Random(f"{seed}-{stage.name}")
            for fault in faults:
                chosen = (
                    telling(lines)
                    if events == 0
                    else sorted(chance.sample(range(1, len(lines) + 1), min(events, len(lines))))
                )
                for number in chosen:
                    put(start, run)
                    problem = _disturb(stage, run, told, fault, number, expected)
                    figures.counts[stage.name, fault, "bad" if problem else "good"] += 1
                    if problem:
                        where = lines[number - 1].replace(str(run), "")
                        figures.bad.append(f"{stage.name}, {fault} at {where}: {problem}")
                        print(figures.bad[-1], flush=True)
        put(work / "end", run)
        if stage.name == max(names, key=STAGES.index):
            break
    return figures


def telling(journal: Sequence[str]) -> list[int]:
    """Numbers of all events, but of several calls in a row that do the same to the same file the first, middle and last.

    Args:
        journal: The events in order: number, call, file.
    """
    chosen: set[int] = set()
    for _, same in itertools.groupby(enumerate(journal, 1), key=lambda event: event[1].split(" ", 1)[1]):
        numbers = [number for number, _ in same]
        chosen |= {numbers[0], numbers[len(numbers) // 2], numbers[-1]}
    return sorted(chosen)


def _disturb(stage: Stage, run: Path, told: Path, fault: str, number: int, expected: dict[str, str]) -> str:
    """What is wrong after a fault at an event; empty if all is as it must be."""
    mode, reason = FAULTS[fault]
    code = _run(stage.arguments, told, run, mode, number, reason)
    first = told.read_text(errors="replace")
    left = temporary(run)
    problem = wrong(fault, code, first, left, lambda: differences(expected, tree(run)))
    again = _run(stage.again, told, run, 0, 0, 0)
    second = told.read_text(errors="replace")
    if again != 0 and not (stage.name == "export" and code == 0 and "already exists" in second):
        problem = problem or f"the next run ended with {again}: {_last(second)}"
    elif other := _not_told(differences(expected, tree(run)), first):
        problem = problem or f"after the next run, {'; '.join(other[:4])}"
    return problem


def _not_told(differing: list[str], told: str) -> list[str]:
    """Differences that the disturbed run did not tell of: it goes on without these files, and says so."""
    spared = [name for name in ("checkpoint_best", "scans.index") if name in told]
    return [name for name in differing if not any(file in name for file in spared)]


def wrong(fault: str, code: int, told: str, left: list[str], differing: Callable[[], list[str]]) -> str:
    """What must not have been: a traceback, another exit code, something temporary, a success that is none.

    Args:
        fault: Which fault.
        code: Exit code of the run that met it.
        told: What it printed.
        left: Temporary files and folders.
        differing: Called to know what differs from an undisturbed run.
    """
    if fault == "kill":
        return "" if code == -9 else f"ended with {code}, not killed: {_last(told)}"
    if "Traceback (most recent call last)" in told:
        return f"traceback: {_last(told)}"
    if code not in (0, 1, 2):
        return f"ended with {code}: {_last(told)}"
    if code == 0 and (other := _not_told(differing(), told)):
        return f"ended with 0, but {'; '.join(other[:3])}"
    if code != 0 and not _says(fault, told):
        return f"the reason is not told: {_last(told)}"
    if left and fault != "EROFS":
        return f"left {left[0]}"
    return ""


def _says(fault: str, told: str) -> bool:
    return {"EIO": "input/output error", "ENOSPC": "no space left", "EROFS": "read-only file system"}[
        fault
    ] in told.lower()


def _last(told: str) -> str:
    lines = [line.strip() for line in told.splitlines() if line.strip()]
    return lines[-1][:300] if lines else "nothing was said"


def _run(
    arguments: tuple[str, ...],
    told: Path,
    folder: Path,
    mode: int,
    number: int,
    reason: int,
    journal: Path | None = None,
) -> int:
    library = ctypes.CDLL(None)

    def arm() -> None:
        handle = -1 if journal is None else os.open(journal, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        library.drill_arm(mode, ctypes.c_long(number), reason, os.fsencode(folder), handle)

    def disarm() -> None:
        library.drill_arm(0, ctypes.c_long(0), 0, b"", -1)
        if journal is not None:
            journal.with_suffix(".modules").write_text(json.dumps(sorted(sys.modules)))

    return run_forked(arguments, told, arm, disarm)


def import_what_it_imported(file: Path) -> None:
    """Import in this process what a command imported: those that are forked from it start at once."""
    for name in json.loads(file.read_text()):
        if name not in sys.modules and not name.startswith(("__", "tests")):
            try:
                importlib.import_module(name)
            except Exception:
                continue


def put(source: Path, target: Path) -> None:
    """Make ``target`` a copy of ``source``, times included."""
    shutil.rmtree(target, ignore_errors=True)
    subprocess.run(["cp", "-a", str(source), str(target)], check=True)


def main() -> int:
    """Run the drill from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=STAGES)
    parser.add_argument("--faults", nargs="+", choices=FAULTS, default=tuple(FAULTS))
    parser.add_argument(
        "--events",
        type=int,
        default=5,
        help="events of each stage; 0 for all (of many writes in a row to one file, three)",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--record", action="store_true", help="put the figures into benchmarks/results/drills.txt")
    options = parser.parse_args()
    work = Path(tempfile.mkdtemp())  # no TemporaryDirectory: it would go when a forked process ends
    try:
        return _in(work, options)
    finally:
        shutil.rmtree(work)


def _in(work: Path, options: argparse.Namespace) -> int:
    if "DRILL_EVENTS" not in os.environ:
        library = compiled(work)
        if library is None:
            print("this drill needs Linux and a C compiler")
            return 2
        environment = os.environ | {"LD_PRELOAD": str(library), "DRILL_EVENTS": "1"}
        command = [sys.executable, "-m", "tests.drills.faults", *sys.argv[1:]]
        return subprocess.run(command, env=environment, check=False).returncode
    begin = time.monotonic()
    figures = drill(work, names=options.stages, faults=options.faults, events=options.events, seed=options.seed)
    title = "Faults at events of the file system" if options.record else None
    return finish(
        f"{sum(figures.counts.values())} faults, seed {options.seed}",
        begin,
        figures.lines(),
        bad=bool(figures.bad),
        title=title,
    )


if __name__ == "__main__":
    sys.exit(main())
