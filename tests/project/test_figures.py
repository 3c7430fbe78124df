"""Figures of README: each was measured, and stands in a file of results; what is said of ``starter`` is true of it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from satunet.models.folder import ModelFolder
from satunet.models.shipped import resolve_model

REPOSITORY = Path(__file__).resolve().parents[2]
RESULTS = {f.name: f.read_text("utf-8") for f in sorted((REPOSITORY / "benchmarks" / "results").iterdir())}
README = (REPOSITORY / "README.md").read_text("utf-8")
BASE = {"s": 1.0, "ms": 1e-3, "GB": 1.0, "MB": 1e-3}
KIND = {"s": "time", "ms": "time", "GB": "memory", "MB": "memory"}
NUMBER = r"(?<![\w.])\d+(?:\.\d+)?(?![\w.]*\d)"
NOT_MEASURED = {
    "DSC of 0.5": "the bar that a class of starter has to pass",
    "Python 3.10": "a version",
    "Apache-2.0": "a licence",
    "40 % of the card's peak": "an aim",
    "2312.17183": "a paper",
    "110.28 M": "parameters, which tests/network counts",
    "477.09 M": "parameters, which tests/network counts",
}


def tables() -> list[list[list[str]]]:
    """Tables of README: rows of cells, the head first."""
    found = re.findall(r"(?:^\|.*\|\n)+", README, re.MULTILINE)
    return [
        [[c.strip() for c in row.strip("|").split("|")] for row in t.splitlines() if "---" not in row] for t in found
    ]


def quantities(text: str) -> list[tuple[float, float, str]]:
    """Times and sizes in a text, in s and GB: value, half of its last digit, kind."""
    found = re.findall(rf"({NUMBER}) (ms|s|GB|MB)\b", text)
    return [(float(v) * BASE[u], 0.5001 * BASE[u] * 10.0 ** -len(v.partition(".")[2]), KIND[u]) for v, u in found]


def lacking(row: list[str], measured: str) -> list[float]:
    """Quantities of a row that a file of results has not, rounded as the row rounds them."""
    known = quantities(measured)
    return [
        value
        for value, half, kind in quantities(" | ".join(row[1:]))
        if not any(k == kind and abs(other - value) <= half for other, _, k in known)
    ]


def fast() -> list[list[str]]:
    (table,) = [t for t in tables() if t[0] == ["", "satunet", "other package"]]
    return table[1:]


@pytest.mark.parametrize("row", fast(), ids=lambda row: row[0])
def test_times_and_sizes_of_a_row_stand_in_one_file(row: list[str]) -> None:
    assert len(quantities(" | ".join(row[1:]))) >= 2
    missing = {name: lacking(row, text) for name, text in RESULTS.items()}
    assert [] in missing.values(), f"{min(missing.items(), key=lambda m: len(m[1]))} is the file that comes closest"


def starter() -> tuple[str, list[list[str]]]:
    (table,) = [t for t in tables() if t[0][0].startswith("`starter`")]
    file = re.search(r"\(benchmarks/results/([\w.]+)\)", table[0][0])
    assert file is not None
    return file[1], table[1:]


@pytest.mark.parametrize("row", starter()[1], ids=lambda row: row[0])
def test_scores_of_the_starter_stand_in_one_line(row: list[str]) -> None:
    """DSC, and that of copied labels behind it."""
    lines = [re.findall(NUMBER, line) for line in RESULTS[starter()[0]].splitlines()]
    _, _, dsc, copied = row
    assert [line for line in lines if dsc in line[:-1] and line[-1] == copied]


def paragraphs() -> list[str]:
    """Paragraphs that say a fraction or a percentage, without their code and tables."""
    text = re.sub(r"^```.*?^```|^\|.*\|$", "", README, flags=re.DOTALL | re.MULTILINE)
    for said in NOT_MEASURED:
        assert re.search(r"\s+".join(map(re.escape, said.split())), README), f"{said} is not in README any more"
        text = re.sub(r"\s+".join(map(re.escape, said.split())), "", text)
    return [p for p in re.split(r"\n\s*\n", re.sub(r"`[^`\n]*`", "", text)) if figures(p)]


def figures(paragraph: str) -> list[str]:
    """Numbers with a fraction, and those of percentages."""
    text = re.sub(r"\]\([^)]*\)", "]", paragraph)
    return [n for n in re.findall(NUMBER, text) if "." in n or re.search(rf"(?<!\d){n}(?: to \d+)? ?%", text)]


@pytest.mark.parametrize("paragraph", paragraphs(), ids=lambda p: " ".join(p.split())[:50])
def test_figures_of_a_paragraph_stand_in_one_file(paragraph: str) -> None:
    linked = re.findall(r"\(benchmarks/results/([\w.]+)\)", paragraph) or list(RESULTS)
    wanted = figures(paragraph)
    digits = {n: len(n.partition(".")[2]) for n in wanted}
    missing = {}
    for name in linked:
        known = [float(n) for n in re.findall(NUMBER, RESULTS[name])]
        missing[name] = [n for n in wanted if not any(round(k, digits[n]) == float(n) for k in known)]
    assert [] in missing.values(), missing


def compared() -> list[tuple[str, str]]:
    """Pairs of figures that README sets against each other."""
    return re.findall(rf"({NUMBER}) against ({NUMBER}) %", " ".join(README.split()))


@pytest.mark.parametrize("pair", compared(), ids=" against ".join)
def test_figures_that_are_compared_stand_in_one_line(pair: tuple[str, str]) -> None:
    """What was reached, and behind it the peer's."""
    ours, peer = map(float, pair)
    for line in "\n".join(RESULTS.values()).splitlines():
        values = [round(float(n), 1) for n in re.findall(NUMBER, line)]
        if ours in values and peer in values[values.index(ours) + 1 :]:
            return
    pytest.fail(f"no line of the results has {pair[0]} and then {pair[1]}")


def test_what_is_said_of_the_starter_is_true_of_it() -> None:
    said = re.search(r"the model is `starter` \((\d+) MB, (\d+) classes", README)
    assert said is not None
    folder = resolve_model("starter")
    assert round(sum(f.stat().st_size for f in folder.rglob("*") if f.is_file()) / 1e6) == int(said[1])
    assert len(ModelFolder.load(folder).space.classes) == int(said[2])
