"""nnU-Net's rules on the union, from fingerprints made of real files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from nnunetv2.preprocessing.normalization.map_channel_name_to_normalization import get_normalization_scheme

from satunet.demo.synthetic import make_synthetic_datasets
from satunet.plan import SAT_NORMALIZATION, Normalization
from satunet.planners.options import PlanOptions
from satunet.planners.run import fingerprint_datasets
from satunet.planners.unified.normalization import plan_normalization
from satunet.preprocessing.pipeline import plan_and_preprocess
from satunet.preprocessing.store.scans import ScanStore


def test_ct_goes_by_its_foreground_and_mri_by_each_scan(nnunet_env: Path) -> None:
    names = make_synthetic_datasets(nnunet_env / "raw", cases=3)
    fingerprints, _ = fingerprint_datasets(names)
    assert plan_normalization(fingerprints, "sat").by_modality == SAT_NORMALIZATION
    planned = plan_normalization(fingerprints, "nnunet")
    schemes = planned.by_modality
    assert planned.by_channel == {}
    foreground = []
    for path in sorted((nnunet_env / "raw" / names[0] / "imagesTr").iterdir()):
        labels = nib.load(path.parents[1] / "labelsTr" / path.name.replace("_0000", ""))
        foreground.append(np.asarray(nib.load(path).dataobj)[np.asarray(labels.dataobj) > 0])
    assert schemes["ct"].mean == pytest.approx(np.mean([f.mean() for f in foreground]), rel=0.02)
    assert schemes["ct"].clip == pytest.approx(np.percentile(np.concatenate(foreground), (0.5, 99.5)), abs=8)
    relative = [c.relative_size for c in fingerprints[1].cases]
    assert schemes["mri"] == Normalization(nonzero=bool(np.median(relative) < 0.75))
    assert schemes["other"] == Normalization()
    assert "CT by its foreground" in planned.why


@pytest.mark.parametrize(
    "name", ["CT", "ct", "CBCT", "noNorm", "rescale_to_0_1", "zscore", "rgb_to_0_1", "T1", "PET", "CT angiography"]
)
def test_a_channels_name_means_what_it_means_to_nnunetv2(nnunet_env: Path, name: str) -> None:
    dataset, _ = make_synthetic_datasets(nnunet_env / "raw", cases=2)
    file = nnunet_env / "raw" / dataset / "dataset.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"channel_names": {"0": name}}))
    fingerprints, _ = fingerprint_datasets([dataset])
    theirs = get_normalization_scheme(name).__name__
    intensities = fingerprints[0].channels[0].to_nnunet()
    cut_out = fingerprints[0].to_nnunet()["median_relative_size_after_cropping"] < 0.75
    expected = Normalization.of_nnunet(theirs, use_mask=cut_out, intensities=intensities)
    modality = fingerprints[0].channels[0].modality
    found = plan_normalization(fingerprints, "nnunet").by_modality[modality]
    if expected.mean is not None and expected.clip is not None:
        assert found.clip == pytest.approx(expected.clip, rel=0.01)
        assert (found.mean, found.std) == pytest.approx((expected.mean, expected.std))
    else:
        assert found == expected


def test_a_ct_whose_name_says_nothing_is_one_by_its_modality(nnunet_env: Path) -> None:
    dataset, _ = make_synthetic_datasets(nnunet_env / "raw", cases=2)
    file = nnunet_env / "raw" / dataset / "dataset.json"
    content = {"channel_names": {"0": "image"}, "modalities": {"0": "ct"}}
    file.write_text(json.dumps(json.loads(file.read_text()) | content))
    fingerprints, _ = fingerprint_datasets([dataset])
    assert plan_normalization(fingerprints, "nnunet").by_modality["ct"].clip is not None


def test_channels_of_one_modality_may_have_other_schemes_and_are_stored_by_them(nnunet_env: Path) -> None:
    dataset, _ = make_synthetic_datasets(nnunet_env / "raw", cases=3)
    other = nnunet_env / "raw" / "Dataset903_Beam"
    shutil.copytree(nnunet_env / "raw" / dataset, other)
    content = json.loads((other / "dataset.json").read_text()) | {"channel_names": {"0": "CBCT"}}
    (other / "dataset.json").write_text(json.dumps(content))
    for file in sorted((other / "imagesTr").iterdir())[2:]:  # fewer scans: CT stays the modality's scheme
        file.unlink()
        (other / "labelsTr" / file.name.replace("_0000", "")).unlink()
    options = PlanOptions(normalization="nnunet", spacing_mm=(4, 4, 4), gpu_memory_gb=1)
    summary = plan_and_preprocess([dataset, other.name], options)
    assert summary.exit_code == 0
    assert "but Dataset903_Beam:0 by z-score" in summary.notes["normalisation"]
    store = ScanStore(nnunet_env / "preprocessed" / "Dataset900_Unified" / "satunetPlans_3d_fullres")
    for scan in store.scan_ids:
        image = np.asarray(store.image(scan)[:])
        z_scored = abs(float(image.mean())) < 0.1 and abs(float(image.std()) - 1) < 0.15
        assert z_scored == scan.startswith("Dataset903"), scan
