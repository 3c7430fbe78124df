"""What is in an image file: its voxels and where they lie, in the formats that satunet reads and writes.

NIfTI goes through nibabel, which keeps a file's affine and header to the last bit; NRRD, MHA and MHD go through
SimpleITK, and their geometry is turned from LPS into RAS here and nowhere else. What a scan or a label map has to be is
:mod:`satunet.images.image`'s concern, and the other modules go through that one.
"""

from __future__ import annotations

import colorsys
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from satunet.errors import MissingFileError, NotThreeDimensionalError, UnreadableImageError
from satunet.geometry import Grid

IMAGE_ENDINGS = (".nii.gz", ".nii", ".nrrd", ".mha", ".mhd")
_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
_CARET = 30
"""NIfTI's code of an extension that holds a label table."""


def image_ending(path: Path | str) -> str | None:
    """The ending by which satunet knows the format (``".nii.gz"``, …), or ``None`` if it knows none."""
    name = Path(path).name.lower()
    return next((ending for ending in IMAGE_ENDINGS if name.endswith(ending)), None)


def strip_ending(name: str) -> str:
    """File name without its image ending (``"liver_0000.nii.gz"`` → ``"liver_0000"``)."""
    ending = image_ending(name)
    return name[: -len(ending)] if ending else name


def list_images(folder: Path) -> list[Path]:
    """Image files directly in ``folder``, by name; hidden files are no results and are left out."""
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
        return nifti_grid(_open_nifti(path), path)
    return sitk_grid(_sitk_header(path), path)


def voxel_bytes(path: Path) -> int:
    """Bytes of memory a voxel takes while :func:`read_voxels` reads it, from the header.

    Raises:
        MissingFileError, UnreadableImageError: As in :func:`read_grid`.
    """
    path = _existing(path)
    if _is_nifti(path):
        loaded = _open_nifti(path)
        scaled = loaded.dataobj.slope != 1 or loaded.dataobj.inter != 0
        return int(loaded.get_data_dtype().itemsize) + (8 if scaled else 0)
    import SimpleITK as sitk

    # SimpleITK's image and the copy in numpy's array.
    return 2 * int(sitk.GetArrayViewFromImage(sitk.Image([1, 1], _sitk_header(path).GetPixelID())).itemsize)


def read_voxels(path: Path, *, single_precision: bool = False) -> tuple[NDArray[Any], Grid, nib.Nifti1Header | None]:
    """Read a volume.

    Args:
        path: The file.
        single_precision: Whether scaled integers of 8 and 16 bits become float32, where nibabel makes float64 of them.

    Returns:
        The array (X, Y, Z) in native byte order, its grid, and its header if it is NIfTI.

    Raises:
        MissingFileError, UnreadableImageError: As in :func:`read_grid`.
        NotThreeDimensionalError: Not one 3D volume (2D, 4D, vector voxels).
    """
    path = _existing(path)
    if _is_nifti(path):
        loaded = _open_nifti(path)
        grid = nifti_grid(loaded, path)
        try:
            array = _single_precision(loaded.dataobj) if single_precision else np.asanyarray(loaded.dataobj)
        except Exception as error:  # zlib, gzip, OSError, EOFError: a truncated file has many faces
            raise UnreadableImageError(path, f"the voxels cannot be read ({_first_line(error)})") from error
        return native(array.reshape(grid.shape)), grid, nifti_header(loaded)
    import SimpleITK as sitk

    try:
        image = sitk.ReadImage(str(path))
    except RuntimeError as error:
        raise UnreadableImageError(path, f"not a readable image ({_first_line(error)})") from error
    if image.GetNumberOfComponentsPerPixel() != 1:
        raise NotThreeDimensionalError(path, f"{image.GetNumberOfComponentsPerPixel()} values a voxel; allowed is one")
    grid = sitk_grid(image, path)
    return native(sitk.GetArrayFromImage(image).transpose().reshape(grid.shape)), grid, None


def write_file(
    path: Path,
    array: NDArray[Any],
    grid: Grid,
    *,
    ending: str,
    header: nib.Nifti1Header | None = None,
    slope: float = 1.0,
    legend: Mapping[int, str] | None = None,
) -> None:
    """Write a volume.

    Args:
        path: The file, of that name and no other beside it.
        array: (X, Y, Z).
        grid: The grid it is on.
        ending: One of :data:`IMAGE_ENDINGS`, with which the path ends.
        header: Of the scan, for NIfTI.
        slope: What a stored integer stands for; NIfTI says so in its header, other formats get float32.
        legend: Id → name, for NIfTI.
    """
    if ending in (".nii", ".nii.gz"):
        _save_nifti(_to_nifti(array, grid, header, slope, legend), path, packed=ending == ".nii.gz")
        return
    import SimpleITK as sitk

    array = array if slope == 1 else array.astype(np.float32) * np.float32(slope)
    # Always one file: an .mhd with its .raw beside it could not appear whole under a temporary name.
    target = path.with_name(path.name[: -len(ending)] + ".mha") if ending == ".mhd" else path
    sitk.WriteImage(_to_sitk(array, grid), str(target), useCompression=True)
    if target != path:
        os.replace(target, path)


def nifti_grid(loaded: Any, path: Path) -> Grid:
    """Shape and affine of a nibabel image; ``path`` is what errors name, as in :func:`grid_of`."""
    return grid_of(path, tuple(loaded.shape), np.asarray(loaded.affine, dtype=np.float64))


def nifti_header(loaded: Any) -> nib.Nifti1Header | None:
    """A nibabel image's header, if it is of NIfTI."""
    return loaded.header if isinstance(loaded.header, nib.Nifti1Header) else None


def sitk_grid(image: Any, path: Path) -> Grid:
    """Shape and affine of a SimpleITK image, or of a reader that has read its header.

    Raises:
        NotThreeDimensionalError, UnreadableImageError: As in :func:`grid_of`.
    """
    size = tuple(image.GetSize())
    n = len(size)
    if n < 3:
        raise NotThreeDimensionalError(path, f"the image has {n} axes {size}; allowed are three")
    affine = np.eye(4)
    matrix = np.asarray(image.GetDirection(), dtype=np.float64).reshape(n, n)[:3, :3]
    affine[:3, :3] = matrix * np.asarray(image.GetSpacing(), dtype=np.float64)[:3]
    affine[:3, 3] = np.asarray(image.GetOrigin(), dtype=np.float64)[:3]
    return grid_of(path, size, _LPS_TO_RAS @ affine)


def grid_of(path: Path, shape: tuple[int, ...], affine: NDArray[np.float64]) -> Grid:
    """A grid, of a shape whose trailing axes of size one do not count.

    Args:
        path: The file, for errors.
        shape: Of the array.
        affine: 4 × 4, voxel index → RAS+ mm.

    Raises:
        NotThreeDimensionalError: Not three axes.
        UnreadableImageError: A singular affine.
    """
    if len(shape) < 3 or any(n != 1 for n in shape[3:]):
        raise NotThreeDimensionalError(path, f"the image has the shape {shape}; allowed is one volume with three axes")
    try:
        return Grid(shape=(shape[0], shape[1], shape[2]), affine=affine)
    except ValueError as error:
        raise UnreadableImageError(path, str(error)) from error


def native(array: NDArray[Any]) -> NDArray[Any]:
    """The array in the machine's byte order."""
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def rounded(values: Any) -> tuple[float, ...]:
    """Millimetres, for a message."""
    return tuple(round(float(v), 3) for v in values)


def _existing(path: Path) -> Path:
    path = Path(path)
    if not path.is_file():
        raise MissingFileError(path, "no such file")
    if image_ending(path) is None:
        raise UnreadableImageError(path, f"unknown image ending; allowed are {', '.join(IMAGE_ENDINGS)}")
    return path


def _is_nifti(path: Path) -> bool:
    return image_ending(path) in (".nii", ".nii.gz")


def _open_nifti(path: Path) -> Any:
    # nibabel reports repairs of headers on its own logger's stderr handler; the reasons are in our errors.
    logging.getLogger("nibabel.global").setLevel(logging.ERROR)
    try:
        loaded = nib.load(path)
    except Exception as error:  # nibabel raises ImageFileError, HeaderDataError, OSError, EOFError, zlib.error
        raise UnreadableImageError(path, f"not a readable NIfTI image ({_first_line(error)})") from error
    _require_spacing(loaded, path)
    return loaded


def _require_spacing(loaded: Any, path: Path) -> None:
    """A spacing of 0 is 1 mm to nibabel; where nothing else says where the voxels are, that would be a guess."""
    header = loaded.header
    if not isinstance(header, nib.Nifti1Header) or int(header["sform_code"]) or 1.0 not in header.get_zooms()[:3]:
        return
    with nib.openers.ImageOpener(str(path)) as file:
        stored = type(header).from_fileobj(file, check=False)["pixdim"][1:4]
    if (np.asarray(stored) == 0).any():
        raise UnreadableImageError(path, f"the header gives the spacing {rounded(stored)} mm; allowed is more than 0")


def _single_precision(proxy: Any) -> NDArray[Any]:
    """Voxels of a NIfTI file; scaled 8 and 16 bit integers as float32, where nibabel makes float64 of them."""
    if proxy.slope == 1 and proxy.inter == 0:
        return np.asanyarray(proxy)
    raw = proxy.get_unscaled()
    if raw.dtype.kind not in "iu" or raw.dtype.itemsize > 2:
        return np.asanyarray(proxy)
    values = raw.astype(np.float32)
    values *= np.float32(proxy.slope)
    values += np.float32(proxy.inter)
    return values  # type: ignore[no-any-return]


def _sitk_header(path: Path) -> Any:
    """SimpleITK's reader, behind the header."""
    import SimpleITK as sitk

    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise UnreadableImageError(path, f"not a readable image ({_first_line(error)})") from error
    return reader


def _to_nifti(
    array: NDArray[Any], grid: Grid, header: nib.Nifti1Header | None, slope: float, legend: Mapping[int, str] | None
) -> nib.Nifti1Image:
    if header is None:
        image = nib.Nifti1Image(array, grid.affine)
        image.header.set_xyzt_units("mm")
    else:
        header = header.copy()
        header.set_data_dtype(array.dtype)
        header["cal_min"] = header["cal_max"] = 0
        header.extensions.clear()  # they speak of the scan, not of what was found in it
        image = nib.Nifti1Image(array, grid.affine, header)
    image.header.set_slope_inter(slope, 0)
    if legend:
        image.header.extensions.append(nib.nifti1.Nifti1Extension(_CARET, _label_table(legend)))
    return image


def _save_nifti(image: nib.Nifti1Image, path: Path, *, packed: bool) -> None:
    """As nibabel writes it, but packed several times as fast."""
    from isal import igzip

    opener = igzip.open(path, "wb", compresslevel=1) if packed else path.open("wb")
    with opener as file:
        image.to_stream(file)


def _label_table(legend: Mapping[int, str]) -> bytes:
    """Connectome Workbench's label table; colours go round the colour circle by the golden ratio."""
    root = ElementTree.Element("CaretExtension")
    volume = ElementTree.SubElement(root, "VolumeInformation", Index="0")
    table = ElementTree.SubElement(volume, "LabelTable")
    for number, (label, name) in enumerate(sorted({0: "background", **legend}.items())):
        rgb = colorsys.hsv_to_rgb(number * 0.61803398875 % 1, 0.65, 0.95) if label else (0, 0, 0)
        colours = {key: f"{value:.4f}" for key, value in zip(("Red", "Green", "Blue"), rgb, strict=True)}
        entry = ElementTree.SubElement(table, "Label", {"Key": str(label), **colours, "Alpha": "1" if label else "0"})
        entry.text = name
    ElementTree.SubElement(volume, "VolumeType").text = "Label"
    return b'<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(root)


def _to_sitk(array: NDArray[Any], grid: Grid) -> Any:
    import SimpleITK as sitk

    lps = _LPS_TO_RAS @ grid.affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    image = sitk.GetImageFromArray(np.ascontiguousarray(array.transpose()))
    image.SetSpacing(spacing.tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    image.SetDirection((lps[:3, :3] / spacing).ravel().tolist())
    return image


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
