"""Findings of one case: grid, foreground intensities and labels, for satunet and for nnunetv2.

The two differ. nnunetv2 uses stored values, counts every label above zero as foreground, and has the axes of the reader
that ``dataset.json`` names. satunet converts CT to Hounsfield units, leaves out unlabelled voxels, and has axes in RAS.
Both findings are made here, in one reading of the files.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from satunet.datasets.raw import Case, Dataset
from satunet.errors import MissingFileError
from satunet.geometry import Grid, box_of, reorient
from satunet.images.content import voxel_digest
from satunet.images.hounsfield import hounsfield_offset
from satunet.images.image import Image, read_image, read_label_map, require_grid
from satunet.images.label_ids import dense_ids
from satunet.jobs.fresh import Stamp
from satunet.planners.fingerprint.dataset import CaseFingerprint, Triple
from satunet.planners.fingerprint.intensities import CaseIntensities
from satunet.planners.fingerprint.readers import nnunet_axes
from satunet.types import Box


@dataclass(frozen=True, kw_only=True)
class CaseFindings:
    """Findings of a case.

    Attributes:
        fingerprint: Fingerprint of the case: grid and labels.
        intensities: Annotated foreground of each channel in stored values; ``None`` if there is none.
        nnunet: Foreground of each channel for nnunetv2, including unlabelled voxels.
        offsets: Offset of each channel above HU, if it is CT.
    """

    fingerprint: CaseFingerprint
    intensities: tuple[CaseIntensities | None, ...]
    nnunet: tuple[CaseIntensities | None, ...]
    offsets: tuple[float, ...]

    def in_units(self, channel: int, modality: str) -> CaseIntensities | None:
        """Annotated foreground of a channel; for CT in HU."""
        found, offset = self.intensities[channel], self.offsets[channel]
        return found.shifted(-offset) if found is not None and modality == "ct" and offset else found


def analyze_case(dataset: Dataset, case: Case, *, values: int, reader: str | None) -> CaseFindings:
    """Read a case and describe it.

    Args:
        dataset: Dataset of the case.
        case: The case; it must have a label map.
        values: Number of foreground voxels of each channel to keep for percentiles.
        reader: nnunetv2's reader of the dataset, by class name; ``None`` if nnunetv2 cannot read it.

    Raises:
        ScanError: A file is missing, unreadable, on another grid than the first channel, or has unlisted label ids.
    """
    if case.label is None:
        raise MissingFileError(dataset.folder, f"case {case.identifier} has no label map")
    made_of = case_stamp(case)
    images = [read_image(path) for path in case.images]
    grid = images[0].grid
    images = [require_grid(image, grid, trust_shape=dataset.trust_shape) for image in images]
    labels = read_label_map(case.label, allowed_ids=dataset.label_ids, grid=grid, trust_shape=dataset.trust_shape)
    box = _nonzero_box(images)
    cropped = labels.array[box]
    foreground = cropped > 0
    annotated = foreground & (cropped != dataset.ignore_label)
    voxels_of = [image.array[box] for image in images]
    intensities = tuple(CaseIntensities.of(voxels[annotated], values) for voxels in voxels_of)
    nnunet = intensities
    if dataset.ignore_label is not None:
        nnunet = tuple(CaseIntensities.of(voxels[foreground], values) for voxels in voxels_of)
    x, y, z = cropped.shape
    turned, ras = reorient(cropped, Grid(shape=(x, y, z), affine=grid.affine), "RAS")
    spacing, axes = nnunet_axes(case.images[0], grid, reader)
    known = _without(labels.array, dataset.ignore_label)
    voxels, extents, centroids = describe_labels(*reorient(known, grid, "RAS"))
    inside = count_labels(known[box])
    fingerprint = CaseFingerprint(
        dataset=dataset.name,
        case=case.identifier,
        channels=len(images),
        spacing=spacing,
        shape_after_crop=(cropped.shape[axes[0]], cropped.shape[axes[1]], cropped.shape[axes[2]]),
        relative_size=cropped.size / labels.array.size,
        spacing_ras=ras.spacing_mm,
        shape_ras=(turned.shape[0], turned.shape[1], turned.shape[2]),
        label_voxels=voxels,
        label_extents_mm=extents,
        label_centroids_mm=centroids,
        cropped_voxels={n: lost for n, count in voxels.items() if (lost := count - inside.get(n, 0))},
        scans=tuple(voxel_digest(image) for image in images),
        made_of=made_of,
    )
    offsets = tuple(hounsfield_offset(voxels) for voxels in voxels_of)
    return CaseFindings(fingerprint=fingerprint, intensities=intensities, nnunet=nnunet, offsets=offsets)


def describe_labels(
    labels: NDArray[np.integer[Any]], grid: Grid
) -> tuple[dict[int, int], dict[int, Triple], dict[int, Triple]]:
    """Voxels, extent in mm and centroid in mm of every label.

    Args:
        labels: (X, Y, Z), 0 is background.
        grid: Grid of the label map; extents are along its axes, centroids in its world coordinates.
    """
    from scipy.ndimage import find_objects

    voxels: dict[int, int] = {}
    extents: dict[int, Triple] = {}
    centroids: dict[int, Triple] = {}
    ids, dense = dense_ids(labels)
    boxes = find_objects(dense.astype(np.int32, copy=False))
    spacing = grid.spacing_mm
    for place, box in enumerate(boxes, start=1):
        if box is None:
            continue
        n = ids[place]
        inside = dense[box] == place
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


def count_labels(labels: NDArray[np.integer[Any]]) -> dict[int, int]:
    """Id → voxels, without background."""
    ids, dense = dense_ids(labels)
    return {ids[place]: int(n) for place, n in enumerate(np.bincount(dense.ravel())) if n and ids[place]}


def case_stamp(case: Case) -> Stamp:
    """Stamp of a case's files, which also records which of them are missing.

    Raises:
        MissingFileError: A file exists but cannot be read.
    """
    return Stamp.of(*_files_and_missing(case))


def is_untouched(made_of: Stamp, case: Case) -> bool:
    """Whether times and sizes prove that a case's files did not change; no file is read."""
    if not made_of.combined:  # none was missing; whatever is missing now is not untouched
        return made_of.are_untouched(case.files)
    return made_of.is_untouched(*_files_and_missing(case))


def renewed_stamp(made_of: Stamp, case: Case) -> Stamp | None:
    """The stamp with current times if the contents of the case's files did not change, else ``None``; may read them."""
    files, combined = _files_and_missing(case)
    return made_of.renewed(files) if made_of.why_stale(files, combined) is None else None


def _files_and_missing(case: Case) -> tuple[list[Path], dict[str, Any]]:
    files = [path for path in case.files if path.is_file()]
    missing = [path.name for path in case.files if path not in files]
    return files, {"missing": missing} if missing else {}


def _without(labels: NDArray[Any], ignore_label: int | None) -> NDArray[Any]:
    return labels if ignore_label is None else np.where(labels == ignore_label, labels.dtype.type(0), labels)


def _nonzero_box(images: Sequence[Image]) -> Box:
    """Smallest box around the voxels that are not zero in at least one channel; the whole volume if there are none."""
    nonzero = np.zeros(images[0].grid.shape, dtype=bool)
    for image in images:
        nonzero |= image.array != 0
    return box_of(nonzero) or (slice(None), slice(None), slice(None))
