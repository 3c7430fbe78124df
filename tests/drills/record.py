"""Figures of drills, a section for each drill, in one file."""

from __future__ import annotations

import platform
import re
import time
from collections.abc import Sequence
from pathlib import Path

RESULTS = Path(__file__).resolve().parents[2] / "benchmarks" / "results" / "drills.txt"


def record(title: str, lines: list[str], path: Path = RESULTS) -> None:
    """Put a section into the file of results, in place of the one of the same title."""
    sections = {}
    if path.is_file():
        for part in re.split(r"^## ", path.read_text("utf-8"), flags=re.MULTILINE)[1:]:
            name, _, body = part.partition("\n")
            sections[name] = body.strip()
    sections[title] = "\n".join([f"Python {platform.python_version()}, {platform.machine()}", *lines])
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "\n\n".join(f"## {name}\n{body}" for name, body in sorted(sections.items()))
    path.write_text(text + "\n", "utf-8")


def finish(what: str, begin: float, lines: Sequence[str], *, bad: bool, title: str | None) -> int:
    """Print the figures of a drill, and keep them if they are to be kept; exit code of the drill.

    Args:
        what: How many of what, and the seed.
        begin: When it began, by ``time.monotonic``.
        lines: Table of the figures.
        bad: Whether something was found that must not be.
        title: Section of the file of results, if they are to be kept.
    """
    told = [f"{what}, {time.monotonic() - begin:.0f} s", *lines]
    print("\n".join(told))
    if title is not None:
        record(title, told)
    return 1 if bad else 0
