"""A unified dataset stands beside nnU-Net's datasets and never in place of one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from satunet.cli import run
from satunet.demo.synthetic import make_synthetic_datasets
from satunet.errors import DatasetError, PlanError
from satunet.planners.options import PlanOptions
from satunet.planners.run import fingerprint_datasets, plan_datasets


@pytest.mark.parametrize(
    "name",
    ["Unified", "../evil", "Dataset9000_X", "Dataset90_X", "Dataset900_", "Dataset900_a/b", "Dataset900_My Data", ""],
)
def test_a_name_that_is_none_of_nnunets_is_refused(name: str) -> None:
    with pytest.raises(PlanError, match="DatasetNNN_Name"):
        PlanOptions(name=name)


def test_a_raw_datasets_name_or_number_is_refused_and_its_fingerprint_stays(
    nnunet_env: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    names = make_synthetic_datasets(nnunet_env / "raw", cases=2)
    fingerprint_datasets(names)
    files = {name: nnunet_env / "preprocessed" / name / "dataset_fingerprint.json" for name in names}
    before = {name: file.read_bytes() for name, file in files.items()}
    for name in (names[0], "Dataset902_Other"):
        assert run(["plan", "-d", *names, "--name", name, "--gpu_memory", "1"]) == 2
        assert "needs one of its own" in " ".join(capfd.readouterr().err.split())
    assert not (nnunet_env / "preprocessed" / "Dataset902_Other").exists()  # not even a log
    assert {name: file.read_bytes() for name, file in files.items()} == before


def test_a_dataset_whose_scans_are_elsewhere_is_not_replaced(nnunet_env: Path) -> None:
    names = make_synthetic_datasets(nnunet_env / "raw", cases=2)
    other = nnunet_env / "preprocessed" / "Dataset777_Elsewhere"
    other.mkdir()
    (other / "dataset_fingerprint.json").write_text(json.dumps({"spacings": []}))
    with pytest.raises(PlanError, match="holds the fingerprint of a dataset"):
        plan_datasets(names, PlanOptions(name=other.name, gpu_memory_gb=1))


def test_a_unified_dataset_is_no_part_of_another(nnunet_env: Path) -> None:
    names = make_synthetic_datasets(nnunet_env / "raw", cases=2)
    options = PlanOptions(gpu_memory_gb=1)
    assert plan_datasets(names, options).summary.exit_code == 0
    assert plan_datasets(names, options).summary.exit_code == 0  # its own plan may be made again
    with pytest.raises(PlanError, match="cannot be made of itself"):
        plan_datasets([*names, "Dataset900_Unified"], options)
    with pytest.raises(DatasetError, match="Dataset900_Unified is a unified dataset"):
        plan_datasets(["Dataset900_Unified"], PlanOptions(name="Dataset800_Both", gpu_memory_gb=1))
