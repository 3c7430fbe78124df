"""One label map from many masks, with parts painted over their wholes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from satunet.labels.containment import wholes_first
from satunet.prediction.masks.boxed import BoxedMask

_PIECE = 1 << 20


def paint(
    classes: Sequence[str],
    masks: Sequence[BoxedMask | None],
    wholes: Mapping[str, frozenset[str]],
    shape: tuple[int, int, int],
) -> tuple[NDArray[np.unsignedinteger], dict[int, int]]:
    """Paint masks into one label map, wholes first; where other masks overlap, the later one lies on top.

    Args:
        classes: Class of each mask; ``""`` for a prompt that names no class.
        masks: Masks of the same shape; the label of each is its position, counted from 1.
        wholes: Class → classes that it is part of.
        shape: (X, Y, Z) shape of the map.

    Returns:
        (X, Y, Z) labels, uint8 if 255 are enough, and the number of voxels of each label in the map.
    """
    labels = np.zeros(shape, dtype=np.uint8 if len(masks) <= 255 else np.uint16)
    # One name per mask, because several masks may be of the same class.
    names = [f"{name}\n{number}" for number, name in enumerate(classes)]
    by_class: dict[str, set[str]] = {}
    for name, of in zip(names, classes, strict=True):
        by_class.setdefault(of, set()).add(name)
    over = {
        name: frozenset(own for whole in wholes.get(of, ()) for own in by_class.get(whole, ()))
        for name, of in zip(names, classes, strict=True)
    }
    for name in wholes_first(names, over):
        number = int(name.rpartition("\n")[2])
        mask = masks[number]
        if mask is not None:
            labels[mask.box][mask.inside] = number + 1
    return labels, _counts(labels, len(masks))


def _counts(labels: NDArray[np.unsignedinteger], highest: int) -> dict[int, int]:
    """Number of voxels of each label that occurs, counted in pieces, because bincount converts its input to 64 bits."""
    total = np.zeros(highest + 1, dtype=np.int64)
    flat = labels.reshape(-1)
    for start in range(0, flat.size, _PIECE):
        total += np.bincount(flat[start : start + _PIECE], minlength=highest + 1)
    return {label: int(count) for label, count in enumerate(total) if label and count}
