"""From Enter to the first line of work of ``satunet predict``, and to its end, against importing torch, which it needs.

First a model folder with a small network, one small scan, a prompt that names a class. Measured is when the log says what
the scan is taken for: everything is imported, the model is loaded and checked, the scan is read. Then ``starter`` on a crop
of a brain template around a hippocampus, until the mask is written and the command has ended. On a machine that others
use, CPU seconds say more than wall time.
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
from satunet.demo.packaged import ICBM152
from satunet.images.image import read_image
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


def whole(command: list[str]) -> tuple[float, float]:
    """Wall time and CPU seconds of a process."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    wall = time.perf_counter() - started
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def write_crop(file: Path) -> str:
    """A crop of the template around the left hippocampus, in voxels of 1 mm; returns its shape."""
    template = read_image(ICBM152.path)
    middle = np.rint(np.linalg.inv(template.grid.affine) @ (-28, -22, -14, 1)).astype(int)[:3]  # mm, right, front, up
    cut = template.cut((slice(middle[0] - 18, middle[0] + 18), slice(middle[1] - 26, middle[1] + 26),
                        slice(middle[2] - 18, middle[2] + 18)))  # fmt: skip
    nib.save(nib.Nifti1Image(cut.array.astype(np.float32), cut.grid.affine), file)
    return " × ".join(map(str, cut.array.shape))


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
        peer = [whole([sys.executable, "-c", "import torch"]) for _ in range(REPEATS)]
        crop = folder / "crop.nii.gz"
        shape = write_crop(crop)
        command = [sys.executable, "-m", "satunet", "predict", "-i", str(crop), "-o", str(folder / "masks"),
                   "-m", "starter", "-p", "hippocampus", "-device", "cpu", "--overwrite"]  # fmt: skip
        whole(command)
        assert np.asanyarray(nib.load(folder / "masks" / "crop" / "hippocampus.nii.gz").dataobj).any()
        ends = [whole(command) for _ in range(REPEATS)]
        fast = [whole([*command, "--fast"]) for _ in range(REPEATS)]
    results = {
        "satunet predict, to its first line": ours,
        "import torch": peer,
        f"satunet predict -m starter, a crop of {shape} voxels, to its end": ends,
        "the same with --fast": fast,
    }
    for what, runs in results.items():
        wall, cpu = (statistics.median(values) for values in zip(*runs, strict=True))
        print(f"{what}: {wall:.2f} s, {cpu:.2f} CPU seconds of the whole process (median of {REPEATS})")


if __name__ == "__main__":
    main()
