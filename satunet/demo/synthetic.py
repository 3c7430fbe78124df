"""Two tiny datasets with known anatomy, for tests: one like CT, one like MRI.

Organs are ellipsoids in physical RAS space, at the same position in every case up to a small shift, so that volumes and
sides can be computed by hand. Orientations and spacings differ from case to case. The second dataset uses other names
for the same organs and has one more.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from satunet.geometry import Grid, reorient
from satunet.images.image import write_label_map, write_volume
from satunet.jobs.files import write_json

ORIENTATIONS = ("RAS", "LPS", "ASR", "LAS", "PIR")
SPACING_MM = (3.0, 3.0, 4.0)
SHAPE = (36, 32, 24)


@dataclass(frozen=True, kw_only=True)
class Organ:
    """An ellipsoid.

    Attributes:
        names: Names in the CT-like and the MRI-like dataset; ``None`` if it is not annotated.
        centre_mm: Centre relative to the middle of the volume, (right, anterior, superior).
        radii_mm: Half axes.
        values: Intensities in the CT-like (HU) and the MRI-like dataset.
    """

    names: tuple[str | None, str | None]
    centre_mm: tuple[float, float, float]
    radii_mm: tuple[float, float, float]
    values: tuple[float, float]

    @property
    def volume_ml(self) -> float:
        """Volume of the ellipsoid."""
        a, b, c = self.radii_mm
        return 4 / 3 * np.pi * a * b * c / 1000


ORGANS = (
    Organ(names=("liver", "Liver"), centre_mm=(22, 6, 8), radii_mm=(20, 22, 20), values=(110, 900)),
    Organ(names=("spleen", "SPLEEN"), centre_mm=(-30, -8, 10), radii_mm=(12, 14, 14), values=(160, 500)),
    Organ(names=("left kidney", "Kidney_L"), centre_mm=(-16, -24, -22), radii_mm=(9, 9, 14), values=(230, 1300)),
    Organ(names=("right kidney", "Kidney_R"), centre_mm=(16, -24, -22), radii_mm=(9, 9, 14), values=(230, 1300)),
    Organ(names=(None, "stomach"), centre_mm=(-20, 22, -6), radii_mm=(14, 10, 14), values=(20, 250)),
)
_BODY = Organ(names=(None, None), centre_mm=(0, 0, 0), radii_mm=(50, 44, 44), values=(40, 650))
_DATASETS = (("Dataset901_SyntheticCT", "CT"), ("Dataset902_SyntheticMRI", "T1w MRI"))


def make_synthetic_datasets(raw: Path, *, cases: int = 4, seed: int = 0) -> tuple[str, str]:
    """Write both datasets; each has ``cases`` training cases and one test case.

    Args:
        raw: A ``nnUNet_raw`` folder.
        cases: Number of training cases.
        seed: Seed of shifts and noise.

    Returns:
        Their names.
    """
    rng = np.random.default_rng(seed)
    for which, (name, channel) in enumerate(_DATASETS):
        folder = raw / name
        listed = [o for o in ORGANS if o.names[which] is not None]
        for number in range(cases + 1):
            part = "Ts" if number == cases else "Tr"
            image, labels, grid = _case(listed, which, rng)
            orientation = ORIENTATIONS[number % len(ORIENTATIONS)]
            turned, turned_grid = reorient(np.stack([image, labels]), grid, orientation)
            case = f"case_{number:02d}"
            write_volume(folder / f"images{part}" / f"{case}_0000.nii.gz", turned[0].astype(np.int16), like=turned_grid)
            write_label_map(folder / f"labels{part}" / f"{case}.nii.gz", turned[1].astype(np.uint8), like=turned_grid)
        write_json(
            folder / "dataset.json",
            {
                "channel_names": {"0": channel},
                "labels": {"background": 0} | {str(o.names[which]): i + 1 for i, o in enumerate(listed)},
                "numTraining": cases,
                "file_ending": ".nii.gz",
            },
        )
    return _DATASETS[0][0], _DATASETS[1][0]


def _case(organs: list[Organ], which: int, rng: np.random.Generator) -> tuple[NDArray[Any], NDArray[Any], Grid]:
    """Image, labels and grid in RAS."""
    shift = rng.uniform(-4, 4, 3)
    affine = np.diag([*SPACING_MM, 1.0])
    affine[:3, 3] = -(np.array(SHAPE) - 1) / 2 * SPACING_MM
    grid = Grid(shape=SHAPE, affine=affine)
    places = np.stack(np.meshgrid(*(np.arange(n) for n in SHAPE), indexing="ij"), axis=-1) * SPACING_MM + affine[:3, 3]
    image = np.full(SHAPE, (-1000.0, 0.0)[which])
    labels = np.zeros(SHAPE)
    image[_inside(_BODY, places, shift)] = _BODY.values[which]
    for organ in ORGANS:  # organs that a dataset does not annotate are still in the image
        image[_inside(organ, places, shift)] = organ.values[which]
    for number, organ in enumerate(organs, start=1):
        labels[_inside(organ, places, shift)] = number
    noise = (12.0, 30.0)[which]
    return image + rng.normal(0, noise, SHAPE) * (image != 0), labels, grid


def _inside(organ: Organ, places: NDArray[Any], shift: NDArray[Any]) -> NDArray[np.bool_]:
    offset = (places - np.array(organ.centre_mm) - shift) / np.array(organ.radii_mm)
    result: NDArray[np.bool_] = (offset**2).sum(-1) <= 1
    return result
