"""Little memory and a killed worker in a few commands; ``python -m tests.drills.starved --times 5`` does it to all."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
STAGES = ("convert", "plan", "preprocess")


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_little_memory_and_a_killed_worker_end_in_a_sentence_or_well() -> None:
    command = [sys.executable, "-m", "tests.drills.starved", "--stages", *STAGES, "--times", "1", "--seed", "3"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, encoding="utf-8", check=False)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    assert all(stage in done.stdout for stage in STAGES)
