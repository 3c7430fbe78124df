"""What looks wrong in a label space: planted faults are found, and nothing else is."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from satunet.datasets.raw import Dataset, load_dataset
from satunet.demo.synthetic import make_synthetic_datasets
from satunet.labels import build_label_space
from satunet.planners.fingerprint.dataset import CaseFingerprint, DatasetFingerprint
from satunet.planners.run import fingerprint_datasets, known_fingerprints
from satunet.planners.unified.review import review_label_space


def _dataset(name: str, *labels: str) -> Dataset:
    return Dataset(
        id=int(name[7:10]),
        name=name,
        folder=Path(name),
        channel_names=("CT",),
        modalities=("ct",),
        labels={label: (i,) for i, label in enumerate(labels, start=1)},
    )


def _fingerprint(name: str, voxels: dict[int, int], places: dict[int, float] | None = None) -> DatasetFingerprint:
    case = CaseFingerprint(
        dataset=name, case="a", channels=1, spacing=(2.0, 1.0, 0.5), shape_after_crop=(9, 9, 9), relative_size=1.0,
        spacing_ras=(0.5, 1.0, 2.0), shape_ras=(9, 9, 9), label_voxels=voxels,
        label_centroids_mm={i: (x, 0.0, 0.0) for i, x in (places or {}).items()},
    )  # fmt: skip
    return DatasetFingerprint(dataset=name, cases=(case,), channels=())


def test_names_that_may_be_one_are_found_and_different_structures_are_not() -> None:
    space = build_label_space(
        [
            _dataset("Dataset001_A", "thyroid", "left optic nerve", "rib 1", "superior vena cava", "pericardium"),
            _dataset("Dataset002_B", "thyroid gland", "right optic nerve", "rib 2", "inferior vena cava", "pericardum"),
        ]
    )
    found = {finding.classes for finding in review_label_space(space)}
    assert found == {("thyroid", "thyroid gland"), ("pericardium", "pericardum")}


def test_a_dataset_that_lists_both_names_says_that_they_differ() -> None:
    space = build_label_space([_dataset("Dataset001_A", "thyroid", "thyroid gland")])
    assert review_label_space(space) == []


def test_swapped_sides_are_found() -> None:
    space = build_label_space([_dataset("Dataset001_A", "left kidney", "right kidney", "head of left femur", "liver")])
    right = _fingerprint("Dataset001_A", {1: 5, 2: 5, 3: 1, 4: 1}, {1: -40.0, 2: 40.0, 3: -10.0, 4: 0.0})
    assert review_label_space(space, [right]) == []
    swapped = _fingerprint("Dataset001_A", {1: 5, 2: 5, 3: 1, 4: 1}, {1: 40.0, 2: -40.0, 3: -10.0, 4: 0.0})
    (finding,) = review_label_space(space, [swapped])
    assert finding.kind == "sides"
    assert "'left kidney' lies to the right of 'right kidney' in 1 of 1 cases" in finding.message


def test_very_different_volumes_and_classes_without_a_voxel() -> None:
    space = build_label_space([_dataset("Dataset001_A", "liver", "spleen"), _dataset("Dataset002_B", "liver")])
    small, large = _fingerprint("Dataset001_A", {1: 1000}), _fingerprint("Dataset002_B", {1: 4000})
    volumes, unseen = review_label_space(space, [small, large])
    assert (volumes.kind, volumes.datasets) == ("volumes", ("Dataset001_A", "Dataset002_B"))
    assert "liver 1 and 4" in volumes.message
    assert (unseen.kind, unseen.classes) == ("unseen", ("spleen",))
    nearly = _fingerprint("Dataset002_B", {1: 3999})
    assert [f.kind for f in review_label_space(space, [small, nearly])] == ["unseen"]


@pytest.mark.parametrize("mirrored", [False, True])
def test_scans_that_were_mirrored_on_disk_are_found(nnunet_env: Path, mirrored: bool) -> None:
    names = make_synthetic_datasets(nnunet_env / "raw", cases=2)
    if mirrored:
        for file in (nnunet_env / "raw" / names[0] / "labelsTr").iterdir():
            image = nib.load(file)
            nib.save(nib.Nifti1Image(np.asarray(image.dataobj)[::-1], image.affine), file)
    fingerprint_datasets(names)
    space = build_label_space([load_dataset(name) for name in names])
    sides = [f for f in review_label_space(space, known_fingerprints(names)) if f.kind == "sides"]
    assert bool(sides) == mirrored
    assert all("in 2 of 2 cases" in finding.message for finding in sides)


def test_a_damaged_fingerprint_is_not_known(nnunet_env: Path) -> None:
    names = make_synthetic_datasets(nnunet_env / "raw", cases=1)
    assert known_fingerprints(names) == []
    fingerprint_datasets(names)
    (nnunet_env / "preprocessed" / names[0] / "dataset_fingerprint.json").write_text("{")
    assert [f.dataset for f in known_fingerprints(names)] == [names[1]]


def test_labels_where_a_scan_is_zero_and_datasets_without_a_label_are_told(nnunet_env: Path) -> None:
    from satunet.planners.options import PlanOptions
    from satunet.planners.run import plan_datasets

    labels = {"background": 0, "air": 0, "liver": 1, "visual area": 614_454_277}
    image = np.zeros((20, 20, 20), np.float32)
    image[4:16, 4:16, 4:16] = np.random.default_rng(0).normal(100, 10, (12, 12, 12))
    ids = np.zeros(image.shape, np.uint32)
    ids[5:10, 5:10, 5:10] = 1
    ids[0:2, 0:2, 0:2] = 614_454_277  # outside of what is not zero
    for name, voxels in (("Dataset001_A", ids), ("Dataset002_Bare", np.zeros_like(ids))):
        folder = nnunet_env / "raw" / name
        for part, array in (("imagesTr/c0_0000", image), ("labelsTr/c0", voxels)):
            (folder / part).parent.mkdir(parents=True)
            nib.save(nib.Nifti1Image(array, np.eye(4)), folder / f"{part}.nii.gz")
        content = {"channel_names": {"0": "MR"}, "labels": labels, "numTraining": 1, "file_ending": ".nii.gz"}
        (folder / "dataset.json").write_text(json.dumps(content))
    summary = plan_datasets(["Dataset001_A", "Dataset002_Bare"], PlanOptions(gpu_memory_gb=1)).summary
    assert summary.exit_code == 0
    assert (
        "'visual area': 100% of its voxels in 1 cases of Dataset001_A, such as c0" in summary.notes["labels cut away"]
    )
    assert "'liver'" not in summary.notes["labels cut away"]
    assert "Dataset002_Bare has a labelled voxel" in summary.notes["nothing labelled"]
    names = ["Dataset001_A", "Dataset002_Bare"]
    space = build_label_space([load_dataset(name) for name in names])
    assert "'air' has the id 0, which is the background's: it is not a class" in space.notes["Dataset001_A"]
    unseen = [f for f in review_label_space(space, known_fingerprints(names)) if f.kind == "unseen"]
    assert [f.datasets for f in unseen] == [("Dataset002_Bare",)]


def test_only_the_kinds_that_are_asked_for_are_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    space = build_label_space(
        [_dataset("Dataset001_A", "thyroid"), _dataset("Dataset002_B", "thyroid gland", "spleen")]
    )
    known = [_fingerprint("Dataset001_A", {1: 5}), _fingerprint("Dataset002_B", {1: 5})]
    assert [finding.kind for finding in review_label_space(space, known)] == ["names", "unseen"]
    assert [finding.kind for finding in review_label_space(space, known, ["unseen"])] == ["unseen"]
    monkeypatch.setattr("satunet.planners.unified.review._centre", lambda *_: pytest.fail("sides are looked at"))
    assert review_label_space(space, known, ["cropped"]) == []
