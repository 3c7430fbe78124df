"""One plan for the 72 published datasets, from fingerprints and ``dataset.json`` files alone."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from satunet.demo.synthetic import make_synthetic_datasets
from satunet.labels import LabelSpace
from satunet.plan import UnifiedPlan
from satunet.planners.options import PlanOptions, Preset
from satunet.planners.run import plan_datasets, plan_specialists


@pytest.fixture
def published(shared_dir: Path, nnunet_env: Path) -> tuple[str, ...]:
    names = []
    for folder in sorted((shared_dir / "reference" / "sat_ds" / "datasets").iterdir()):
        for root, file in (("raw", "dataset.json"), ("preprocessed", "dataset_fingerprint.json")):
            (nnunet_env / root / folder.name).mkdir()
            shutil.copy(folder / file, nnunet_env / root / folder.name / file)
        names.append(folder.name)
    return tuple(names)


def test_the_72_are_planned_without_a_scan_and_a_73rd_is_the_only_one_read(
    published: tuple[str, ...], nnunet_env: Path
) -> None:
    assert plan_datasets(published).summary.exit_code == 0
    folder = nnunet_env / "preprocessed" / "Dataset900_Unified"
    plan = UnifiedPlan.load(folder / "satunetPlans.json")
    assert plan.datasets == published
    assert len(LabelSpace.load(folder / "label_space.json").classes) == 451
    assert "72 fingerprints are nnU-Net's own" in plan.explanation["approximate"]
    # 5,004 scans of BraTS at 1 mm do not decide: a spine CT's weight is its share, not its number
    assert plan.dataset_weights["Dataset010_BraTS2023GLI"] < plan.dataset_weights["Dataset070_VerSe"]
    before = {n: (nnunet_env / "preprocessed" / n / "dataset_fingerprint.json").stat().st_mtime_ns for n in published}

    added = make_synthetic_datasets(nnunet_env / "raw", cases=2)[0]
    assert plan_datasets((*published, added)).summary.exit_code == 0
    after = UnifiedPlan.load(folder / "satunetPlans.json")
    assert after.datasets == (*published, added)
    assert "72 fingerprints are nnU-Net's own" in after.explanation["approximate"]
    for name, time in before.items():
        assert (nnunet_env / "preprocessed" / name / "dataset_fingerprint.json").stat().st_mtime_ns == time


def test_specialists_of_the_72_are_planned_without_a_scan(published: tuple[str, ...], nnunet_env: Path) -> None:
    assert plan_specialists(plan_datasets(published).plan, PlanOptions()).exit_code == 0
    assert plan_specialists(plan_datasets(published[:3]).plan, PlanOptions(), planner="resenc_m").exit_code == 0
    folder = nnunet_env / "preprocessed"
    assert all((folder / name / "nnUNetPlans.json").is_file() for name in published)
    assert [p.parent.name for p in sorted(folder.glob("*/nnUNetResEncUNetMPlans.json"))] == list(published[:3])


@pytest.mark.parametrize("preset", ["nano", "pro"])
def test_sats_presets_plan_the_72(published: tuple[str, ...], nnunet_env: Path, preset: Preset) -> None:
    assert plan_datasets(published, PlanOptions(preset=preset)).summary.exit_code == 0
    plan = UnifiedPlan.load(nnunet_env / "preprocessed" / "Dataset900_Unified" / "satunetPlans.json")
    assert plan.spacing_mm == (1.0, 1.0, 3.0)
    assert plan.dataset_orientation == {
        "Dataset015_BTCVCervix": "LPS",
        "Dataset041_MRSpineSeg": "ASR",
        "Dataset063_ToothFairy": "IPL",
        "Dataset070_VerSe": "ASR",
    }
