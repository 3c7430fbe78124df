"""Slices as a volume: sorted by position along their normal and evenly spaced, or an error that says why not.

Only positions decide the order, never file names, instance numbers or the order in a multi-frame file. A tilted gantry
shifts each slice within its plane; the grid of such a stack is sheared, which an affine represents exactly.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from satunet.geometry import Grid

_SAME_AXES = 1e-3
"""Largest difference of direction cosines between slices that count as parallel; headers round them."""
_SAME_SPACING = 0.25
"""Pixels by which rounded pixel spacings may displace the far edge of a slice from its neighbour's."""
_UNEVEN = 0.05
"""Largest distance of a slice from its evenly spaced position, as a share of the gap between slices."""
_ROUNDED_MM = 0.11
"""The same in mm, as positions are often rounded to a tenth of a millimetre; but at most a third of the gap."""
_TILTED_PIXELS = 0.1
_LARGEST = 1e12
"""Largest plausible slope or intercept; up to it, float32 holds the scaled value of any stored number."""


@dataclass(frozen=True, kw_only=True)
class Slice:
    """One image of a series.

    Attributes:
        file: File of the slice.
        frame: Number of the frame in that file, from 0.
        rows, columns: Size in pixels.
        position: Centre of the first pixel, LPS mm.
        axes: Direction cosines along a row, then along a column, LPS.
        spacing_mm: Distance between rows, then between columns.
        thickness_mm: Distance between slices, or slice thickness, as its header says; used where it is the only slice.
        slope, intercept: Scale of the stored numbers: value = slope · stored + intercept.
        samples: Values per pixel.
        photometric: DICOM's PhotometricInterpretation.
        stored: Bits allocated, bits stored, high bit, and 1 for signed numbers.
        lookup: Whether values come from a table instead of slope and intercept.
        localizer: Whether its image type says that it is a localizer (scout).
        reference: FrameOfReferenceUID.
        telling: Attributes by which images at the same position may differ.
    """

    file: Path
    frame: int
    rows: int
    columns: int
    position: tuple[float, ...] | None
    axes: tuple[float, ...] | None
    spacing_mm: tuple[float, ...] | None
    thickness_mm: float | None = None
    slope: float = 1.0
    intercept: float = 0.0
    samples: int = 1
    photometric: str = "MONOCHROME2"
    stored: tuple[int, int, int, int] = (16, 16, 15, 0)
    lookup: bool = False
    localizer: bool = False
    reference: str = ""
    telling: tuple[tuple[str, str], ...] = ()

    @property
    def name(self) -> str:
        """Name of the slice in messages."""
        return f"{self.file.name}, frame {self.frame + 1}" if self.frame else self.file.name


@dataclass(frozen=True, kw_only=True)
class Stack:
    """Sorted slices and the grid that they make up.

    Attributes:
        slices: Slices, sorted along the normal of their planes.
        grid: Grid of the volume; its axes are (columns, rows, slices).
        remarks: Repairs and assumptions, one sentence each.
    """

    slices: tuple[Slice, ...]
    grid: Grid
    remarks: tuple[str, ...] = ()


class NoVolumeError(ValueError):
    """Slices that do not make up a volume; the message says which and why."""


def stack(slices: Sequence[Slice]) -> Stack:
    """Make a volume of slices.

    Raises:
        NoVolumeError: The slices differ in size, spacing or orientation, lack a position, share one, are not evenly
            spaced, or are not greyscale.
    """
    if not slices:
        raise NoVolumeError("it holds no images")
    kept, remarks = _without_localizers(slices)
    _check_kind(kept)
    _check_alike(kept)
    across, down = np.array(kept[0].axes).reshape(2, 3)
    normal = np.cross(across, down)
    places = np.array([s.position for s in kept])
    order = np.argsort(places @ normal, kind="stable")
    kept, places = [kept[i] for i in order], places[order]
    between_rows, between_columns = kept[0].spacing_mm or (0.0, 0.0)
    if len(kept) == 1:
        step = normal * _thickness(kept[0])
    else:
        step = _even_step(kept, places, normal, min(between_rows, between_columns))
        tilt = _tilt(step, normal, len(kept), min(between_rows, between_columns))
        if tilt:
            remarks.append(f"its slices are tilted by {tilt:.1f}°: the grid is sheared in the same way")
    lps = np.eye(4)
    lps[:3, :3] = np.stack((across * between_columns, down * between_rows, step), axis=1)
    lps[:3, 3] = places[0]
    shape = (kept[0].columns, kept[0].rows, len(kept))
    try:
        grid = Grid(shape=shape, affine=np.diag([-1.0, -1.0, 1.0, 1.0]) @ lps)
    except ValueError as error:
        raise NoVolumeError(str(error)) from error
    return Stack(slices=tuple(kept), grid=grid, remarks=tuple(remarks))


def is_sheared(grid: Grid) -> bool:
    """Whether a grid's axes are not orthogonal, so that formats with directions and spacings cannot represent it."""
    unit = grid.affine[:3, :3] / np.linalg.norm(grid.affine[:3, :3], axis=0)
    off = np.abs(unit.T @ unit - np.eye(3)).max()
    return bool(off * max(grid.shape) > _TILTED_PIXELS)


def _without_localizers(slices: Sequence[Slice]) -> tuple[list[Slice], list[str]]:
    kept = [s for s in slices if not s.localizer]
    if not kept or len(kept) == len(slices):
        return list(slices), []
    left = len(slices) - len(kept)
    scouts = "a localizer is" if left == 1 else f"{left} localizers are"
    return kept, [f"{scouts} left out ({next(s.name for s in slices if s.localizer)})"]


def _check_kind(slices: Sequence[Slice]) -> None:
    for s in slices:
        if s.samples != 1 or s.photometric not in ("MONOCHROME1", "MONOCHROME2", ""):
            raise NoVolumeError(f"{s.name} is in colour ({s.photometric}); allowed is one value per pixel")
        if s.lookup:
            raise NoVolumeError(f"the values of {s.name} come from a lookup table; allowed are slope and intercept")
        if s.position is None or s.axes is None:
            raise NoVolumeError(f"{s.name} does not say where it lies (ImagePositionPatient, ImageOrientationPatient)")
        if s.spacing_mm is None or not all(0 < mm < 1000 for mm in s.spacing_mm):
            raise NoVolumeError(f"{s.name} gives the PixelSpacing {s.spacing_mm}; allowed are two numbers above 0")
        across, down = np.array(s.axes).reshape(2, 3)
        lengths = np.linalg.norm((across, down), axis=1)
        if np.abs(lengths - 1).max() > 0.01 or abs(float(across @ down)) > 0.01:
            raise NoVolumeError(
                f"{s.name} gives the ImageOrientationPatient {s.axes}; those are not two perpendicular directions"
            )
        allocated, bits, high, _ = s.stored
        if not (1 <= bits <= allocated <= 64 and bits - 1 <= high < allocated):
            raise NoVolumeError(f"{s.name} stores {bits} bits up to bit {high} of {allocated}, which is impossible")
        if not (0 < abs(s.slope) <= _LARGEST and abs(s.intercept) <= _LARGEST):
            raise NoVolumeError(f"{s.name} has the RescaleSlope {s.slope} and RescaleIntercept {s.intercept}")


def _check_alike(slices: Sequence[Slice]) -> None:
    first = slices[0]
    sizes = Counter((s.columns, s.rows) for s in slices)
    if len(sizes) > 1:
        raise NoVolumeError(f"its slices have several sizes: {_counted(sizes)} pixels, {_odd(slices, sizes)}")
    axes = np.array([s.axes for s in slices])
    kinds = _clusters(axes, _SAME_AXES)
    if max(kinds) > 0:
        often = Counter(kinds)
        odd = slices[kinds.index(min(often, key=lambda k: (often[k], -k)))].name
        raise NoVolumeError(
            f"its slices have {len(often)} orientations ({', '.join(str(n) for _, n in often.most_common(5))} slices"
            f"{', …' if len(often) > 5 else ''}), such as that of {odd}; allowed is one"
        )
    spacings = np.array([s.spacing_mm for s in slices])
    reach = np.abs(spacings - spacings[0]) / spacings[0] * (first.rows, first.columns)
    if reach.max() > _SAME_SPACING:
        other = slices[int(reach.max(axis=1).argmax())]
        raise NoVolumeError(
            f"its pixel spacing changes from {_mm(first.spacing_mm)} to {_mm(other.spacing_mm)} mm in {other.name}"
        )
    references = {s.reference for s in slices if s.reference}
    if len(references) > 1:
        raise NoVolumeError(f"its slices have {len(references)} frames of reference; allowed is one")


def _even_step(
    slices: Sequence[Slice], places: NDArray[np.float64], normal: NDArray[np.float64], pixel_mm: float
) -> NDArray[np.float64]:
    """Step from one slice to the next, in mm."""
    along = places @ normal
    gaps = np.diff(along)
    gap = float(np.median(gaps))
    if gaps.min() < max(0.02 * gap, 1e-3):
        raise NoVolumeError(_shared_places(slices, along))
    step: NDArray[np.float64] = (places[-1] - places[0]) / (len(slices) - 1)
    off = places - places[0] - np.arange(len(slices))[:, None] * step
    off_along = np.abs(off @ normal)
    uneven_mm = max(_UNEVEN * gap, min(_ROUNDED_MM, 0.3 * gap))
    if off_along.max() > uneven_mm:
        worst = int(np.argmax(np.abs(gaps - gap)))
        raise NoVolumeError(
            f"its slices are {gaps.min():.3g} to {gaps.max():.3g} mm apart; slices are missing, or the stack is uneven, "
            f"beside {slices[worst].name}"
        )
    off_plane = np.linalg.norm(off - np.outer(off @ normal, normal), axis=1)
    if off_plane.max() > max(uneven_mm, 0.25 * pixel_mm):
        worst = int(off_plane.argmax())
        raise NoVolumeError(
            f"its slices are not in line: {slices[worst].name} is {off_plane[worst]:.3g} mm away from the others"
        )
    return step


def _shared_places(slices: Sequence[Slice], along: NDArray[np.float64]) -> str:
    """A sentence about slices that share a position: which of their attributes differ."""
    apart = np.diff(along) >= max(0.02 * float(np.ptp(along)) / len(slices), 1e-3)
    place = np.concatenate([[0], np.cumsum(apart)])
    counts = Counter(int(n) for n in place)
    often = Counter(counts.values()).most_common(1)[0][0]
    if len(counts) == 1:
        return f"all its {len(slices)} slices are at the same position"
    if set(counts.values()) == {often}:
        for name in dict.fromkeys(key for s in slices for key, _ in s.telling):
            values = [dict(s.telling).get(name, "") for s in slices]
            per_place = Counter(zip(place.tolist(), values, strict=True))
            if len(set(values)) == often and max(per_place.values()) == 1:
                shown = ", ".join(sorted(set(values))[:4])
                return (
                    f"it holds {often} volumes of {len(counts)} slices, told apart by {name} ({shown}); allowed is one"
                )
    pair = int(np.flatnonzero(~apart)[0])
    return (
        f"{slices[pair].name} and {slices[pair + 1].name} are at the same position; allowed is one slice per position"
    )


def _tilt(step: NDArray[np.float64], normal: NDArray[np.float64], count: int, pixel_mm: float) -> float:
    """Degrees between the stack's direction and the planes' normal; 0 where the shift is negligible."""
    beside = float(np.linalg.norm(step - (step @ normal) * normal))
    if beside * (count - 1) < _TILTED_PIXELS * pixel_mm:
        return 0.0
    return float(np.degrees(np.arctan2(beside, abs(float(step @ normal)))))


def _thickness(one: Slice) -> float:
    if one.thickness_mm is None or one.thickness_mm > 1000:
        raise NoVolumeError(f"its only slice, {one.name}, does not say how thick it is (SliceThickness)")
    return one.thickness_mm


def _clusters(vectors: NDArray[np.float64], tolerance: float) -> list[int]:
    """Cluster number of each row; rows that are near each other share one."""
    found: list[NDArray[np.float64]] = []
    numbers = []
    for vector in vectors:
        number = next((n for n, known in enumerate(found) if np.abs(known - vector).max() <= tolerance), len(found))
        if number == len(found):
            found.append(vector)
        numbers.append(number)
    return numbers


def _size(one: Slice) -> tuple[int, int]:
    return one.columns, one.rows


def _odd(slices: Sequence[Slice], counts: Counter[tuple[int, int]]) -> str:
    rare = min(counts, key=lambda size: counts[size])
    return f"such as {next(s.name for s in slices if _size(s) == rare)}"


def _counted(counts: Counter[tuple[int, int]]) -> str:
    return ", ".join(f"{c} × {r} ({n})" for (c, r), n in counts.most_common(3))


def _mm(spacing: tuple[float, ...] | None) -> str:
    return " × ".join(f"{mm:.4g}" for mm in spacing or ())
