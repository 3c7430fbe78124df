"""Checks before work begins: a scan must fit into memory, and the folder for results must be writable."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from satunet.datasets.memory import looks_bytes, scan_bytes
from satunet.errors import ScanTooLargeError, UnreadableImageError, UserError
from satunet.geometry import Grid, extent_mm
from satunet.images.image import read_grid, voxel_bytes
from satunet.jobs.workers import available_memory
from satunet.plan import UnifiedPlan
from satunet.prediction.door.inputs import Scan
from satunet.types import SpacingMm

_GB = 1e9


def require_memory(scan: Scan, plans: Iterable[UnifiedPlan]) -> None:
    """Refuse a scan that would not fit into memory whatever is looked for in it; only its header is read.

    The header of a small file may claim any size, and a wrong spacing, such as a metre, turns a few voxels into many
    after resampling. Some classes may need finer voxels than the coarsest ones assumed here; :func:`require_room`
    checks those.

    Args:
        scan: The scan.
        plans: Plans of the models that will predict it.

    Raises:
        ScanTooLargeError: The scan would need more memory than is free.
        ScanError: The header cannot be read.
    """
    free = available_memory()
    if free is None:
        return
    grid, as_read = _header(scan)
    needed = max(scan_bytes(grid, as_read, _coarsest(plan, grid)) for plan in plans)
    if needed > free:
        raise ScanTooLargeError(scan.path, _too_large(grid, "", needed, free))


def require_room(path: Path, grid: Grid, spacings_mm: Sequence[SpacingMm]) -> None:
    """Refuse a scan that has been read if it would not fit into memory at the spacings that the classes need.

    Args:
        path: File of the scan.
        grid: Grid of the scan.
        spacings_mm: Spacings to which the scan will be resampled; all resampled copies are in memory together.

    Raises:
        ScanTooLargeError: The scan would need more memory than is free.
    """
    free = available_memory()
    if free is None or not spacings_mm:
        return
    needed = looks_bytes(grid, spacings_mm)
    if needed > free:
        finest = min(spacings_mm, key=math.prod)
        at = f", resampled to {' × '.join(f'{s:.3g}' for s in finest)} mm for the requested classes,"
        raise ScanTooLargeError(path, _too_large(grid, at, needed, free))


def _coarsest(plan: UnifiedPlan, grid: Grid) -> SpacingMm:
    """The coarsest spacing at which any class is looked for in a scan."""
    extent = extent_mm(grid, plan.orientation)
    own = [
        plan.spacing_for(name, modality, extent)
        for modality, classes in plan.class_spacings_mm.items()
        for name in classes
    ]
    return max([plan.spacing_mm, *own], key=math.prod)


def _too_large(grid: Grid, at: str, needed: int, free: int) -> str:
    shape, spacing = " × ".join(map(str, grid.shape)), " × ".join(f"{s:.3g}" for s in grid.spacing_mm)
    return (
        f"{shape} voxels of {spacing} mm{at} would need {needed / _GB:,.1f} GB of memory, but {free / _GB:,.1f} GB are "
        "free; check the header, or crop or resample the scan"
    )


def require_writable(folder: Path) -> None:
    """Make a folder for results and check that files can be written to it.

    Raises:
        UserError: The path is a file, or the folder cannot be written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(prefix=".tmp-", dir=folder):
            pass
    except (FileExistsError, NotADirectoryError) as error:
        raise UserError(f"{folder}: results need a folder, but this path, or a part of it, is a file") from error
    except OSError as error:
        raise UserError(f"{folder}: cannot write results to this folder ({error.strerror or error})") from error


def _header(scan: Scan) -> tuple[Grid, int]:
    """Grid of a scan, and the bytes per voxel that it takes when read."""
    series = scan.series
    if series is None:
        return read_grid(scan.path), voxel_bytes(scan.path)
    if series.grid is None:
        raise UnreadableImageError(scan.path, series.fault or f"series {series.uid} is not a volume")
    return series.grid, 8
