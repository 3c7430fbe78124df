"""Specialists as jobs of a cluster."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from satunet.errors import UserError
from satunet.trainers.specialist import cluster as jobs
from satunet.trainers.specialist.cluster import SpecialistJob, submit

pytest.importorskip("submitit")


def test_local_jobs_run_and_a_failure_is_counted(nnunet_env: Path) -> None:
    # Two datasets that do not exist: each job is a real process that ends with satunet's own message.
    code = submit(["Dataset998_No"], ["train", "--device", "cpu", "--c"], cluster="local", options={"timeout_min": 2})
    assert code == 1
    logs = "".join(p.read_text() for p in (nnunet_env / "results" / "specialist_jobs").rglob("*_log.*"))
    assert "Dataset998_No" in logs


def test_a_job_asks_for_its_dataset_with_the_folders_of_the_submitter(
    nnunet_env: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, object] = {}

    class Done:
        returncode = 0

    def run(command: list[str], *, env: dict[str, str], check: bool) -> Done:
        asked.update(command=command, raw=env["nnUNet_raw"])
        return Done()

    job = SpecialistJob(["train", "--c"])
    monkeypatch.setenv("nnUNet_raw", "elsewhere")  # a node may have its own
    monkeypatch.setattr(jobs.subprocess, "run", run)
    assert job("Dataset003_X") == 0
    assert asked["command"] == [sys.executable, "-m", "satunet", "train", "--c", "--specialist", "Dataset003_X"]
    assert asked["raw"] == str(nnunet_env / "raw")
    again = job.checkpoint("Dataset003_X")
    assert again.args == ("Dataset003_X",)


def test_what_the_cluster_cannot_do_is_said(nnunet_env: Path) -> None:
    with pytest.raises(UserError, match="slurm"):
        submit(["Dataset001_A"], ["train"], cluster="slurm", options={})
    with pytest.raises(UserError, match="nonsense"):
        submit(["Dataset001_A"], ["train"], cluster="local", options={"nonsense": 1})
