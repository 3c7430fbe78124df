"""Folders as SAT-DS and others publish them, small."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

SHAPE = (12, 10, 8)
AFFINE = np.array([[-0.8, 0, 0, 5], [0, 0.9, 0, -3], [0, 0, 2.5, 7], [0, 0, 0, 1.0]])


def boxes(count: int, shape: tuple[int, int, int] = SHAPE) -> NDArray[np.uint8]:
    """A label map with ids 1 … ``count``: rows of voxels, each another number of them."""
    labels = np.zeros(shape, dtype=np.uint8)
    for i in range(count):
        labels[1 : 3 + i % 5, i % shape[1], (i // shape[1]) % shape[2]] = i + 1
    return labels


def save(path: Path, array: NDArray[Any], affine: NDArray[Any] = AFFINE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, affine), path)
    return path


def scan(seed: int = 0, shape: tuple[int, int, int] = SHAPE) -> NDArray[np.int16]:
    return np.random.default_rng(seed).integers(-100, 400, shape).astype(np.int16)


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def row(dataset: str, image: str, mask: Any, labels: list[str], **more: Any) -> dict[str, Any]:
    content = {
        "image": image, "mask": mask, "label": labels, "modality": "CT", "dataset": dataset,
        "official_split": "unknown", "patient_id": Path(image).name,
    }  # fmt: skip
    return content | more


def read(path: Path) -> NDArray[Any]:
    return np.asanyarray(nib.load(path).dataobj)
