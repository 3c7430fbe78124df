"""What README and docs say: every command parses, every path and link exists."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from satunet.cli import parse

REPOSITORY = Path(__file__).resolve().parents[2]
TOP = [REPOSITORY / name for name in ("README.md", "CONTRIBUTING.md", "benchmarks/README.md")]
PAGES = sorted([*TOP, *(REPOSITORY / "docs").rglob("*.md")])


def commands(page: Path) -> list[str]:
    """Command lines of ``satunet`` in the page's shell blocks, continued lines joined."""
    found: list[str] = []
    for block in re.findall(r"^```(?:bash|sh|console)\n(.*?)^```", page.read_text("utf-8"), re.MULTILINE | re.DOTALL):
        for line in re.sub(r"\\\n\s*", " ", block).splitlines():
            words = line.split("satunet ", 1)
            if re.match(r"^(\$ )?(\w+=\S+ )*(torchrun .* -m )?satunet ", line):
                found.append("satunet " + words[1])
    return found


@pytest.mark.parametrize(
    ("page", "line"), [pytest.param(p, c, id=f"{p.stem}: {c[:60]}") for p in PAGES for c in commands(p)]
)
def test_commands_parse(page: Path, line: str) -> None:
    words = shlex.split(line, comments=True)
    for separator in ("&&", "|", ">"):  # what follows is the shell's
        words = words[: words.index(separator)] if separator in words else words
    if words[1:] in (["--version"], ["--help"]):
        return
    try:
        parse(["1" if w == "…" else w for w in words[1:]])
    except SystemExit as stop:
        pytest.fail(f"{page.name}: {line!r} does not parse (exit code {stop.code})")


def test_there_are_commands_to_check() -> None:
    assert sum(len(commands(page)) for page in PAGES) > 40


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_and_paths_exist(page: Path) -> None:
    text = page.read_text("utf-8")
    targets = [t for t in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text) if not re.match(r"^\w+:", t)]
    missing = [t for t in targets if not (page.parent / t).exists()]
    tops = r"(?:satunet|planners|preprocessing|trainers|evaluation|tests|benchmarks|scripts|docs)"
    paths = re.findall(rf"`({tops}/[\w./-]*\w/?)`", text)
    missing += [p for p in paths if "decisions" not in page.parts and not (REPOSITORY / p).exists()]
    assert not missing
