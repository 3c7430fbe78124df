"""Checks before work begins: a scan must fit into memory, and results must be writable."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from pathlib import Path

from satunet.datasets.memory import scan_bytes
from satunet.errors import ScanTooLargeError, UnreadableImageError, UserError
from satunet.geometry import Grid
from satunet.images.image import read_grid, voxel_bytes
from satunet.jobs.workers import available_memory
from satunet.plan import UnifiedPlan
from satunet.prediction.door.inputs import Scan

_GB = 1e9


def require_memory(scan: Scan, plans: Iterable[UnifiedPlan]) -> None:
    """Refuse a scan that would not fit into memory; only its header is read.

    A small file may claim any size, and after resampling, a spacing of a metre turns a few voxels into many.

    Args:
        scan: The scan.
        plans: Plans of the models that will predict it.

    Raises:
        ScanTooLargeError: It would need more memory than is free.
        ScanError: The header cannot be read.
    """
    free = available_memory()
    if free is None:
        return
    grid, as_read = _header(scan)
    needed = max(scan_bytes(grid, as_read, plan.spacing_mm) for plan in plans)
    if needed > free:
        shape, spacing = " × ".join(map(str, grid.shape)), " × ".join(f"{s:.3g}" for s in grid.spacing_mm)
        raise ScanTooLargeError(
            scan.path,
            f"{shape} voxels of {spacing} mm would need {needed / _GB:,.1f} GB of memory, but {free / _GB:,.1f} GB are "
            "free; check the header, or crop or resample the scan",
        )


def require_writable(folder: Path) -> None:
    """Make a folder for results and check that files can be written there.

    Raises:
        UserError: It is a file, or cannot be written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(prefix=".tmp-", dir=folder):
            pass
    except (FileExistsError, NotADirectoryError) as error:
        raise UserError(f"{folder}: results need a folder, but this is a file, or a part of its path is") from error
    except OSError as error:
        raise UserError(f"{folder}: results cannot be written to this folder ({error.strerror or error})") from error


def _header(scan: Scan) -> tuple[Grid, int]:
    """Grid of a scan, and bytes per voxel when it is read."""
    series = scan.series
    if series is None:
        return read_grid(scan.path), voxel_bytes(scan.path)
    if series.grid is None:
        raise UnreadableImageError(scan.path, series.fault or f"series {series.uid} is not a volume")
    return series.grid, 8
