"""A run that is killed in the middle, in real processes, and the one after it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from satunet.jobs.files import read_json
from tests.prediction.conftest import write_model

ROOT = Path(__file__).parents[2]
SCANS = 12


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_a_killed_run_leaves_whole_files_and_the_next_does_the_rest(tmp_path: Path) -> None:
    write_model(tmp_path / "model")
    (tmp_path / "in").mkdir()
    for k in range(SCANS):
        array = np.random.default_rng(k).normal(size=(20, 20, 20)).astype(np.float32)
        nib.save(nib.Nifti1Image(array, np.eye(4)), tmp_path / "in" / f"s{k:02d}.nii.gz")
    command = [
        sys.executable, "-m", "satunet", "predict", "-i", str(tmp_path / "in"), "-o", str(tmp_path / "out"),
        "-m", str(tmp_path / "model"), "--all", "--device", "cpu",
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    running = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while len(list((tmp_path / "out").glob("*/manifest.json"))) < 2 and running.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    running.kill()
    running.wait()
    done = sorted(f.parent.name for f in (tmp_path / "out").glob("*/manifest.json"))
    assert 2 <= len(done) < SCANS
    for file in (tmp_path / "out").glob("*/[!.]*.nii.gz"):
        assert np.asarray(nib.load(file).dataobj).shape == (20, 20, 20)  # unpacked to its last byte
    half = tmp_path / "out" / f"s{SCANS - 1:02d}" / ".tmp-x-bright.nii.gz"
    half.parent.mkdir(exist_ok=True)
    half.write_bytes(b"half")
    before = {name: (tmp_path / "out" / name / "manifest.json").stat().st_mtime_ns for name in done}
    assert subprocess.run(command, cwd=ROOT, env=environment, stderr=subprocess.DEVNULL).returncode == 0
    summary = read_json(tmp_path / "out" / "prediction_summary.json")
    assert sorted(summary["already_done"]) == done
    assert len(summary["done"]) == SCANS - len(done)
    assert before == {name: (tmp_path / "out" / name / "manifest.json").stat().st_mtime_ns for name in done}
    for k in range(SCANS):
        names = {f.name for f in (tmp_path / "out" / f"s{k:02d}").iterdir()}
        assert names == {"bright.nii.gz", "left_bright.nii.gz", "right_bright.nii.gz", "manifest.json"}
