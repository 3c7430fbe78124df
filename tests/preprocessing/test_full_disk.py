"""A disk that runs full: the job stops and says so, and goes on when there is room."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from satunet.demo.synthetic import make_synthetic_datasets
from satunet.errors import DiskFullError
from satunet.jobs.files import atomic_path, write_json
from satunet.network.config import NetworkConfig
from satunet.plan import UnifiedPlan
from satunet.preprocessing.run import preprocess_datasets
from satunet.preprocessing.store.verify import verify_store

REPOSITORY = Path(__file__).resolve().parents[2]


def plan(names: tuple[str, ...]) -> UnifiedPlan:
    network = NetworkConfig.auto(
        features_per_stage=(8, 16), strides=((1, 1, 1), (2, 2, 2)), kernel_sizes=((3, 3, 3),) * 2, text_dim=24
    )
    return UnifiedPlan(spacing_mm=(2.0, 2.0, 2.0), patch_size=(16, 16, 16), network=network, datasets=names)


def test_no_space_left_is_told_from_other_errors(tmp_path: Path) -> None:
    def writing(error: Exception) -> None:
        with atomic_path(tmp_path / "a.json"):
            raise error

    with pytest.raises(DiskFullError, match=r"a\.json: no space left"):
        writing(OSError(errno.ENOSPC, "No space left on device"))
    with pytest.raises(PermissionError):
        writing(PermissionError(errno.EACCES, "no"))
    with pytest.raises(RuntimeError, match="codec"):
        writing(RuntimeError("codec"))
    assert list(tmp_path.iterdir()) == []


def test_a_run_stops_at_the_first_scan_without_room(nnunet_env: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = make_synthetic_datasets(nnunet_env / "raw", cases=3)
    tried = []

    def full(path: Path, *arguments: object) -> None:
        tried.append(path)
        if len(tried) > 4:  # two arrays a scan
            with atomic_path(path):
                raise OSError(errno.ENOSPC, "No space left on device")
        write_json(path, {})

    monkeypatch.setattr("satunet.preprocessing.store.scans.write_array", full)
    with pytest.raises(DiskFullError, match="start the same job again"):
        preprocess_datasets(plan(names), names)
    assert len(tried) == 5
    monkeypatch.undo()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(command, capture_output=True, check=False).returncode == 0
    except OSError:
        mounted = False
    if not mounted:
        pytest.skip("mounting a small disk is not allowed here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.slow
def test_a_full_disk_for_real(nnunet_env: Path, small_disk: Path) -> None:
    names = make_synthetic_datasets(nnunet_env / "raw", cases=6)
    made = plan(names)
    made.save(small_disk / made.dataset_name / "satunetPlans.json")
    environment = os.environ | {"nnUNet_preprocessed": str(small_disk), "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-m", "satunet", "preprocess", "-d", "900", "-np", "2"]
    done = subprocess.run(command, env=environment, capture_output=True, encoding="utf-8", timeout=120)
    text = " ".join(done.stderr.split())
    assert done.returncode == 2, text
    assert "no space left on the disk" in text and "Traceback" not in text
    store = small_disk / made.dataset_name / made.data_identifier
    assert not list(store.glob(".tmp-*"))
    subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True)
    assert subprocess.run(command, env=environment, timeout=120, check=False).returncode == 0
    assert verify_store(store, plan=made).failures == {}
