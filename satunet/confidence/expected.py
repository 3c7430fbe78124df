"""Sizes and relative positions of classes in training data.

Scanner coordinates are arbitrary, so a map of positions is relative: the cases of a dataset are aligned with each other
by their classes, and the map holds the mean position of each class and its spread. In a scan, the position of a class
is compared with the position that the other masks predict, by the map that contains the most of them.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Triple = tuple[float, float, float]

_USUAL_SPREAD = 0.35  # of the logarithm of a volume; used if there are too few cases
_USUAL_STRAY_MM = 6.0
_WORTH_CASES = 3  # number of cases that the usual spread is worth
_LEAST_NEIGHBOURS = 3
_RECOGNISED = 0.3  # mean quality of a region's masks from which the region counts as recognised


@dataclass(frozen=True, kw_only=True)
class CaseClasses:
    """Classes shown in a training case.

    Attributes:
        dataset: Name of the dataset.
        volumes_ml: Class → volume.
        centres_mm: Class → centre of mass in RAS+ millimetres, with an arbitrary origin.
    """

    dataset: str
    volumes_ml: Mapping[str, float]
    centres_mm: Mapping[str, Triple]

    @classmethod
    def of_ids(
        cls, dataset: str, ids: Mapping[str, Sequence[int]], ml: Mapping[int, float], centres: Mapping[int, Triple]
    ) -> CaseClasses:
        """Volumes and centres of classes from those of the label ids whose unions they are.

        Args:
            dataset: Name of the dataset.
            ids: Class → label ids.
            ml: Label id → volume.
            centres: Label id → centre of mass.
        """
        volumes: dict[str, float] = {}
        places: dict[str, Triple] = {}
        for name, values in ids.items():
            shown = [i for i in values if ml.get(i, 0) > 0]
            if not shown:
                continue
            volumes[name] = sum(ml[i] for i in shown)
            x, y, z = np.average([centres[i] for i in shown], axis=0, weights=[ml[i] for i in shown]).tolist()
            places[name] = (x, y, z)
        return cls(dataset=dataset, volumes_ml=volumes, centres_mm=places)

    @classmethod
    def of_labels(
        cls, dataset: str, ids: Mapping[str, Sequence[int]], labels: NDArray[Any], spacing_mm: Sequence[float]
    ) -> CaseClasses:
        """Volumes and centres from a label map.

        Args:
            dataset: Name of the dataset.
            ids: Class → label ids.
            labels: (X, Y, Z) label map in RAS; negative ids belong to no class.
            spacing_mm: Spacing along the axes.
        """
        wanted = np.unique([i for values in ids.values() for i in values if i > 0])
        table = np.zeros(max(int(labels.max()), int(wanted.max()) if wanted.size else 0) + 1, dtype=np.int64)
        table[wanted] = np.arange(1, len(wanted) + 1)
        dense = table[np.maximum(labels, 0)]
        count = len(wanted) + 1
        voxels = np.bincount(dense.ravel(), minlength=count)
        sums = []
        for axis, (n, mm) in enumerate(zip(labels.shape, spacing_mm, strict=True)):
            slices = np.moveaxis(dense, axis, 0).reshape(n, -1)
            sums.append(sum(k * mm * np.bincount(part, minlength=count) for k, part in enumerate(slices)))
        centres = np.stack(sums, 1) / np.maximum(voxels, 1)[:, None]
        voxel_ml = float(np.prod(spacing_mm)) / 1000
        shown = [(int(i), place) for place, i in enumerate(wanted, start=1) if voxels[place]]
        return cls.of_ids(
            dataset,
            ids,
            {i: float(voxels[place]) * voxel_ml for i, place in shown},
            {i: (float(centres[place][0]), float(centres[place][1]), float(centres[place][2])) for i, place in shown},
        )


@dataclass(frozen=True, kw_only=True)
class ClassSize:
    """Size of a class.

    Attributes:
        median_ml: Geometric mean of the volumes, which is their median if they are log-normal.
        spread: Standard deviation of the volume's natural logarithm; with few cases, shrunk towards the usual one.
        cases: Number of training cases that show the class.
    """

    median_ml: float
    spread: float
    cases: int


@dataclass(frozen=True, kw_only=True)
class PlaceMap:
    """Relative positions of the classes of a dataset.

    Attributes:
        dataset: Name of the dataset.
        centres_mm: Class → mean position in RAS millimetres, relative to a common origin.
        strays_mm: Class → root mean square distance of the cases from the mean position.
    """

    dataset: str
    centres_mm: dict[str, Triple]
    strays_mm: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class ClassStatistics:
    """Sizes and relative positions of classes in training data.

    Attributes:
        sizes: Class → size.
        maps: One map per dataset with classes that can be compared.
    """

    sizes: dict[str, ClassSize] = field(default_factory=dict)
    maps: tuple[PlaceMap, ...] = ()

    @classmethod
    def of(cls, cases: Iterable[CaseClasses]) -> ClassStatistics:
        """Statistics of training cases."""
        volumes: dict[str, list[float]] = defaultdict(list)
        by_dataset: dict[str, list[CaseClasses]] = defaultdict(list)
        for case in cases:
            by_dataset[case.dataset].append(case)
            for name, ml in case.volumes_ml.items():
                volumes[name].append(math.log(ml))
        maps = (_map_of(dataset, several) for dataset, several in sorted(by_dataset.items()))
        return cls(
            sizes={name: _size(logs) for name, logs in sorted(volumes.items())},
            maps=tuple(found for found in maps if len(found.centres_mm) > _LEAST_NEIGHBOURS),
        )

    def size_deviation(self, name: str | None, volume_ml: float) -> float | None:
        """Number of standard deviations between a volume and the class's usual volume; ``None`` if that is unknown."""
        size = None if name is None else self.sizes.get(name)
        if size is None or volume_ml <= 0:
            return None
        return abs(math.log(volume_ml / size.median_ml)) / size.spread

    def place_deviations(self, centres_mm: Mapping[str, Triple]) -> dict[str, float]:
        """Distances of classes from the positions that the other classes predict, in units of their usual spread.

        Args:
            centres_mm: Class → centre of mass of its mask in RAS+ millimetres.

        Returns:
            Class → distance, for the classes in the map with most of them; empty if these are fewer than four.
        """
        known = [(sum(name in m.centres_mm for name in centres_mm), m) for m in self.maps]
        if not known:
            return {}
        count, chosen = max(known, key=lambda pair: pair[0])
        names = [name for name in centres_mm if name in chosen.centres_mm]
        if count <= _LEAST_NEIGHBOURS:
            return {}
        there = np.array([centres_mm[name] for name in names])
        here = np.array([chosen.centres_mm[name] for name in names])
        scale = _scale(there, here)
        found = {}
        for i, name in enumerate(names):
            others = np.arange(len(names)) != i
            expected = np.median(there[others] + scale * (here[i] - here[others]), axis=0)
            found[name] = float(np.linalg.norm(there[i] - expected)) / chosen.strays_mm[name]
        return found

    def homes(self, qualities: Mapping[str, float]) -> dict[str, float]:
        """Degree to which the region that a class belongs to is recognised, relative to the scan's best region.

        A region consists of the classes of one map, that is, of a training dataset. A network that finds a few
        structures of the abdomen in a head segments most structures of the head better.

        Args:
            qualities: Class → quality of its mask from 0 (no mask) to 1, for all classes that were looked for.

        Returns:
            Class → 0 to 1, for each class of a region in which at least three other classes were looked for; empty
            unless there are two such regions, because there would be nothing to compare.
        """
        regions = []
        for each in self.maps:
            values = {name: qualities[name] for name in each.centres_mm if name in qualities}
            if len(values) > _LEAST_NEIGHBOURS:
                regions.append((values, sum(values.values())))
        if len(regions) < 2:
            return {}
        best = max(_RECOGNISED, *(total / len(values) for values, total in regions))
        found: dict[str, float] = {}
        for values, total in regions:
            for name, value in values.items():
                others = (total - value) / (len(values) - 1)
                found[name] = max(found.get(name, 0.0), min(1.0, others / best))
        return found


def _size(logs: Sequence[float]) -> ClassSize:
    mean = float(np.mean(logs))
    squares = float(np.sum((np.array(logs) - mean) ** 2)) + _WORTH_CASES * _USUAL_SPREAD**2
    return ClassSize(
        median_ml=math.exp(mean), spread=math.sqrt(squares / (len(logs) - 1 + _WORTH_CASES)), cases=len(logs)
    )


def _map_of(dataset: str, cases: Sequence[CaseClasses]) -> PlaceMap:
    """Mean positions, after each case is aligned with the mean positions of the classes that it shows."""
    names = sorted({name for case in cases for name in case.centres_mm})
    places = np.full((len(cases), len(names), 3), np.nan)
    for row, case in enumerate(cases):
        for name, centre in case.centres_mm.items():
            places[row, names.index(name)] = centre
    known = [row for row in places if np.isfinite(row).any()]
    if not known:
        return PlaceMap(dataset=dataset, centres_mm={}, strays_mm={})
    moved = np.stack(known)
    moved -= np.nanmean(moved, axis=1, keepdims=True)
    for _ in range(20):
        mean = np.nanmean(moved, axis=0)
        moved -= np.nanmean(moved - mean, axis=1, keepdims=True)
    mean = np.nanmean(moved, axis=0)
    squares = np.nansum((moved - mean) ** 2, axis=(0, 2)) + _WORTH_CASES * _USUAL_STRAY_MM**2
    counts = np.isfinite(moved[:, :, 0]).sum(0)
    strays = np.sqrt(squares / (counts + _WORTH_CASES - 1))
    centres = {name: (float(x), float(y), float(z)) for name, (x, y, z) in zip(names, mean, strict=True)}
    return PlaceMap(
        dataset=dataset,
        centres_mm=centres,
        strays_mm={name: float(stray) for name, stray in zip(names, strays, strict=True)},
    )


def _scale(there: NDArray[np.float64], here: NDArray[np.float64]) -> float:
    """Ratio of a body's size to that of the map, from the distances between pairs of classes."""
    a, b = np.triu_indices(len(there), 1)
    real, usual = np.linalg.norm(there[a] - there[b], axis=1), np.linalg.norm(here[a] - here[b], axis=1)
    apart = usual > 5.0
    if not apart.any():
        return 1.0
    return float(np.clip(np.median(real[apart] / usual[apart]), 0.6, 1.6))
