"""An example of everything that satunet writes, made once."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

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
    """For tests that leave it as it is. Results name the folders they were made from: a copy would be made again."""
    return make_world_in(tmp_path_factory.mktemp("world") / "run")
