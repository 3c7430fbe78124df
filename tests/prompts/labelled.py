"""The list of labelled prompts, and what counts as right.

The right classes were written by hand before anything was tuned: ``|`` between them; none: nothing is to be segmented;
``?`` among them: that is right, too. ``part`` says what a prompt was for: ``development``; ``held out``, which was written
with it and looked at when development seemed done; ``final`` and ``last``, each written after the part before had been
looked at. Every part was free of wrong ones after the changes that its first look led to; ``last`` led to none.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from satunet.prompts import Reading

LIST = Path(__file__).parent / "labelled_prompts.tsv"
WRONG = ("known and wrong", "similar and wrong", "missed")


@dataclass(frozen=True, kw_only=True)
class Labelled:
    """One line of a list; ``right`` may hold ``"?"``."""

    prompt: str
    right: frozenset[str]
    kind: str = ""
    region: str = ""
    modality: str = ""
    part: str = "all"


def read_labelled(file: Path = LIST) -> list[Labelled]:
    """A list: prompt and classes, and perhaps kind, region, modality and part; the first line names them."""
    with file.open(encoding="utf-8", newline="") as lines:
        rows = list(csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE))[1:]
    found = []
    for row in (r for r in rows if r):
        prompt, right, *more = [*row, ""][: max(len(row), 2)]
        names = ("kind", "region", "modality", "part")
        found.append(Labelled(prompt=prompt, right=frozenset(right.split("|") if right else ()),
                              **dict(zip(names, more, strict=False))))  # fmt: skip
    return found


def outcome(reading: Reading, right: frozenset[str]) -> str:
    """``"right"``, ``"rightly refused"``, or one of :data:`WRONG`."""
    named = right - {"?"}
    if reading.status == "unknown":
        return "rightly refused" if not named or "?" in right else "missed"
    if set(reading.classes) <= named:
        return "right"
    return "similar and wrong" if reading.status == "similar" else "known and wrong"


def wrong_side(reading: Reading, right: frozenset[str]) -> bool:
    """Whether a class was named whose other side is right, and it is not."""
    swap = {"left": "right", "right": "left"}
    others = {name: " ".join(swap.get(w, w) for w in name.split()) for name in reading.classes}
    return any(other != name and other in right and name not in right for name, other in others.items())


def rates(readings: Iterable[tuple[Labelled, Reading]]) -> dict[str, float]:
    """Counts; similar and wrong in per cent of all prompts, missed in per cent of those that name something."""
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
