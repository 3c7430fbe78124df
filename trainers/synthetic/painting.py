"""Images made of label maps (SynthSeg's idea: Billot et al. 2023, arXiv 2107.09559).

Every label id gets a random mean and spread, and the result is spoiled as a scanner spoils it: partial volume, thick
slices, an uneven field, noise, gamma. A network that learns from such images does not depend on a contrast.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True, kw_only=True)
class Look:
    """Mean and spread of every label id.

    Attributes:
        means: (ids,) float32.
        spreads: (ids,) float32, standard deviation inside a structure.
        in_slices: Whether such images are mostly taken in thick slices, as T2 and FLAIR are and T1 is not.
    """

    means: NDArray[np.float32]
    spreads: NDArray[np.float32]
    in_slices: bool = False


def paint(ids: Tensor, look: Look, generator: torch.Generator) -> Tensor:
    """Give every voxel the mean of its label plus noise.

    Args:
        ids: (X, Y, Z) int64.
        look: Mean and spread of each id.
        generator: Random generator of the noise.

    Returns:
        (X, Y, Z) float32.
    """
    image = torch.from_numpy(look.means).to(ids.device)[ids]
    noise = torch.randn(ids.shape, generator=generator, device=ids.device)
    return image + noise * torch.from_numpy(look.spreads).to(ids.device)[ids]


def spoil(image: Tensor, rng: np.random.Generator, generator: torch.Generator, *, strength: float = 1.0) -> Tensor:
    """Blur, slices, field, noise, gamma; each by chance.

    Args:
        image: (X, Y, Z) float32 of any scale.
        rng: Random generator of the chances.
        generator: Random generator of the noise.
        strength: Strength of all effects; 0 changes nothing.
    """
    if not strength:
        return image
    if rng.random() < 0.7:
        image = blur(image, rng.uniform(0.2, 0.9, 3) * strength)
    if rng.random() < 0.35:
        image = thick_slices(image, int(rng.integers(3)), 1 + rng.uniform(0.5, 3.0) * strength)
    if rng.random() < 0.6:
        image = image * uneven_field(image.shape, rng, 0.35 * strength).to(image.device)
    low, high = torch.aminmax(image)
    scale = float(high - low)
    if scale <= 0:
        return image
    if rng.random() < 0.6:
        power = float(np.exp(rng.normal(0, 0.3 * strength)))
        image = ((image - low) / scale).clamp(0, 1) ** power * scale + low
    if rng.random() < 0.7:
        noise = torch.randn(image.shape, generator=generator, device=image.device)
        image = image + noise * (scale * rng.uniform(0, 0.05) * strength)
    return image


def blur(image: Tensor, sigmas: Sequence[float] | NDArray[np.float64]) -> Tensor:
    """Gaussian blur along each axis, (X, Y, Z); standard deviations in voxels."""
    for axis, sigma in enumerate(sigmas):
        if sigma < 0.15:
            continue
        reach = max(1, int(np.ceil(2.5 * sigma)))
        kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / float(sigma)) ** 2)
        kernel /= kernel.sum()
        n = image.shape[axis]
        inside = torch.arange(-reach, n + reach, device=image.device).clamp_(0, n - 1)
        padded = image.index_select(axis, inside)
        # A sum of shifted volumes: ten times as fast on a CPU as a convolution with one channel.
        image = padded.narrow(axis, 0, n) * float(kernel[0])
        for shift, weight in enumerate(kernel[1:].tolist(), start=1):
            image.add_(padded.narrow(axis, shift, n), alpha=weight)
    return image


def thick_slices(image: Tensor, axis: int, factor: float) -> Tensor:
    """Average to slices ``factor`` voxels thick along an axis and interpolate back."""
    size = list(image.shape)
    size[axis] = max(2, round(size[axis] / factor))
    small = functional.interpolate(image[None, None], tuple(size), mode="area")
    back: Tensor = functional.interpolate(small, tuple(image.shape), mode="trilinear", align_corners=False)[0, 0]
    return back


def uneven_field(shape: Sequence[int], rng: np.random.Generator, deviation: float) -> Tensor:
    """A smooth positive field around 1."""
    knots = rng.normal(0, deviation * rng.uniform(0, 1), (1, 1, 4, 4, 4))
    field = functional.interpolate(torch.from_numpy(knots).float(), tuple(shape), mode="trilinear", align_corners=True)
    result: Tensor = field[0, 0].exp()
    return result


def smooth_regions(shape: Sequence[int], count: int, cells: int, generator: torch.Generator) -> Tensor:
    """Split a box into ``count`` random smooth regions, (X, Y, Z) int64: what lies between labelled organs."""
    device = generator.device
    knots = torch.randn((1, count, cells, cells, cells), generator=generator, device=device)
    fields = functional.interpolate(knots, tuple(shape), mode="trilinear", align_corners=True)[0]
    best, region = fields[0].clone(), torch.zeros(tuple(shape), dtype=torch.long, device=device)
    for number in range(1, count):  # argmax over the first axis of so many is ten times slower
        region[fields[number] > best] = number
        torch.maximum(best, fields[number], out=best)
    return region


# ---- brains ---------------------------------------------------------------------------------------------------------

BRAIN_TISSUES: Mapping[str, tuple[float, float, float]] = {
    "cerebral white matter": (110, 62, 82),
    "cerebellar white matter": (108, 60, 82),
    "ventral diencephalon": (98, 62, 84),
    "brainstem": (100, 64, 86),
    "cerebral cortex": (76, 96, 106),
    "claustrum": (82, 90, 102),
    "cerebellar cortex": (74, 92, 100),
    "hippocampus": (76, 98, 110),
    "amygdala": (76, 98, 108),
    "thalamus": (90, 76, 96),
    "caudate nucleus": (80, 82, 100),
    "nucleus accumbens": (80, 84, 100),
    "putamen": (84, 76, 96),
    "pallidum": (100, 56, 80),
    "lateral ventricle": (26, 190, 22),
    "inferior lateral ventricle": (30, 180, 30),
    "third ventricle": (30, 180, 26),
    "fourth ventricle": (28, 180, 26),
    "csf": (28, 185, 26),
}
"""Usual values in T1-, T2-weighted and FLAIR images, white matter of T1 at 110. Rough on purpose: they are jittered."""


def brain_look(names: Mapping[int, str], size: int, rng: np.random.Generator) -> Look:
    """A random contrast of a head.

    Of the heads, 72 % look like T1, 11 % each like T2 and FLAIR, the others like nothing in particular: with fewer like
    T1, masks of real T1 heads were up to twice too large.

    Args:
        names: Id → class without its side; ids that are missing here get any value.
        size: Number of ids.
        rng: Generator.
    """
    kind = int(rng.choice(4, p=(0.72, 0.11, 0.11, 0.06)))
    means = rng.uniform(0, 200, size)
    shared: dict[str, float] = {}
    jitter = rng.uniform(2, 9)
    for label, name in names.items():
        if name not in shared:
            usual = BRAIN_TISSUES.get(name)
            known = usual is not None and kind < 3
            shared[name] = usual[kind] + rng.normal(0, jitter) if known and usual is not None else rng.uniform(0, 200)
        means[label] = shared[name] + rng.normal(0, 1.5)
    if kind < 3 and rng.random() < 0.3:  # contrast between grey and white fades with age and field
        means = means + rng.uniform(0, 0.5) * (means.mean() - means)
    means[0] = rng.uniform(0, 15) if rng.random() < 0.8 else rng.uniform(0, 200)
    spreads = rng.uniform(0.5, 9, size) * rng.uniform(0.3, 1.2)
    return Look(means=means.astype(np.float32), spreads=spreads.astype(np.float32), in_slices=kind != 0)


# ---- trunks ---------------------------------------------------------------------------------------------------------

CT_TISSUES: tuple[tuple[str, float, float, float, float], ...] = (
    # word in the class, least and largest mean, least and largest spread
    ("liver", 50, 140, 4, 14),
    ("spleen", 55, 150, 4, 14),
    ("kidney", 40, 220, 6, 35),
    ("gallbladder", -5, 30, 3, 10),
    ("esophagus", 10, 70, 6, 25),
    ("stomach", -80, 90, 10, 60),
    ("aorta", 40, 320, 4, 14),
    ("heart", 40, 220, 8, 30),
    ("inferior vena cava", 40, 180, 5, 18),
    ("vein", 60, 200, 5, 18),
    ("artery", 60, 300, 6, 20),
    ("pancreas", 30, 120, 8, 22),
    ("adrenal", 20, 100, 6, 18),
    ("lung", -880, -760, 15, 60),
    ("trachea", -1000, -940, 5, 20),
    ("vertebrae", 120, 450, 40, 160),
    ("sacrum", 100, 400, 40, 160),
    ("hip", 150, 500, 50, 190),
    ("femur", 150, 600, 50, 200),
    ("humerus", 150, 600, 50, 200),
    ("scapula", 150, 500, 50, 190),
    ("clavicula", 200, 550, 50, 190),
    ("sternum", 80, 300, 30, 120),
    ("rib", 150, 500, 40, 170),
    ("costal cartilages", 60, 160, 10, 50),
    ("spinal cord", 10, 50, 4, 12),
    ("autochthon", 20, 75, 8, 24),
    ("iliopsoas", 30, 75, 6, 18),
    ("gluteus", 20, 75, 8, 24),
    ("small bowel", -40, 120, 10, 60),
    ("duodenum", -20, 110, 10, 50),
    ("colon", -400, 120, 20, 150),
    ("bladder", -5, 60, 4, 12),
    ("prostate", 25, 80, 6, 18),
    ("thyroid", 60, 180, 8, 20),
    ("bone", 120, 450, 40, 160),
    ("air", -860, -700, 15, 60),
)
FILLERS = 8
"""Regions between the organs."""


def ct_look(names: Mapping[int, str], size: int, fillers: Sequence[int], rng: np.random.Generator) -> Look:
    """Hounsfield units of a trunk.

    Args:
        names: Id → class or tissue.
        size: Number of ids.
        fillers: Ids of the regions between the organs; the first is the fat around everything.
        rng: Generator.
    """
    means, spreads = rng.uniform(0, 100, size), rng.uniform(5, 25, size)
    for label, name in names.items():
        for word, low, high, least, most in CT_TISSUES:
            if word in name:
                means[label], spreads[label] = rng.uniform(low, high), rng.uniform(least, most)
                break
    for number, label in enumerate(fillers):
        kind = 0 if number == 0 else rng.choice(5, p=(0.42, 0.3, 0.12, 0.08, 0.08))
        low, high, most = ((-115, -80, 18), (25, 75, 20), (0, 40, 25), (-900, -200, 150), (80, 300, 60))[kind]
        means[label], spreads[label] = rng.uniform(low, high), rng.uniform(4, most)
    means[0], spreads[0] = -1000, 8
    spreads = np.hypot(spreads, rng.uniform(3, 25))  # dose
    return Look(means=means.astype(np.float32), spreads=spreads.astype(np.float32))


def mr_look(names: Mapping[int, str], size: int, fillers: Sequence[int], rng: np.random.Generator) -> Look:
    """Any contrast of a trunk: tissues of one kind look alike, air is dark, fat is bright or suppressed."""
    means = rng.uniform(10, 200, size)
    shared: dict[str, float] = {}
    for label, name in names.items():
        kind = next(
            (w for w in ("kidney", "adrenal", "vertebrae", "rib", "gluteus", "hip", "femur") if w in name), name
        )
        means[label] = shared.setdefault(kind, rng.uniform(10, 200)) + rng.normal(0, 3)
        if any(word in name for word in ("lung", "trachea", "air")):
            means[label] = rng.uniform(0, 20)
    fat = rng.uniform(100, 220) if rng.random() < 0.5 else rng.uniform(5, 60)
    for number, label in enumerate(fillers):
        means[label] = fat + rng.normal(0, 5) if number == 0 or rng.random() < 0.4 else rng.uniform(5, 200)
    means[0] = rng.uniform(0, 8)
    spreads = rng.uniform(1, 14, size) * rng.uniform(0.4, 1.2)
    return Look(means=means.astype(np.float32), spreads=spreads.astype(np.float32))
