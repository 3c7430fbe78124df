"""Fingerprints from scans: cases are read in parallel, and each is saved at once.

The findings of a case are kept in ``fingerprint_cases/<case>.json`` beside the dataset's fingerprint, so that an
interrupted extraction continues where it stopped, and only the new case is read if one is added.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from satunet.datasets.memory import reading_bytes
from satunet.datasets.paths import preprocessed_dir
from satunet.datasets.raw import Case, Dataset, load_dataset
from satunet.errors import DatasetError, MissingFileError, PlanError, SatunetError
from satunet.images.hounsfield import OFFSETS
from satunet.jobs.files import read_json, write_json
from satunet.jobs.fresh import Stamp
from satunet.jobs.progress import JobSummary, run_parallel
from satunet.jobs.quick import collection_resumed
from satunet.jobs.records import load_record, save_record
from satunet.jobs.workers import Workers
from satunet.planners.fingerprint.case import CaseFindings, analyze_case, case_stamp, is_untouched, renewed_stamp
from satunet.planners.fingerprint.dataset import FINGERPRINT_VERSION, CaseFingerprint, DatasetFingerprint, FailedCase
from satunet.planners.fingerprint.headers import dataset_doubts
from satunet.planners.fingerprint.intensities import CaseIntensities, ChannelStatistics
from satunet.planners.fingerprint.readers import nnunet_reader

logger = logging.getLogger(__name__)

CASES_FOLDER = "fingerprint_cases"
_VALUES_PER_DATASET = 20_000_000
_VALUES_PER_CASE = 1_000_000
_NNUNET_KEYS = (
    "spacings",
    "shapes_after_crop",
    "foreground_intensity_properties_per_channel",
    "median_relative_size_after_cropping",
)


@dataclass(frozen=True, kw_only=True)
class _Job:
    dataset: Dataset
    case: Case
    values: int
    reader: str | None


def fingerprint_dataset(name: str, *, processes: int | Workers = 1) -> tuple[DatasetFingerprint, JobSummary]:
    """Extract a dataset's fingerprint, reading the cases that are new or have changed.

    A fingerprint that nnunetv2 extracted before keeps nnunetv2's values; satunet's are added to it. Without scans on
    disk, an existing fingerprint is used unchanged.

    Args:
        name: Dataset in ``nnUNet_raw``.
        processes: Number of worker processes, or workers of another kind.

    Returns:
        The fingerprint of the cases that could be read, and a summary of all cases.

    Raises:
        DatasetError: No case could be read.
        PlanError: There are no scans, and the existing fingerprint cannot be used.
    """
    dataset = load_dataset(name)
    folder = preprocessed_dir() / name
    file = folder / "dataset_fingerprint.json"
    summary = JobSummary(f"fingerprint of {name}")
    existing = _existing(file)
    if not dataset.has_scans and existing:
        return _without_scans(existing, dataset, file, summary), summary
    cases = dataset.training_cases()
    cached = _cached(existing, file)
    if cached is not None and _is_of(cached, dataset, cases):
        for case in cached.cases:
            summary.skipped(f"{name}/{case.case}")
        for identifier, failed in cached.failed.items():
            summary.failed(f"{name}/{identifier}", failed.reason)
        return cached, summary
    with collection_resumed():
        fingerprint = _extract(dataset, cases, folder / CASES_FOLDER, summary, processes)
    for doubt in dataset_doubts(dataset, cases):
        logger.warning("%s: %s", name, doubt)
        summary.note(f"headers of {name}", doubt)
    content = fingerprint.to_nnunet()
    spacings = existing.get("spacings")
    if "satunet" not in existing and isinstance(spacings, list) and len(spacings) == len(fingerprint.cases):
        content |= {key: existing[key] for key in _NNUNET_KEYS if key in existing}
    write_json(file, content)
    return fingerprint, summary


def _without_scans(
    content: dict[str, Any], dataset: Dataset, file: Path, summary: JobSummary
) -> DatasetFingerprint:  # fmt: skip
    if "satunet" in content:
        try:
            found = DatasetFingerprint.of_file(content, file)
        except PlanError as error:
            raise PlanError(f"{error}; extract it again where the scans are") from error
    else:
        found = DatasetFingerprint.from_nnunet(content, dataset)
    for case in found.cases:
        summary.skipped(f"{dataset.name}/{case.case}")
    logger.debug("%s: no scans are here; its fingerprint is taken as it is", dataset.name)
    return found


def _extract(
    dataset: Dataset, cases: Sequence[Case], cache: Path, summary: JobSummary, processes: int | Workers
) -> DatasetFingerprint:
    name = dataset.name
    found: dict[str, CaseFindings] = {}
    reasons: dict[str, str] = {}
    todo = []
    reader = nnunet_reader(dataset, cases)
    for case in cases:
        known = _from_cache(cache, dataset, case, reader)
        if known is None:
            todo.append(case)
        else:
            found[case.identifier] = known
            summary.skipped(f"{name}/{case.identifier}")
    limit = min(_VALUES_PER_CASE, _VALUES_PER_DATASET // len(cases) + 1)
    jobs = [_Job(dataset=dataset, case=case, values=limit, reader=reader) for case in todo]
    for outcome in run_parallel(
        _analyze,
        jobs,
        description=f"Fingerprint of {name}",
        processes=processes if len(jobs) > 3 else 1,  # starting workers takes longer than reading a few cases
        key=lambda job: job.case.identifier,
        needs=lambda job: reading_bytes(job.case),
    ):
        case = outcome.item.case
        if outcome.result is not None:
            found[case.identifier] = outcome.result
            _to_cache(cache, dataset, case, outcome.result, reader)
            summary.done(f"{name}/{case.identifier}")
        else:
            summary.failed(f"{name}/{case.identifier}", outcome.error or "no result")
            reasons[case.identifier] = summary.failures[f"{name}/{case.identifier}"]
    failed = {
        c.identifier: FailedCase(reason=reasons[c.identifier], made_of=_stamp_if_readable(c))
        for c in cases
        if c.identifier in reasons
    }
    if not found:
        reason = next(iter(reasons.values()))
        raise DatasetError(f"{name}: none of its {len(cases)} cases can be read; first reason: {reason}")
    good = [findings for _, findings in sorted(found.items())]
    modalities = list(enumerate(dataset.modalities))
    ours = [[f.in_units(channel, modality) for f in good] for channel, modality in modalities]
    theirs = [[f.nnunet[channel] for f in good] for channel, _ in modalities]
    same = all(a is b for own, other in zip(ours, theirs, strict=True) for a, b in zip(own, other, strict=True))
    return DatasetFingerprint(
        dataset=name,
        cases=tuple(f.fingerprint for f in good),
        channels=tuple(ChannelStatistics.of(ours[channel], modality) for channel, modality in modalities),
        nnunet_channels=()
        if same
        else tuple(ChannelStatistics.of(theirs[channel], modality) for channel, modality in modalities),
        channel_names=dataset.channel_names,
        failed=failed,
        settings=_all_settings(dataset),
    )


def _analyze(job: _Job) -> CaseFindings:
    return analyze_case(job.dataset, job.case, values=job.values, reader=job.reader)


def _existing(file: Path) -> dict[str, Any]:
    try:
        content = read_json(file)
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _cached(content: dict[str, Any], file: Path) -> DatasetFingerprint | None:
    try:
        return DatasetFingerprint.of_file(content, file)
    except PlanError:
        return None


def _stamp_if_readable(case: Case) -> Stamp:
    try:
        return case_stamp(case)
    except MissingFileError:  # it may become readable without any other change, so it is tried again
        return Stamp()


def _is_of(fingerprint: DatasetFingerprint, dataset: Dataset, cases: Sequence[Case]) -> bool:
    """Whether no file of the dataset was touched since the fingerprint was made."""
    known = {c.case: c.made_of for c in fingerprint.cases}
    known |= {case: failed.made_of for case, failed in fingerprint.failed.items()}
    return (
        fingerprint.settings == _all_settings(dataset)
        and known.keys() == {c.identifier for c in cases}
        and all(is_untouched(known[c.identifier], c) for c in cases)
    )


@dataclass(frozen=True, kw_only=True)
class _KnownCase:
    """Record of the findings of a case.

    Attributes:
        settings: Settings that the findings depend on, besides the case's files.
        fingerprint: Grid and labels.
        channels: Annotated foreground of each channel.
        offsets: Offset of each channel above HU.
        nnunet: Foreground for nnunetv2, if different.
    """

    RECORD_VERSION: ClassVar[int] = FINGERPRINT_VERSION

    settings: str
    fingerprint: CaseFingerprint
    channels: tuple[CaseIntensities | None, ...]
    offsets: tuple[float, ...]
    nnunet: tuple[CaseIntensities | None, ...] | None = None


def _from_cache(cache: Path, dataset: Dataset, case: Case, reader: str | None) -> CaseFindings | None:
    """The recorded findings of a case, if the contents of its files did not change."""
    try:
        known = load_record(cache / f"{case.identifier}.json", _KnownCase)
        if known.settings != _case_settings(dataset, reader):
            return None
        made_of = renewed_stamp(known.fingerprint.made_of, case)
    except SatunetError:  # missing, damaged or of another version: the case is read
        return None
    nnunet = known.channels if known.nnunet is None else known.nnunet
    channels = len(dataset.channel_names)
    if made_of is None or any(len(values) != channels for values in (known.channels, nnunet, known.offsets)):
        return None
    if not OFFSETS.issuperset(known.offsets):
        return None  # damaged
    return CaseFindings(
        fingerprint=replace(known.fingerprint, made_of=made_of),
        intensities=known.channels,
        nnunet=nnunet,
        offsets=known.offsets,
    )


def _to_cache(cache: Path, dataset: Dataset, case: Case, found: CaseFindings, reader: str | None) -> None:
    known = _KnownCase(
        settings=_case_settings(dataset, reader),
        fingerprint=found.fingerprint,
        channels=found.intensities,
        offsets=found.offsets,
        nnunet=None if found.nnunet is found.intensities else found.nnunet,
    )
    save_record(cache / f"{case.identifier}.json", known)


def _settings(dataset: Dataset) -> str:
    """Parts of ``dataset.json`` on which the findings of cases depend."""
    return (
        f"{len(dataset.modalities)} channels; label ids {sorted(dataset.label_ids)}, {dataset.ignore_label} ignored; "
        f"reader {dataset.reader}" + ("; shapes trusted" if dataset.trust_shape else "")
    )


def _all_settings(dataset: Dataset) -> str:
    """The same with the channels' names and modalities, which do not change the findings of cases."""
    return (
        f"{_settings(dataset)}; modalities {', '.join(dataset.modalities)}; channels {', '.join(dataset.channel_names)}"
    )


def _case_settings(dataset: Dataset, reader: str | None) -> str:
    """Settings on which the findings of a case depend, with nnunetv2's reader."""
    return f"{_settings(dataset)}, found to be {reader}"
