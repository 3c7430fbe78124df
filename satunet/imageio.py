"""Reading and writing scans and label maps.

NIfTI goes through nibabel, which keeps a file's affine and header to the last bit; NRRD, MHA and MHD go through
SimpleITK, and their geometry is turned from LPS into RAS here and nowhere else. Arrays have the file's voxel axes
(i, j, k), see :mod:`satunet.geometry`.
"""

from __future__ import annotations

import colorsys
import logging
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from satunet.errors import (
    GridMismatchError,
    MissingFileError,
    NonFiniteImageError,
    NotThreeDimensionalError,
    UnexpectedLabelError,
    UnreadableImageError,
)
from satunet.files import atomic_path
from satunet.geometry import Grid, same_grid

IMAGE_ENDINGS = (".nii.gz", ".nii", ".nrrd", ".mha", ".mhd")
_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
_CARET = 30
"""NIfTI's code of an extension that holds a label table."""
_PIECE = 1 << 20
"""Voxels looked at in one go where temporary arrays would otherwise be as large as the volume."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Image:
    """A volume with its place in space.

    Attributes:
        array: (X, Y, Z) in the file's voxel axes.
        grid: Shape and affine.
        path: The file it came from, if any.
        header: The NIfTI header it came with, kept for writing results; ``None`` for other formats.
    """

    array: NDArray[Any]
    grid: Grid
    path: Path | None = None
    header: nib.Nifti1Header | None = None

    def __post_init__(self) -> None:
        if self.array.shape != self.grid.shape:
            raise ValueError(f"the array's shape {self.array.shape} is not the grid's {self.grid.shape}")


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
        MissingFileError, UnreadableImageError, NotThreeDimensionalError: As in :func:`read_image`.
    """
    path = _existing(path)
    if _is_nifti(path):
        return _nifti_grid(_open_nifti(path), path)
    import SimpleITK as sitk

    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise UnreadableImageError(path, f"not a readable image ({_first_line(error)})") from error
    return _sitk_grid(path, reader.GetSize(), reader.GetSpacing(), reader.GetOrigin(), reader.GetDirection())


def voxel_bytes(path: Path) -> int:
    """Bytes of memory a voxel takes while :func:`read_image` or :func:`read_label_map` reads it, from the header.

    Raises:
        MissingFileError, UnreadableImageError: As in :func:`read_image`.
    """
    path = _existing(path)
    if _is_nifti(path):
        loaded = _open_nifti(path)
        scaled = loaded.dataobj.slope != 1 or loaded.dataobj.inter != 0
        return int(loaded.get_data_dtype().itemsize) + (8 if scaled else 0)
    import SimpleITK as sitk

    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise UnreadableImageError(path, f"not a readable image ({_first_line(error)})") from error
    # SimpleITK's image and the copy in numpy's array.
    return 2 * int(sitk.GetArrayViewFromImage(sitk.Image([1, 1], reader.GetPixelID())).itemsize)


def read_image(path: Path) -> Image:
    """Read a 3D scan; a trailing axis of size one is dropped.

    Returns:
        An image whose array has the file's data type in native byte order; integers with a scale become floating
        point, those of 8 and 16 bits float32.

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


def read_label_map(path: Path, *, allowed_ids: Collection[int] | None = None, grid: Grid | None = None) -> Image:
    """Read an integer label map.

    Args:
        path: The file.
        allowed_ids: Ids that may occur, without the background 0; ``None`` allows any that is not negative.
        grid: The grid the map must have: that of its scan.

    Returns:
        An image whose array has the smallest unsigned integer type that holds its ids.

    Raises:
        MissingFileError, UnreadableImageError, NotThreeDimensionalError: As in :func:`read_image`.
        GridMismatchError: Its grid is not ``grid``.
        UnexpectedLabelError: Values that are not integers, negative, or not among ``allowed_ids``.
    """
    image = _read(path)
    if grid is not None:
        require_grid(image, grid)
    values = image.array
    if np.issubdtype(values.dtype, np.floating):
        flat = values.ravel(order="K")
        for start in range(0, flat.size, _PIECE):
            piece = flat[start : start + _PIECE]
            odd = piece[~(np.rint(piece) == piece)]  # NaN is unequal to itself and is caught here as well
            if odd.size:
                raise UnexpectedLabelError(path, f"the label map holds values that are not integers, such as {odd[0]}")
    lowest, highest = (int(values.min()), int(values.max()))
    if lowest < 0:
        raise UnexpectedLabelError(path, f"the label map holds the negative id {lowest}")
    values = values.astype(np.min_scalar_type(highest), copy=False)
    image = Image(array=values, grid=image.grid, path=image.path, header=image.header)
    if allowed_ids is not None:
        require_ids(image, allowed_ids)
    return image


def require_grid(image: Image, grid: Grid) -> None:
    """Refuse an image that is on another grid than the scan it belongs to.

    Raises:
        GridMismatchError: Its grid is not ``grid``.
    """
    if not same_grid(image.grid, grid):
        raise GridMismatchError(
            image.path or "image", f"it is on another grid than its scan: {_difference(image.grid, grid)}"
        )


def require_ids(labels: Image, allowed_ids: Collection[int]) -> None:
    """Refuse a label map with ids that its dataset does not list; 0 is always allowed.

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
    """Ids that occur in a label map, sorted; small ids are ticked off piece by piece instead of sorting voxels."""
    if labels.dtype.kind != "u" or labels.dtype.itemsize > 2:
        return [int(i) for i in np.unique(labels)]
    seen = np.zeros(np.iinfo(labels.dtype).max + 1, dtype=bool)
    flat = labels.ravel(order="K")  # in the order of memory: no copy, whichever axis comes first in the file
    for start in range(0, flat.size, _PIECE):
        seen[flat[start : start + _PIECE]] = True
    return [int(i) for i in np.flatnonzero(seen)]


def as_image(given: Any) -> Image:
    """An image of whatever holds one.

    Args:
        given: An :class:`Image`; a path; a nibabel image; a SimpleITK image; or a pair of an (X, Y, Z) array and its
            4 × 4 affine, voxel index → RAS+ mm.

    Raises:
        ScanError: As in :func:`read_image`.
        TypeError: None of these.
    """
    if isinstance(given, Image):
        return given
    if isinstance(given, (str, Path)):
        return read_image(Path(given))
    name = Path("<image in memory>")
    if isinstance(given, nib.spatialimages.SpatialImage):
        grid = _nifti_grid(given, name)
        header = given.header if isinstance(given.header, nib.Nifti1Header) else None
        image = Image(array=_native(np.asanyarray(given.dataobj)).reshape(grid.shape), grid=grid, header=header)
    elif isinstance(given, tuple) and len(given) == 2:
        array = np.asarray(given[0])
        grid = _grid(name, array.shape, np.asarray(given[1], dtype=np.float64))
        image = Image(array=_native(array).reshape(grid.shape), grid=grid)
    elif hasattr(given, "GetDirection") and hasattr(given, "GetPixelIDValue"):
        import SimpleITK as sitk

        grid = _sitk_grid(name, given.GetSize(), given.GetSpacing(), given.GetOrigin(), given.GetDirection())
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
        ValueError: Another shape, negative ids, values that are no integers, or an unknown ending.
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
        slope: What a stored integer stands for; NIfTI says so in its header, other formats get float32.
        legend: As in :func:`write_label_map`.
    """
    grid = like.grid if isinstance(like, Image) else like
    if array.shape != grid.shape:
        raise ValueError(f"{path}: the array's shape {array.shape} is not the grid's {grid.shape}")
    ending = image_ending(path)
    if ending is None:
        raise ValueError(f"{path}: unknown image ending; allowed are {', '.join(IMAGE_ENDINGS)}")
    header = like.header if isinstance(like, Image) else None
    with atomic_path(path) as temporary:
        if ending in (".nii", ".nii.gz"):
            _save_nifti(_to_nifti(array, grid, header, slope, legend), temporary, packed=ending == ".nii.gz")
        else:
            import SimpleITK as sitk

            array = array if slope == 1 else array.astype(np.float32) * np.float32(slope)

            # Always one file: an .mhd with its .raw beside it could not appear whole under a temporary name.
            target = temporary.with_name(temporary.name[: -len(ending)] + ".mha") if ending == ".mhd" else temporary
            sitk.WriteImage(_to_sitk(array, grid), str(target), useCompression=True)
            if target != temporary:
                os.replace(target, temporary)


def _read(path: Path, *, single_precision: bool = False) -> Image:
    path = _existing(path)
    if _is_nifti(path):
        loaded = _open_nifti(path)
        grid = _nifti_grid(loaded, path)
        try:
            array = _single_precision(loaded.dataobj) if single_precision else np.asanyarray(loaded.dataobj)
        except Exception as error:  # zlib, gzip, OSError, EOFError: a truncated file has many faces
            raise UnreadableImageError(path, f"the voxels cannot be read ({_first_line(error)})") from error
        array = array.reshape(grid.shape)
        header = loaded.header if isinstance(loaded.header, nib.Nifti1Header) else None
        return Image(array=_native(array), grid=grid, path=path, header=header)
    import SimpleITK as sitk

    try:
        image = sitk.ReadImage(str(path))
    except RuntimeError as error:
        raise UnreadableImageError(path, f"not a readable image ({_first_line(error)})") from error
    if image.GetNumberOfComponentsPerPixel() != 1:
        raise NotThreeDimensionalError(path, f"{image.GetNumberOfComponentsPerPixel()} values a voxel; allowed is one")
    grid = _sitk_grid(path, image.GetSize(), image.GetSpacing(), image.GetOrigin(), image.GetDirection())
    array = sitk.GetArrayFromImage(image).transpose().reshape(grid.shape)
    return Image(array=_native(array), grid=grid, path=path)


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
        raise UnreadableImageError(path, f"the header gives the spacing {_rounded(stored)} mm; allowed is more than 0")


def _nifti_grid(loaded: Any, path: Path) -> Grid:
    return _grid(path, tuple(loaded.shape), np.asarray(loaded.affine, dtype=np.float64))


def _sitk_grid(path: Path, size: Any, spacing: Any, origin: Any, direction: Any) -> Grid:
    n = len(size)
    if n < 3:
        raise NotThreeDimensionalError(path, f"the image has {n} axes {tuple(size)}; allowed are three")
    affine = np.eye(4)
    matrix = np.asarray(direction, dtype=np.float64).reshape(n, n)[:3, :3]
    affine[:3, :3] = matrix * np.asarray(spacing, dtype=np.float64)[:3]
    affine[:3, 3] = np.asarray(origin, dtype=np.float64)[:3]
    return _grid(path, tuple(size), _LPS_TO_RAS @ affine)


def _grid(path: Path, shape: tuple[int, ...], affine: NDArray[np.float64]) -> Grid:
    if len(shape) < 3 or any(n != 1 for n in shape[3:]):
        raise NotThreeDimensionalError(path, f"the image has the shape {shape}; allowed is one volume with three axes")
    try:
        return Grid(shape=(shape[0], shape[1], shape[2]), affine=affine)
    except ValueError as error:
        raise UnreadableImageError(path, str(error)) from error


def _native(array: NDArray[Any]) -> NDArray[Any]:
    return array.astype(array.dtype.newbyteorder("="), copy=False)


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


def _difference(received: Grid, expected: Grid) -> str:
    if received.shape != expected.shape:
        return f"its shape is {received.shape}, the image's {expected.shape}"
    return (
        f"same shape, but spacing {_rounded(received.spacing_mm)} and origin {_rounded(received.affine[:3, 3])} mm "
        f"against {_rounded(expected.spacing_mm)} and {_rounded(expected.affine[:3, 3])} "
        f"(orientation {received.orientation} against {expected.orientation})"
    )


def _rounded(values: Any) -> tuple[float, ...]:
    return tuple(round(float(v), 3) for v in values)


def _ranges(ids: Collection[int]) -> str:
    """Compact text of a set of ids: ``0-4, 7``."""
    parts: list[str] = []
    ordered = sorted({int(i) for i in ids})
    start = 0
    for end in range(len(ordered)):
        if end + 1 == len(ordered) or ordered[end + 1] != ordered[end] + 1:
            first, last = ordered[start], ordered[end]
            parts.append(str(first) if first == last else f"{first}-{last}")
            start = end + 1
    return ", ".join(parts) or "none"


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
