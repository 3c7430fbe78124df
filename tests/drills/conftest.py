"""An example of everything that satunet writes, made once."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import made_once

ROOT = Path(__file__).resolve().parents[2]


def make_world_in(folder: Path) -> Path:
    """The folder of :func:`tests.drills.stages.make_world`, made by a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.drills.stages", str(folder)],
        cwd=ROOT,
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For the one test that damages it and has it repaired: results name the folders they were made from, so that
    commands would make those of a copy again.
    """
    return made_once(tmp_path_factory, "world", _make_worlds) / "run"


@pytest.fixture(scope="session")
def copied_world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of it, for tests that leave it as it is."""
    return made_once(tmp_path_factory, "world", _make_worlds) / "copy"


def _make_worlds(folder: Path) -> None:
    make_world_in(folder / "run")
    shutil.copytree(folder / "run", folder / "copy", symlinks=True)
