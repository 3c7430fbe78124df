"""Synthetic subjects: a template and its labels, warped by a random diffeomorphism, in a random contrast.

Labels of a template depend on position alone, so that copying them onto another template is nearly right. Therefore
each subject's head is rotated, stretched, shifted and bent at random, and its tissues have random grey values, so that
a method must look at the image to find anything.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from satunet.geometry import Grid
from satunet.trainers.synthetic.crops import Deformation, crop_places, sample
from satunet.trainers.synthetic.painting import spoil

SHAPE = (96, 112, 96)
SPACING_MM = (2.0, 2.0, 2.0)
SHIFT_MM = 8.0
"""Standard deviation of a head's position, along each axis."""
BENDING = Deformation(rotation_deg=8.0, stretch=0.1, warp=0.06)
_LEAST_VOLUME = 0.2
"""Smallest factor by which a voxel's volume may change; at 0 or below, space would be folded."""
_TRIES = 50


def make_subject(
    image: NDArray[Any], labels: NDArray[np.uint8], grid: Grid, seed: int
) -> tuple[NDArray[np.uint16], NDArray[np.uint8], Grid]:
    """Make a subject from a template.

    Args:
        image: (X, Y, Z) the template, 0 outside of the brain; axes point right, anterior, superior.
        labels: (X, Y, Z) label ids.
        grid: Grid of both.
        seed: Seed; each gives another subject.

    Returns:
        Image, labels and their grid.
    """
    rng = np.random.default_rng(seed)
    generator = torch.Generator().manual_seed(seed)
    places = _places(image, grid, rng)
    scan = sample(torch.from_numpy(np.ascontiguousarray(image, dtype=np.float32)), places, labels=False)
    ids = sample(torch.from_numpy(labels), places, labels=True)
    painted = _contrast(scan, rng)
    inside = scan > 0
    spoiled = spoil(painted, rng, generator, strength=0.5)
    low, high = torch.aminmax(spoiled[inside])
    grey = ((spoiled - low) / (high - low)).clamp(0, 1) * 990 + 10
    array = torch.where(inside, grey, torch.zeros(())).round().numpy().astype(np.uint16)
    affine = np.diag([*SPACING_MM, 1.0])
    affine[:3, 3] = -(np.array(SHAPE) - 1) / 2 * SPACING_MM
    return array, ids.numpy().astype(np.uint8), Grid(shape=SHAPE, affine=affine)


def _places(image: NDArray[Any], grid: Grid, rng: np.random.Generator) -> Tensor:
    """Positions of the subject's voxels in the template; drawn again until the map folds nowhere."""
    brain = np.argwhere(image[::2, ::2, ::2] > 0) * 2
    middle = (brain.min(axis=0) + brain.max(axis=0)) / 2
    for _ in range(_TRIES):
        centre = middle + rng.normal(0, SHIFT_MM, 3) / grid.spacing_mm
        places = crop_places(centre.tolist(), SHAPE, SPACING_MM, grid.spacing_mm, BENDING, rng)
        if float(volume_change(places, grid.spacing_mm).min()) > _LEAST_VOLUME:
            return places
    raise AssertionError(f"{_TRIES} deformations of {BENDING} fold space")


def volume_change(places: Tensor, native_mm: tuple[float, float, float]) -> Tensor:
    """Factor by which each of the subject's voxels changes its volume: the determinant of the Jacobian.

    Args:
        places: (X, Y, Z, 3) voxels of the template.
        native_mm: Spacing of the template.
    """
    mm = (places * torch.tensor(native_mm)).movedim(-1, 0).contiguous()  # (3, X, Y, Z)
    x, y, z = (n - 1 for n in mm.shape[1:])
    first, second, third = (torch.diff(mm, dim=a + 1)[:, :x, :y, :z] / SPACING_MM[a] for a in range(3))
    # The triple product of the columns; torch.linalg.det takes ten times as long.
    parts = [first[i] * (second[j] * third[k] - second[k] * third[j]) for i, j, k in ((0, 1, 2), (1, 2, 0), (2, 0, 1))]
    return parts[0] + parts[1] + parts[2]


def _contrast(image: Tensor, rng: np.random.Generator) -> Tensor:
    """Grey values as from another scanner: fluid, grey and white matter get new ones; values between are interpolated.

    Two thirds of the subjects keep the order of T1 (fluid dark, white matter bright), the others have that of T2.
    """
    inside = image[image > 0]
    known = torch.quantile(inside[:: max(1, len(inside) // 100_000)], torch.tensor([0.02, 0.3, 0.75, 0.98]))
    fluid, grey = rng.uniform(0.0, 0.25), rng.uniform(0.45, 0.65)
    values = np.array([fluid, grey, rng.uniform(0.8, 0.95), 1.0])
    if rng.random() < 1 / 3:
        values = 1.0 - values
    return torch.from_numpy(np.interp(image.numpy(), known.numpy(), values).astype(np.float32))
