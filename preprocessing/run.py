"""Preprocessing all scans of a plan: in parallel, resumable, and not ended by a bad case."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from satunet.datasets.memory import preprocessing_bytes
from satunet.datasets.raw import Case, Dataset, files_behind, load_dataset, scan_id
from satunet.errors import DatasetError, DiskFullError, SatunetError, UserError
from satunet.images.content import voxel_digest
from satunet.images.image import read_image, read_label_map
from satunet.jobs.files import only_writer, write_json
from satunet.jobs.fresh import Stamp, content_hash
from satunet.jobs.progress import JobSummary, run_parallel
from satunet.jobs.records import save_record
from satunet.jobs.wording import counted
from satunet.jobs.workers import Workers
from satunet.labels import LabelSpace, build_label_space
from satunet.plan import UnifiedPlan
from satunet.preprocessing.splits import Folds, folds_of, unified_splits
from satunet.preprocessing.store.index import ScanIndex
from satunet.preprocessing.store.locations import label_locations
from satunet.preprocessing.store.scans import (
    STORE_VERSION,
    RecordHead,
    ScanRecord,
    ScanStore,
    complete_record,
    file_hash,
    is_whole,
    read_manifest,
    record_head,
    remove_scan,
    scan_files,
    write_manifest,
    write_scan,
)
from satunet.preprocessing.store.wholeness import CheckedScans
from satunet.preprocessing.transform import preprocess_image, preprocess_labels

logger = logging.getLogger(__name__)

_THREADS = 8
_JOBS_OF_A_THREAD = 64


def preprocess_datasets(
    plan: UnifiedPlan,
    dataset_names: Sequence[str],
    *,
    space: LabelSpace | None = None,
    folds: Folds | None = None,
    processes: int | Workers = 1,
) -> JobSummary:
    """Write the store of a plan: scans, label space, splits, and a dataset.json of the whole.

    Scans whose inputs and plan are unchanged are not made again. A scan that cannot be used is counted with its reason,
    its earlier results are removed, and the others continue.

    Args:
        plan: The unified plan.
        dataset_names: Datasets in ``nnUNet_raw``; the store's manifest lists their scans and no others.
        space: Label space of these datasets; built from them if not given.
        folds: Folds of these datasets; made if not given.
        processes: Number of worker processes, or workers of another kind; workers of a cluster must see the same
            folders.

    Returns:
        Summary of the scans done, already done and failed.

    Raises:
        DatasetError: None of the datasets or scans can be read, or a ``splits_final.json`` cannot be used (in that
            case, nothing is done).
        LabelSpaceError: Labels of the datasets contradict each other.
        UserError: Another job is writing to the store.
    """
    unified = plan.unified_folder
    store = unified.store
    summary = JobSummary("preprocessing")
    cases: dict[str, tuple[Case, ...]] = {}
    datasets: list[Dataset] = []
    for name in dataset_names:
        try:
            dataset = load_dataset(name)
            cases[dataset.name] = dataset.training_cases()
            datasets.append(dataset)
        except UserError as error:
            summary.failed(name, error)
    if not datasets:
        raise DatasetError(f"none of the datasets {list(dataset_names)} can be used: {summary.failures}")
    if space is None or set(space.ids) != set(cases):
        space = build_label_space(datasets)
    if folds is None or set(folds.by_dataset) != set(cases):
        folds, _ = folds_of(datasets)
    jobs = [_Job(dataset=d, case=c, plan=plan, store=store) for d in datasets for c in cases[d.name]]
    with only_writer(store):
        scans = _run(jobs, summary, processes)
        if not scans:
            raise DatasetError(f"no scan of {[d.name for d in datasets]} could be preprocessed: {summary.failures}")
        write_manifest(store, plan, scans, complete=True)
        ScanIndex.of(ScanStore(store))  # so that no training needs to make it
    space.save(unified.label_space)
    write_json(unified.splits, unified_splits(list(scans), folds))
    if folds.notes:
        summary.note("splits", "; ".join(folds.notes))
    write_json(unified.dataset_json, _dataset_json(plan, space, datasets, len(scans)))
    summary.note("classes", f"{len(space.classes)} in {counted(len(datasets), 'dataset')}")
    summary.save(unified.folder / "preprocessing_summary.json")
    return summary


def _run(jobs: list[_Job], summary: JobSummary, processes: int | Workers) -> dict[str, str]:
    """Preprocess all cases; returns the scans that are in the store afterwards, with the hashes of their records."""
    plan, store = jobs[0].plan, jobs[0].store
    before = read_manifest(store)
    _say_what_changed(before, plan, store, summary)
    # A killed run must not leave scans of two plans in the manifest.
    kept = before["scans"] if before is not None and before["plan"] == plan.content_hash() else {}
    write_manifest(store, plan, kept, complete=False)
    checked = CheckedScans(store)
    todo: list[_Job] = []
    digests: dict[str, str] = {}
    # A rerun mostly finds that nothing has changed, for which no worker is started.
    for job, fresh in zip(jobs, _fresh_scans(jobs, kept, checked), strict=True):
        if fresh is None:
            todo.append(job)
        else:
            digests |= fresh
    for scan in digests:
        summary.skipped(scan)
    written = 0
    for outcome in run_parallel(
        _preprocess_case,
        todo,
        description="Preprocessing",
        processes=processes,
        key=lambda job: job.case.identifier,
        needs=lambda job: preprocessing_bytes(job.case, job.plan.spacing_mm),
    ):
        names = outcome.item.scans
        results: Sequence[int | BaseException | None] = outcome.result or [outcome.error] * len(names)
        for name, result in zip(names, results, strict=True):
            if isinstance(result, int):
                digests[name] = content_hash(scan_files(store, name)[-1])
                written += result
                checked.made(name)
                (summary.done if result else summary.skipped)(name)
            else:
                summary.failed(name, result or "no result")
                remove_scan(store, name)
    checked.save()
    with os.scandir(store) as entries:
        listed = {file.name for scan in digests for file in scan_files(store, scan)}
        size = sum(entry.stat().st_size for entry in entries if entry.name in listed)
    summary.note("on disk", f"{size / 1e6:.1f} MB in {store}, {written / 1e6:.1f} MB of it new")
    return digests


def _say_what_changed(before: dict[str, Any] | None, plan: UnifiedPlan, store: Path, summary: JobSummary) -> None:
    if before is None or before["plan"] == plan.content_hash():
        return
    old, new = before["preprocessing"], json.loads(json.dumps(plan.preprocessing()))
    changes = [f"{key} {old.get(key)} → {new[key]}" for key in new if old.get(key) != new[key]]
    text = f"the plan has changed: {'; '.join(changes)}. Scans that depend on it are made again"
    logger.warning("%s: %s", store, text)
    summary.note("plan", text)


@dataclass(frozen=True, kw_only=True)
class _Job:
    dataset: Dataset
    case: Case
    plan: UnifiedPlan
    store: Path

    @property
    def scans(self) -> list[str]:
        """Names of the case's scans."""
        return [scan_id(self.dataset.name, self.case.identifier, c) for c in range(len(self.case.images))]

    def made_by(self, channel: int) -> dict[str, Any]:
        """All values, besides its files, on which a scan depends."""
        modality = self.dataset.modalities[channel]
        return {
            "store": STORE_VERSION,
            "modality": modality,
            "preprocessing": self.plan.preprocessing_of(self.dataset.name, modality, channel),
            "label_ids": sorted(self.dataset.label_ids),
            "ignored": self.dataset.ignore_label,
            "trust_shape": self.dataset.trust_shape,
        }

    def inputs(self, channel: int) -> list[Path]:
        """Files from which a scan is made."""
        label = self.case.label
        assert label is not None  # training cases always name one
        return [file for given in (self.case.images[channel], label) for file in files_behind(given)]


def _fresh_scans(
    jobs: Sequence[_Job], kept: Mapping[str, str], checked: CheckedScans
) -> Iterator[dict[str, str] | None]:
    """For each case, its scans with the hashes of their records; ``None`` if one of them is not whole in the store, or
    was not made from the same files, judged by size and time.

    Args:
        jobs: The cases.
        kept: Scans in the manifest, with the hashes of their records.
        checked: Scans that were checked before.
    """
    made_by: dict[tuple[str, int], Any] = {}
    for job in jobs:
        for channel in range(len(job.case.images)):
            if (job.dataset.name, channel) not in made_by:
                made_by[job.dataset.name, channel] = Stamp.of((), job.made_by(channel)).combined  # as in a saved stamp

    def fresh(job: _Job) -> dict[str, str] | None:
        digests = {}
        for channel, scan in enumerate(job.scans):
            digest = kept.get(scan)
            head = None if digest is None else record_head(job.store, scan, digest)
            if head is None or digest is None:  # made by a run that did not end
                record = complete_record(job.store, scan)
                if record is None:
                    return None
                head = RecordHead(scan=scan, made_of=record.made_of, files=record.files)
                digest = content_hash(scan_files(job.store, scan)[-1])
            same = head.made_of.combined == made_by[job.dataset.name, channel]
            if not same or not checked.has_sizes(head) or not head.made_of.are_untouched(job.inputs(channel)):
                return None
            if not checked.is_whole(head):
                logger.warning("%s in %s is damaged; it is made again", scan, job.store)
                return None
            digests[scan] = digest
        return digests

    parts = [jobs[start : start + _JOBS_OF_A_THREAD] for start in range(0, len(jobs), _JOBS_OF_A_THREAD)]
    with checked.listed(), ThreadPoolExecutor(_THREADS) as threads:
        for part in threads.map(lambda part: [fresh(job) for job in part], parts):
            yield from part


def _preprocess_case(job: _Job) -> list[int | Exception]:
    """Preprocess every channel of a case; returns the bytes written (0 for a scan that is up to date), or the error."""
    from threadpoolctl import threadpool_limits

    results: list[int | Exception] = []
    # One thread: other processes use the other cores, and results do not depend on the number of cores.
    with threadpool_limits(1):
        for channel in range(len(job.case.images)):
            try:
                results.append(_preprocess_scan(job, channel))
            except DiskFullError:
                raise
            except SatunetError as error:
                results.append(error)
            except Exception as error:  # a library's error, which may not be picklable
                results.append(RuntimeError(f"{job.case.images[channel]}: {type(error).__name__}: {error}"))
    return results


def _preprocess_scan(job: _Job, channel: int) -> int:
    dataset, case, plan = job.dataset, job.case, job.plan
    path, label = case.images[channel], case.label
    assert label is not None
    scan = job.scans[channel]
    files, made_by = job.inputs(channel), job.made_by(channel)
    known = complete_record(job.store, scan)
    if known is not None and not is_whole(job.store, known):
        known = None
    if known is not None and known.made_of.is_untouched(files, made_by):
        return 0
    made_of = Stamp.of(files, made_by)
    if known is not None and _same_content(known, made_of, job, channel):
        # Touched, but not changed: with the new times, the next run need not read the files.
        save_record(scan_files(job.store, scan)[-1], replace(known, made_of=made_of, source=""))
        return 0
    modality = dataset.modalities[channel]
    image = read_image(path)
    labels = read_label_map(label, allowed_ids=dataset.label_ids, grid=image.grid, trust_shape=dataset.trust_shape)
    prepared = preprocess_image(
        image,
        modality=modality,
        plan=plan,
        orientation=plan.orientation_of(dataset.name),
        normalization=plan.normalization_of(modality, dataset.name, channel),
    )
    content = voxel_digest(image)
    del image  # frees its voxels before the label map is resampled
    ids = preprocess_labels(labels, prepared.geometry)
    voxels, locations = label_locations(ids[0], ignored=dataset.ignore_label)
    record = ScanRecord(
        scan=scan,
        modality=modality,
        label_voxels=voxels,
        geometry=prepared.geometry,
        made_of=made_of,
        content=content,
    )
    return write_scan(job.store, record, prepared.array, ids, locations, plan.patch_size)


def _same_content(known: ScanRecord, made_of: Stamp, job: _Job, channel: int) -> bool:
    """Whether a scan was made from the current contents of its files, whenever they were touched."""
    if known.source:  # written by an earlier version, which alone is no reason to make it again
        return known.source == _source_of_version_2(job, channel)
    return known.made_of.digest == made_of.digest


def _source_of_version_2(job: _Job, channel: int) -> str:
    by = job.made_by(channel)
    ignored = () if by["ignored"] is None else ("ignored", by["ignored"])
    trusted = ("trust_shape",) if by["trust_shape"] else ()
    preprocessing = json.dumps(by["preprocessing"], sort_keys=True)
    hashes = [file_hash(file) for file in job.inputs(channel)]
    parts = (STORE_VERSION, by["modality"], preprocessing, by["label_ids"], *ignored, *trusted, *hashes)
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:32]


def _dataset_json(plan: UnifiedPlan, space: LabelSpace, datasets: list[Dataset], scans: int) -> dict[str, Any]:
    """Content of the ``dataset.json`` that nnunetv2 reads; label ids are those of the classes in the label space."""
    return {
        "name": plan.dataset_name,
        "description": f"unified dataset of {', '.join(sorted(d.name for d in datasets))}",
        "channel_names": {"0": "scan"},
        "labels": {"background": 0} | {name: i + 1 for i, name in enumerate(space.class_names)},
        "numTraining": scans,
        "file_ending": ".nii.gz",
    }
