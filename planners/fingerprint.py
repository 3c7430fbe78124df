"""What a dataset looks like, in numbers that can be merged.

``dataset_fingerprint.json`` is nnU-Net's (spacings, shapes after cropping, foreground intensities; axes z, y, x of
the file) and stays readable by nnunetv2; under the key ``"satunet"`` it holds what a union of datasets needs: for
every case its spacing and shape in RAS and the voxels of each label, for every channel moments and a quantile sketch
of its foreground. The fingerprint of a union is computed from these without opening a scan again.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from satunet.datasets import MODALITIES, Case, Dataset, load_dataset
from satunet.errors import DatasetError, GridMismatchError, MissingFileError
from satunet.files import read_json, write_json
from satunet.geometry import Grid, reorient, same_grid
from satunet.imageio import read_image, read_label_map
from satunet.paths import preprocessed_dir
from satunet.planners.intensities import CaseIntensities, ChannelStatistics
from satunet.progress import JobSummary, run_parallel

logger = logging.getLogger(__name__)

FINGERPRINT_VERSION = 2
_VALUES_PER_DATASET = 20_000_000
_VALUES_PER_CASE = 1_000_000
_NNUNET_KEYS = (
    "spacings",
    "shapes_after_crop",
    "foreground_intensity_properties_per_channel",
    "median_relative_size_after_cropping",
)


@dataclass(frozen=True, kw_only=True)
class CaseFingerprint:
    """One case.

    Attributes:
        case: Identifier.
        channels: Its channels: scans of the unified dataset.
        spacing: Spacing in mm, (z, y, x) of the file, as nnU-Net has it.
        shape_after_crop: Voxels inside the nonzero box of all channels, (z, y, x) of the file.
        relative_size: Share of the volume that the crop keeps.
        spacing_ras: Spacing along right, anterior, superior.
        shape_ras: Voxels inside the nonzero box along right, anterior, superior.
        label_voxels: Label id → voxels in the file.
        source: Size and time of its files: what the cache goes by.
    """

    case: str
    channels: int
    spacing: tuple[float, float, float]
    shape_after_crop: tuple[int, int, int]
    relative_size: float
    spacing_ras: tuple[float, float, float]
    shape_ras: tuple[int, int, int]
    label_voxels: dict[int, int]
    source: str

    def to_json(self) -> dict[str, Any]:
        """Plain texts, lists and numbers."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> CaseFingerprint:
        """The inverse of :meth:`to_json`."""
        values: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in content.items()
        }
        values["label_voxels"] = {int(key): int(value) for key, value in content["label_voxels"].items()}
        return cls(**values)


@dataclass(frozen=True, kw_only=True)
class DatasetFingerprint:
    """A dataset, or a union of datasets.

    Attributes:
        dataset: Name.
        cases: Its cases that can be used.
        channels: Statistics a channel; of a union: a modality.
        failed: Case → (size and time of its files, why it cannot be used).
        settings: What of ``dataset.json`` the fingerprint depends on.
    """

    dataset: str
    cases: tuple[CaseFingerprint, ...]
    channels: tuple[ChannelStatistics, ...]
    failed: dict[str, tuple[str, str]] = field(default_factory=dict)
    settings: str = ""

    @property
    def scans(self) -> int:
        """Scans: every channel of every case."""
        return sum(case.channels for case in self.cases)

    def is_of(self, dataset: Dataset, cases: Sequence[Case]) -> bool:
        """Whether no file of the dataset has changed since."""
        known = {c.case: c.source for c in self.cases} | {case: source for case, (source, _) in self.failed.items()}
        return self.settings == _settings(dataset) and known == {c.identifier: _source(c) for c in cases}

    def to_json(self) -> dict[str, Any]:
        """nnU-Net's content, and ours under ``"satunet"``."""
        return {
            "spacings": [list(c.spacing) for c in self.cases],
            "shapes_after_crop": [list(c.shape_after_crop) for c in self.cases],
            "foreground_intensity_properties_per_channel": {
                str(i): channel.to_nnunet() for i, channel in enumerate(self.channels)
            },
            "median_relative_size_after_cropping": float(np.median([c.relative_size for c in self.cases])),
            "satunet": {
                "version": FINGERPRINT_VERSION,
                "dataset": self.dataset,
                "settings": self.settings,
                "cases": [case.to_json() for case in self.cases],
                "channels": [channel.to_json() for channel in self.channels],
                "failed": {case: list(why) for case, why in self.failed.items()},
            },
        }

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> DatasetFingerprint:
        """The inverse of :meth:`to_json`.

        Raises:
            ValueError: Not ours, or of another version.
        """
        ours = content.get("satunet") or {}
        if ours.get("version") != FINGERPRINT_VERSION:
            raise ValueError(f"fingerprint version {ours.get('version')!r}; this satunet reads {FINGERPRINT_VERSION}")
        return cls(
            dataset=ours["dataset"],
            cases=tuple(CaseFingerprint.from_json(case) for case in ours["cases"]),
            channels=tuple(ChannelStatistics.from_json(channel) for channel in ours["channels"]),
            failed={case: (source, reason) for case, (source, reason) in ours["failed"].items()},
            settings=ours["settings"],
        )


def fingerprint_dataset(name: str, *, processes: int = 1) -> tuple[DatasetFingerprint, JobSummary]:
    """Extract a dataset's fingerprint, or take it from the cache if no file of the dataset has changed.

    A fingerprint that nnunetv2 extracted before keeps nnunetv2's values; ours are added to it.

    Args:
        name: Dataset in ``nnUNet_raw``.
        processes: Worker processes.

    Returns:
        The fingerprint of the cases that could be read, and what became of each case.

    Raises:
        DatasetError: No case could be read.
    """
    dataset = load_dataset(name)
    cases = dataset.training_cases()
    file = preprocessed_dir() / name / "dataset_fingerprint.json"
    summary = JobSummary(f"fingerprint of {name}")
    existing = _existing(file)
    try:
        cached = DatasetFingerprint.from_json(existing)
    except (ValueError, KeyError, TypeError):
        cached = None
    if cached is not None and cached.is_of(dataset, cases):
        for case in cached.cases:
            summary.skipped(f"{name}/{case.case}")
        for identifier, (_, reason) in cached.failed.items():
            summary.failed(f"{name}/{identifier}", reason)
        return cached, summary
    fingerprint = _extract(dataset, cases, summary, processes)
    content = fingerprint.to_json()
    if "satunet" not in existing and len(existing.get("spacings", ())) == len(fingerprint.cases):
        content |= {key: existing[key] for key in _NNUNET_KEYS if key in existing}
    write_json(file, content)
    return fingerprint, summary


def merge_fingerprints(fingerprints: Sequence[DatasetFingerprint], name: str = "union") -> DatasetFingerprint:
    """The fingerprint of a union, whose channels are modalities.

    Raises:
        ValueError: Nothing to merge.
    """
    merged: dict[str, ChannelStatistics] = {}
    for channel in (c for f in fingerprints for c in f.channels):
        known = merged.get(channel.modality)
        merged[channel.modality] = channel if known is None else known.merge(channel)
    if not merged:
        raise ValueError("there is nothing to merge")
    return DatasetFingerprint(
        dataset=name,
        cases=tuple(case for f in fingerprints for case in f.cases),
        channels=tuple(merged[modality] for modality in sorted(merged, key=MODALITIES.index)),
    )


@dataclass(frozen=True, kw_only=True)
class _Job:
    dataset: Dataset
    case: Case
    values: int
    """Foreground voxels to keep for percentiles."""


def _extract(dataset: Dataset, cases: Sequence[Case], summary: JobSummary, processes: int) -> DatasetFingerprint:
    name = dataset.name
    limit = min(_VALUES_PER_CASE, _VALUES_PER_DATASET // len(cases) + 1)
    jobs = [_Job(dataset=dataset, case=case, values=limit) for case in cases]
    found: dict[str, tuple[CaseFingerprint, list[CaseIntensities | None]]] = {}
    failed: dict[str, tuple[str, str]] = {}
    for outcome in run_parallel(
        _analyze,
        jobs,
        description=f"Fingerprint of {name}",
        processes=processes if len(jobs) > 3 else 1,  # starting workers takes longer than reading a few cases
        key=lambda job: job.case.identifier,
    ):
        case = outcome.item.case
        if outcome.result is not None:
            found[case.identifier] = outcome.result
            summary.done(f"{name}/{case.identifier}")
        else:
            summary.failed(f"{name}/{case.identifier}", outcome.error or "no result")
            failed[case.identifier] = (_source(case), summary.failures[f"{name}/{case.identifier}"])
    if not found:
        reason = next(iter(summary.failures.values()))
        raise DatasetError(f"{name}: none of its {len(cases)} cases can be read; first reason: {reason}")
    ordered = [found[case] for case in sorted(found)]
    return DatasetFingerprint(
        dataset=name,
        cases=tuple(case for case, _ in ordered),
        channels=tuple(
            ChannelStatistics.of([intensities[channel] for _, intensities in ordered], modality)
            for channel, modality in enumerate(dataset.modalities)
        ),
        failed=failed,
        settings=_settings(dataset),
    )


def _analyze(job: _Job) -> tuple[CaseFingerprint, list[CaseIntensities | None]]:
    dataset, case = job.dataset, job.case
    if case.label is None:
        raise MissingFileError(dataset.folder, f"case {case.identifier} has no label map")
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
    intensities = [CaseIntensities.of(image.array[box][foreground], job.values) for image in images]
    x, y, z = cropped.shape
    turned, ras = reorient(cropped, Grid(shape=(x, y, z), affine=grid.affine), "RAS")
    i, j, k = grid.spacing_mm
    counts = np.bincount(labels.array.ravel())
    fingerprint = CaseFingerprint(
        case=case.identifier,
        channels=len(images),
        spacing=(k, j, i),
        shape_after_crop=(z, y, x),
        relative_size=cropped.size / labels.array.size,
        spacing_ras=ras.spacing_mm,
        shape_ras=(turned.shape[0], turned.shape[1], turned.shape[2]),
        label_voxels={int(n): int(counts[n]) for n in np.flatnonzero(counts) if n},
        source=_source(case),
    )
    return fingerprint, intensities


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


def _source(case: Case) -> str:
    """Size and time of a case's files."""
    parts = []
    for path in (*case.images, case.label):
        stat = path.stat() if path is not None and path.is_file() else None
        parts.append(f"{stat.st_size}:{stat.st_mtime_ns}" if stat else "missing")
    return ",".join(parts)


def _settings(dataset: Dataset) -> str:
    return f"modalities {', '.join(dataset.modalities)}; label ids {sorted(dataset.label_ids)}"
