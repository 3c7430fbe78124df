"""Which cases are of one patient.

A raw dataset may say so in ``patients.json`` beside its ``dataset.json``: case → patient. Names of BIDS say it
themselves: ``sub-01_ses-2`` is of ``sub-01``. Any other case is a patient of its own.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from satunet.datasets.raw import Dataset
from satunet.errors import DatasetError
from satunet.jobs.records import load_json

PATIENTS_FILE = "patients.json"

_BIDS = re.compile(r"^(?P<patient>sub-[A-Za-z0-9]+)(_|$)")


def patients_of(dataset: Dataset) -> dict[str, str]:
    """Case → patient, of every training and test case of a dataset, and of those that its file names besides.

    Raises:
        DatasetError: The file is no such list.
    """
    file = dataset.folder / PATIENTS_FILE
    given: Mapping[str, str] = {}
    if file.is_file():
        given = load_json(file, what="a list of patients", error=DatasetError)
        if not isinstance(given, dict) or not all(isinstance(p, str) and p for p in given.values()):
            raise DatasetError(f'{file}: expected is an object of case and patient, such as {{"case_1": "patient_1"}}')
    cases = [*dataset.test_cases(), *(dataset.training_cases() if (dataset.folder / "imagesTr").is_dir() else ())]
    return {c.identifier: patient_of(c.identifier) for c in cases} | dict(given)


def patient_of(case: str) -> str:
    """The patient that a case's name tells, or the name itself."""
    match = _BIDS.match(case)
    return match["patient"] if match else case
