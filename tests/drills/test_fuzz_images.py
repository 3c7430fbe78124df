"""A few of the drill's mutations; ``python -m tests.drills.fuzz_images --mutations 20000`` runs many."""

from __future__ import annotations

import pytest

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
