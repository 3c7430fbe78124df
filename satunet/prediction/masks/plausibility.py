"""Contradictions between the masks of a scan: always reported, but repaired only on request.

- Sides: a left structure lies to the right of its right counterpart.
- Containment: a structure lies partly outside a structure that it is part of according to the label space (or the
  knowledge tree, if there is one), and by more than the borders of two masks usually differ.
- Order: a vertebra or a rib lies above one that it should be below.
- Size: a volume is far from the volumes in training, if the model's calibration contains them.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

import numpy as np

from satunet.confidence.expected import ClassStatistics
from satunet.geometry import Grid
from satunet.knowledge.tree import KnowledgeTree
from satunet.labels.names import normalize_name
from satunet.prediction.masks.boxed import BoxedMask

MOST_OUTSIDE = 0.05
"""Largest share of a part that may lie clearly outside its whole without being a contradiction."""
CLEARLY_MM = 3.0
"""Distance from the whole (at least one voxel) within which the borders of part and whole may differ: each border is
where a blurred probability crosses one half.
"""
MOST_DEVIATIONS = 4.0
"""Number of standard deviations by which the logarithm of a volume may differ without being a contradiction."""
_REPAIRABLE = 0.5  # largest share of a part that a repair may cut off
_REGIONS = {"cervical": 0, "thoracic": 7, "lumbar": 19, "sacral": 25}


@dataclass(frozen=True, kw_only=True)
class Structure:
    """A structure of a scan with a mask that is not empty.

    Attributes:
        name: Class of the mask.
        mask: Mask in the scan's grid.
    """

    name: str
    mask: BoxedMask


@dataclass(frozen=True, kw_only=True)
class Anatomy:
    """Anatomical knowledge to compare masks with.

    Attributes:
        wholes: Class → classes that it is part of.
        statistics: Sizes in training.
        tree: Knowledge tree, for parts that the label space does not know.
    """

    wholes: Mapping[str, frozenset[str]] = field(default_factory=dict)
    statistics: ClassStatistics | None = None
    tree: KnowledgeTree | None = None

    def whole_pairs(self, names: Sequence[str]) -> Iterator[tuple[str, str]]:
        """All pairs (part, whole) among the given classes."""
        known = set(names)
        for part in names:
            wholes = {whole for whole in self.wholes.get(part, ()) if whole in known}
            if self.tree is not None:
                wholes |= self._by_tree(part, known)
            yield from ((part, whole) for whole in sorted(wholes))

    def _by_tree(self, part: str, known: set[str]) -> set[str]:
        assert self.tree is not None
        found = set()
        for term in self.tree.find(part)[:1]:
            for ancestor in self.tree.ancestors(term.id, ("part_of",)):
                found |= {name for name in self.tree.term(ancestor).names if name in known}
        return found - {part}


def doubts(structures: Sequence[Structure], grid: Grid, anatomy: Anatomy) -> list[tuple[str, ...]]:
    """Contradictions of each mask, one sentence each.

    Args:
        structures: Structures of a scan, each class once.
        grid: Grid of the scan.
        anatomy: Anatomical knowledge to compare them with.
    """
    found: dict[str, list[str]] = {s.name: [] for s in structures}
    by_name = {s.name: s for s in structures}
    centres = {s.name: centre_mm(s.mask, grid) for s in structures}
    for left, right in _swapped(centres):
        found[left].append(f"lies to the right of {right!r}")
        found[right].append(f"lies to the left of {left!r}")
    for part, whole in anatomy.whole_pairs(list(by_name)):
        outside = clearly_outside(by_name[part].mask, by_name[whole].mask, grid)
        if outside > MOST_OUTSIDE:
            found[part].append(f"{100 * outside:.0f} % of it lies outside {whole!r}")
    for upper, lower in _out_of_order(centres):
        found[upper].append(f"lies below {lower!r}")
        found[lower].append(f"lies above {upper!r}")
    if anatomy.statistics is not None:
        for structure in structures:
            volume = structure.mask.voxels * grid.voxel_ml
            away = anatomy.statistics.size_deviation(structure.name, volume)
            if away is not None and away > MOST_DEVIATIONS:
                size = anatomy.statistics.sizes[structure.name]
                low, high = (size.median_ml * math.exp(sign * 2 * size.spread) for sign in (-1, 1))
                found[structure.name].append(f"has {volume:,.1f} ml, but {low:,.1f} to {high:,.1f} ml in training")
    return [tuple(found[s.name]) for s in structures]


def repaired(structures: Sequence[Structure], grid: Grid, anatomy: Anatomy) -> list[Structure]:
    """The same structures, with contradictions repaired where the repair is clear.

    Swapped sides exchange their masks, and so do vertebrae and ribs that are out of order. What lies outside the whole
    of a structure is cut off if it is less than half of the structure. Unusual sizes stay as they are.
    """
    masks = {s.name: s.mask for s in structures}
    centres = {name: centre_mm(mask, grid) for name, mask in masks.items()}
    for left, right in _swapped(centres):
        masks[left], masks[right] = masks[right], masks[left]
        centres[left], centres[right] = centres[right], centres[left]
    for row in _rows(centres):
        if any(centres[a][2] <= centres[b][2] for a, b in pairwise(row)):
            from_above = [masks[name] for name in sorted(row, key=lambda name: -centres[name][2])]
            masks.update(zip(row, from_above, strict=True))
    for part, whole in anatomy.whole_pairs(list(masks)):
        inside = intersection(masks[part], masks[whole])
        kept = inside.voxels / masks[part].voxels
        if kept > 1 - _REPAIRABLE and clearly_outside(masks[part], masks[whole], grid) > MOST_OUTSIDE:
            masks[part] = inside
    return [replace(s, mask=masks[s.name]) for s in structures]


def centre_mm(mask: BoxedMask, grid: Grid) -> tuple[float, float, float]:
    """Centre of mass of a mask that is not empty, in RAS+ millimetres."""
    inside = mask.inside
    centre = []
    for axis, side in enumerate(mask.box):
        profile = inside.sum(axis=tuple(a for a in range(3) if a != axis), dtype=np.int64)
        centre.append(side.start + float(profile @ np.arange(profile.size)) / float(profile.sum()))
    x, y, z = (grid.affine @ np.array([*centre, 1.0]))[:3]
    return float(x), float(y), float(z)


def clearly_outside(part: BoxedMask, whole: BoxedMask, grid: Grid) -> float:
    """Share of a mask that lies farther from another mask of the same shape than :data:`CLEARLY_MM` and one voxel.

    The result is 0 if at most :data:`MOST_OUTSIDE` of the mask lies outside at all.
    """
    from scipy.ndimage import distance_transform_edt

    if part.voxels - intersection(part, whole).voxels <= MOST_OUTSIDE * part.voxels:
        return 0.0
    far_mm = max(CLEARLY_MM, *grid.spacing_mm)
    reach = [math.ceil(far_mm / mm) for mm in grid.spacing_mm]
    start = [max(0, side.start - n) for side, n in zip(part.box, reach, strict=True)]
    stop = [min(size, side.stop + n) for size, side, n in zip(part.shape, part.box, reach, strict=True)]
    here = np.zeros([b - a for a, b in zip(start, stop, strict=True)], bool)
    shared = [slice(max(a, w.start), min(b, w.stop)) for a, b, w in zip(start, stop, whole.box, strict=True)]
    if any(side.start >= side.stop for side in shared):
        return 1.0
    of_whole = tuple(slice(s.start - w.start, s.stop - w.start) for s, w in zip(shared, whole.box, strict=True))
    here[tuple(slice(s.start - a, s.stop - a) for s, a in zip(shared, start, strict=True))] = whole.inside[of_whole]
    if not here.any():
        return 1.0
    far = distance_transform_edt(~here, sampling=grid.spacing_mm) > far_mm
    own = tuple(slice(side.start - a, side.stop - a) for side, a in zip(part.box, start, strict=True))
    return int(np.count_nonzero(far[own] & part.inside)) / part.voxels


def intersection(a: BoxedMask, b: BoxedMask) -> BoxedMask:
    """Intersection of two masks of the same shape."""
    box = [slice(max(p.start, q.start), min(p.stop, q.stop)) for p, q in zip(a.box, b.box, strict=True)]
    if any(side.start >= side.stop for side in box):
        return BoxedMask.empty(a.shape)

    def part(mask: BoxedMask) -> np.ndarray:
        return mask.inside[
            tuple(slice(s.start - o.start, s.stop - o.start) for s, o in zip(box, mask.box, strict=True))
        ]

    return BoxedMask.of(part(a) & part(b), (box[0].start, box[1].start, box[2].start), a.shape)


def _swapped(centres: Mapping[str, tuple[float, float, float]]) -> Iterator[tuple[str, str]]:
    """Pairs (left, right) whose left structure lies to the right of the right one; x increases to the right."""
    for left in centres:
        name = normalize_name(left)
        right = f"right {name.base}"
        if name.side == "left" and right in centres and centres[left][0] > centres[right][0]:
            yield left, right


def _out_of_order(centres: Mapping[str, tuple[float, float, float]]) -> Iterator[tuple[str, str]]:
    """Pairs (upper, lower) of neighbours in a row whose upper one does not lie above the lower one."""
    for row in _rows(centres):
        for upper, lower in pairwise(row):
            if centres[upper][2] <= centres[lower][2]:
                yield upper, lower


def _rows(names: Mapping[str, object]) -> list[list[str]]:
    """Vertebrae, and the ribs of each side, from cranial to caudal."""
    rows: dict[str, list[tuple[int, str]]] = defaultdict(list)
    for name in names:
        if (place := place_in_row(name)) is not None:
            rows[place[0]].append((place[1], name))
    return [[name for _, name in sorted(row)] for row in rows.values()]


def place_in_row(name: str) -> tuple[str, int] | None:
    """Row of the skeleton that a class belongs to, and its number from cranial to caudal; ``None`` if it has no row."""
    canonical = normalize_name(name)
    if vertebra := re.fullmatch(r"(cervical|thoracic|lumbar|sacral) vertebrae (\d+) \(\w+\)", canonical.base):
        return "vertebrae", _REGIONS[vertebra[1]] + int(vertebra[2])
    if rib := re.fullmatch(r"rib (\d+)", canonical.base):
        return f"{canonical.side} ribs", int(rib[1])
    return None
