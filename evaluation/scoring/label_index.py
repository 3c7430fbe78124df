"""A label map with the bounding box of every id, and masks of classes inside boxes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from satunet.types import Box

_FEW_IDS = 4
"""Largest number of ids for which comparing with each is quicker than looking every voxel up in a table."""


class LabelIndex:
    """A label map with the bounding box of every id, found in one pass.

    Args:
        labels: (X, Y, Z) integers, not negative.

    Raises:
        ValueError: There are negative ids.
    """

    def __init__(self, labels: NDArray[np.integer[Any]]) -> None:
        from scipy import ndimage

        if labels.dtype.kind == "i" and labels.size and int(labels.min()) < 0:
            raise ValueError(f"a label map holds ids that are not negative, got {int(labels.min())}")
        self._highest = int(labels.max(initial=0))
        # find_objects keeps a list of all ids up to the highest, so maps with huge ids are renumbered first.
        self._positions: dict[int, int] | None = None
        if self._highest > 65_535:
            values, inverse = np.unique(labels, return_inverse=True)
            inverse = inverse.reshape(labels.shape)
            shift = 0 if values[0] == 0 else 1
            self._positions = {int(v): i + shift for i, v in enumerate(values)}
            labels = inverse + shift
            self._highest = len(values) - 1 + shift
        self._labels = labels
        # find_objects reads every integer type as it is, except the largest unsigned ones.
        readable = labels.astype(np.int64) if labels.dtype.kind == "u" and labels.dtype.itemsize > 2 else labels
        self._boxes: list[Box | None] = ndimage.find_objects(readable, max_label=self._highest) if self._highest else []

    def box(self, ids: Sequence[int]) -> Box | None:
        """Bounding box of the union of some ids, or ``None`` if none of them occurs."""
        found = [b for i in self._known(ids) if (b := self._boxes[i - 1]) is not None]
        return union_box(found) if found else None

    def mask(self, ids: Sequence[int], box: Box) -> NDArray[np.bool_]:
        """Boolean mask of the union of some ids inside a box."""
        known = [i for i in self._known(ids) if self._boxes[i - 1] is not None]
        inside = self._labels[box]
        if len(known) > _FEW_IDS:
            chosen = np.zeros(self._highest + 1, dtype=bool)
            chosen[known] = True
            return np.asarray(chosen[inside], dtype=bool)
        if not known:
            return np.zeros(inside.shape, dtype=bool)
        mask = inside == known[0]
        for i in known[1:]:
            mask |= inside == i
        return np.asarray(mask, dtype=bool)

    def _known(self, ids: Sequence[int]) -> list[int]:
        if self._positions is not None:
            ids = [self._positions[i] for i in ids if i in self._positions]
        return [i for i in ids if 0 < i <= self._highest]


def union_box(boxes: Sequence[Box]) -> Box:
    """Smallest box that holds all boxes."""
    x, y, z = (slice(min(b[axis].start for b in boxes), max(b[axis].stop for b in boxes)) for axis in range(3))
    return x, y, z


def grown_box(box: Box, shape: Sequence[int]) -> Box:
    """A box grown by one voxel on every side, within the volume."""
    x, y, z = (slice(max(0, b.start - 1), min(n, b.stop + 1)) for b, n in zip(box, shape, strict=True))
    return x, y, z
