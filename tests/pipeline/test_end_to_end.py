"""The whole pipeline, through the command line, on two synthetic datasets: one like CT, one like MRI."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from satunet.demo.synthetic import make_synthetic_datasets

from .command_line import satunet


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_from_raw_scans_to_a_report(tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    make_synthetic_datasets(tmp_path / "raw", cases=3)
    bad = tmp_path / "raw" / "Dataset901_SyntheticCT"
    (bad / "imagesTr" / "case_99_0000.nii.gz").write_text("no image")
    (bad / "labelsTr" / "case_99.nii.gz").write_text("no image")

    # plan and preprocess: the bad case is counted, the rest is done
    printed = satunet(
        tmp_path, "plan_and_preprocess", "-d", "all", "--specialists", "--spacing", "4", "4", "4", "--gpu_memory", "1",
        "--batch_size", "2", "--base_features", "8", "-np", "0", code=1,
    )  # fmt: skip
    assert "case_99" in printed
    (bad / "imagesTr" / "case_99_0000.nii.gz").unlink()
    (bad / "labelsTr" / "case_99.nii.gz").unlink()
    satunet(
        tmp_path, "plan_and_preprocess", "-d", "901", "902", "--specialists", "--spacing", "4", "4", "4",
        "--gpu_memory", "1", "--batch_size", "2", "--base_features", "8", "-np", "0",
    )  # fmt: skip
    space = json.loads((tmp_path / "preprocessed" / "Dataset900_Unified" / "label_space.json").read_text())
    assert {c["name"] for c in space["classes"]} == {
        "liver",
        "spleen",
        "left kidney",
        "right kidney",
        "kidney",
        "stomach",
    }

    # train both sides
    satunet(tmp_path, "train", "-d", "900", "-f", "all", "--recipe", "short", "--budget", "110", "--learning_rate", "0.004",
            "-device", "cpu")  # fmt: skip
    satunet(tmp_path, "train", "--specialist", "901", "902", "-f", "all", "--budget", "10", "-device", "cpu")

    # predict a folder with words that no dataset used; one input is no image
    scans = tmp_path / "scans"
    scans.mkdir()
    test = bad / "imagesTs" / "case_03_0000.nii.gz"
    (scans / "visit_0000.nii.gz").write_bytes(test.read_bytes())
    (scans / "broken.nii.gz").write_text("no image")
    printed = satunet(
        tmp_path, "predict", "-i", "scans", "-o", "out", "--modality", "ct",
        "-p", "KIDNEY (left)", "right-sided kidney", "Liver", "coffee cup", "-device", "cpu", code=1,
    )  # fmt: skip
    assert "broken" in printed
    assert "coffee cup" in printed
    reference = nib.load(bad / "labelsTs" / "case_03.nii.gz")
    labels = json.loads((bad / "dataset.json").read_text())["labels"]
    folder = tmp_path / "out" / "visit"
    manifest = json.loads((folder / "manifest.json").read_text())
    entries = {e["prompt"]: e for e in manifest["prompts"]}
    assert entries["coffee cup"]["file"] is None
    for prompt, name in (("KIDNEY (left)", "left kidney"), ("right-sided kidney", "right kidney"), ("Liver", "liver")):
        mask = nib.load(folder / entries[prompt]["file"])
        assert np.allclose(mask.affine, reference.affine)
        found = np.asarray(mask.dataobj) > 0
        truth = np.asarray(reference.dataobj) == labels[name]
        overlap = 2 * (found & truth).sum() / (found.sum() + truth.sum())
        assert overlap > 0.6, f"{prompt}: {overlap:.2f}"

    # benchmark: one network against two nnU-Nets
    satunet(
        tmp_path,
        "benchmark",
        "-d",
        "901",
        "902",
        "-o",
        "bench",
        "-f",
        "all",
        "--specialists",
        "-np",
        "0",
        "-device",
        "cpu",
    )
    assert "<html" in (tmp_path / "bench" / "report.html").read_text(encoding="utf-8")
    for competitor in ("satunet", "nnU-Net"):
        with (
            tmp_path / "bench" / "scores" / competitor / "Dataset901_SyntheticCT" / "fold_all" / "per_class.csv"
        ).open() as file:
            assert len(list(csv.DictReader(file))) == 4
    printed = satunet(
        tmp_path, "evaluate", "-p", "bench/predictions/nnU-Net/Dataset902_SyntheticMRI/fold_all",
        "-r", "raw/Dataset902_SyntheticMRI/labelsTs", "-o", "scores", "-np", "0",
    )  # fmt: skip
    assert "mean DSC" in printed
