"""Damaged JSON: whatever reads it, no traceback, no crash, no hang; what is refused is named.

    python -m tests.drills.fuzz_json --mutations 20000 --record

Seven of ten mutations change the structure (a value of another type, a key that is missing, renamed or doubled, nesting,
numbers beyond all bounds), the others bytes. Each is fixed by the seed and its number.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import functools
import io
import json
import logging
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from satunet.jobs.files import DIGEST
from tests.drills.children import Figures, limit_memory, refusal, say, try_all
from tests.drills.json_readers import Reader, readers
from tests.drills.mutations import mutate
from tests.drills.record import record
from tests.drills.stages import set_environment

CHILD = [sys.executable, "-m", "tests.drills.fuzz_json", "--child"]
GOOD = ("accepted", "refused")
VALUES: list[Any] = [
    None, True, False, 0, -1, 1, 2**31, 2**63, 2**70, 1e308, -1e308, 1e-320, float("nan"), float("inf"), "", "x", "0",
    "../../x", "ü" * 300, "\x00", "x" * 100_000, [], {}, [[]], [None], [1, 2, 3], {"a": 1}, {"": None}, [[[[[[[[1]]]]]]]],
]  # fmt: skip
WHOLE = ["[" * 200_000, '{"a":' * 100_000 + "1" + "}" * 100_000, '{"version": ' + "9" * 100_000 + "}", "", "null", "[]",
         "{}", "1", '"x"', '{"version": NaN}', '{"version": 1, "version": 2}', "\ufeff{}", '{"\\ud800": 1}']  # fmt: skip


def drill(mutations: int, seed: int = 0, world: Path | None = None) -> Figures:
    """Damage and read ``mutations`` files.

    Args:
        mutations: How many.
        seed: Of the mutations.
        world: An example (:func:`tests.drills.stages.make_world`); one is made if not given.
    """
    with tempfile.TemporaryDirectory() as scratch:
        if world is None:
            world = Path(scratch) / "run"
            subprocess.run([sys.executable, "-m", "tests.drills.stages", str(world)], check=True, capture_output=True)
        return try_all([*CHILD, str(world), str(seed)], mutations, Figures(good=GOOD))


def changed(content: bytes, lines: bool, rng: random.Random) -> tuple[str, bytes]:
    """A damaged JSON file: what was done, and the bytes."""
    if rng.random() < 0.03:
        return "whole", rng.choice(WHOLE).encode("utf-8", "surrogatepass")
    if rng.random() < 0.7:
        values = [json.loads(line) for line in content.splitlines()] if lines else [json.loads(content)]
        at = rng.randrange(len(values))
        if isinstance(values[at], dict) and rng.random() < 0.8:  # else its digest alone would find most of what is done
            values[at].pop(DIGEST, None)
        for _ in range(rng.choice([1, 1, 1, 2])):
            values[at] = _changed(values[at], rng)
        return "structure", b"\n".join(json.dumps(v).encode() for v in values)
    return mutate(content, len(content), rng)


def _changed(value: Any, rng: random.Random) -> Any:
    value = copy.deepcopy(value)
    path = rng.choice(list(_places(value)))
    if not path:
        return rng.choice(VALUES)
    parent = value
    for key in path[:-1]:
        parent = parent[key]
    key, way = path[-1], rng.choice(["set", "set", "set", "delete", "rename", "negate", "double"])
    if way == "delete":
        del parent[key]
    elif way == "rename" and isinstance(parent, dict):
        parent[rng.choice(["", "x", "../..", f"{key} ", "0", "-1"])] = parent.pop(key)
    elif way == "negate" and type(parent[key]) in (int, float):
        parent[key] = -parent[key]
    elif way == "double" and isinstance(parent, list):
        parent.append(copy.deepcopy(parent[key]))
    else:
        parent[key] = rng.choice(VALUES)
    return value


def _places(value: Any, path: tuple[Any, ...] = ()) -> Any:
    yield path
    members = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, member in members:
        yield from _places(member, (*path, key))


def _child(world: Path, seed: int, first: int, end: int) -> None:
    set_environment(world)
    known = readers(world)
    sound = {reader.file: reader.file.read_bytes() for reader in known}
    for reader in known:  # all that is imported on the way is imported before memory is limited
        reader.read()
    limit_memory()
    logging.disable(logging.CRITICAL)
    for n in range(first, end):
        rng = random.Random(f"{seed}-{n}")
        reader = rng.choice(known)
        if reader.file.suffix == ".csv":
            way, content = mutate(sound[reader.file], len(sound[reader.file]), rng)
        else:
            way, content = changed(sound[reader.file], reader.file.suffix == ".jsonl", rng)
        reader.file.write_bytes(content)
        say(n, reader.kind, way, functools.partial(_outcome, reader))
        for file, was in sound.items():  # what is damaged may have been made again
            if not file.is_file() or file.stat().st_size != len(was) or file.read_bytes() != was:
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(was)


def _outcome(reader: Reader) -> tuple[str, str]:
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            reader.read()
    except BaseException as error:
        return refusal(error, reader.named)
    return "accepted", ""


def main() -> int:
    """Run the drill from the command line."""
    if sys.argv[1:2] == ["--child"]:
        _child(Path(sys.argv[2]), *map(int, sys.argv[3:6]))
        return 0
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--mutations", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--world", type=Path, help="an example that was made before: python -m tests.drills.stages FOLDER"
    )
    parser.add_argument("--record", action="store_true", help="put the figures into benchmarks/results/drills.txt")
    options = parser.parse_args()
    begin = time.monotonic()
    figures = drill(options.mutations, options.seed, options.world)
    lines = [f"{options.mutations} mutations, seed {options.seed}, {time.monotonic() - begin:.0f} s", *figures.lines()]
    print("\n".join(lines))
    for n, what in sorted(figures.bad.items())[:100]:
        print(f"  mutation {n}: {what}")
    if options.record:
        record("Damaged JSON", lines)
    return 1 if figures.bad else 0


if __name__ == "__main__":
    sys.exit(main())
