"""Pairs of the commands that write what others share; ``python -m tests.drills.twice --times 5`` runs pairs of all."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
STAGES = ("convert", "fingerprint", "preprocess", "train")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_of_a_command_at_once_leave_what_one_leaves() -> None:
    command = [
        sys.executable,
        "-m",
        "tests.drills.twice",
        "--stages",
        *STAGES,
        "--times",
        "1",
        "--seed",
        "3",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, encoding="utf-8", check=False)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    assert all(stage in done.stdout for stage in STAGES)
