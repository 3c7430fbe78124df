"""Individual instances of structures that occur more than once: lesions, vertebrae, ribs, teeth.

Instances that lie apart (lesions, ribs) are the connected components of the mask (26 neighbours). Instances that touch
each other (vertebrae, teeth, discs) are separated where the mask is thin and its probability low, by a watershed on the
depth inside the mask times the probability. Two basins are one instance unless the pass between them is clearly lower
than both summits.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from satunet.geometry import Grid
from satunet.labels import LabelSpace
from satunet.prediction.masks.boxed import BoxedMask

_TOUCHING = re.compile(r"\b(vertebrae|teeth|tooth|intervertebral discs?|metacarpals?|metatarsals?|phalan\w+)\b")
_APART = re.compile(
    r"\b(ribs?|lesions?|tumou?rs?|metastas[ei]s|nodules?|cysts?|lymph nodes?|stones?|polyps?|microbleeds?)\b"
)
_ONE = re.compile(r"\(\w\d+\)|\b\d+\b|\bfdi\b")  # the name of a single instance
_PASS = 0.6
"""Height of a pass, as a share of the lower of its two summits, from which both basins are one instance."""
_CRUMB = 0.4
"""Share of the instances' median volume below which a piece is joined to a neighbour that it touches."""


@dataclass(frozen=True, kw_only=True)
class Instance:
    """One instance in a mask.

    Attributes:
        number: Number from 1, counted from cranial to caudal.
        voxels: Number of voxels.
        volume_ml: Volume in millilitres.
        centre_mm: Centre of mass in RAS+ millimetres.
    """

    number: int
    voxels: int
    volume_ml: float
    centre_mm: tuple[float, float, float]


@dataclass(frozen=True, kw_only=True, eq=False)
class Instances:
    """All instances in a mask.

    Attributes:
        found: Instances from cranial to caudal.
        labels: (x, y, z) instance number of each voxel in the mask's box, 0 outside the mask.
    """

    found: tuple[Instance, ...]
    labels: NDArray[np.uint16]


def comes_in_numbers(name: str | None, space: LabelSpace) -> bool:
    """Whether a scan may show more than one instance of a class."""
    if name is None:
        return False
    if name in space and space.info(name).lesion:
        return True
    return bool((_TOUCHING.search(name) or _APART.search(name)) and not _ONE.search(name))


def count_instances(
    mask: BoxedMask, grid: Grid, name: str, probability: tuple[NDArray[np.float32], Sequence[int]] | None = None
) -> Instances:
    """Separate a mask into its instances.

    Args:
        mask: Mask in the scan's grid.
        grid: Grid of the scan.
        name: Class of the mask, which tells whether its instances touch each other.
        probability: (x, y, z) probabilities and the first voxel of their box in the scan; 1 everywhere if not given.
    """
    inside = mask.inside
    if not inside.any():
        return Instances(found=(), labels=np.zeros(inside.shape, np.uint16))
    touching = _TOUCHING.search(name) is not None
    labels = _parted(inside, _within(mask, probability), grid.spacing_mm) if touching else _pieces(inside)
    return _numbered(labels, mask, grid)


def _pieces(inside: NDArray[np.bool_]) -> NDArray[np.int64]:
    import cc3d

    # Padded: in a small box in which every other voxel is a component, cc3d 4.1 reserves room for too few of them.
    found = cc3d.connected_components(np.pad(inside, 1), connectivity=26)[1:-1, 1:-1, 1:-1]
    return np.asarray(found, dtype=np.int64)


def _within(mask: BoxedMask, probability: tuple[NDArray[np.float32], Sequence[int]] | None) -> NDArray[np.float32]:
    """Probabilities in the mask's box."""
    whole = np.ones([side.stop - side.start for side in mask.box], np.float32)
    if probability is not None:
        values, start = probability
        low = [max(side.start, first) for side, first in zip(mask.box, start, strict=True)]
        high = [min(side.stop, f + n) for side, f, n in zip(mask.box, start, values.shape, strict=True)]
        here = tuple(slice(a - side.start, b - side.start) for a, b, side in zip(low, high, mask.box, strict=True))
        there = tuple(slice(a - f, b - f) for a, b, f in zip(low, high, start, strict=True))
        whole[here] = values[there]
    return whole


def _parted(
    inside: NDArray[np.bool_], probability: NDArray[np.float32], spacing_mm: Sequence[float]
) -> NDArray[np.int64]:
    """Watershed on depth times probability; basins connected by a high pass are joined."""
    from scipy.ndimage import distance_transform_edt, gaussian_filter
    from skimage.morphology import local_maxima
    from skimage.segmentation import watershed

    padded = np.pad(inside, 1)
    depth = distance_transform_edt(padded, sampling=spacing_mm)[1:-1, 1:-1, 1:-1]
    height = gaussian_filter(depth * np.clip(2 * probability - 1, 0.05, 1.0), [1.0 / s for s in spacing_mm])
    height = np.where(inside, np.maximum(height, 1e-6), 0.0)
    summits = _pieces(local_maxima(height, connectivity=3) & inside)
    basins = np.asarray(watershed(-height, summits, mask=inside, connectivity=np.ones((3, 3, 3))), dtype=np.int64)
    return _joined(basins, height)


def _joined(basins: NDArray[np.int64], height: NDArray[np.float64]) -> NDArray[np.int64]:
    """Join basins, starting with the highest pass."""
    count = int(basins.max())
    summit = np.zeros(count + 1)
    np.maximum.at(summit, basins.ravel(), height.ravel())
    size = np.bincount(basins.ravel(), minlength=count + 1).astype(float)
    owner = np.arange(count + 1)

    def root(basin: int) -> int:
        while owner[basin] != basin:
            owner[basin] = owner[owner[basin]]
            basin = int(owner[basin])
        return basin

    def join(a: int, b: int) -> None:
        owner[b] = a
        summit[a], size[a] = max(summit[a], summit[b]), size[a] + size[b]

    passes = sorted(_passes(basins, height).items(), key=lambda item: -item[1])
    for (a, b), pass_height in passes:
        a, b = root(a), root(b)
        if a != b and pass_height >= _PASS * min(summit[a], summit[b]):
            join(a, b)
    # A small piece (of a process or an arch) belongs to the neighbour that it has the highest pass to.
    roots = {root(basin) for basin in range(1, count + 1)}
    large = np.median([size[r] for r in roots if size[r] >= 0.05 * max(size[r] for r in roots)])
    for (a, b), _ in passes:
        a, b = root(a), root(b)
        if a != b and min(size[a], size[b]) < _CRUMB * large:
            join(*((a, b) if size[a] >= size[b] else (b, a)))
    return np.array([root(basin) if basin else 0 for basin in range(count + 1)])[basins]


def _passes(basins: NDArray[np.int64], height: NDArray[np.float64]) -> Mapping[tuple[int, int], float]:
    """Pairs of neighbouring basins (6 neighbours per voxel) → height of the highest pass between them."""
    pairs, heights = [], []
    for axis in range(3):
        low = tuple(slice(None, -1) if a == axis else slice(None) for a in range(3))
        high = tuple(slice(1, None) if a == axis else slice(None) for a in range(3))
        a, b = basins[low], basins[high]
        edge = (a != b) & (a > 0) & (b > 0)
        pairs.append(np.sort(np.stack((a[edge], b[edge]), 1), axis=1))
        heights.append(np.minimum(height[low][edge], height[high][edge]))
    keys, values = np.concatenate(pairs), np.concatenate(heights)
    if not len(keys):
        return {}
    unique, place = np.unique(keys, axis=0, return_inverse=True)
    best = np.zeros(len(unique))
    np.maximum.at(best, place.ravel(), values)
    return {(int(a), int(b)): float(h) for (a, b), h in zip(unique, best, strict=True)}


def _numbered(labels: NDArray[np.int64], mask: BoxedMask, grid: Grid) -> Instances:
    """Number instances from cranial to caudal."""
    names, dense = np.unique(labels, return_inverse=True)
    dense = dense.reshape(labels.shape)
    known = [i for i, name in enumerate(names) if name]
    voxels = np.bincount(dense.ravel(), minlength=len(names))
    centres = np.zeros((len(names), 3))
    for axis, side in enumerate(mask.box):
        index = np.arange(side.start, side.stop).reshape([-1 if a == axis else 1 for a in range(3)])
        sums = np.bincount(dense.ravel(), weights=np.broadcast_to(index, labels.shape).ravel(), minlength=len(names))
        centres[:, axis] = sums / voxels
    world = centres @ grid.affine[:3, :3].T + grid.affine[:3, 3]
    order = sorted(known, key=lambda i: -world[i, 2])
    table = np.zeros(len(names), np.uint16)
    found = []
    for number, i in enumerate(order, start=1):
        table[i] = number
        x, y, z = (round(float(v), 2) for v in world[i])
        ml = round(int(voxels[i]) * grid.voxel_ml, 4)
        found.append(Instance(number=number, voxels=int(voxels[i]), volume_ml=ml, centre_mm=(x, y, z)))
    return Instances(found=tuple(found), labels=table[dense])
