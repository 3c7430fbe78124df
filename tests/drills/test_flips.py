"""A few of the drill's flips; ``python -m tests.drills.flips --flips 4000 --repairs 40`` makes many."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.drills.flips import drill, every_bit

from .conftest import make_world_in


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_flipped_bit_is_found_where_it_is_read_and_repaired_by_what_wrote_it(tmp_path: Path) -> None:
    figures = drill(105, 4, seed=7, world=make_world_in(tmp_path / "run"))
    assert sum(figures.counts.values()) == 109
    assert figures.bad == {}, figures.bad
    outcomes = {outcome for _, outcome in figures.counts}
    assert {"found", "repaired"} <= outcomes


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_every_bit_of_a_list_of_scans_is_found_or_harms_nothing(world: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(world, copy, symlinks=True)
    kind = "model, trained_scans.json"
    figures = every_bit([kind], copy)
    assert figures.bad == {}, figures.bad
    assert sum(figures.counts.values()) == 8 * (copy / "exported" / "trained_scans.json").stat().st_size
    assert figures.counts[kind, "found"] > 10 * figures.counts[kind, "harmless"]
