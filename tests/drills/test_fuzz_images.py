"""A few of the drill's mutations; ``python -m tests.drills.fuzz_images --mutations 20000`` runs many."""

from __future__ import annotations

import sys

import pytest

from tests.drills import children, fuzz_images
from tests.drills.fuzz_images import drill
from tests.drills.record import record


@pytest.mark.slow
def test_damaged_images_harm_nothing_but_themselves() -> None:
    figures = drill(400, seed=7)
    assert sum(figures.counts.values()) == 400
    assert figures.bad == {}, figures.bad
    outcomes = {outcome for _, outcome in figures.counts}
    assert {"same", "refused"} <= outcomes


def test_figures_are_kept_by_title(tmp_path) -> None:
    file = tmp_path / "drills.txt"
    record("B", ["1"], file)
    record("A", ["2"], file)
    record("B", ["3"], file)
    text = file.read_text()
    assert text.index("## A") < text.index("## B")
    assert "\n3\n" in text and "\n1\n" not in text


def test_a_crash_and_a_hang_are_known_by_their_number(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that crashes at mutation 2 and computes for ever at 4."""
    child = """
import json, os, sys
first, end = map(int, sys.argv[3:5])
for n in range(first, end):
    print(json.dumps({"n": n, "kind": "k", "way": "w"}), flush=True)
    if n == 2:
        os.abort()
    while n == 4:
        pass
    print(json.dumps({"n": n, "kind": "k", "way": "w", "outcome": "same", "told": "", "seconds": 0}), flush=True)
"""
    monkeypatch.setattr(fuzz_images, "CHILD", [sys.executable, "-c", child])
    monkeypatch.setattr(children, "SECONDS", 1.0)
    figures = drill(6)
    assert figures.counts == {("k", "same"): 4, ("k", "crash"): 1, ("k", "hang"): 1}
    assert set(figures.bad) == {2, 4}
