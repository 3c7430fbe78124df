"""Reading and writing image files: voxels and geometry in every format that satunet knows.

:mod:`satunet.images.nifti` reads and writes NIfTI. MetaImage and NRRD are read by modules of their own and written by
SimpleITK; geometry is converted between LPS and RAS there and nowhere else. :mod:`satunet.images.image` checks what a
scan or a label map has to be; other packages use that module rather than this one.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from satunet.errors import MissingFileError, UnreadableImageError
from satunet.geometry import Grid
from satunet.images import nifti
from satunet.images.metaimage import read_metaimage
from satunet.images.nifti import NiftiHeader
from satunet.images.nrrd import read_nrrd
from satunet.images.stored import Stored, grid_of

IMAGE_ENDINGS = (".nii.gz", ".nii", ".nrrd", ".mha", ".mhd")
_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


def image_ending(path: Path | str) -> str | None:
    """The ending by which satunet knows the format (``".nii.gz"``, …), or ``None`` if it knows none."""
    name = Path(path).name.lower()
    return next((ending for ending in IMAGE_ENDINGS if name.endswith(ending)), None)


def strip_ending(name: str) -> str:
    """File name without its image ending (``"liver_0000.nii.gz"`` → ``"liver_0000"``)."""
    ending = image_ending(name)
    return name[: -len(ending)] if ending else name


def list_images(folder: Path) -> list[Path]:
    """Image files directly in ``folder``, sorted by name; hidden files are left out."""
    return sorted(p for p in Path(folder).iterdir() if p.is_file() and image_ending(p) and not p.name.startswith("."))


def read_grid(path: Path) -> Grid:
    """Shape and affine of an image, from its header alone.

    Raises:
        MissingFileError: There is no such file.
        UnreadableImageError: Unknown ending, no image, truncated, or a singular affine.
        NotThreeDimensionalError: Not one 3D volume (2D, 4D).
    """
    path = _existing(path)
    if _is_nifti(path):
        return nifti.nifti_grid(nifti.open_nifti(path), path)
    stored = _header(path)
    stored.check_sizes()
    return stored.grid()


def image_files(path: Path) -> tuple[Path, ...]:
    """All files that an image is read from: the one with its header, and those that the header names for the voxels.

    Raises:
        MissingFileError, UnreadableImageError: As in :func:`read_grid`.
    """
    path = _existing(path)
    return (path,) if _is_nifti(path) else tuple(dict.fromkeys((path, *_header(path).files)))


def header_doubts(path: Path) -> tuple[nifti.Doubt, ...]:
    """Doubts about an image's geometry: what its header leaves open, and what is assumed instead.

    Raises:
        ScanError: As in :func:`read_grid`.
    """
    path = _existing(path)
    if _is_nifti(path):
        return nifti.doubts_of(nifti.open_nifti(path))
    stored = _header(path)
    if not stored.spaced:
        return (nifti.Doubt("unit", "its header gives no spacing: its voxels are assumed to be 1 mm"),)
    return nifti.implausible(stored.grid().spacing_mm)


def voxel_bytes(path: Path) -> int:
    """Bytes of memory per voxel while :func:`read_voxels` reads the image; from its header alone.

    Raises:
        MissingFileError, UnreadableImageError: As in :func:`read_grid`.
    """
    path = _existing(path)
    return nifti.voxel_bytes_of(nifti.open_nifti(path)) if _is_nifti(path) else _header(path).dtype.itemsize


def read_voxels(path: Path, *, single_precision: bool = False) -> tuple[NDArray[Any], Grid, NiftiHeader | None]:
    """Read a volume.

    Args:
        path: The file.
        single_precision: Whether scaled integers of 8 and 16 bits become float32, where nibabel makes float64 of them.

    Returns:
        The array (X, Y, Z) in native byte order, its grid, and its header if it is NIfTI.

    Raises:
        MissingFileError: There is no such file, or the file that its header names for its voxels.
        UnreadableImageError: Unknown ending, no image, truncated or damaged, or a singular affine.
        NotThreeDimensionalError: Not one 3D volume (2D, 4D, vector voxels).
    """
    path = _existing(path)
    if _is_nifti(path):
        loaded = nifti.open_nifti(path)
        grid = nifti.nifti_grid(loaded, path)
        array = nifti.read_array(loaded, path, single_precision=single_precision)
        return native(array.reshape(grid.shape, order="F")), grid, nifti.nifti_header(loaded)
    stored = _header(path)
    grid = stored.grid()
    return native(stored.read().reshape(grid.shape, order="F")), grid, None


def write_file(
    path: Path,
    array: NDArray[Any],
    grid: Grid,
    *,
    ending: str,
    header: NiftiHeader | None = None,
    slope: float = 1.0,
    legend: Mapping[int, str] | None = None,
) -> None:
    """Write a volume.

    Args:
        path: Destination; exactly this one file is written.
        array: (X, Y, Z).
        grid: The grid it is on.
        ending: Ending of the path, one of :data:`IMAGE_ENDINGS`.
        header: Header of the scan, for NIfTI.
        slope: Factor from stored numbers to values; NIfTI keeps it in its header, other formats get scaled float32.
        legend: Id → name, stored in NIfTI files as a label table.
    """
    if ending in (".nii", ".nii.gz"):
        nifti.write_nifti(path, array, grid, packed=ending == ".nii.gz", header=header, slope=slope, legend=legend)
        return
    import SimpleITK as sitk

    array = array if slope == 1 else array.astype(np.float32) * np.float32(slope)
    # Always one file: an .mhd with its .raw beside it cannot be renamed into place in one step.
    target = path.with_name(path.name[: -len(ending)] + ".mha") if ending == ".mhd" else path
    sitk.WriteImage(_to_sitk(array, grid), str(target), useCompression=True)
    if target != path:
        os.replace(target, path)


def sitk_grid(image: Any, path: Path) -> Grid:
    """Shape and affine of a SimpleITK image.

    Raises:
        NotThreeDimensionalError, UnreadableImageError: As in :func:`satunet.images.stored.grid_of`.
    """
    size = tuple(image.GetSize())
    n, m = len(size), min(len(size), 3)
    affine = np.eye(4)
    matrix = np.asarray(image.GetDirection(), dtype=np.float64).reshape(n, n)[:m, :m]
    affine[:m, :m] = matrix * np.asarray(image.GetSpacing(), dtype=np.float64)[:m]
    affine[:m, 3] = np.asarray(image.GetOrigin(), dtype=np.float64)[:m]
    return grid_of(path, size, _LPS_TO_RAS @ affine)


def native(array: NDArray[Any]) -> NDArray[Any]:
    """The array in the machine's byte order."""
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def _existing(path: Path) -> Path:
    path = Path(path)
    if not path.is_file():
        raise MissingFileError(
            path, "a folder, a device or a pipe; allowed is a file" if path.exists() else "no such file"
        )
    if image_ending(path) is None:
        raise UnreadableImageError(path, f"unknown image ending; allowed are {', '.join(IMAGE_ENDINGS)}")
    return path


def _is_nifti(path: Path) -> bool:
    return image_ending(path) in (".nii", ".nii.gz")


def _header(path: Path) -> Stored:
    return read_nrrd(path) if image_ending(path) == ".nrrd" else read_metaimage(path)


def _to_sitk(array: NDArray[Any], grid: Grid) -> Any:
    import SimpleITK as sitk

    lps = _LPS_TO_RAS @ grid.affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    image = sitk.GetImageFromArray(np.ascontiguousarray(array.transpose()))
    image.SetSpacing(spacing.tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    image.SetDirection((lps[:3, :3] / spacing).ravel().tolist())
    return image
