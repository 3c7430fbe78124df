"""A fold's confidence, calibrated on the scans that it held out when it is validated."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from satunet.confidence.calibration import CONFIDENCE_FILE, Calibration, Outcome, Seen
from satunet.confidence.evidence import Evidence
from satunet.confidence.expected import CaseClasses, ClassStatistics
from satunet.datasets.paths import preprocessed_dir
from satunet.datasets.raw import split_scan_id
from satunet.errors import SatunetError, UserError
from satunet.jobs.records import from_plain, load_json
from satunet.labels import LabelSpace
from satunet.planners.fingerprint.dataset import DatasetFingerprint
from satunet.trainers.unified.setup import TrainingSetup

logger = logging.getLogger(__name__)


def calibrate_fold(
    setup: TrainingSetup, cases: Sequence[Mapping[str, Any]], folder: Path, weights_hash: str
) -> Calibration | None:
    """Write the fold's ``confidence.json``; if no mask is good enough to learn from, remove it and return ``None``.

    Args:
        setup: Scans and classes.
        cases: Held-out scans, each with ``scan``, ``metrics`` (class → counts) and ``evidence``.
        folder: Folder of the fold.
        weights_hash: Hash of its weights, as predictions give it.
    """
    held_out = {split_scan_id(str(case["scan"]))[:2] for case in cases}
    statistics = ClassStatistics.of(training_cases(setup.space, setup.plan.datasets, without=held_out))
    try:
        calibration = Calibration.fit(list(_outcomes(cases)), statistics, weights_hash=weights_hash)
    except UserError as error:
        logger.warning("%s", error)
        (folder / CONFIDENCE_FILE).unlink(missing_ok=True)
        return None
    calibration.save(folder)
    return calibration


def training_cases(
    space: LabelSpace, datasets: Sequence[str], *, without: set[tuple[str, str]]
) -> Iterator[CaseClasses]:
    """Classes of the cases in satunet's fingerprints, except some; a dataset without such a fingerprint has none.

    Args:
        space: Classes.
        datasets: Datasets to look at.
        without: Dataset and identifier of cases that are left out.
    """
    for dataset in datasets:
        file = preprocessed_dir() / dataset / "dataset_fingerprint.json"
        try:
            fingerprint = DatasetFingerprint.of_file(load_json(file, what="a fingerprint"), file)
        except (SatunetError, KeyError, TypeError, ValueError):
            logger.debug("%s: not used for the sizes of classes", file)
            continue
        for case in fingerprint.cases:
            if (dataset, case.case) not in without:
                x, y, z = case.spacing_ras
                yield CaseClasses.of_ids(
                    dataset,
                    space.ids.get(dataset, {}),
                    {i: voxels * x * y * z / 1000 for i, voxels in case.label_voxels.items()},
                    case.label_centroids_mm,
                )


def _outcomes(cases: Sequence[Mapping[str, Any]]) -> Iterator[Outcome]:
    for case in cases:
        scan = str(case["scan"])
        dataset, identifier = split_scan_id(scan)[:2]
        for name, counts in case["metrics"].items():
            evidence = from_plain(case["evidence"][name], Evidence, source=scan)
            yield Outcome(
                seen=Seen(class_name=name, evidence=evidence),
                present=counts["n_ref"] > 0,
                dsc=0.0 if counts["n_ref"] + counts["n_pred"] == 0 else float(counts["Dice"]),
                scan=scan,
                patient=f"{dataset}/{identifier}",
            )
