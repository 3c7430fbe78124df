"""Scans of which parts are not labelled: nnU-Net's ``ignore``; and label ids as brain atlases have them."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np

from satunet.plan import UnifiedPlan
from satunet.planners.options import PlanOptions
from satunet.preprocessing.pipeline import plan_and_preprocess
from satunet.preprocessing.store.index import ScanIndex
from satunet.preprocessing.store.locations import ANNOTATED, label_locations
from satunet.preprocessing.store.scans import ScanStore
from satunet.preprocessing.store.verify import verify_store
from satunet.trainers.unified.batches.sampling import annotated_centre, crop_start, sample_rng

NAME = "Dataset001_A"
SCAN = f"{NAME}__c0__0000"


def store_of(env: Path, labels: np.ndarray, ids: dict[str, int]) -> ScanStore:
    """The store of a dataset of one scan."""
    folder = env / "raw" / NAME
    content = {"channel_names": {"0": "MR"}, "labels": ids, "numTraining": 1, "file_ending": ".nii.gz"}
    for part in ("imagesTr", "labelsTr"):
        (folder / part).mkdir(parents=True)
    (folder / "dataset.json").write_text(json.dumps(content))
    image = np.random.default_rng(0).normal(100, 10, labels.shape).astype(np.float32)
    nib.save(nib.Nifti1Image(image, np.eye(4)), folder / "imagesTr" / "c0_0000.nii.gz")
    nib.save(nib.Nifti1Image(labels, np.eye(4)), folder / "labelsTr" / "c0.nii.gz")
    assert plan_and_preprocess([NAME], PlanOptions(spacing_mm=(1, 1, 1), gpu_memory_gb=1)).exit_code == 0
    plan = UnifiedPlan.load(env / "preprocessed" / "Dataset900_Unified" / "satunetPlans.json")
    folder = env / "preprocessed" / plan.dataset_name / plan.data_identifier
    assert verify_store(folder, plan=plan).exit_code == 0
    return ScanStore(folder)


def test_crops_of_a_sparsely_labelled_scan_lie_where_somebody_looked(nnunet_env: Path) -> None:
    labels = np.full((40, 40, 40), 2, np.uint8)
    labels[2:10, 2:10, 2:10] = 1
    labels[30:36, 30:36, 30:36] = 0
    store = store_of(nnunet_env, labels, {"background": 0, "liver": 1, "ignore": 2})
    record = store.record(SCAN)
    assert record.label_voxels == {1: 8**3}
    assert ScanIndex.of(store).of_scans([SCAN])[0].foreground == ((2, 2, 2), (10, 10, 10))
    assert set(store.locations(SCAN)) == {1, ANNOTATED}
    seen = set()
    for step in range(200):
        rng = sample_rng(0, step, 0)
        x, y, z = crop_start(record.shape, (6, 6, 6), rng, annotated_centre(store, record, rng))
        found = np.unique(labels[x : x + 6, y : y + 6, z : z + 6])
        assert {0, 1} & set(found.tolist())
        seen.update(found.tolist())
    assert seen == {0, 1, 2}


def test_ids_of_brain_atlases_are_stored_as_they_are(nnunet_env: Path) -> None:
    labels = np.zeros((24, 24, 24), np.uint32)
    labels[4:8, 4:8, 4:8] = 7
    labels[10:20, 10:20, 10:20] = 614_454_277
    store = store_of(nnunet_env, labels, {"background": 0, "liver": 7, "visual area": 614_454_277})
    assert store.record(SCAN).label_voxels == {7: 4**3, 614_454_277: 10**3}
    places = store.locations(SCAN)[614_454_277]
    assert places.min() == 10
    assert places.max() == 19
    assert set(np.unique(store.labels(SCAN)[:]).tolist()) == {0, 7, 614_454_277}


def test_locations_of_large_ids_are_those_of_small_ones() -> None:
    rng = np.random.default_rng(0)
    small = rng.integers(0, 4, (30, 30, 30)).astype(np.uint8)
    large = np.array([0, 70_000, 3_000_000_000, 3_000_000_001], np.uint32)[small]
    voxels, places = label_locations(small)
    counted, found = label_locations(large)
    assert list(counted.values()) == list(voxels.values())
    for before, after in zip(places.values(), found.values(), strict=True):
        np.testing.assert_array_equal(before, after)
