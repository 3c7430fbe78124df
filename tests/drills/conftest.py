"""An example of everything that satunet writes, made once."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of :func:`tests.drills.stages.make_world`; a test that damages it works on a copy."""
    folder = tmp_path_factory.mktemp("world") / "run"
    done = subprocess.run(
        [sys.executable, "-m", "tests.drills.stages", str(folder)],
        cwd=ROOT,
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder
