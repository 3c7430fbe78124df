"""Specialists as jobs of a cluster: one Slurm array with one task per dataset, through submitit."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from satunet.datasets.paths import results_dir
from satunet.errors import EnvironmentProblemError, UserError
from satunet.jobs.progress import JobSummary

logger = logging.getLogger(__name__)

_KEPT = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")


class SpecialistJob:
    """Trains one specialist in a process of its own; what submitit pickles and runs on the node.

    Args:
        command: Arguments of ``satunet`` without the dataset.
    """

    def __init__(self, command: Sequence[str]) -> None:
        self.command = list(command)
        self.folders = {name: os.environ[name] for name in _KEPT if name in os.environ}

    def __call__(self, dataset: str) -> int:
        """Train, or continue a training; returns the exit code."""
        environment = os.environ | self.folders
        done = subprocess.run(
            [sys.executable, "-m", "satunet", *self.command, "--specialist", dataset], env=environment, check=False
        )
        if done.returncode:
            raise RuntimeError(f"{dataset}: satunet ended with exit code {done.returncode}; see the job's log")
        return done.returncode

    def checkpoint(self, dataset: str) -> Any:
        """Called by submitit when the queue preempts a job: submit it again; it continues from its checkpoint."""
        import submitit

        return submitit.helpers.DelayedSubmission(self, dataset)


def submit(datasets: Sequence[str], command: Sequence[str], *, cluster: str, options: Mapping[str, Any]) -> int:
    """Submit one task per dataset.

    Args:
        datasets: Planned and preprocessed for their specialists.
        command: Arguments of ``satunet`` for each task, without the dataset.
        cluster: ``"slurm"`` returns at once; ``"local"`` runs the tasks as processes here and waits.
        options: Options of submitit's executor, such as ``slurm_partition``.

    Returns:
        The exit code: 1 if a local task failed.

    Raises:
        EnvironmentProblemError: submitit is not installed.
        UserError: No Slurm here, or options that submitit does not know.
    """
    try:
        import submitit
    except ImportError as error:
        raise EnvironmentProblemError("--cluster needs submitit: pip install satunet[cluster]") from error
    folder = results_dir() / "specialist_jobs"
    try:
        executor = submitit.AutoExecutor(folder=folder / "%j", cluster=cluster)
        executor.update_parameters(name="satunet_specialists", **({"timeout_min": 2880} | dict(options)))
    except (RuntimeError, NameError, TypeError) as error:
        raise UserError(f"submitit cannot use cluster {cluster!r} with {dict(options)}: {error}") from error
    jobs = executor.map_array(SpecialistJob(command), list(datasets))
    for dataset, job in zip(datasets, jobs, strict=True):
        logger.info("%s: job %s", dataset, job.job_id)
    if cluster != "local":
        logger.info("%d tasks submitted; their logs are in %s", len(jobs), folder)
        return 0
    summary = JobSummary("specialist nnU-Nets")
    for dataset, job in zip(datasets, jobs, strict=True):
        try:
            job.result()
            summary.done(dataset)
        except Exception as error:  # submitit wraps whatever ended a task
            summary.failed(dataset, str(error).strip().splitlines()[-1] if str(error).strip() else error)
    summary.show()
    return summary.exit_code
