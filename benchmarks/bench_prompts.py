"""How often prompts are understood, missed, and taken for something else; with both text encoders.

    python benchmarks/bench_prompts.py                          # the list's half that was kept out of development
    python benchmarks/bench_prompts.py --half development --show
    python benchmarks/bench_prompts.py --list FILE              # another list: prompt, classes, tab-separated

A list has the right classes of SAT-DS for each prompt, ``|`` between them. Empty: nothing is to be segmented. ``?`` among
them: that is right, too. What counts:

    known and wrong     a class was named (or several), and one of them is not right
    similar and wrong   a prompt was called similar to a class, and that is not right
    missed              nothing was named where something is right and ``?`` is not; of the prompts that name something
    wrong side          a class of the other side than a right one
"""

from __future__ import annotations

import argparse
import csv
import sys
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from satunet.labels import catalogue_space
from satunet.prompts import PromptReader, Reading
from satunet.text import load_text_encoder

LIST = Path(__file__).parents[1] / "tests" / "prompts" / "labelled_prompts.tsv"
OUTCOMES = ("right", "rightly refused", "known and wrong", "similar and wrong", "missed")


@dataclass(frozen=True, kw_only=True)
class Labelled:
    """One line of a list; ``right`` may hold ``"?"``."""

    prompt: str
    right: frozenset[str]
    kind: str
    half: str


def read_list(file: Path) -> list[Labelled]:
    with file.open(encoding="utf-8", newline="") as lines:
        rows = list(csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE))[1:]
    return [
        Labelled(
            prompt=row[0],
            right=frozenset(row[1].split("|") if len(row) > 1 and row[1] else ()),
            kind=row[2] if len(row) > 2 else "",
            half=row[5] if len(row) > 5 else "all",
        )
        for row in rows
        if row
    ]


def outcome(reading: Reading, right: frozenset[str]) -> str:
    named = right - {"?"}
    if reading.status == "unknown":
        return "rightly refused" if not named or "?" in right else "missed"
    if set(reading.classes) <= named:
        return "right"
    return "similar and wrong" if reading.status == "similar" else "known and wrong"


def wrong_side(reading: Reading, right: frozenset[str]) -> bool:
    """Whether a class was named whose other side is right, and it is not."""
    if reading.status == "unknown":
        return False
    swap = {"left": "right", "right": "left"}
    others = {" ".join(swap.get(w, w) for w in name.split()): name for name in reading.classes}
    return any(other in right and name not in right for other, name in others.items() if other != name)


def rates(readings: Iterable[tuple[Labelled, Reading]]) -> dict[str, float]:
    pairs = list(readings)
    counts = Counter(outcome(reading, item.right) for item, reading in pairs)
    naming = sum(1 for item, _ in pairs if item.right and "?" not in item.right)
    return {
        "prompts": len(pairs),
        "right": counts["right"],
        "rightly refused": counts["rightly refused"],
        "known and wrong": counts["known and wrong"],
        "similar and wrong": counts["similar and wrong"],
        "similar and wrong %": round(100 * counts["similar and wrong"] / max(1, len(pairs)), 2),
        "missed": counts["missed"],
        "missed %": round(100 * counts["missed"] / max(1, naming), 2),
        "wrong side": sum(wrong_side(reading, item.right) for item, reading in pairs),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", type=Path, default=LIST)
    parser.add_argument("--half", choices=("development", "held out", "final", "all"), default="final")
    parser.add_argument("--encoders", nargs="+", default=["minilm", "anatomy"])
    parser.add_argument("--show", action="store_true", help="every prompt that was not understood")
    options = parser.parse_args()
    items = [i for i in read_list(options.list) if options.half in ("all", i.half)]
    space = catalogue_space()
    for name in options.encoders:
        reader, encoder = PromptReader(space), load_text_encoder(name)
        start = time.perf_counter()
        readings = [(item, reader.interpret(item.prompt, encoder)) for item in items]
        seconds = time.perf_counter() - start
        print(f"{name}, {options.list.name}, {options.half}:")
        for what, value in rates(readings).items():
            print(f"    {what:22}{value:8g}")
        print(f"    {'seconds':22}{seconds:8.2f}")
        statuses = Counter(reading.status for _, reading in readings)
        print(f"    {'statuses':22}  {dict(statuses)}")
        if options.show:
            for item, reading in readings:
                what = outcome(reading, item.right)
                if what not in OUTCOMES[:2]:
                    print(f"  {what:18} {item.kind:12} {item.prompt!r} -> {reading.status} {list(reading.classes)} "
                          f"({reading.reason}); right: {'|'.join(sorted(item.right)) or 'none'}")  # fmt: skip
        sys.stdout.flush()


if __name__ == "__main__":
    main()
