"""A few of the drill's flips; ``python -m tests.drills.flips --flips 4000 --repairs 40`` makes many."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.drills.flips import drill, every_bit


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_flipped_bit_is_found_where_it_is_read_and_repaired_by_what_wrote_it(world: Path) -> None:
    figures = drill(105, 4, seed=7, world=world)
    assert sum(figures.counts.values()) == 109
    assert figures.bad == {}, figures.bad
    outcomes = {outcome for _, outcome in figures.counts}
    assert {"found", "repaired"} <= outcomes
    every = every_bit(["model, trained_scans.json"], world)
    assert every.bad == {}, every.bad
    assert sum(every.counts.values()) == 8 * (world / "exported" / "trained_scans.json").stat().st_size
    assert (
        every.counts["model, trained_scans.json", "found"] > 10 * every.counts["model, trained_scans.json", "harmless"]
    )
