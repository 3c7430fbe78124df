"""Preprocess all scans of a plan: in parallel, resumable, one bad case never ends the rest."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from satunet.datasets import Case, Dataset, load_dataset, scan_id
from satunet.errors import DatasetError, UserError
from satunet.files import read_json, write_json
from satunet.imageio import read_image, read_label_map
from satunet.labels import LabelSpace, build_label_space
from satunet.paths import preprocessed_dir
from satunet.plan import UnifiedPlan
from satunet.preprocessing.store import (
    STORE_VERSION,
    ScanRecord,
    ScanStore,
    file_hash,
    label_locations,
    write_scan,
)
from satunet.preprocessing.transform import preprocess_image, preprocess_labels
from satunet.progress import JobSummary, run_parallel

logger = logging.getLogger(__name__)

FOLDS = 5


def preprocess_datasets(plan: UnifiedPlan, dataset_names: Sequence[str], *, processes: int = 1) -> JobSummary:
    """Write the store of a plan: scans, label space, splits, and a dataset.json of the whole.

    A scan whose inputs and plan are unchanged is not made again. A case that cannot be used is counted with its
    reason, and the rest goes on.

    Args:
        plan: The unified plan.
        dataset_names: Datasets in ``nnUNet_raw``.
        processes: Worker processes.

    Returns:
        Scans done, already done and failed.

    Raises:
        DatasetError: None of the datasets can be read.
    """
    folder = preprocessed_dir() / plan.dataset_name
    store = folder / plan.data_identifier
    store.mkdir(parents=True, exist_ok=True)
    summary = JobSummary("preprocessing")
    datasets: list[Dataset] = []
    jobs: list[_Job] = []
    for name in dataset_names:
        try:
            dataset = load_dataset(name)
            cases = dataset.training_cases()
        except UserError as error:
            summary.failed(name, error)
            continue
        datasets.append(dataset)
        jobs += [_Job(dataset=dataset, case=case, plan=plan, store=store) for case in cases]
    if not datasets:
        raise DatasetError(f"none of the datasets {list(dataset_names)} can be used: {summary.failures}")
    written = 0
    for outcome in run_parallel(
        _preprocess_case, jobs, description="Preprocessing", processes=processes, key=lambda j: j.case.identifier
    ):
        job = outcome.item
        if outcome.error is not None:
            summary.failed(f"{job.dataset.name}/{job.case.identifier}", outcome.error)
            continue
        for scan, size in outcome.result or []:
            written += size or 0
            (summary.skipped if size is None else summary.done)(scan)
    space = build_label_space(datasets)
    _write_overview(folder, plan, space, datasets)
    summary.note("classes", f"{len(space.classes)} in {len(datasets)} datasets")
    summary.note("written", f"{written / 1e6:.1f} MB in {store}")
    summary.save(folder / "preprocessing_summary.json")
    return summary


@dataclass(frozen=True, kw_only=True)
class _Job:
    dataset: Dataset
    case: Case
    plan: UnifiedPlan
    store: Path


def _preprocess_case(job: _Job) -> list[tuple[str, int | None]]:
    """All scans of a case: (scan, bytes written or None if it was up to date)."""
    dataset, case, plan = job.dataset, job.case, job.plan
    assert case.label is not None
    results: list[tuple[str, int | None]] = []
    hashes = {path: file_hash(path) for path in (*case.images, case.label) if path.is_file()}
    for channel, path in enumerate(case.images):
        scan = scan_id(dataset.name, case.identifier, channel)
        modality = dataset.modalities[channel]
        source = _source(hashes.get(path), hashes.get(case.label), modality, plan, dataset)
        if _is_current(job.store, scan, source):
            results.append((scan, None))
            continue
        image = read_image(path)
        labels = read_label_map(case.label, allowed_ids=dataset.label_ids, grid=image.grid)
        prepared = preprocess_image(image, modality=modality, plan=plan, orientation=plan.orientation_of(dataset.name))
        ids = preprocess_labels(labels, prepared.geometry)
        voxels, locations = label_locations(ids[0])
        record = ScanRecord(
            dataset=dataset.name,
            case=case.identifier,
            channel=channel,
            modality=modality,
            label_voxels=voxels,
            geometry=prepared.geometry,
            source=source,
        )
        results.append((scan, write_scan(job.store, record, prepared.array, ids, locations, plan.patch_size)))
    return results


def _source(image: str | None, label: str | None, modality: str, plan: UnifiedPlan, dataset: Dataset) -> str:
    parts = (STORE_VERSION, image, label, modality, plan.content_hash(), sorted(dataset.label_ids))
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:32]


def _is_current(store: Path, scan: str, source: str) -> bool:
    try:
        return bool(read_json(store / f"{scan}.json")["source"] == source)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _write_overview(folder: Path, plan: UnifiedPlan, space: LabelSpace, datasets: list[Dataset]) -> None:
    store = ScanStore(folder / plan.data_identifier)
    names = {d.name for d in datasets}
    scans = [s for s in store.scan_ids if store.record(s).dataset in names]
    space.save(folder / "label_space.json")
    labels = {"background": 0} | {name: i + 1 for i, name in enumerate(space.class_names)}
    write_json(
        folder / "dataset.json",
        {
            "name": plan.dataset_name,
            "description": f"unified dataset of {', '.join(sorted(names))}",
            "channel_names": {"0": "scan"},
            "labels": labels,
            "numTraining": len(scans),
            "file_ending": ".nii.gz",
        },
    )
    write_json(folder / "splits_final.json", unified_splits(scans))


def unified_splits(scans: Sequence[str]) -> list[dict[str, list[str]]]:
    """Five folds over scans, made dataset by dataset, the channels of a case together.

    A dataset's own ``splits_final.json`` in ``nnUNet_preprocessed`` is taken over. Without one, five or more cases
    are split as nnU-Net does; two to four by leaving one out in turn; a single case trains and validates.
    """
    by_case: dict[str, dict[str, list[str]]] = {}
    for scan in sorted(scans):
        dataset, case, _ = scan.split("__")[0], scan.split("__", 1)[1].rsplit("__", 1)[0], 0
        by_case.setdefault(dataset, {}).setdefault(case, []).append(scan)
    folds: list[dict[str, list[str]]] = [{"train": [], "val": []} for _ in range(FOLDS)]
    for dataset, cases in sorted(by_case.items()):
        for fold, split in zip(folds, _case_splits(dataset, sorted(cases)), strict=True):
            for part in ("train", "val"):
                fold[part] += [scan for case in split[part] if case in cases for scan in cases[case]]
    return folds


def _case_splits(dataset: str, cases: list[str]) -> list[dict[str, list[str]]]:
    file = preprocessed_dir() / dataset / "splits_final.json"
    if file.is_file():
        given: Any = read_json(file)
        if not isinstance(given, list) or not given or not all({"train", "val"} <= set(s) for s in given):
            raise DatasetError(f"{file}: must be a list of folds, each with 'train' and 'val'")
        return [given[i % len(given)] for i in range(FOLDS)]
    if len(cases) >= FOLDS:
        from nnunetv2.utilities.crossval_split import generate_crossval_split

        splits: list[dict[str, list[str]]] = generate_crossval_split(cases, seed=12345, n_splits=FOLDS)
        return splits
    if len(cases) == 1:
        return [{"train": cases, "val": cases}] * FOLDS
    held_out = [cases[i % len(cases)] for i in range(FOLDS)]
    return [{"train": [c for c in cases if c != out], "val": [out]} for out in held_out]
