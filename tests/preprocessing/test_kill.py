"""Runs that are killed: what is left is either whole or not there, and the next run ends with the same bytes."""

from __future__ import annotations

import dataclasses
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from satunet.demo.synthetic import make_synthetic_datasets
from satunet.network.config import NetworkConfig
from satunet.plan import UnifiedPlan
from satunet.preprocessing.run import preprocess_datasets
from satunet.preprocessing.store.scans import complete_record, scan_files
from satunet.preprocessing.store.verify import verify_store
from satunet.preprocessing.store.wholeness import CHECKED_FILE
from tests.killing import BEFORE_RENAME

REPOSITORY = Path(__file__).resolve().parents[2]
PLAN = UnifiedPlan(
    spacing_mm=(3.5, 3.5, 3.5),
    patch_size=(16, 16, 16),
    network=NetworkConfig.auto(
        features_per_stage=(8, 16), strides=((1, 1, 1), (2, 2, 2)), kernel_sizes=((3, 3, 3),) * 2, text_dim=24
    ),
)
SELF_KILL = f"""{BEFORE_RENAME}
from satunet.plan import UnifiedPlan
from satunet.preprocessing.run import preprocess_datasets
preprocess_datasets(UnifiedPlan.load(pathlib.Path(sys.argv[2])), sys.argv[3:], processes=0)
"""


def content(store: Path) -> dict[str, bytes]:
    """Files without the list of those that were checked: it says when they were seen, which no two runs have alike."""
    return {p.name: p.read_bytes() for p in store.iterdir() if p.name not in (".lock", CHECKED_FILE)}


def trusted(store: Path) -> set[str]:
    """Scans that a rerun would take for done."""
    names = {p.name[: -len(".json")] for p in store.glob("*__*.json") if not p.name.startswith(".")}
    return {name for name in names if complete_record(store, name) is not None}


@pytest.fixture
def reference(nnunet_env: Path) -> tuple[Path, tuple[str, ...], dict[str, bytes]]:
    """Store folder, dataset names, and what an undisturbed run writes there; the folder is empty again."""
    names = make_synthetic_datasets(nnunet_env / "raw", cases=3)
    store = nnunet_env / "preprocessed" / PLAN.dataset_name / PLAN.data_identifier
    time.sleep(2.1)  # what was written just now has a stamp that says when it was seen
    assert preprocess_datasets(PLAN, names).failures == {}
    expected = content(store)
    for path in store.iterdir():
        path.unlink()
    dataclasses.replace(PLAN, datasets=names).save(store.parent / "satunetPlans.json")
    return store, names, expected


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}


def check_what_is_left(store: Path, expected: dict[str, bytes]) -> None:
    for scan in trusted(store):
        for file in scan_files(store, scan):
            assert file.read_bytes() == expected[file.name], file.name


@pytest.mark.slow
@pytest.mark.parametrize("renames", [0, 1, 2, 3, 4, 5, 8, 12])
def test_a_kill_before_any_rename_leaves_nothing_wrong(
    reference: tuple[Path, tuple[str, ...], dict[str, bytes]], renames: int
) -> None:
    store, names, expected = reference
    plan = store.parent / "satunetPlans.json"
    command = [sys.executable, "-c", SELF_KILL, str(renames), str(plan), *names]
    assert subprocess.run(command, env=environment(), check=False).returncode == -signal.SIGKILL
    check_what_is_left(store, expected)
    # the manifest is one rename, a scan four; the one that was under way has no record
    assert len(trusted(store)) == max(0, renames - 1) // 4
    again = preprocess_datasets(PLAN, names)
    assert len(again.skipped_items) == max(0, renames - 1) // 4
    assert content(store) == expected


@pytest.mark.slow
def test_runs_killed_at_random_times_end_with_the_same_store(
    reference: tuple[Path, tuple[str, ...], dict[str, bytes]],
) -> None:
    store, _, expected = reference
    chance = random.Random(3)
    command = [sys.executable, "-m", "satunet", "preprocess", "-d", "900", "-np", "2"]
    for _ in range(5):
        before = len(trusted(store))
        run = subprocess.Popen(command, env=environment(), stderr=subprocess.DEVNULL, start_new_session=True)
        deadline = time.monotonic() + 60
        # Workers take seconds to start: die while they write, not before.
        while run.poll() is None and len(list(store.glob("*__*"))) <= 4 * before and time.monotonic() < deadline:
            time.sleep(0.002)
        time.sleep(chance.uniform(0, 0.08))
        run.kill()
        run.wait()
        time.sleep(1.0)  # workers end with the process that started them
        assert processes_of_group(run.pid) == []
        check_what_is_left(store, expected)
    assert subprocess.run(command, env=environment(), check=False).returncode == 0
    assert content(store) == expected
    assert verify_store(store, plan=PLAN).failures == {}


def processes_of_group(group: int) -> list[int]:
    """Processes of a session that still run (Linux)."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = entry.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == group and fields[0] != "Z":
            found.append(int(entry.parent.name))
    return found
