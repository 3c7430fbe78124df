"""Checks of files: a store against its manifest, and raw datasets before a long job."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from satunet.datasets.checks import check_case, check_dataset
from satunet.datasets.memory import reading_bytes
from satunet.datasets.people import find_people
from satunet.datasets.raw import Case, Dataset, load_dataset
from satunet.errors import DatasetError, UserError
from satunet.images.content import voxel_digest
from satunet.jobs.progress import JobSummary, run_parallel
from satunet.jobs.records import load_record
from satunet.jobs.workers import Workers
from satunet.plan import UnifiedPlan
from satunet.planners.fingerprint.headers import dataset_doubts
from satunet.preprocessing.store.arrays import open_array
from satunet.preprocessing.store.locations import ANNOTATED, read_locations
from satunet.preprocessing.store.scans import INDEX, STORE_VERSION, ScanRecord, is_of_hash, read_manifest, scan_files
from satunet.preprocessing.store.wholeness import CHECKED_FILE, CheckedScans


def verify_store(folder: Path, *, plan: UnifiedPlan | None = None, processes: int | Workers = 1) -> JobSummary:
    """Check that every file of a store exists and is undamaged.

    Args:
        folder: The store.
        plan: Plan by which it should be made, if that is to be checked as well.
        processes: Number of worker processes, or workers of another kind.

    Returns:
        Summary of the scans that are whole and of those that are not, each with all its faults. The next run of
        ``satunet preprocess`` reads the latter again and remakes damaged ones.

    Raises:
        DatasetError: There is no store of this version.
    """
    manifest = read_manifest(folder)
    if manifest is None:
        raise DatasetError(f"{folder}: no manifest of a store of version {STORE_VERSION}; preprocess first")
    summary, checked = JobSummary("verification of the store"), CheckedScans(folder)
    if not manifest["complete"]:
        summary.failed("manifest.json", f"{folder}: the last run did not finish; start it again")
    if plan is not None and manifest["plan"] != plan.content_hash():
        summary.failed("manifest.json", f"{folder}: the scans were made with another plan; preprocess again")
    jobs = [_Listed(folder=folder, scan=scan, digest=digest) for scan, digest in manifest["scans"].items()]
    for outcome in run_parallel(
        _faults_of_scan, jobs, description="Verifying", processes=processes, key=lambda job: job.scan
    ):
        faults = outcome.result if outcome.result is not None else [str(outcome.error)]
        if faults:
            summary.failed(outcome.item.scan, "; ".join(faults))
            checked.forget(outcome.item.scan)
        else:
            summary.done(outcome.item.scan)
    if summary.failures:
        with contextlib.suppress(OSError):  # a read-only store
            checked.save(keep=True)
    listed = {file.name for job in jobs for file in scan_files(folder, job.scan)}
    listed |= {"manifest.json", INDEX, ".lock", CHECKED_FILE}
    unlisted = sorted(p.name for p in folder.iterdir() if p.name not in listed)
    if unlisted:
        few = ", ".join(unlisted[:3]) + (", …" if len(unlisted) > 3 else "")
        summary.note("not in the manifest", f"{len(unlisted)} files, which no command reads: {few}")
    return summary


@dataclass(frozen=True, kw_only=True)
class _Listed:
    folder: Path
    scan: str
    digest: str


def _faults_of_scan(job: _Listed) -> list[str]:
    *arrays, file = scan_files(job.folder, job.scan)
    try:
        record = load_record(file, ScanRecord, error=DatasetError)
    except DatasetError as error:
        return [str(error) if file.exists() else f"{file.name} is missing"]
    faults = [] if is_of_hash(file, job.digest) else [f"{file.name} is not the record that the manifest lists"]
    for path in arrays:
        size, digest = record.files.get(path.name[len(job.scan) :], (0, ""))
        if not path.is_file():
            faults.append(f"{path.name} is missing")
        elif path.stat().st_size != size:
            faults.append(f"{path.name} has {path.stat().st_size} bytes, {size} were written")
        elif not is_of_hash(path, digest):
            faults.append(f"{path.name} is not what was written: its content has changed")
    return faults or _misshapen(job, record)


def _misshapen(job: _Listed, record: ScanRecord) -> list[str]:
    """Inconsistencies in a scan whose files are undamaged, which would be errors of the writer."""
    image, labels, places, _ = scan_files(job.folder, job.scan)
    faults = []
    for path in (image, labels):
        shape = tuple(open_array(path).shape)
        if shape != (1, *record.shape):
            faults.append(f"{path.name} has the shape {shape}, the record says {(1, *record.shape)}")
    if set(read_locations(places)) - {ANNOTATED} != set(record.label_voxels):
        faults.append(f"{places.name} has other labels than the record lists")
    return faults


def verify_datasets(dataset_names: Sequence[str], *, processes: int | Workers = 1) -> JobSummary:
    """Read every file of raw datasets and report all faults at once.

    Args:
        dataset_names: Datasets in ``nnUNet_raw``.
        processes: Number of worker processes, or workers of another kind.

    Returns:
        Summary of the cases without a fault, and of datasets and cases with all their faults; a note lists persons with
        several cases.
    """
    summary = JobSummary("integrity of datasets")
    jobs: list[_RawCase] = []
    for name in dataset_names:
        try:
            dataset = load_dataset(name)
            cases = dataset.training_cases()
        except UserError as error:
            summary.failed(name, error)
            continue
        faults = check_dataset(dataset)
        if faults:
            summary.failed(name, "; ".join(faults))
        doubts = dataset_doubts(dataset, cases)
        if doubts:
            summary.note(f"headers of {name}", "; ".join(doubts))
        jobs += [_RawCase(dataset=dataset, case=case) for case in cases]
    scans: dict[tuple[str, str], list[str]] = {}
    for outcome in run_parallel(
        _look_at,
        jobs,
        description="Checking",
        processes=processes,
        key=lambda job: job.case.identifier,
        needs=lambda job: reading_bytes(job.case),
    ):
        job = outcome.item
        item = f"{job.dataset.name}/{job.case.identifier}"
        found, digests = outcome.result if outcome.result is not None else ([str(outcome.error)], [])
        scans[job.dataset.name, job.case.identifier] = digests
        if found:
            summary.failed(item, "; ".join(found))
        else:
            summary.done(item)
    _tell_people(jobs, scans, summary)
    return summary


def _tell_people(jobs: list[_RawCase], scans: dict[tuple[str, str], list[str]], summary: JobSummary) -> None:
    datasets = {job.dataset.name: job.dataset for job in jobs}
    cases: dict[str, list[str]] = {name: [] for name in datasets}
    for job in jobs:
        cases[job.dataset.name].append(job.case.identifier)
    try:
        people = find_people(datasets.values(), cases, scans)
    except DatasetError as error:
        summary.failed("patients.json", error)
        return
    if people.findings:
        summary.note("people", "; ".join(people.findings))


@dataclass(frozen=True, kw_only=True)
class _RawCase:
    dataset: Dataset
    case: Case


def _look_at(job: _RawCase) -> tuple[list[str], list[str]]:
    """Faults of a case, and hashes of its scans' voxels."""
    scans: list[str] = []
    faults = check_case(job.dataset, job.case, lambda image: scans.append(voxel_digest(image)))
    return [str(fault) for fault in faults], scans
