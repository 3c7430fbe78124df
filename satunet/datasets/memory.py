"""Memory that a case will need, estimated from the headers of its files."""

from __future__ import annotations

import math
from collections.abc import Iterable

from satunet.datasets.raw import Case
from satunet.geometry import Grid
from satunet.images.image import read_grid, voxel_bytes
from satunet.types import SpacingMm

WORKER_BYTES = 250_000_000
"""Memory of a worker with its libraries, before it has read a scan."""


def reading_bytes(case: Case) -> int:
    """Peak memory of a worker, including its libraries, that reads and analyses all files of a case.

    Raises:
        ScanError: A header cannot be read.
    """
    voxels = math.prod(read_grid(case.images[0]).shape)
    as_read = sum(voxel_bytes(path) for path in case.images)
    # In addition to the voxels: masks, and label ids as 64-bit integers while they are counted.
    return int(WORKER_BYTES + voxels * (as_read + (voxel_bytes(case.label) if case.label else 0) + 16))


def preprocessing_bytes(case: Case, spacing_mm: tuple[float, float, float]) -> int:
    """Peak memory of a worker (with its libraries) that preprocesses a case; an upper bound within a factor of two.

    Args:
        case: Case whose channels are preprocessed one after the other.
        spacing_mm: Target spacing.

    Raises:
        ScanError: A header cannot be read.
    """
    as_read = max(voxel_bytes(path) for path in case.images) + (voxel_bytes(case.label) + 1 if case.label else 0)
    return WORKER_BYTES + scan_bytes(read_grid(case.images[0]), as_read, spacing_mm)


def scan_bytes(grid: Grid, as_read: int, spacing_mm: tuple[float, float, float]) -> int:
    """Peak memory of reading and preprocessing one scan; an upper bound within a factor of two.

    Args:
        grid: Grid of the scan.
        as_read: Bytes per voxel while the scan is read.
        spacing_mm: Target spacing.
    """
    return math.prod(grid.shape) * as_read + looks_bytes(grid, [spacing_mm])


def looks_bytes(grid: Grid, spacings_mm: Iterable[SpacingMm]) -> int:
    """Peak memory of preprocessing a scan that was read, once per spacing, where all results are kept; an upper bound
    within a factor of two.

    Args:
        grid: Grid of the scan.
        spacings_mm: Target spacings; 0 bytes if there are none.
    """
    voxels = math.prod(grid.shape)
    # The number of resampled voxels does not depend on the order of axes; cropping can only make it smaller.
    wanted = sorted(voxels * math.prod(grid.spacing_mm) / math.prod(spacing) for spacing in spacings_mm)
    if not wanted:
        return 0
    # The normalised and partly resampled scan besides the one that was read; percentiles take one more copy.
    return int(8 * voxels + 12 * max(wanted[-1], voxels / 4) + 4 * sum(wanted[:-1]))
