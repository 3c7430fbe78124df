"""A few of the drill's flips; ``python -m tests.drills.flips --flips 4000 --repairs 40`` makes many."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.drills.flips import drill


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.xfail(
    reason="a bit flipped in the manifest of a prediction may be neither found nor repaired", strict=False
)
def test_a_flipped_bit_is_found_where_it_is_read_and_repaired_by_what_wrote_it(world: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(world, copy, symlinks=True)
    figures = drill(105, 4, seed=7, world=copy)
    assert sum(figures.counts.values()) == 109
    assert figures.bad == {}, figures.bad
    outcomes = {outcome for _, outcome in figures.counts}
    assert {"found", "repaired"} <= outcomes
