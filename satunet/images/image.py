"""Scans and label maps: reading and checking them, from any file or object, and writing results.

Arrays have the file's voxel axes (i, j, k), see :mod:`satunet.geometry`. Only :mod:`satunet.images.formats` deals with
the differences between formats.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from satunet.errors import GridMismatchError, NonFiniteImageError, UnexpectedLabelError
from satunet.geometry import Grid, same_grid
from satunet.images.formats import (
    IMAGE_ENDINGS,
    header_doubts,
    image_ending,
    list_images,
    native,
    read_grid,
    read_voxels,
    sitk_grid,
    strip_ending,
    voxel_bytes,
    write_file,
)
from satunet.images.nifti import NiftiHeader, nifti_grid, nifti_header
from satunet.images.stored import grid_of, rounded
from satunet.jobs.files import atomic_path
from satunet.types import Box

__all__ = [
    "IMAGE_ENDINGS",
    "IN_MEMORY",
    "Image",
    "as_image",
    "header_doubts",
    "image_ending",
    "list_images",
    "not_whole",
    "read_grid",
    "read_image",
    "read_label_map",
    "require_grid",
    "require_ids",
    "strip_ending",
    "unique_ids",
    "voxel_bytes",
    "write_label_map",
    "write_volume",
]

IN_MEMORY = Path("<image in memory>")
"""Name in errors of an image that did not come from a file."""
_ROUNDING = 1e-6
"""Relative rounding error of a whole number after a few multiplications in single precision."""
_PIECE = 1 << 20
"""Voxels processed at a time where temporary arrays would otherwise be as large as the volume."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Image:
    """A volume with its place in space.

    Attributes:
        array: (X, Y, Z) in the file's voxel axes.
        grid: Shape and affine.
        path: The file it came from, if any.
        header: Its NIfTI header, kept for writing results; ``None`` for other formats.
    """

    array: NDArray[Any]
    grid: Grid
    path: Path | None = None
    header: NiftiHeader | None = None

    def __post_init__(self) -> None:
        if self.array.shape != self.grid.shape:
            raise ValueError(f"the array's shape {self.array.shape} is not the grid's {self.grid.shape}")

    def cut(self, box: Box) -> Image:
        """The part of the volume in a box of voxels, at its place in space."""
        shift = np.eye(4)
        shift[:3, 3] = [s.start for s in box]
        array = np.ascontiguousarray(self.array[box])
        x, y, z = array.shape
        return Image(array=array, grid=Grid(shape=(x, y, z), affine=self.grid.affine @ shift))


def read_image(path: Path) -> Image:
    """Read a 3D scan; a trailing axis of size one is dropped.

    Returns:
        An image whose array has the file's data type in native byte order; scaled integers become floating point,
        those of 8 and 16 bits float32.

    Raises:
        MissingFileError: There is no such file.
        UnreadableImageError: Unknown ending, no image, truncated, or a singular affine.
        NotThreeDimensionalError: Not one 3D volume (2D, 4D, vector voxels).
        NonFiniteImageError: NaN or infinite voxels.
    """
    image = _read(path, single_precision=True)
    if np.issubdtype(image.array.dtype, np.floating):
        flat = image.array.ravel(order="K")
        good = sum(np.count_nonzero(np.isfinite(flat[i : i + _PIECE])) for i in range(0, flat.size, _PIECE))
        bad = int(flat.size - good)
        if bad:
            raise NonFiniteImageError(path, f"{bad} of {image.array.size} voxels are NaN or infinite")
    return image


def read_label_map(
    path: Path,
    *,
    allowed_ids: Collection[int] | None = None,
    grid: Grid | None = None,
    trust_shape: bool = False,
) -> Image:
    """Read an integer label map.

    Args:
        path: The file.
        allowed_ids: Ids that may occur, without the background 0; ``None`` allows any that is not negative.
        grid: The grid the map must have: that of its scan.
        trust_shape: Whether a map of that grid's shape lies on it, whatever its own header says.

    Returns:
        An image whose array has the smallest unsigned integer type that holds its ids.

    Raises:
        MissingFileError, UnreadableImageError, NotThreeDimensionalError: As in :func:`read_image`.
        GridMismatchError: Its grid is not ``grid``.
        UnexpectedLabelError: Values that are not integers, negative, or not among ``allowed_ids``.
    """
    image = _read(path)
    if grid is not None:
        image = require_grid(image, grid, trust_shape=trust_shape)
    values = image.array
    if np.issubdtype(values.dtype, np.floating):
        odd = not_whole(values)
        if odd is not None:
            raise UnexpectedLabelError(path, f"the label map holds values that are not integers, such as {odd:.9g}")
        values = np.rint(values)
    lowest, highest = (int(values.min()), int(values.max()))
    if lowest < 0:
        raise UnexpectedLabelError(path, f"the label map holds the negative id {lowest}")
    values = values.astype(np.min_scalar_type(highest), copy=False)
    image = Image(array=values, grid=image.grid, path=image.path, header=image.header)
    if allowed_ids is not None:
        require_ids(image, allowed_ids)
    return image


def not_whole(values: NDArray[np.floating[Any]]) -> float | None:
    """A value that is not a whole number; ``None`` if all are, up to rounding in single precision.

    In single precision, a header's scale of 0.1 is 0.100000001, and a label stored as 20 then becomes 2.00000003.
    """
    flat = values.ravel(order="K")
    for start in range(0, flat.size, _PIECE):
        piece = flat[start : start + _PIECE].astype(np.float64)
        off = np.abs(piece - np.rint(piece))
        odd = piece[~(off <= np.minimum(_ROUNDING * np.maximum(1.0, np.abs(piece)), 0.01))]  # NaN is caught as well
        if odd.size:
            return float(odd[0])
    return None


def require_grid(image: Image, grid: Grid, *, trust_shape: bool = False) -> Image:
    """Refuse an image whose grid differs from its scan's.

    Args:
        image: The image.
        grid: The grid it must have.
        trust_shape: Whether an image of that grid's shape lies on it, whatever its own header says.

    Returns:
        The image; if its header was overruled, with ``grid`` as its grid.

    Raises:
        GridMismatchError: Its grid is not ``grid``.
    """
    if same_grid(image.grid, grid):
        return image
    alike = image.grid.shape == grid.shape
    if trust_shape and alike:
        return replace(image, grid=grid)
    hint = "; --trust_shape treats files of the same shape as being on the same grid" if alike else ""
    raise GridMismatchError(
        image.path or "image", f"it is on another grid than its scan: {_difference(image.grid, grid)}{hint}"
    )


def require_ids(labels: Image, allowed_ids: Collection[int]) -> None:
    """Refuse a label map with ids other than the allowed ones and 0.

    Raises:
        UnexpectedLabelError: An id is not among ``allowed_ids``.
    """
    extra = sorted(set(unique_ids(labels.array)) - {0} - {int(i) for i in allowed_ids})
    if extra:
        raise UnexpectedLabelError(
            labels.path or "label map",
            f"label ids {extra[:10]} are not listed in dataset.json; listed are {_ranges(allowed_ids)}",
        )


def unique_ids(labels: NDArray[np.integer[Any]]) -> list[int]:
    """Sorted ids that occur in a label map of any shape; small ids are found by a table instead of sorting voxels."""
    if labels.dtype.kind != "u" or labels.dtype.itemsize > 2:
        return [int(i) for i in np.unique(labels)]
    seen = np.zeros(np.iinfo(labels.dtype).max + 1, dtype=bool)
    flat = labels.ravel(order="K")  # in the order of memory: no copy, whichever axis comes first in the file
    for start in range(0, flat.size, _PIECE):
        seen[flat[start : start + _PIECE]] = True
    return [int(i) for i in np.flatnonzero(seen)]


def as_image(given: Any) -> Image:
    """An image from any object that holds one.

    Args:
        given: An :class:`Image`; a path; a nibabel image; a SimpleITK image; or a pair of an (X, Y, Z) array and its
            4 × 4 affine, voxel index → RAS+ mm.

    Raises:
        ScanError: As in :func:`read_image`.
        TypeError: ``given`` is none of these.
    """
    if isinstance(given, Image):
        return given
    if isinstance(given, (str, Path)):
        return read_image(Path(given))
    import nibabel as nib

    name = IN_MEMORY
    if isinstance(given, nib.spatialimages.SpatialImage):
        grid = nifti_grid(given, name)
        array = native(np.asanyarray(given.dataobj)).reshape(grid.shape)
        image = Image(array=array, grid=grid, header=nifti_header(given))
    elif isinstance(given, tuple) and len(given) == 2:
        array = np.asarray(given[0])
        grid = grid_of(name, array.shape, np.asarray(given[1], dtype=np.float64))
        image = Image(array=native(array).reshape(grid.shape), grid=grid)
    elif hasattr(given, "GetDirection") and hasattr(given, "GetPixelIDValue"):
        import SimpleITK as sitk

        grid = sitk_grid(given, name)
        image = Image(array=sitk.GetArrayFromImage(given).transpose().reshape(grid.shape), grid=grid)
    else:
        raise TypeError(
            f"an image is a path, a satunet, nibabel or SimpleITK image, or (array, affine); got {type(given).__name__}"
        )
    if image.array.dtype.kind == "f" and not np.isfinite(image.array).all():
        raise NonFiniteImageError(name, "some voxels are NaN or infinite")
    return image


def write_label_map(
    path: Path, array: NDArray[Any], *, like: Image | Grid, legend: Mapping[int, str] | None = None
) -> None:
    """Write a mask or label map in the format that ``path``'s ending names; the file appears whole.

    Args:
        path: Destination; its ending is one of :data:`IMAGE_ENDINGS`.
        array: (X, Y, Z), boolean or integer, on the grid of ``like``; stored in the smallest unsigned type.
        like: The image (its grid and NIfTI header are kept) or the grid the array is on.
        legend: Id → name, put into a NIfTI file as the label table (names and colours) that viewers of brain data
            read; other formats have no place for it.

    Raises:
        ValueError: The array has another shape than ``like``, negative ids or values that are not integers; or the
            ending is unknown.
    """
    if array.dtype == np.bool_:
        array = array.astype(np.uint8)
    if array.dtype.kind not in "iu" or (array.size and int(array.min()) < 0):
        raise ValueError(f"{path}: a label map holds integers that are not negative, got {array.dtype}")
    smallest = np.min_scalar_type(int(array.max(initial=0)))
    write_volume(path, array.astype(smallest, copy=False), like=like, legend=legend)


def write_volume(
    path: Path,
    array: NDArray[Any],
    *,
    like: Image | Grid,
    slope: float = 1.0,
    legend: Mapping[int, str] | None = None,
) -> None:
    """Write a volume of any numeric type on the grid of ``like``; see :func:`write_label_map`.

    Args:
        path: Destination.
        array: (X, Y, Z).
        like: The image or grid it is on.
        slope: Factor from stored numbers to values; NIfTI keeps it in its header, other formats get scaled float32.
        legend: Legend, as in :func:`write_label_map`.
    """
    grid = like.grid if isinstance(like, Image) else like
    if array.shape != grid.shape:
        raise ValueError(f"{path}: the array's shape {array.shape} is not the grid's {grid.shape}")
    ending = image_ending(path)
    if ending is None:
        raise ValueError(f"{path}: unknown image ending; allowed are {', '.join(IMAGE_ENDINGS)}")
    header = like.header if isinstance(like, Image) else None
    with atomic_path(path) as temporary:
        write_file(temporary, array, grid, ending=ending, header=header, slope=slope, legend=legend)


def _read(path: Path, *, single_precision: bool = False) -> Image:
    array, grid, header = read_voxels(path, single_precision=single_precision)
    return Image(array=array, grid=grid, path=Path(path), header=header)


def _difference(received: Grid, expected: Grid) -> str:
    if received.shape != expected.shape:
        return f"its shape is {received.shape}, the image's {expected.shape}"
    return (
        f"same shape, but spacing {rounded(received.spacing_mm)} and origin {rounded(received.affine[:3, 3])} mm "
        f"against {rounded(expected.spacing_mm)} and {rounded(expected.affine[:3, 3])} "
        f"(orientation {received.orientation} against {expected.orientation})"
    )


def _ranges(ids: Collection[int]) -> str:
    """A set of ids as compact text: ``0-4, 7``."""
    parts: list[str] = []
    ordered = sorted({int(i) for i in ids})
    start = 0
    for end in range(len(ordered)):
        if end + 1 == len(ordered) or ordered[end + 1] != ordered[end] + 1:
            first, last = ordered[start], ordered[end]
            parts.append(str(first) if first == last else f"{first}-{last}")
            start = end + 1
    return ", ".join(parts) or "none"
