"""A few faults of the drill; ``python -m tests.drills.faults --events 0`` makes them all."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.drills.faults import compiled, telling, wrong
from tests.drills.trees import differences, tree

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_commands_survive_faults_at_events_of_the_file_system(tmp_path: Path) -> None:
    """Each stage is killed and meets a failing, full and read-only disk once, at an event that the seed draws."""
    if compiled(tmp_path) is None:
        pytest.skip("needs Linux and a C compiler")
    command = [sys.executable, "-m", "tests.drills.faults", "--events", "1", "--seed", "5"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, encoding="utf-8", check=False)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]


def test_the_drill_knows_a_fault_that_was_not_survived() -> None:
    def same() -> list[str]:
        return []

    assert wrong("EIO", 2, "a.json: input/output error", [], same) == ""
    assert wrong("EIO", 0, "", [], same) == ""
    assert "differs" in wrong("EIO", 0, "", [], lambda: ["a differs"])
    assert "missing" in wrong("EIO", 0, "", [], lambda: ["fold_0/checkpoint_best.pth is missing"])
    assert wrong("EIO", 0, "no checkpoint_best.pth", [], lambda: ["fold_0/checkpoint_best.pth is missing"]) == ""
    assert "traceback" in wrong("EIO", 1, "Traceback (most recent call last):\nOSError: input/output error", [], same)
    assert "not told" in wrong("ENOSPC", 2, "something went wrong", [], same)
    assert "left" in wrong("ENOSPC", 2, "no space left on the disk", [".tmp-a"], same)
    assert "not killed" in wrong("kill", 0, "", [], same)


def test_every_event_is_chosen_but_of_many_writes_to_one_file_three() -> None:
    calls = [
        "open a",
        "write a",
        "write a",
        "write a",
        "write a",
        "write a",
        "write b",
        "write a",
        "write a",
        "close a",
    ]
    assert telling([f"{i} {call}" for i, call in enumerate(calls, 1)]) == [1, 2, 4, 6, 7, 8, 9, 10]
    assert telling([]) == []


def test_trees_are_compared_by_what_they_say(tmp_path: Path) -> None:
    for name, seconds, done, already in (("a", 1, ["x", "y"], []), ("b", 2, ["y"], ["x"])):
        (tmp_path / name).mkdir()
        text = f'{{"job": "j", "done": {done}, "already_done": {already}, "seconds": {seconds}}}'.replace("'", '"')
        (tmp_path / name / "summary.json").write_text(text)
        (tmp_path / name / "voxels").write_text("same")
    assert differences(tree(tmp_path / "a"), tree(tmp_path / "b")) == []
    (tmp_path / "b" / "voxels").write_text("other")
    (tmp_path / "b" / ".tmp-half").mkdir()
    assert differences(tree(tmp_path / "a"), tree(tmp_path / "b")) == [".tmp-half/ is additional", "voxels differs"]
