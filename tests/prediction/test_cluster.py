"""The command line on a Dask cluster, in this process, and the Python interface: the same masks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from satunet.cli.predict import Predict
from satunet.errors import PromptError
from satunet.models.choice import ModelChoice
from satunet.prediction import PredictOptions, Predictor
from tests.prediction.conftest import write_model

CPU = PredictOptions(device="cpu")
PROMPTS = ("left bright", "right bright")


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    affine = np.array([[0, -1, 0, 10], [1, 0, 0, -20], [0, 0, 1, 30], [0, 0, 0, 1]], dtype=float)
    for seed, name in enumerate("ab"):
        array = np.random.default_rng(seed).normal(size=(20, 18, 22)).astype(np.float32)
        nib.save(nib.Nifti1Image(array, affine), tmp_path / "in" / f"{name}_0000.nii.gz")
    (tmp_path / "in" / "broken.nii.gz").write_text("no image")
    return tmp_path / "in"


def masks_of(folder: Path) -> dict[str, np.ndarray]:
    files = sorted(folder.glob("*/*.nii.gz"))
    return {f"{f.parent.name}/{f.name}": np.asarray(nib.load(f).dataobj) for f in files}


def test_the_python_interface_gives_what_the_command_line_gives(tmp_path: Path, scans: Path) -> None:
    folder = write_model(tmp_path / "model")
    call = {"input": (scans,), "models": ModelChoice(model=(folder,)), "prompts": PROMPTS, "prediction": CPU}
    assert Predict(output=tmp_path / "out", **call).run() == 1  # a broken scan
    written = masks_of(tmp_path / "out")
    assert len(written) == 4
    predictor = Predictor(folder, device="cpu")
    for name in "ab":
        found = predictor.predict(scans / f"{name}_0000.nii.gz", PROMPTS)
        for mask in found.masks:
            other = written[f"{name}/{mask.match.prompt.replace(' ', '_')}.nii.gz"]
            assert 0 < other.mean() < 1
            assert np.array_equal(mask.mask, other > 0)
    strict = {**call, "prompts": ("coffee cup",), "prediction": replace(CPU, strict=True)}
    with pytest.raises(PromptError, match="strict"):
        Predict(output=tmp_path / "o2", **strict).run()


@pytest.mark.slow
def test_a_dask_cluster_does_the_same(tmp_path: Path, scans: Path) -> None:
    distributed = pytest.importorskip("distributed")
    folder = write_model(tmp_path / "model")
    call = {
        "input": (scans,),
        "models": ModelChoice(model=(folder,)),
        "prompts": PROMPTS,
        "prediction": CPU,
        "statistics": True,
    }
    assert Predict(output=tmp_path / "here", **call).run() == 1
    with distributed.LocalCluster(n_workers=1, threads_per_worker=2, processes=True, dashboard_address=None) as cluster:
        there = {**call, "scheduler": cluster.scheduler_address}
        assert Predict(output=tmp_path / "there", **there).run() == 1
        assert Predict(output=tmp_path / "there", **there).run() == 1
    here, there = masks_of(tmp_path / "here"), masks_of(tmp_path / "there")
    assert list(here) == list(there)
    for name, mask in here.items():
        assert np.array_equal(mask, there[name])
    assert (tmp_path / "here" / "statistics.csv").read_text() == (tmp_path / "there" / "statistics.csv").read_text()
