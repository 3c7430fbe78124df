"""Two of every command at once, on the same dataset, fold and output folder.

    python -m tests.drills.twice --times 3 --record

The second starts at once, or later by a part of the first one's time. Each ends well, or one of them says in a sentence that
another job writes there. Afterwards everything is as one run leaves it, after the same command once more if one was refused.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
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
from tests.drills.stages import STAGES, Stage, ended, prepare, run_forked, set_environment, stages, start_forked
from tests.drills.trees import differences, temporary, tree

_REFUSED = (
    "another job is writing",
    "another training of this fold is running",
    "already exists",
    "another job has made it meanwhile",
)


@dataclass
class Figures:
    """What became of pairs.

    Attributes:
        counts: (stage, how it ended) → number.
        bad: What must not have happened, a line each.
    """

    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    bad: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """A table."""
        outcomes = ("both done", "one refused", "bad")
        stages = [name for name in STAGES if any(stage == name for stage, _ in self.counts)]
        return table([["", *outcomes], *([s, *(str(self.counts[s, o]) for o in outcomes)] for s in stages)])


def drill(work: Path, *, names: Sequence[str] = STAGES, times: int = 2, seed: int = 0) -> Figures:
    """Run commands in pairs.

    Args:
        work: An empty folder.
        names: Stages to run in pairs; the others run once, alone.
        times: Pairs of each.
        seed: Of the delays of the second ones.
    """
    run, modules, figures = work / "run", work / "modules.json", Figures()
    set_environment(run)
    prepare(run)
    for stage in stages(run):
        stage.before()
        put(run, work / "start")
        begin = time.monotonic()
        code = run_forked(
            stage.arguments, work / "told", _nothing, lambda: modules.write_text(json.dumps(sorted(sys.modules)))
        )
        seconds = time.monotonic() - begin
        if code != 0:
            raise RuntimeError(f"{stage.name}: alone, it ended with {code}: {(work / 'told').read_text()[-2000:]}")
        expected = tree(run)
        put(run, work / "end")
        if stage.name in names:
            import_what_it_imported(modules)
            chance = random.Random(f"{seed}-{stage.name}")
            for number in range(times):
                put(work / "start", run)
                delay = 0.0 if number == 0 else chance.random() * min(seconds, 2.0)
                outcome, told = _pair(stage, work, delay, expected)
                figures.counts[stage.name, outcome] += 1
                if outcome == "bad":
                    figures.bad.append(f"{stage.name}, the second {delay:.2f} s later: {told}")
                    print(figures.bad[-1], flush=True)
        put(work / "end", run)
        if stage.name == max(names, key=STAGES.index):
            break
    return figures


def _pair(stage: Stage, work: Path, delay: float, expected: dict[str, str]) -> tuple[str, str]:
    run, told = work / "run", [work / "told1", work / "told2"]
    children = [
        start_forked(stage.arguments, file, lambda wait=wait: time.sleep(wait), _nothing)  # type: ignore[misc]
        for file, wait in zip(told, (0.0, delay), strict=True)
    ]
    codes = [ended(child) for child in children]
    said = [file.read_text(errors="replace") for file in told]
    for code, text in zip(codes, said, strict=True):
        if "Traceback (most recent call last)" in text or code not in (0, 2):
            return "bad", f"ended with {code}: {text[-1500:]}"
        if code == 2 and not any(reason in text for reason in _REFUSED):
            return "bad", f"ended with 2: {text[-500:]}"
    if left := temporary(run):
        return "bad", f"left {left[0]}"
    if codes == [2, 2]:
        return "bad", "both were refused"
    other = differences(expected, tree(run))
    if other and codes == [0, 0]:
        return "bad", f"afterwards {'; '.join(other[:3])}"
    return ("both done" if codes == [0, 0] else "one refused"), ""


def _nothing() -> None:
    pass


def main() -> int:
    """Run the drill from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=STAGES)
    parser.add_argument("--times", type=int, default=2, help="pairs of each stage")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--record", action="store_true", help="put the figures into benchmarks/results/drills.txt")
    options = parser.parse_args()
    work = Path(tempfile.mkdtemp())  # no TemporaryDirectory: it would go when a forked process ends
    begin = time.monotonic()
    try:
        figures = drill(work, names=options.stages, times=options.times, seed=options.seed)
    finally:
        shutil.rmtree(work)
    title = "Two of a command at once" if options.record else None
    return finish(
        f"{sum(figures.counts.values())} pairs, seed {options.seed}",
        begin,
        figures.lines(),
        bad=bool(figures.bad),
        title=title,
    )


if __name__ == "__main__":
    sys.exit(main())
