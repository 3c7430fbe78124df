"""From a prompt's probability in the preprocessed scan to its mask on the file's grid."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from satunet.geometry import Grid, box_of, moved_box, reorient
from satunet.preprocessing.resampling import interpolation_matrix
from satunet.preprocessing.transform import ScanGeometry
from satunet.types import Box


@dataclass(frozen=True, kw_only=True, eq=False)
class BoxedMask:
    """A mask stored as bits inside a box: hundreds of masks of a large scan take megabytes instead of gigabytes.

    Attributes:
        shape: (X, Y, Z) of the whole mask.
        box: Box of the stored voxels; all others are false.
        bits: Voxels of the box, packed into bits.
    """

    shape: tuple[int, int, int]
    box: Box
    bits: NDArray[np.uint8]

    @classmethod
    def empty(cls, shape: tuple[int, int, int]) -> BoxedMask:
        """An empty mask."""
        return cls(shape=shape, box=(slice(0, 0),) * 3, bits=np.zeros(0, dtype=np.uint8))

    @classmethod
    def of(cls, array: NDArray[np.bool_], start: tuple[int, int, int], shape: tuple[int, int, int]) -> BoxedMask:
        """A mask of ``shape`` with (x, y, z) voxels placed at ``start``."""
        x, y, z = (slice(s, s + n) for s, n in zip(start, array.shape, strict=True))
        return cls(shape=shape, box=(x, y, z), bits=np.packbits(array))

    @property
    def inside(self) -> NDArray[np.bool_]:
        """The voxels of the box, boolean."""
        sizes = [s.stop - s.start for s in self.box]
        return np.unpackbits(self.bits, count=int(np.prod(sizes))).reshape(sizes).astype(bool)

    @property
    def full(self) -> NDArray[np.bool_]:
        """The whole mask, (X, Y, Z) boolean."""
        result = np.zeros(self.shape, dtype=bool)
        result[self.box] = self.inside
        return result

    @property
    def voxels(self) -> int:
        """Number of true voxels."""
        return int(np.unpackbits(self.bits).sum(dtype=np.int64))  # the last byte is filled with zeros

    @property
    def extent(self) -> Box | None:
        """The smallest box around its voxels; ``None`` for an empty mask."""
        tight = box_of(self.inside)
        return None if tight is None else moved_box(tight, [side.start for side in self.box])

    def mean_of(self, image: NDArray[Any]) -> float | None:
        """Mean of an image over the mask; ``None`` for an empty mask."""
        inside = self.inside
        return float(image[self.box][inside].mean(dtype=np.float64)) if inside.any() else None


def restore_box(
    values: NDArray[np.floating[Any]], box: Box, geometry: ScanGeometry, *, threshold: float = 0.5
) -> BoxedMask:
    """Interpolate a probability linearly to the file's grid and threshold it, in its box alone.

    The result is the same as with the whole volume if no voxel outside ``box`` exceeds the threshold and the box is one
    voxel wider than the voxels that do (or ends with the scan): a linear interpolation exceeds the threshold only next
    to a voxel that does.

    Args:
        values: (x, y, z) probabilities of the box.
        box: Position of the values in the preprocessed scan.
        geometry: Geometry of that scan.
        threshold: Threshold, at least 0.
    """
    found = restore_values(values, box, geometry)
    if found is None:
        return BoxedMask.empty(geometry.original.shape)
    restored, start = found
    return BoxedMask.of(restored > threshold, start, geometry.original.shape)


def restore_values(
    values: NDArray[np.floating[Any]], box: Box, geometry: ScanGeometry
) -> tuple[NDArray[np.float32], tuple[int, int, int]] | None:
    """Interpolate the values in a box of the preprocessed scan linearly to the file's grid.

    Args:
        values: (x, y, z) values.
        box: Position of the values in the preprocessed scan.
        geometry: Geometry of that scan.

    Returns:
        Values along the file's axes and the index of their first voxel; ``None`` if no voxel centre of the file lies in
            the box, because the file's voxels are larger than the structure.
    """
    restored = np.asarray(values, dtype=np.float32)
    start = []
    for axis, (piece, size, wanted) in enumerate(zip(box, geometry.shape, geometry.cropped_shape, strict=True)):
        first = piece.start
        if size != wanted:
            matrix = interpolation_matrix(size, wanted)
            rows = np.flatnonzero(matrix[:, piece].any(axis=1))
            if rows.size == 0:
                return None
            first = int(rows[0])
            part = matrix[first : int(rows[-1]) + 1, piece]
            restored = np.moveaxis(np.tensordot(part, restored, axes=(1, axis)), 0, axis)
        start.append(first + geometry.crop[axis].start)
    return _turn_back(restored, start, geometry)


def _turn_back(
    values: NDArray[np.float32], start: list[int], geometry: ScanGeometry
) -> tuple[NDArray[np.float32], tuple[int, int, int]]:
    """Reorient the box from the plan's axes back to the file's."""
    shift = np.eye(4)
    shift[:3, 3] = start
    x, y, z = values.shape
    place = Grid(shape=(x, y, z), affine=geometry.turned.affine @ shift)
    turned, grid = reorient(values, place, geometry.original.orientation)
    origin = np.rint(np.linalg.solve(geometry.original.affine, grid.affine[:, 3])[:3]).astype(int)
    i, j, k = (int(o) for o in origin)
    return turned, (i, j, k)
