"""Fingerprints of many datasets."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

from satunet.datasets.paths import preprocessed_dir
from satunet.errors import DatasetError, UserError
from satunet.jobs.files import read_json
from satunet.jobs.progress import JobSummary
from satunet.jobs.workers import Workers
from satunet.planners.fingerprint.dataset import DatasetFingerprint
from satunet.planners.fingerprint.extraction import fingerprint_dataset


def known_fingerprints(dataset_names: Sequence[str]) -> list[DatasetFingerprint]:
    """Fingerprints that were extracted before; a dataset without one, or with one of nnunetv2's, is left out."""
    found = []
    for name in dataset_names:
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # one that is damaged is made again
            found.append(
                DatasetFingerprint.from_json(read_json(preprocessed_dir() / name / "dataset_fingerprint.json"))
            )
    return found


def fingerprint_datasets(
    dataset_names: Sequence[str], *, processes: int | Workers = 1
) -> tuple[list[DatasetFingerprint], JobSummary]:
    """Fingerprint datasets one after the other, the cases of each in parallel.

    Returns:
        The fingerprints of the datasets that could be read, and what became of each case.

    Raises:
        DatasetError: Not one dataset could be read.
    """
    summary = JobSummary("fingerprints")
    fingerprints = []
    for name in dataset_names:
        try:
            fingerprint, cases = fingerprint_dataset(name, processes=processes)
        except UserError as error:
            summary.failed(name, error)
            continue
        fingerprints.append(fingerprint)
        summary.include(cases)
    if not fingerprints:
        reasons = "; ".join(summary.failures.values()) or "no dataset was given"
        raise DatasetError(f"none of the datasets can be used: {reasons}")
    return fingerprints, summary
