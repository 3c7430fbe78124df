"""A few of the drill's mutations; ``python -m tests.drills.fuzz_json --mutations 20000`` runs many."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.drills.fuzz_json import drill


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_damaged_json_is_refused_in_a_sentence_that_names_it(copied_world: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(copied_world, copy, symlinks=True)
    figures = drill(300, seed=7, world=copy)
    assert sum(figures.counts.values()) == 300
    assert figures.bad == {}, figures.bad
    assert {outcome for _, outcome in figures.counts} == {"accepted", "refused"}
