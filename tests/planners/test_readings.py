"""What satunet makes of a case beside what nnunetv2 makes of it: units, ignored voxels, axes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from nnunetv2.experiment_planning.dataset_fingerprint.fingerprint_extractor import DatasetFingerprintExtractor
from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner

from satunet.datasets.raw import load_dataset
from satunet.plan import UnifiedPlan
from satunet.planners.fingerprint.extraction import fingerprint_dataset
from satunet.planners.options import PlanOptions
from satunet.planners.specialist.planner import plan_specialist
from satunet.preprocessing.pipeline import plan_and_preprocess
from satunet.preprocessing.store.scans import ScanStore

NAME = "Dataset001_A"
AFFINE = np.diag([1.5, 1.5, 2.0, 1.0])


def write_dataset(
    env: Path, cases: list[tuple[np.ndarray, np.ndarray]], affine: np.ndarray = AFFINE, **more: Any
) -> Path:
    folder = env / "raw" / NAME
    for part in ("imagesTr", "labelsTr"):
        (folder / part).mkdir(parents=True)
    content: dict[str, Any] = {
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, "liver": 1, "spleen": 2},
        "numTraining": len(cases),
        "file_ending": ".nii.gz",
    }
    (folder / "dataset.json").write_text(json.dumps(content | more))
    for number, (image, labels) in enumerate(cases):
        nib.save(nib.Nifti1Image(image, affine), folder / "imagesTr" / f"c{number}_0000.nii.gz")
        nib.save(nib.Nifti1Image(labels, affine), folder / "labelsTr" / f"c{number}.nii.gz")
    return folder


def abdomen(seed: int, offset: int) -> tuple[np.ndarray, np.ndarray]:
    """A body of 40 HU in air, liver of 60 HU, spleen of 110 HU, stored with ``offset`` added."""
    rng = np.random.default_rng(seed)
    labels = np.zeros((32, 32, 24), np.uint8)
    labels[5:15, 5:15, 4:12] = 1
    labels[18:27, 18:27, 12:20] = 2
    image = np.full(labels.shape, -1000.0)
    image[3:29, 3:29] = rng.normal(40, 8, (26, 26, 24))
    image[labels == 1] = rng.normal(60, 8, int((labels == 1).sum()))
    image[labels == 2] = rng.normal(110, 8, int((labels == 2).sum()))
    return np.clip(image + offset, 0 if offset else -1024, 4000).astype(np.int16), labels


def test_a_ct_stored_above_hu_is_planned_and_preprocessed_as_one_in_hu(nnunet_env: Path) -> None:
    found = {}
    for offset in (0, 1024):
        write_dataset(nnunet_env, [abdomen(seed, offset) for seed in range(3)])
        options = PlanOptions(normalization="nnunet", gpu_memory_gb=1)
        assert plan_and_preprocess([NAME], options).exit_code == 0
        folder = nnunet_env / "preprocessed" / "Dataset900_Unified"
        plan = UnifiedPlan.load(folder / "satunetPlans.json")
        store = ScanStore(folder / plan.data_identifier)
        image, labels = (
            np.asarray(array[:]) for array in (store.image(f"{NAME}__c0__0000"), store.labels(f"{NAME}__c0__0000"))
        )
        stored = json.loads((nnunet_env / "preprocessed" / NAME / "dataset_fingerprint.json").read_text())
        raw = stored["foreground_intensity_properties_per_channel"]["0"]["mean"]
        found[offset] = (plan.normalization_of("ct"), [float(image[labels == n].mean()) for n in (0, 1, 2)], raw)
        for part in ("raw", "preprocessed"):
            shutil.rmtree(nnunet_env / part)
            (nnunet_env / part).mkdir()
    (in_hu, means, raw), (above, means_above, raw_above) = found[0], found[1024]
    assert above.clip == pytest.approx(in_hu.clip, abs=0.01)
    assert (above.mean, above.std) == pytest.approx((in_hu.mean, in_hu.std), abs=0.01)
    assert in_hu.mean == pytest.approx(82, abs=2)
    assert means_above[1:] == pytest.approx(means[1:], abs=0.01)
    assert means[1] < means[2]
    # nnunetv2 trains the specialist on voxels as they are stored, and plans with them
    assert raw_above == pytest.approx(raw + 1024, abs=0.01)


def sparse(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Organs of 60 HU annotated, the rest of the volume, at -900 HU, ignored."""
    image = np.full((24, 24, 24), -900, np.float32)
    labels = np.full(image.shape, 3, np.uint8)
    labels[4:8, 4:8, 4:8] = 0
    labels[8:16, 8:16, 8:16] = 1
    labels[16:20, 16:20, 16:20] = 2
    image[8:20, 8:20, 8:20] = np.random.default_rng(seed).normal(60, 5, (12, 12, 12))
    return image, labels


def test_voxels_that_nobody_labelled_are_no_foreground_of_ours(nnunet_env: Path) -> None:
    write_dataset(
        nnunet_env,
        [sparse(seed) for seed in range(3)],
        labels={"background": 0, "liver": 1, "spleen": 2, "ignore": 3},
    )
    found, _ = fingerprint_dataset(NAME)
    assert found.channels[0].to_nnunet()["mean"] == pytest.approx(60, abs=0.5)
    assert set(found.cases[0].label_voxels) == {1, 2}
    again, _ = fingerprint_dataset(NAME)  # and so it is when it is read again, from its file and from its cases
    assert again == found
    (nnunet_env / "preprocessed" / NAME / "dataset_fingerprint.json").unlink()
    assert fingerprint_dataset(NAME)[0] == found
    # nnunetv2 counts them among the foreground; what its planner reads is what it would have found itself
    ours = json.loads((nnunet_env / "preprocessed" / NAME / "dataset_fingerprint.json").read_text())
    theirs = by_nnunetv2(nnunet_env)
    key = "foreground_intensity_properties_per_channel"
    assert ours[key]["0"]["mean"] == pytest.approx(theirs[key]["0"]["mean"], abs=5)
    assert theirs[key]["0"]["mean"] < -700


def by_nnunetv2(env: Path) -> dict[str, Any]:
    """The fingerprint that nnunetv2 extracts, in place of ours."""
    (env / "preprocessed" / NAME / "dataset_fingerprint.json").unlink(missing_ok=True)
    extractor = DatasetFingerprintExtractor(NAME, 1)
    extractor.num_foreground_voxels_for_intensitystats = 3e5
    extractor.run()
    content: dict[str, Any] = json.loads((env / "preprocessed" / NAME / "dataset_fingerprint.json").read_text())
    return content


def sagittal() -> np.ndarray:
    """Axes that run to anterior, superior and right, 0.8 mm in the slice and 4 mm across."""
    affine = np.zeros((4, 4))
    affine[1, 0] = affine[2, 1] = 0.8
    affine[0, 2] = 4.0
    affine[3, 3] = 1
    return affine


def slices(seed: int) -> tuple[np.ndarray, np.ndarray]:
    labels = np.zeros((48, 44, 12), np.uint8)
    labels[8:24, 8:24, 2:6] = 1
    labels[26:44, 20:40, 6:11] = 2
    return np.random.default_rng(seed).normal(50, 40, labels.shape).astype(np.float32), labels


@pytest.mark.parametrize("reader", [None, "SimpleITKIO", "NibabelIO", "NibabelIOWithReorient"])
@pytest.mark.parametrize("axes", ["sagittal", "LPI", "RAS"])
def test_a_specialist_is_planned_in_the_axes_of_nnunetv2s_reader(
    nnunet_env: Path, reader: str | None, axes: str
) -> None:
    affine = sagittal()
    if axes != "sagittal":
        affine = np.diag(
            [0.8 if axes == "RAS" else -0.8, 0.8 if axes == "RAS" else -0.8, 4.0 if axes == "RAS" else -4.0, 1]
        )
    more = {"overwrite_image_reader_writer": reader} if reader else {}
    write_dataset(nnunet_env, [slices(seed) for seed in range(3)], affine, channel_names={"0": "MR"}, **more)
    fingerprint_dataset(NAME)
    plan_specialist(load_dataset(NAME))
    folder = nnunet_env / "preprocessed" / NAME
    ours = json.loads((folder / "dataset_fingerprint.json").read_text())
    our_plan = json.loads((folder / "nnUNetPlans.json").read_text())
    theirs = by_nnunetv2(nnunet_env)
    ExperimentPlanner(NAME).plan_experiment()
    their_plan = json.loads((folder / "nnUNetPlans.json").read_text())
    for key in ("spacings", "shapes_after_crop", "median_relative_size_after_cropping"):
        assert ours[key] == theirs[key], key
    for key in ("configurations", "transpose_forward", "image_reader_writer", "original_median_spacing_after_transp"):
        assert our_plan[key] == their_plan[key], key


def test_a_given_spacing_reaches_the_specialist_in_its_readers_axes(nnunet_env: Path) -> None:
    write_dataset(
        nnunet_env, [slices(0)], sagittal(), channel_names={"0": "MR"},
        overwrite_image_reader_writer="NibabelIOWithReorient",
    )  # fmt: skip
    fingerprint_dataset(NAME)
    plan_specialist(load_dataset(NAME), spacing_mm=(4.0, 1.0, 2.0))
    plan = json.loads((nnunet_env / "preprocessed" / NAME / "nnUNetPlans.json").read_text())
    right, anterior, superior = (plan["transpose_forward"].index(axis) for axis in (2, 1, 0))
    spacing = plan["configurations"]["3d_fullres"]["spacing"]
    assert (spacing[right], spacing[anterior], spacing[superior]) == (4.0, 1.0, 2.0)
