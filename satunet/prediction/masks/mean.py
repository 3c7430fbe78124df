"""Means of several models' probabilities, on the scan's own grid and in bounded memory.

Models with different spacings and orientations meet on the grid of the file. For each prompt, a box of 16-bit values is
kept; boxes that exceed the allowed memory are written to disk.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

Start = tuple[int, int, int]
ValuesInFile = tuple[NDArray[np.float32], Start]
"""(x, y, z) values along a file's axes, and the index of their first voxel."""

_STEPS = 65534  # even, so that one half is one of the steps


class Values:
    """Sums of probabilities, one per prompt.

    Args:
        memory_bytes: Memory for all sums; the sum that is being added to needs additional memory.
    """

    def __init__(self, *, memory_bytes: int) -> None:
        self._memory = memory_bytes
        self._held: dict[int, tuple[NDArray[np.uint16] | Path, Start]] = {}
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def __enter__(self) -> Values:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._held.clear()
        if self._folder is not None:
            self._folder.cleanup()

    def add(self, position: int, found: ValuesInFile | None, share: float) -> None:
        """Add a share of a model's probabilities to a prompt's sum."""
        if found is None:
            return
        values, start = found
        before = self.take(position)
        total = (
            (values * np.float32(share), start) if before is None else _sum(before, (values * np.float32(share), start))
        )
        packed = np.rint(total[0].clip(0, 1) * _STEPS).astype(np.uint16)
        self._held[position] = (packed, total[1])
        if sum(v.nbytes for v, _ in self._held.values() if not isinstance(v, Path)) > self._memory:
            self._put_off(position)

    def take(self, position: int) -> ValuesInFile | None:
        """Remove and return the sum of a prompt; ``None`` if nothing was added."""
        held = self._held.pop(position, None)
        if held is None:
            return None
        values, start = held
        if isinstance(values, Path):
            file = values
            values = np.load(file)
            file.unlink()
        return values.astype(np.float32) / np.float32(_STEPS), start

    def _put_off(self, position: int) -> None:
        """Write a sum to disk."""
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="satunet-")
        values, start = self._held[position]
        assert not isinstance(values, Path)
        file = Path(self._folder.name) / f"{position}.npy"
        np.save(file, values)
        self._held[position] = (file, start)


def larger(a: ValuesInFile | None, b: ValuesInFile | None) -> ValuesInFile | None:
    """Voxel-wise maximum of two probabilities, in the box around both; each is 0 outside its own box."""
    if a is None or b is None:
        return b if a is None else a
    return _joined(a, b, np.maximum)


def _sum(a: ValuesInFile, b: ValuesInFile) -> ValuesInFile:
    """Sum of two boxes of values, in the box around both."""
    return _joined(a, b, np.add)


def _joined(a: ValuesInFile, b: ValuesInFile, join: np.ufunc) -> ValuesInFile:
    low = [min(p, q) for p, q in zip(a[1], b[1], strict=True)]
    high = [max(p + n, q + m) for p, n, q, m in zip(a[1], a[0].shape, b[1], b[0].shape, strict=True)]
    joined = np.zeros([stop - first for stop, first in zip(high, low, strict=True)], dtype=np.float32)
    for values, start in (a, b):
        place = tuple(slice(s - first, s - first + n) for s, first, n in zip(start, low, values.shape, strict=True))
        joined[place] = join(joined[place], values)
    return joined, (low[0], low[1], low[2])
