"""Figures of drills, a section for each drill, in one file."""

from __future__ import annotations

import platform
import re
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
