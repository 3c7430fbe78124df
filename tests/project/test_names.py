"""One knows a file by its name: a name that stands for many things stands for none."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).parents[2]
ROOMS = ("satunet", "planners", "preprocessing", "trainers", "evaluation")
EVERY_STAGE_HAS = {"__init__", "__main__", "options", "run"}


def modules() -> list[Path]:
    return [p.relative_to(ROOT) for room in ROOMS for p in sorted((ROOT / room).rglob("*.py"))]


def test_no_file_name_is_there_more_than_twice() -> None:
    places = defaultdict(list)
    for path in modules():
        places[path.stem].append(str(path.parent))
    assert places["run"], "the search finds nothing"
    assert {name: p for name, p in places.items() if len(p) > 2 and name not in EVERY_STAGE_HAS} == {}


def test_a_room_says_what_it_is_for_and_has_floors_before_it_is_crowded() -> None:
    rooms = {path.parent for path in modules()}
    silent = [
        str(room) for room in rooms if not (ROOT / room / "__init__.py").read_text(encoding="utf-8").startswith('"""')
    ]
    assert silent == [], "without a docstring"
    # A module per command is what one looks for in cli; everywhere else so many want floors.
    crowded = {
        str(room): n
        for room in rooms - {Path("satunet/cli")}
        if (n := sum(p.parent == room and p.stem != "__init__" for p in modules())) > 16
    }
    assert crowded == {}


def test_every_room_stands_in_the_guide() -> None:
    guide = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    rooms = {p.parts[:2] if p.parts[0] == "satunet" else p.parts[:1] for p in modules() if len(p.parts) > 2}
    assert [room for room in sorted("/".join(r) for r in rooms) if f"`{room}`" not in guide] == []


def test_every_file_that_the_guide_names_is_there() -> None:
    guide = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    named = {w for w in guide.split("`")[1::2] if "/" in w and " " not in w and "*" not in w and "$" not in w}
    named = {w for w in named if w.split("/")[0] in {*ROOMS, "docs", "tests", "benchmarks"}}
    assert len(named) > 20
    assert sorted(w for w in named if not (ROOT / w).exists()) == []
