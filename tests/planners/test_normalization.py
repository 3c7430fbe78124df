"""nnU-Net's rules on the union, from fingerprints made of real files."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from satunet.demo.synthetic import make_synthetic_datasets
from satunet.plan import SAT_NORMALIZATION, Normalization
from satunet.planners.run import fingerprint_datasets
from satunet.planners.unified.normalization import plan_normalization


def test_ct_goes_by_its_foreground_and_mri_by_each_scan(nnunet_env: Path) -> None:
    names = make_synthetic_datasets(nnunet_env / "raw", cases=3)
    fingerprints, _ = fingerprint_datasets(names)
    assert plan_normalization(fingerprints, "sat")[0] == SAT_NORMALIZATION
    schemes, why = plan_normalization(fingerprints, "nnunet")
    foreground = []
    for path in sorted((nnunet_env / "raw" / names[0] / "imagesTr").iterdir()):
        labels = nib.load(path.parents[1] / "labelsTr" / path.name.replace("_0000", ""))
        foreground.append(np.asarray(nib.load(path).dataobj)[np.asarray(labels.dataobj) > 0])
    assert schemes["ct"].mean == pytest.approx(np.mean([f.mean() for f in foreground]), rel=0.02)
    assert schemes["ct"].clip == pytest.approx(np.percentile(np.concatenate(foreground), (0.5, 99.5)), abs=8)
    relative = [c.relative_size for c in fingerprints[1].cases]
    assert schemes["mri"] == Normalization(nonzero=bool(np.median(relative) < 0.75))
    assert schemes["other"] == Normalization()
    assert "CT by its foreground" in why
