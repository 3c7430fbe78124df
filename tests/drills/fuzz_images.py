"""Damaged images: no crash, no hang, no traceback, and no other voxels where a checksum covers them.

    python -m tests.drills.fuzz_images --mutations 20000 --record

Each mutation is fixed by the seed and its number. A process of its own reads the images, 200 at a time, and says before
and after each which it is, so that a crash or a hang is known by its number and the drill goes on behind it.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from tests.drills.image_seeds import Seed, make_seeds, packed_again, unpacked
from tests.drills.mutations import mutate
from tests.drills.record import record

SECONDS = 20.0
"""Of a processor's time, after which reading one small image counts as a hang …"""
_STILL = 300.0
"""… or of the clock's: a busy machine is no hang, a process that waits for ever is one."""
_AT_ONCE = 500
CHILD = [sys.executable, "-m", "tests.drills.fuzz_images", "--child"]
_MEMORY = 4 << 30
BAD = ("crash", "hang", "traceback", "file not named", "checksum missed", "much memory")


@dataclass
class Figures:
    """What became of mutations.

    Attributes:
        counts: (kind of image, outcome) → number.
        bad: Number of a mutation that must not have ended so → what it was.
        slowest: Seconds of the slowest reading.
    """

    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    bad: dict[int, str] = field(default_factory=dict)
    slowest: float = 0.0

    def lines(self) -> list[str]:
        """A table."""
        kinds = sorted({kind for kind, _ in self.counts})
        outcomes = ["same", "refused", "other place", "other voxels", *BAD]
        rows = [["", "mutations", *outcomes]]
        for kind in [*kinds, "all"]:
            own = [sum(n for (k, o), n in self.counts.items() if kind in (k, "all") and o == what) for what in outcomes]
            rows.append([kind, str(sum(own)), *map(str, own)])
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        table = ["  ".join(c.ljust(w) if not i else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True)))
                 for row in rows]  # fmt: skip
        return [*table, f"slowest reading: {self.slowest:.1f} s"]


def drill(mutations: int, seed: int = 0, folder: Path | None = None) -> Figures:
    """Damage and read ``mutations`` images."""
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(folder or scratch)
        kinds = {s.kind for s in make_seeds(work / "seeds")}
        assert kinds
        figures = Figures()
        first = 0
        while first < mutations:
            first = _batch(work, seed, first, min(mutations, first + _AT_ONCE), figures)
        return figures


def _batch(work: Path, seed: int, first: int, end: int, figures: Figures) -> int:
    """Run mutations in one process; returns the number behind the last that ended."""
    command = [*CHILD, str(work), str(seed), str(first), str(end)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=Path(__file__).parents[2]
    ) as child:
        lines: queue.Queue[str] = queue.Queue()
        threading.Thread(target=_pump, args=(child.stdout, lines), daemon=True).start()
        running: dict[str, object] | None = None
        done = first
        for line in _until_silent(lines, child.pid):
            entry = json.loads(line)
            if "outcome" in entry:
                _count(figures, entry)
                running, done = None, entry["n"] + 1
            else:
                running = entry
        if done < end:
            outcome = "hang" if child.poll() is None else "crash"
            child.kill()
            if running is None:
                raise RuntimeError(f"the drill's own process ended with {child.wait()} before mutation {done}")
            _count(figures, {**running, "outcome": outcome, "seconds": 0.0, "told": f"code {child.wait()}"})
            done = int(str(running["n"])) + 1
    return done


def _pump(stream: object, lines: queue.Queue[str]) -> None:
    for line in stream:  # type: ignore[attr-defined]
        lines.put(line)
    lines.put("")


def _until_silent(lines: queue.Queue[str], pid: int) -> Iterator[str]:
    """Lines of a process, until it ends or hangs."""
    since, spent = time.monotonic(), 0.0
    while True:
        try:
            line = lines.get(timeout=1.0)
        except queue.Empty:
            if time.monotonic() - since > _STILL or _processor_seconds(pid) - spent > SECONDS:
                return
            continue
        if not line:
            return
        since, spent = time.monotonic(), _processor_seconds(pid)
        yield line


def _processor_seconds(pid: int) -> float:
    """Time that a process has computed; 0 where that cannot be known."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _count(figures: Figures, entry: dict[str, object]) -> None:
    figures.counts[str(entry["kind"]), str(entry["outcome"])] += 1
    figures.slowest = max(figures.slowest, float(str(entry["seconds"])))
    if entry["outcome"] in BAD:
        figures.bad[int(str(entry["n"]))] = (
            f"{entry['kind']}, {entry['way']}: {entry['outcome']} {entry.get('told', '')}"
        )


def _child(work: Path, seed: int, first: int, end: int) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    seeds = make_seeds(work / f"seeds{first}")
    originals = {s: _content(s) for s in seeds}
    sound = {s: s.damaged.read_bytes() for s in seeds}
    for n in range(first, end):
        rng = random.Random(f"{seed}-{n}")
        chosen = rng.choices(seeds, weights=[s.share for s in seeds])[0]
        way, content = mutate(unpacked(chosen, sound[chosen]), chosen.header, rng)
        print(json.dumps({"n": n, "kind": chosen.kind, "way": way}), flush=True)
        chosen.damaged.write_bytes(packed_again(chosen, content))
        begin = time.monotonic()
        outcome, told = _outcome(chosen, originals[chosen])
        seconds = time.monotonic() - begin
        chosen.damaged.write_bytes(sound[chosen])
        print(json.dumps({"n": n, "kind": chosen.kind, "way": way, "outcome": outcome, "told": told, "seconds": seconds}),
              flush=True)  # fmt: skip
    shutil.rmtree(work / f"seeds{first}")


def _content(seed: Seed) -> list[tuple[np.ndarray, np.ndarray]]:
    """Voxels and affines of what is at a seed's place."""
    from satunet.images.dicom import find_series, read_series
    from satunet.images.image import read_grid, read_image, read_label_map

    if seed.path.is_dir():
        images = [read_series(series) for series in find_series(seed.path)]
    else:
        images = [read_image(seed.path)]
        assert read_grid(seed.path).shape == images[0].grid.shape
        if "scaled" not in seed.path.name:
            read_label_map(seed.path)
    return [(image.array, image.grid.affine) for image in images]


def _outcome(seed: Seed, original: list[tuple[np.ndarray, np.ndarray]]) -> tuple[str, str]:
    from satunet.errors import ScanError

    try:
        found = _content(seed)
    except ScanError as error:
        named = str(seed.path) in str(error)
        return ("refused" if named else "file not named"), str(error)[:300]
    except MemoryError as error:
        return "much memory", str(error)[:300]
    except BaseException as error:
        place = error.__traceback__
        while place is not None and place.tb_next is not None:
            place = place.tb_next
        where = f"{Path(place.tb_frame.f_code.co_filename).name}:{place.tb_lineno}" if place else ""
        return "traceback", f"{type(error).__name__} at {where}: {error}"[:300]
    if not found:
        return "refused", "nothing found"
    same = len(found) == len(original) and all(
        a.shape == b.shape and np.array_equal(a, b) for (a, _), (b, _) in zip(found, original, strict=True)
    )
    if not same:
        return ("checksum missed" if seed.covered else "other voxels"), ""
    moved = any(not np.allclose(a, b, atol=1e-3, rtol=1e-4) for (_, a), (_, b) in zip(found, original, strict=True))
    return ("other place" if moved else "same"), ""


def main() -> int:
    """Run the drill from the command line."""
    if sys.argv[1:2] == ["--child"]:
        _child(Path(sys.argv[2]), *map(int, sys.argv[3:6]))
        return 0
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--mutations", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--record", action="store_true", help="put the figures into benchmarks/results/drills.txt")
    options = parser.parse_args()
    begin = time.monotonic()
    figures = drill(options.mutations, options.seed)
    lines = [f"{options.mutations} mutations, seed {options.seed}, {time.monotonic() - begin:.0f} s", *figures.lines()]
    print("\n".join(lines))
    for n, what in sorted(figures.bad.items())[:100]:
        print(f"  mutation {n}: {what}")
    if options.record:
        record("Damaged images", lines)
    return 1 if figures.bad else 0


if __name__ == "__main__":
    sys.exit(main())
