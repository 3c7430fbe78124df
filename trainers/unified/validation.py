"""Validation at the end of a training: whole held-out scans, segmented by sliding windows and scored class by class.

Scans and labels come from the store, in the plan's orientation and spacing, so neither raw data nor resampling is
needed. For results to publish use ``satunet benchmark``, which scores in the files' own grids, with surface distances.
"""

from __future__ import annotations

import logging
import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from satunet.compute import distributed
from satunet.compute.choices import Precision
from satunet.confidence.evidence import Evidence, weigh
from satunet.datasets.raw import MODALITIES, split_scan_id
from satunet.errors import SatunetError
from satunet.jobs.files import read_json, write_json
from satunet.jobs.records import MALFORMED, from_plain, to_plain
from satunet.jobs.workers import reason_of
from satunet.models.checkpoints import hash_weights
from satunet.network.model import PromptedUNet
from satunet.trainers.unified.confidence import calibrate_fold
from satunet.trainers.unified.setup import TrainingSetup
from satunet.windows.engine import WindowedScan

logger = logging.getLogger(__name__)

Counts = dict[str, float]
"""nnU-Net's metrics of a class in a case: Dice, IoU, TP, FP, FN, TN, n_pred, n_ref (voxels)."""


def validate(
    setup: TrainingSetup,
    network: PromptedUNet,
    scans: Sequence[str],
    folder: Path,
    *,
    device: torch.device,
    precision: Precision = "auto",
) -> dict[str, Any] | None:
    """Segment scans with every class their dataset annotates; the processes of a distributed run share them.

    Each scan's result is saved at once, so that an interrupted validation resumes where it stopped. The calibration of
    confidence that follows from the scores is written beside the weights, as ``confidence.json``.

    Args:
        setup: Scans, classes and their embeddings.
        network: Trained network; it is put into evaluation mode.
        scans: Names of scans in the store.
        folder: Folder for ``summary.json``.
        device: Device of the network.
        precision: Precision to compute in.

    Returns:
        The content of ``validation/summary.json``; ``None`` on all processes but the first.
    """
    network.eval()
    deep, network.deep_supervision = network.deep_supervision, False
    weights = hash_weights(network.state_dict())[:16]
    cases: list[dict[str, Any]] = []
    failed: dict[str, str] = {}
    for scan in scans[distributed.rank() :: distributed.world_size()]:
        file = folder / "scans" / f"{scan}.json"
        try:
            case = _known(file, weights)
            if case is None:
                scored = score_scan(setup, network, scan, device=device, precision=precision)
                evidence = {name: to_plain(found) for name, found in scored.evidence.items()}
                case = {"scan": scan, "weights": weights, "metrics": scored.metrics, "evidence": evidence}
                write_json(file, case, sealed=True)
            cases.append(case)
            logger.debug("validated %s", scan)
        except Exception as error:  # one scan that cannot be read must not cost the validation of the others
            failed[scan] = reason_of(error)
            logger.error("%s cannot be validated (%s)", scan, failed[scan])
    network.deep_supervision = deep
    every = [case for part in distributed.gather(cases) for case in part]
    failures = {k: v for part in distributed.gather(failed) for k, v in part.items()}
    if distributed.rank() != 0:
        return None
    summary = summarize(sorted(every, key=lambda c: str(c["scan"])), failures)
    write_json(folder / "summary.json", summary)
    calibrate_fold(setup, every, folder.parent, weights)
    return summary


def summarize(cases: Sequence[dict[str, Any]], failed: dict[str, str] | None = None) -> dict[str, Any]:
    """nnU-Net's ``summary.json``, to which the same means by dataset are added.

    As in nnU-Net, a class that neither reference nor prediction shows has no Dice (NaN) and does not count; a class's
    mean is over its cases, and the foreground mean over the classes.

    Args:
        cases: Cases with ``scan`` and ``metrics`` (class → counts).
        failed: Scan → reason why it has no result.
    """
    rows = [
        {
            "reference_file": f"{c['scan']}_seg.b2nd",
            "prediction_file": None,  # masks are not kept; satunet predict writes them
            "metrics": c["metrics"],
        }
        for c in cases
    ]
    by_dataset: dict[str, list[dict[str, Counts]]] = defaultdict(list)
    for case in cases:
        by_dataset[split_scan_id(case["scan"])[0]].append(case["metrics"])
    everything = _means([m for many in by_dataset.values() for m in many])
    return {
        "metric_per_case": rows,
        "mean": everything,
        "foreground_mean": _mean_of(everything.values()),
        "mean_per_dataset": {
            dataset: {"scans": len(many), "mean": (means := _means(many)), "foreground_mean": _mean_of(means.values())}
            for dataset, many in sorted(by_dataset.items())
        },
        "grid": "the plan's orientation and spacing",
        "failed": failed or {},
    }


def count_voxels(predicted: int, reference: int, both: int, voxels: int) -> Counts:
    """nnU-Net's metrics of a class in a case.

    Args:
        predicted: Number of voxels in the prediction.
        reference: Number of voxels in the reference.
        both: Number of voxels in both.
        voxels: Number of voxels in the scan.
    """
    union = predicted + reference - both
    return {
        "Dice": 2 * both / (predicted + reference) if union else math.nan,
        "IoU": both / union if union else math.nan,
        "FN": reference - both,
        "FP": predicted - both,
        "TN": voxels - union,
        "TP": both,
        "n_pred": predicted,
        "n_ref": reference,
    }


@dataclass(frozen=True, kw_only=True)
class Scored:
    """A scan, segmented and counted.

    Attributes:
        metrics: Class → its counts.
        evidence: Class → evidence for its mask.
    """

    metrics: dict[str, Counts]
    evidence: dict[str, Evidence]


def score_scan(
    setup: TrainingSetup, network: PromptedUNet, scan: str, *, device: torch.device, precision: Precision = "auto"
) -> Scored:
    """Segment a scan of the store with every class its dataset annotates, and count labelled voxels.

    The network must be in evaluation mode, without deep supervision.
    """
    record = setup.store.record(scan)
    names = setup.space.classes_of(record.dataset)
    volume: NDArray[np.float32] = np.asarray(setup.store.image(scan)[:])[0]
    labels: NDArray[Any] = np.asarray(setup.store.labels(scan)[:])[0]
    known = labels != setup.space.ignored.get(record.dataset, -1)
    voxels = int(np.count_nonzero(known))
    windows = WindowedScan(
        network=network,
        volume=torch.from_numpy(volume),
        queries=torch.from_numpy(setup.bank.matrix(names)),
        modality=MODALITIES.index(record.modality),
        patch=setup.plan.window_for(record.shape),
        device=device,
        precision=precision,
    )
    metrics, evidence, affine = {}, {}, record.geometry.grid.affine
    for position, found in windows.probabilities():
        name = names[position]
        ids = setup.space.ids_of(record.dataset, name)
        reference = sum(record.label_voxels.get(i, 0) for i in ids)
        predicted = both = 0
        if found.values is not None:
            mask = (found.values.numpy() > 0.5) & known[found.box]
            predicted = int(mask.sum())
            both = int((mask & np.isin(labels[found.box], ids)).sum())
        metrics[name] = count_voxels(predicted, reference, both, voxels)
        values = np.zeros((0, 0, 0), np.float32) if found.values is None else found.values.numpy()
        start = [side.start for side in found.box]
        evidence[name] = weigh(values, start, volume.shape, affine, peak=found.peak, agreement=found.agreement)
    # masks arrive in any order; results are in that of the names
    return Scored(metrics={n: metrics[n] for n in names}, evidence={n: evidence[n] for n in names})


_COUNTS = count_voxels(0, 0, 0, 0).keys()


def _known(file: Path, weights: str) -> dict[str, Any] | None:
    """A scan's earlier result, if it was made with the same weights."""
    try:
        case: dict[str, Any] = read_json(file)
        whole = case["scan"] == file.stem and case["weights"] == weights
        for counts in case["metrics"].values():
            whole = whole and counts.keys() == _COUNTS and all(_is_number(v) for v in counts.values())
        for found in case["evidence"].values():
            from_plain(found, Evidence, source=file)
    except (OSError, SatunetError, *MALFORMED):
        return None
    return case if whole else None


def _is_number(value: Any) -> bool:
    return value is None or type(value) in (int, float)


def _means(cases: Iterable[dict[str, Counts]]) -> dict[str, Counts]:
    """Class → means over the cases that have a value."""
    values: dict[str, list[Counts]] = defaultdict(list)
    for metrics in cases:
        for name, counts in metrics.items():
            values[name].append(counts)
    return {name: _mean_of(many) for name, many in sorted(values.items())}


def _mean_of(many: Iterable[Counts]) -> Counts:
    rows = list(many)
    keys = rows[0].keys() if rows else ("Dice", "IoU")
    return {key: _mean([row[key] for row in rows]) for key in keys}


def _mean(values: Sequence[float]) -> float:
    present = [v for v in values if v is not None and not math.isnan(v)]
    return sum(present) / len(present) if present else math.nan
