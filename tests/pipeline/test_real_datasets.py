"""27 real datasets in one plan: CT, MRI and PET, brain to limbs, ten axis orders, 1 to 188 classes."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from satunet.datasets.raw import load_dataset

from .command_line import satunet


def one_case_of_each(real_raw: Path, folder: Path) -> None:
    """A ``nnUNet_raw`` of links to the first case of each dataset."""
    for source in sorted(real_raw.glob("Dataset*")):
        case = load_dataset(source.name).training_cases()[0]
        assert case.label is not None
        for file in (source / "dataset.json", *case.images, case.label):
            link = folder / file.relative_to(real_raw)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(file)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_all_real_datasets(real_raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("nnUNet_raw", str(real_raw))
    one_case_of_each(real_raw, tmp_path / "raw")
    names = sorted(p.name for p in real_raw.glob("Dataset*"))

    satunet(
        tmp_path, "plan_and_preprocess", "-d", "all", "--spacing", "6", "6", "6", "--gpu_memory", "1", "--batch_size",
        "2", "--base_features", "8", raw=real_raw,
    )  # fmt: skip
    summary = json.loads((tmp_path / "preprocessed" / "Dataset900_Unified" / "summary.json").read_text())
    cases = sum(len(load_dataset(name).training_cases()) for name in names)
    assert len(summary["done"]) == cases
    assert not summary["failed"]

    satunet(tmp_path, "train", "-f", "all", "--recipe", "short", "--steps", "20", "-device", "cpu")
    satunet(tmp_path, "benchmark", "-d", "all", "-o", "bench", "-f", "all", "-device", "cpu", "-np", "2")

    done = json.loads((tmp_path / "bench" / "benchmark_summary.json").read_text())
    assert not done["failed"]
    manifests = list((tmp_path / "bench" / "predictions").rglob("manifest.json"))
    assert len(manifests) == len(names)
    for manifest in manifests:  # every mask is in its scan's own grid
        content = json.loads(manifest.read_text())
        source = nib.load(content["source"])
        files = [manifest.parent / entry["file"] for entry in content["prompts"] if entry["file"] is not None]
        if not files:  # nothing was seen
            continue
        mask = nib.load(files[0])
        assert mask.shape == source.shape
        assert np.allclose(mask.affine, source.affine, atol=1e-4)
    report = (tmp_path / "bench" / "report.html").read_text(encoding="utf-8")
    assert all(name in report for name in names)
