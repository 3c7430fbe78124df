"""People to train on: a scan with labels, or a label map alone, kept in memory in its own spacing, turned to RAS."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from satunet.geometry import reorient
from satunet.images.content import voxel_digest
from satunet.images.hounsfield import to_hounsfield
from satunet.images.image import Image, read_image, read_label_map
from satunet.plan import Normalization
from satunet.preprocessing.transform import nonzero_box, normalize

LOCATIONS = 2000
"""Voxels kept of each label id."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Subject:
    """One person's scan.

    Attributes:
        dataset: Dataset it belongs to; says which classes are annotated.
        case: Name of the case there.
        modality: Modality of the image; what a painted image is said to be changes from crop to crop.
        image: (X, Y, Z) float32, normalised as prediction does it; ``None`` for a label map without an image.
        labels: (X, Y, Z) int16, the dataset's label ids.
        tissues: (X, Y, Z) int16, what is painted where there is no image; ids may be finer than those of the labels.
        depth: (X, Y, Z) int16, millimetres to the nearest organ outside of them, for trunks without a skin.
        spacing_mm: Spacing of the arrays.
        locations: Label id → (n, 3) some of its voxels.
        box: First and last voxel of all labels.
        voxels: Digest of the scan's voxels, see :func:`satunet.images.content.voxel_digest`; empty without an image.
    """

    dataset: str
    case: str
    modality: str
    image: Tensor | None
    labels: Tensor
    tissues: Tensor | None = None
    depth: Tensor | None = None
    spacing_mm: tuple[float, float, float]
    locations: Mapping[int, NDArray[np.int32]] = field(default_factory=dict)
    box: tuple[NDArray[np.int64], NDArray[np.int64]]
    voxels: str = ""

    def to(self, device: torch.device | str) -> Subject:
        """The subject with its volumes on a device."""
        names = ("image", "labels", "tissues", "depth")
        volumes: dict[str, Any] = {n: v.to(device) for n in names if (v := getattr(self, n)) is not None}
        return replace(self, **volumes)

    @property
    def extent_mm(self) -> tuple[float, float, float]:
        """Size of the volume."""
        x, y, z = (n * s for n, s in zip(self.labels.shape, self.spacing_mm, strict=True))
        return x, y, z


def read_subject(
    dataset: str, case: str, modality: str, image_file: Path, label_file: Path, normalization: Normalization
) -> Subject:
    """A scan and its label map."""
    image = read_image(image_file)
    labels = read_label_map(label_file, grid=image.grid)
    volume, grid = reorient(image.array, image.grid, "RAS")
    ids, _ = reorient(labels.array, labels.grid, "RAS")
    box = nonzero_box(volume)
    cropped = volume[box]
    if modality == "ct":
        cropped = to_hounsfield(cropped)
    values = np.ascontiguousarray(normalize(cropped, normalization))
    subject = make_subject(dataset, case, modality, values, np.ascontiguousarray(ids[box]), grid.spacing_mm)
    return replace(subject, voxels=voxel_digest(image))


def make_subject(
    dataset: str,
    case: str,
    modality: str,
    image: NDArray[np.float32] | None,
    labels: NDArray[np.integer],
    spacing_mm: tuple[float, float, float],
    *,
    tissues: NDArray[np.integer] | None = None,
    depth: NDArray[np.integer] | None = None,
) -> Subject:
    """A subject of arrays in RAS; finds where its labels are."""
    ids = labels.astype(np.int16)
    flat = ids.ravel()
    places = np.flatnonzero(flat)
    order = places[np.argsort(flat[places], kind="stable")]
    values, starts = np.unique(flat[order], return_index=True)
    rng = np.random.default_rng(0)
    locations = {}
    for value, part in zip(values.tolist(), np.split(order, starts[1:]), strict=True):
        chosen = part if len(part) <= LOCATIONS else rng.choice(part, LOCATIONS, replace=False)
        locations[int(value)] = np.stack(np.unravel_index(chosen, ids.shape), 1).astype(np.int32)
    everything = np.concatenate(list(locations.values())) if locations else np.zeros((1, 3), np.int32)
    return Subject(
        dataset=dataset,
        case=case,
        modality=modality,
        image=None if image is None else torch.from_numpy(image),
        labels=torch.from_numpy(ids),
        tissues=None if tissues is None else torch.from_numpy(tissues.astype(np.int16)),
        depth=None if depth is None else torch.from_numpy(depth.astype(np.int16)),
        spacing_mm=spacing_mm,
        locations=locations,
        box=(everything.min(0).astype(np.int64), everything.max(0).astype(np.int64)),
    )


def read_ras(file: Path) -> tuple[NDArray[np.int64], tuple[float, float, float]]:
    """A label map turned to RAS, and its spacing."""
    image: Image = read_label_map(file)
    ids, grid = reorient(image.array, image.grid, "RAS")
    return np.ascontiguousarray(ids).astype(np.int64), grid.spacing_mm
