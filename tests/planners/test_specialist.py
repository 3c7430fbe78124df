from __future__ import annotations

import json
import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from nnunetv2.experiment_planning.dataset_fingerprint.fingerprint_extractor import DatasetFingerprintExtractor
from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from satunet.datasets.raw import load_dataset
from satunet.demo.synthetic import make_synthetic_datasets
from satunet.errors import PlanError
from satunet.planners.fingerprint.extraction import fingerprint_dataset
from satunet.planners.specialist.planner import plan_specialist, preprocess_specialist


@pytest.fixture
def dataset(nnunet_env: Path) -> str:
    name, _ = make_synthetic_datasets(nnunet_env / "raw", cases=3)
    fingerprint_dataset(name)
    return name


def plans(env: Path, name: str) -> dict:  # type: ignore[type-arg]
    return json.loads((env / "preprocessed" / name / "nnUNetPlans.json").read_text())


@pytest.mark.slow
def test_the_plan_is_the_one_nnunet_makes_by_itself(
    dataset: str, nnunet_env: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan_specialist(load_dataset(dataset))
    ours = plans(nnunet_env, dataset)
    for file in (nnunet_env / "preprocessed" / dataset).iterdir():
        if file.is_file():
            file.unlink()
    extractor = DatasetFingerprintExtractor(dataset, 1)
    extractor.num_foreground_voxels_for_intensitystats = 3e5
    extractor.run()
    ExperimentPlanner(dataset).plan_experiment()
    theirs = plans(nnunet_env, dataset)
    assert ours["configurations"] == theirs["configurations"]
    channel = "foreground_intensity_properties_per_channel"
    assert {k: v for k, v in ours.items() if k != channel} == {k: v for k, v in theirs.items() if k != channel}
    for key in ("mean", "std", "percentile_00_5", "percentile_99_5"):
        assert ours[channel]["0"][key] == pytest.approx(theirs[channel]["0"][key], rel=0.02), key


@pytest.mark.slow
def test_a_small_specialist_is_planned_preprocessed_and_not_made_again(dataset: str, nnunet_env: Path) -> None:
    plan_specialist(load_dataset(dataset), gpu_memory_gb=1, spacing_mm=(4.0, 5.0, 6.0), base_features=8)
    manager = PlansManager(plans(nnunet_env, dataset))
    configuration = manager.get_configuration("3d_fullres")
    assert configuration.network_arch_init_kwargs["features_per_stage"][0] == 8
    # nnU-Net's axes are (z, y, x) of the first file, which is RAS, with the coarsest in front
    assert manager.transpose_forward == [0, 1, 2]
    assert list(configuration.spacing) == [6.0, 5.0, 4.0]
    assert preprocess_specialist(dataset) is True
    folder = nnunet_env / "preprocessed" / dataset / "nnUNetPlans_3d_fullres"
    stored = nnUNetDatasetBlosc2(str(folder))
    assert stored.identifiers == ["case_00", "case_01", "case_02"]
    data, labels, _, _ = stored.load_case("case_00")
    assert data.shape == labels.shape
    assert set(np.unique(labels[:])) == {0, 1, 2, 3, 4}
    assert preprocess_specialist(dataset) is False
    image = nnunet_env / "raw" / dataset / "imagesTr" / "case_01_0000.nii.gz"
    os.utime(image, (1, 1))
    assert preprocess_specialist(dataset) is False  # touched, not changed
    before = image.stat()
    other = nib.load(image)
    content = np.asarray(other.dataobj)
    nib.save(nib.Nifti1Image(content[::-1], other.affine), image)
    os.utime(image, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert preprocess_specialist(dataset) is True


@pytest.mark.filterwarnings("ignore:divide by zero")
def test_an_impossible_budget_is_a_plan_error(dataset: str) -> None:
    with pytest.raises(PlanError, match=dataset):
        plan_specialist(load_dataset(dataset), gpu_memory_gb=1e-6)
