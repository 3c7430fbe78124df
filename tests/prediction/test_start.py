"""``satunet predict`` imports what it uses, and no more."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np

from tests.prediction.conftest import write_model

ROOT = Path(__file__).resolve().parents[2]
UNUSED = ("nnunetv2", "batchgeneratorsv2", "transformers", "matplotlib", "pandas", "sklearn", "torchvision", "SimpleITK",
          "satunet.images.dicom", "distributed", "torch._dynamo", "satunet.trainers.unified", "satunet.planners.unified", "satunet.evaluation",
          "satunet.conversion", "satunet.cli.benchmark", "satunet.cli.data", "satunet.planners", "satunet.serving",
          "satunet.knowledge.sources", "satunet.trainers")  # fmt: skip


def test_known_prompts_need_no_trainer_no_pictures_and_no_compiler(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model")
    array = np.random.default_rng(0).normal(size=(20, 18, 22)).astype(np.float32)
    nib.save(nib.Nifti1Image(array, np.eye(4)), tmp_path / "a.nii.gz")
    code = (
        "import sys\nfrom satunet.cli import run\n"
        f"code = run(['predict', '-i', {str(tmp_path / 'a.nii.gz')!r}, '-o', {str(tmp_path / 'out')!r}, "
        f"'-m', {str(model)!r}, '-p', 'left bright', '-device', 'cpu', '--engine', 'fused'])\n"
        f"print('imported', *[name for name in {UNUSED!r} if name in sys.modules])\nsys.exit(code)\n"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].strip() == "imported"
    assert (tmp_path / "out" / "a" / "left_bright.nii.gz").is_file()
