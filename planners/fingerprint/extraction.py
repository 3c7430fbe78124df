"""Fingerprints from scans: case by case in parallel, every case kept as soon as it is known.

What was found in a case lies in ``fingerprint_cases/<case>.json`` beside the dataset's fingerprint, so that an
interrupted extraction goes on where it stopped, and a case that is added is the only one to be read.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from satunet.datasets.memory import reading_bytes
from satunet.datasets.paths import preprocessed_dir
from satunet.datasets.raw import Case, Dataset, load_dataset
from satunet.errors import DatasetError, GridMismatchError, MissingFileError, PlanError
from satunet.geometry import Grid, reorient, same_grid
from satunet.images.image import read_image, read_label_map
from satunet.jobs.files import read_json, write_json
from satunet.jobs.progress import JobSummary, run_parallel
from satunet.jobs.workers import Workers
from satunet.planners.fingerprint.dataset import FINGERPRINT_VERSION, CaseFingerprint, DatasetFingerprint, Triple
from satunet.planners.fingerprint.intensities import CaseIntensities, ChannelStatistics

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
class _Found:
    """What is known of a case: numbers, or why there are none."""

    fingerprint: CaseFingerprint | None = None
    intensities: tuple[CaseIntensities | None, ...] = ()
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class _Job:
    dataset: Dataset
    case: Case
    values: int
    """Foreground voxels to keep for percentiles."""


def fingerprint_dataset(name: str, *, processes: int | Workers = 1) -> tuple[DatasetFingerprint, JobSummary]:
    """Extract a dataset's fingerprint, reading the cases that are new or have changed.

    A fingerprint that nnunetv2 extracted before keeps nnunetv2's values; ours are added to it. Where no scan is on
    disk, the fingerprint that is there is taken as it is.

    Args:
        name: Dataset in ``nnUNet_raw``.
        processes: Worker processes, or where else to run.

    Returns:
        The fingerprint of the cases that could be read, and what became of each case.

    Raises:
        DatasetError: No case could be read.
        PlanError: There are no scans, and the fingerprint that is there cannot be used.
    """
    dataset = load_dataset(name)
    folder = preprocessed_dir() / name
    file = folder / "dataset_fingerprint.json"
    summary = JobSummary(f"fingerprint of {name}")
    existing = _existing(file)
    if not dataset.has_scans and existing:
        return _without_scans(existing, dataset, file, summary), summary
    cases = dataset.training_cases()
    cached = _cached(existing)
    if cached is not None and _is_of(cached, dataset, cases):
        for case in cached.cases:
            summary.skipped(f"{name}/{case.case}")
        for identifier, (_, reason) in cached.failed.items():
            summary.failed(f"{name}/{identifier}", reason)
        return cached, summary
    fingerprint = _extract(dataset, cases, folder / CASES_FOLDER, summary, processes)
    content = fingerprint.to_json()
    if "satunet" not in existing and len(existing.get("spacings", ())) == len(fingerprint.cases):
        content |= {key: existing[key] for key in _NNUNET_KEYS if key in existing}
    write_json(file, content)
    return fingerprint, summary


def _without_scans(
    content: dict[str, Any], dataset: Dataset, file: Path, summary: JobSummary
) -> DatasetFingerprint:  # fmt: skip
    if "satunet" in content:
        try:
            found = DatasetFingerprint.from_json(content)
        except (PlanError, KeyError, TypeError, ValueError) as error:
            raise PlanError(f"{file}: {error}; extract it again where the scans are") from error
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
    found: dict[str, _Found] = {}
    todo = []
    for case in cases:
        known = _from_cache(cache, dataset, case)
        if known is None:
            todo.append(case)
        else:
            found[case.identifier] = known
            summary.skipped(f"{name}/{case.identifier}")
    limit = min(_VALUES_PER_CASE, _VALUES_PER_DATASET // len(cases) + 1)
    jobs = [_Job(dataset=dataset, case=case, values=limit) for case in todo]
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
            _to_cache(cache, dataset, case, outcome.result)
            summary.done(f"{name}/{case.identifier}")
        else:
            summary.failed(f"{name}/{case.identifier}", outcome.error or "no result")
            found[case.identifier] = _Found(reason=summary.failures[f"{name}/{case.identifier}"])
    by_name = {case.identifier: case for case in cases}
    good = [(f.fingerprint, f.intensities) for _, f in sorted(found.items()) if f.fingerprint is not None]
    failed = {case: (_source(by_name[case]), f.reason) for case, f in sorted(found.items()) if f.fingerprint is None}
    if not good:
        reason = next(iter(failed.values()))[1]
        raise DatasetError(f"{name}: none of its {len(cases)} cases can be read; first reason: {reason}")
    return DatasetFingerprint(
        dataset=name,
        cases=tuple(case for case, _ in good),
        channels=tuple(
            ChannelStatistics.of([intensities[channel] for _, intensities in good], modality)
            for channel, modality in enumerate(dataset.modalities)
        ),
        failed=failed,
        settings=_settings(dataset) + f"; modalities {', '.join(dataset.modalities)}",
    )


def _analyze(job: _Job) -> _Found:
    dataset, case = job.dataset, job.case
    if case.label is None:
        raise MissingFileError(dataset.folder, f"case {case.identifier} has no label map")
    source = _source(case)
    images = [read_image(path) for path in case.images]
    grid = images[0].grid
    for image, path in zip(images, case.images, strict=True):
        if not same_grid(image.grid, grid):
            raise GridMismatchError(path, f"its grid is not that of {case.images[0].name}")
    labels = read_label_map(case.label, allowed_ids=dataset.label_ids, grid=grid)
    nonzero = np.zeros(grid.shape, dtype=bool)
    for image in images:
        nonzero |= image.array != 0
    box = _box(nonzero)
    cropped = labels.array[box]
    foreground = cropped > 0
    intensities = tuple(CaseIntensities.of(image.array[box][foreground], job.values) for image in images)
    x, y, z = cropped.shape
    turned, ras = reorient(cropped, Grid(shape=(x, y, z), affine=grid.affine), "RAS")
    i, j, k = grid.spacing_mm
    voxels, extents, centroids = describe_labels(*reorient(labels.array, grid, "RAS"))
    fingerprint = CaseFingerprint(
        dataset=dataset.name,
        case=case.identifier,
        channels=len(images),
        spacing=(k, j, i),
        shape_after_crop=(z, y, x),
        relative_size=cropped.size / labels.array.size,
        spacing_ras=ras.spacing_mm,
        shape_ras=(turned.shape[0], turned.shape[1], turned.shape[2]),
        label_voxels=voxels,
        label_extents_mm=extents,
        label_centroids_mm=centroids,
        source=source,
        digest=_digest(case),
    )
    return _Found(fingerprint=fingerprint, intensities=intensities)


def describe_labels(
    labels: NDArray[np.integer[Any]], grid: Grid
) -> tuple[dict[int, int], dict[int, Triple], dict[int, Triple]]:
    """Voxels, extent in mm and centroid in mm of every label.

    Args:
        labels: (X, Y, Z), 0 is background.
        grid: Its grid; extents are along its axes, centroids in its world coordinates.
    """
    from scipy.ndimage import find_objects

    voxels: dict[int, int] = {}
    extents: dict[int, Triple] = {}
    centroids: dict[int, Triple] = {}
    ids = [int(n) for n in np.flatnonzero(np.bincount(labels.ravel())) if n]
    boxes = find_objects(labels.astype(np.int32, copy=False))
    spacing = grid.spacing_mm
    for n in ids:
        box = boxes[n - 1]
        inside = labels[box] == n
        centre = np.ones(4)
        count = 0
        for axis in range(3):
            profile = inside.sum(axis=tuple(a for a in range(3) if a != axis), dtype=np.int64)
            count = int(profile.sum())
            centre[axis] = box[axis].start + float(profile @ np.arange(profile.size)) / count
        x, y, z = (grid.affine @ centre)[:3]
        voxels[n] = count
        i, j, k = ((s.stop - s.start) * mm for s, mm in zip(box, spacing, strict=True))
        extents[n] = (round(i, 3), round(j, 3), round(k, 3))
        centroids[n] = (round(float(x), 3), round(float(y), 3), round(float(z), 3))
    return voxels, extents, centroids


def _box(nonzero: Any) -> tuple[slice, ...]:
    """Smallest box around what is true; everything if nothing is."""
    hits = [np.flatnonzero(nonzero.any(axis=others)) for others in ((1, 2), (0, 2), (0, 1))]
    return tuple(slice(int(h[0]), int(h[-1]) + 1) if h.size else slice(None) for h in hits)


def _existing(file: Path) -> dict[str, Any]:
    try:
        content = read_json(file)
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _cached(content: dict[str, Any]) -> DatasetFingerprint | None:
    try:
        return DatasetFingerprint.from_json(content)
    except (PlanError, ValueError, KeyError, TypeError):
        return None


def _is_of(fingerprint: DatasetFingerprint, dataset: Dataset, cases: Sequence[Case]) -> bool:
    """Whether no file of the dataset has changed since."""
    known = {c.case: c.source for c in fingerprint.cases}
    known |= {case: source for case, (source, _) in fingerprint.failed.items()}
    settings = _settings(dataset) + f"; modalities {', '.join(dataset.modalities)}"
    return fingerprint.settings == settings and known == {c.identifier: _source(c) for c in cases}


def _from_cache(cache: Path, dataset: Dataset, case: Case) -> _Found | None:
    """What was found in a case, if its files are what they were; their times may differ if their content does not."""
    content = _existing(cache / f"{case.identifier}.json")
    try:
        if content["version"] != FINGERPRINT_VERSION or content["settings"] != _settings(dataset):
            return None
        fingerprint = CaseFingerprint.from_json(content["fingerprint"])
        source = _source(case)
        if fingerprint.source != source:
            if _sizes(fingerprint.source) != _sizes(source) or fingerprint.digest != _digest(case):
                return None
            fingerprint = replace(fingerprint, source=source)
        intensities = tuple(c if c is None else CaseIntensities.from_json(c) for c in content["channels"])
    except (KeyError, TypeError, ValueError, OSError):
        return None
    return _Found(fingerprint=fingerprint, intensities=intensities)


def _to_cache(cache: Path, dataset: Dataset, case: Case, found: _Found) -> None:
    if found.fingerprint is None:
        return
    content: Mapping[str, Any] = {
        "version": FINGERPRINT_VERSION,
        "settings": _settings(dataset),
        "fingerprint": found.fingerprint.to_json(),
        "channels": [c if c is None else c.to_json() for c in found.intensities],
    }
    write_json(cache / f"{case.identifier}.json", content)


def _source(case: Case) -> str:
    """Size and time of a case's files."""
    parts = []
    for path in (*case.images, case.label):
        stat = path.stat() if path is not None and path.is_file() else None
        parts.append(f"{stat.st_size}:{stat.st_mtime_ns}" if stat else "missing")
    return ",".join(parts)


def _sizes(source: str) -> list[str]:
    return [part.partition(":")[0] for part in source.split(",")]


def _digest(case: Case) -> str:
    """Hash of the bytes of a case's files."""
    digest = hashlib.blake2b(digest_size=16)
    for path in (*case.images, case.label):
        if path is not None:
            with path.open("rb") as file:
                while block := file.read(1 << 20):
                    digest.update(block)
            digest.update(b"|")
    return digest.hexdigest()


def _settings(dataset: Dataset) -> str:
    """What of ``dataset.json`` a case's numbers depend on."""
    return f"{len(dataset.modalities)} channels; label ids {sorted(dataset.label_ids)}"
