"""Fingerprints of datasets, which can be merged.

``dataset_fingerprint.json`` is nnU-Net's file (spacings, shapes after cropping, foreground intensities, in the axes and
values of nnunetv2's reader) and stays readable by nnunetv2. Under the key ``"satunet"`` it holds what is needed for a
union of datasets: for every case, spacing and shape in RAS and the voxels, extent and centroid of each label; for every
channel, moments and a quantile sketch of the foreground, for CT in Hounsfield units. The fingerprint of a union is
computed from these without opening a scan again. A fingerprint that nnunetv2 made, or that was published, has none of
this and merges approximately.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from satunet.datasets.raw import MODALITIES, Dataset
from satunet.errors import PlanError
from satunet.jobs.fresh import Stamp
from satunet.jobs.records import from_plain, to_plain
from satunet.planners.fingerprint.intensities import ChannelStatistics

FINGERPRINT_VERSION = 6

Triple = tuple[float, float, float]


@dataclass(frozen=True, kw_only=True)
class CaseFingerprint:
    """One case.

    Attributes:
        dataset: Name of the dataset.
        case: Identifier.
        channels: Channels, which are scans of the unified dataset.
        spacing: Spacing in mm, in the axes of nnunetv2's reader (z, y, x).
        shape_after_crop: Voxels inside the nonzero box of all channels, along the same axes.
        relative_size: Share of the volume that the crop keeps.
        spacing_ras: Spacing along right, anterior, superior.
        shape_ras: Voxels inside the nonzero box along right, anterior, superior.
        label_voxels: Label id → voxels in the file, without nnU-Net's ``ignore``.
        label_extents_mm: Label id → size of the smallest box around it along right, anterior, superior.
        label_centroids_mm: Label id → centre of mass in scanner coordinates, mm (right, anterior, superior).
        cropped_voxels: Label id → voxels outside of the nonzero box, which preprocessing cuts away, if there are any.
        scans: Hash of the voxels of each channel; empty for constant ones.
        made_of: Stamp of the files; empty if an older version wrote it.
    """

    dataset: str
    case: str
    channels: int
    spacing: Triple
    shape_after_crop: tuple[int, int, int]
    relative_size: float
    spacing_ras: Triple
    shape_ras: tuple[int, int, int]
    label_voxels: dict[int, int] = field(default_factory=dict)
    label_extents_mm: dict[int, Triple] = field(default_factory=dict)
    label_centroids_mm: dict[int, Triple] = field(default_factory=dict)
    cropped_voxels: dict[int, int] = field(default_factory=dict)
    scans: tuple[str, ...] = ()
    made_of: Stamp = field(default_factory=Stamp)


@dataclass(frozen=True, kw_only=True)
class FailedCase:
    """A case that cannot be used.

    Attributes:
        reason: Reason, in one sentence.
        made_of: Stamp of the files.
    """

    reason: str
    made_of: Stamp = field(default_factory=Stamp)


@dataclass(frozen=True, kw_only=True)
class DatasetFingerprint:
    """A dataset, or a union of datasets; a record.

    Attributes:
        dataset: Name.
        cases: Cases that can be used.
        channels: Statistics of each channel; for a union, of each modality.
        nnunet_channels: Statistics of the foreground for nnunetv2, in stored values and with the ignore label; empty if
            they are the same.
        channel_names: Names of the channels in ``dataset.json``; empty for a union.
        failed: Cases that cannot be used.
        settings: Parts of ``dataset.json`` that the fingerprint depends on.
        approximate: Whether a part of it was made by nnU-Net, which merges approximately and has no labels.
    """

    RECORD_VERSION: ClassVar[int] = FINGERPRINT_VERSION

    dataset: str
    cases: tuple[CaseFingerprint, ...]
    channels: tuple[ChannelStatistics, ...]
    nnunet_channels: tuple[ChannelStatistics, ...] = ()
    channel_names: tuple[str, ...] = ()
    failed: dict[str, FailedCase] = field(default_factory=dict)
    settings: str = ""
    approximate: bool = False

    @property
    def scans(self) -> int:
        """Number of scans: every channel of every case."""
        return sum(case.channels for case in self.cases)

    def to_nnunet(self, *, cases: bool = True) -> dict[str, Any]:
        """Content of nnU-Net's file, and this record under ``"satunet"``.

        Args:
            cases: Whether to include the cases; for a union, they are in the fingerprints of its datasets.
        """
        return {
            "spacings": [list(c.spacing) for c in self.cases],
            "shapes_after_crop": [list(c.shape_after_crop) for c in self.cases],
            "foreground_intensity_properties_per_channel": {
                str(i): channel.to_nnunet() for i, channel in enumerate(self.nnunet_channels or self.channels)
            },
            "median_relative_size_after_cropping": float(np.median([c.relative_size for c in self.cases])),
            "satunet": to_plain(self if cases else replace(self, cases=()), sealed=True),
        }

    @classmethod
    def of_file(cls, content: Any, source: Path | str) -> DatasetFingerprint:
        """The inverse of :meth:`to_nnunet`.

        Args:
            content: Content of a ``dataset_fingerprint.json``.
            source: The file, for messages.

        Raises:
            PlanError: The content was not written by satunet, or has another version.
        """
        return from_plain(
            content.get("satunet") if isinstance(content, Mapping) else content, cls, source=source, error=PlanError
        )

    @classmethod
    def upgrade(cls, content: dict[str, Any], version: int) -> dict[str, Any]:
        """Version 5 stored sizes and times of files in another form; older versions lack values from the scans.

        Raises:
            PlanError: The version is older than 5.
        """
        if version < 5:
            raise PlanError(f"fingerprint of version {version}; this satunet reads versions 5 to {cls.RECORD_VERSION}")
        cases = [{k: v for k, v in case.items() if k not in ("source", "digest")} for case in content["cases"]]
        return content | {
            "cases": cases,
            "failed": {case: {"reason": why} for case, (_, why) in content["failed"].items()},
        }

    @classmethod
    def from_nnunet(cls, content: Mapping[str, Any], dataset: Dataset) -> DatasetFingerprint:
        """Make a fingerprint from nnU-Net's alone, such as a published one.

        nnU-Net's axes are assumed to be (superior, anterior, right), which holds for a reader that reorients, and for
        most files.

        Raises:
            PlanError: A part of nnU-Net's fingerprint is missing, or does not fit ``dataset.json``.
        """
        try:
            spacings, shapes = content["spacings"], content["shapes_after_crop"]
            properties = content["foreground_intensity_properties_per_channel"]
            size = float(content.get("median_relative_size_after_cropping", 1.0))
            if not spacings or len(spacings) != len(shapes):
                raise PlanError(f"{dataset.name}: its fingerprint has {len(spacings)} spacings, {len(shapes)} shapes")
            if len(properties) != len(dataset.modalities):
                raise PlanError(
                    f"{dataset.name}: its fingerprint has {len(properties)} channels, "
                    f"dataset.json {len(dataset.modalities)}"
                )
            cases = tuple(
                CaseFingerprint(
                    dataset=dataset.name,
                    case=f"{number:05d}",
                    channels=len(properties),
                    spacing=(float(z), float(y), float(x)),
                    shape_after_crop=(int(k), int(j), int(i)),
                    relative_size=size,
                    spacing_ras=(float(x), float(y), float(z)),
                    shape_ras=(int(i), int(j), int(k)),
                )
                for number, ((z, y, x), (k, j, i)) in enumerate(zip(spacings, shapes, strict=True))
            )
            channels = tuple(
                ChannelStatistics.from_nnunet(properties[str(i)], len(cases), modality)
                for i, modality in enumerate(dataset.modalities)
            )
        except (KeyError, TypeError, ValueError) as error:
            raise PlanError(
                f"{dataset.name}: not a fingerprint of nnU-Net ({type(error).__name__}: {error})"
            ) from error
        return cls(
            dataset=dataset.name,
            cases=cases,
            channels=channels,
            channel_names=dataset.channel_names,
            approximate=True,
        )


def merge_fingerprints(fingerprints: Sequence[DatasetFingerprint], name: str = "union") -> DatasetFingerprint:
    """The fingerprint of a union, whose channels are modalities.

    The order and grouping of merges change only the last bits of moments, and percentiles within the error of the
    sketch (0.2 percentage points in rank).

    Raises:
        ValueError: There is nothing to merge.
    """
    merged: dict[str, ChannelStatistics] = {}
    for channel in (c for f in fingerprints for c in f.channels):
        known = merged.get(channel.modality)
        merged[channel.modality] = channel if known is None else known.merge(channel)
    if not merged:
        raise ValueError("there is nothing to merge")
    return DatasetFingerprint(
        dataset=name,
        cases=tuple(sorted((c for f in fingerprints for c in f.cases), key=lambda c: (c.dataset, c.case))),
        channels=tuple(merged[modality] for modality in sorted(merged, key=MODALITIES.index)),
        approximate=any(f.approximate for f in fingerprints),
    )
