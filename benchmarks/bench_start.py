"""From Enter to the first line of work of ``satunet predict``, against importing torch, which it needs.

A model folder with a small network, one small scan, a prompt that names a class. Measured is when the log says what the
scan is taken for: everything is imported, the model is loaded and checked, the scan is read. On a machine that others use,
CPU seconds say more than wall time.
"""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import nibabel as nib
import numpy as np
from common import header

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from tests.prediction.conftest import write_model

REPEATS = 5


def first_line(command: list[str]) -> tuple[float, float]:
    """Wall time until the first line about a scan, and CPU seconds of the whole process."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started = time.perf_counter()
    wall = None
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if wall is None and "taken as" in line:
                wall = time.perf_counter() - started
    assert process.returncode == 0 and wall is not None
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def torch_alone() -> tuple[float, float]:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import torch"], check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    wall = time.perf_counter() - started
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    header("torch", "nibabel", "tyro")
    print(f"load average {os.getloadavg()[0]:.1f}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = write_model(folder / "model")
        nib.save(nib.Nifti1Image(np.ones((20, 18, 22), np.float32), np.eye(4)), folder / "a.nii.gz")
        command = [sys.executable, "-m", "satunet", "predict", "-i", str(folder / "a.nii.gz"), "-o", str(folder / "out"),
                   "-m", str(model), "-p", "bright", "-device", "cpu", "--overwrite"]  # fmt: skip
        first_line(command)  # files into the page cache
        ours = [first_line(command) for _ in range(REPEATS)]
        peer = [torch_alone() for _ in range(REPEATS)]
    for what, runs in (("satunet predict, to its first line", ours), ("import torch", peer)):
        wall, cpu = (statistics.median(values) for values in zip(*runs, strict=True))
        print(f"{what}: {wall:.2f} s, {cpu:.2f} CPU seconds of the whole process (median of {REPEATS})")


if __name__ == "__main__":
    main()
