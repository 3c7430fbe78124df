"""NIfTI: headers by nibabel, which preserves affine and header exactly; voxels by :mod:`satunet.images.stored`.

Affines are in millimetres, whatever unit of length the file uses. Where a header leaves the geometry open,
:func:`doubts_of` says what is assumed.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

from satunet.errors import NotThreeDimensionalError, UnreadableImageError
from satunet.geometry import Grid
from satunet.images.colours import colours_of
from satunet.images.stored import DEFLATE_MOST, grid_of, rounded

if TYPE_CHECKING:
    import nibabel as nib

    NiftiHeader: TypeAlias = nib.Nifti1Header
else:  # nibabel, which imports pydicom, takes longer than all other imports of a plan, and a plan reads no scan
    NiftiHeader = Any

_MM_PER_UNIT = {1: 1000.0, 2: 1.0, 3: 0.001}
"""Millimetres of NIfTI's units of length, by code; files that name none are in millimetres."""
_CARET = 30
"""NIfTI's code of an extension that holds a label table."""
_BLOCK = 1 << 24
_PLAUSIBLE_MM = (0.01, 30.0)
"""Plausible voxel sizes; outside of this range, the header probably names a wrong unit."""


def open_nifti(path: Path, *, keep_open: bool = False) -> Any:
    """A NIfTI file as nibabel opens it: its header, and a proxy of its voxels.

    Args:
        path: The file.
        keep_open: Whether the proxy keeps the file open, for reading in pieces.

    Raises:
        UnreadableImageError: Not a NIfTI image, or its header is invalid.
    """
    import nibabel as nib

    # nibabel logs repairs of headers to stderr by a handler of its own; our errors give the reasons.
    logging.getLogger("nibabel.global").setLevel(logging.ERROR)
    try:
        loaded: Any = nib.load(path, keep_file_open=keep_open)
        shape = tuple(int(n) for n in loaded.shape)
        offset, dtype = int(loaded.dataobj.offset), np.dtype(loaded.dataobj.dtype)
    except Exception as error:  # nibabel raises ImageFileError, HeaderDataError, OSError, EOFError, zlib.error
        raise UnreadableImageError(path, f"not a readable NIfTI image ({_last_line(error)})") from error
    if any(n < 1 for n in shape):
        raise UnreadableImageError(path, f"the header gives the shape {shape}; allowed are numbers above 0")
    _check_size(path, offset, _bytes(shape, dtype))
    _require_spacing(loaded, path)
    return loaded


def nifti_affine(loaded: Any) -> NDArray[np.float64]:
    """4 × 4 affine of a nibabel image, voxel index → RAS+ mm, whatever unit of length its header names."""
    affine = np.array(loaded.affine, dtype=np.float64)
    affine[:3] *= _unit(nifti_header(loaded))
    return affine


def nifti_grid(loaded: Any, path: Path) -> Grid:
    """Shape and affine of a nibabel image; errors name ``path``, as in :func:`grid_of`."""
    return grid_of(path, tuple(loaded.shape), nifti_affine(loaded))


def nifti_header(loaded: Any) -> NiftiHeader | None:
    """A nibabel image's header; ``None`` unless it is a NIfTI header."""
    import nibabel as nib

    return loaded.header if isinstance(loaded.header, nib.Nifti1Header) else None


def voxel_bytes_of(loaded: Any) -> int:
    """Bytes of memory per voxel while :func:`read_array` reads the image."""
    scaled = loaded.dataobj.slope != 1 or loaded.dataobj.inter != 0
    return int(loaded.get_data_dtype().itemsize) + (8 if scaled else 0)


def read_array(loaded: Any, path: Path, *, single_precision: bool = False) -> NDArray[Any]:
    """Voxels (X, Y, Z) of an opened file, scaled as its header says.

    Args:
        loaded: Image from :func:`open_nifti`.
        path: The file.
        single_precision: Whether scaled integers of 8 and 16 bits become float32, where nibabel makes float64 of them.

    Raises:
        UnreadableImageError: The file holds fewer or more bytes than its header promises, or its checksum is wrong.
        NotThreeDimensionalError: Colours or complex numbers.
    """
    raw = _stored_voxels(loaded, path)
    if raw.dtype.kind not in "iufb":
        raise NotThreeDimensionalError(path, f"voxels of type {raw.dtype}; allowed is one real number per voxel")
    slope, inter = loaded.dataobj.slope, loaded.dataobj.inter
    if slope == 1 and inter == 0:
        return raw
    if single_precision and raw.dtype.kind in "iu" and raw.dtype.itemsize <= 2:
        values = raw.astype(np.float32)
        values *= np.float32(slope)
        values += np.float32(inter)
        return values
    from nibabel.volumeutils import apply_read_scaling

    scaled: NDArray[Any] = apply_read_scaling(raw, np.asanyarray(slope), np.asanyarray(inter))
    return scaled


@dataclass(frozen=True)
class Doubt:
    """Something that a header leaves open about its geometry, and what is assumed.

    Attributes:
        kind: The subject: contradictory voxel sizes (``"sform"``), unknown orientation (``"sides"``), or an implausible
            or missing size (``"unit"``).
        text: A sentence about the file, which it calls "it".
    """

    kind: Literal["sform", "sides", "unit"]
    text: str


def doubts_of(loaded: Any) -> tuple[Doubt, ...]:
    """Doubts about the geometry in a NIfTI header; none for other headers."""
    header = nifti_header(loaded)
    if header is None:
        return ()
    unit = _unit(header)
    doubts = []
    sform, qform = int(header["sform_code"]), int(header["qform_code"])
    own = np.linalg.norm(nifti_affine(loaded)[:3, :3], axis=0)
    pixdim = np.array(header["pixdim"][1:4], dtype=np.float64) * unit
    if sform > 0 and (np.abs(own - np.abs(pixdim)) > 0.01 * own).any() and (pixdim > 0).all():
        text = f"its sform gives voxels of {rounded(own)} mm and its pixdim {rounded(pixdim)} mm; the sform is used"
        doubts.append(Doubt("sform", text))
    if sform <= 0 and qform <= 0:
        text = (
            "it has neither sform nor qform: nothing says where left is; its first axis is assumed to run to the left"
        )
        doubts.append(Doubt("sides", text))
    named = {1000.0: ", as its unit is the metre", 0.001: ", as its unit is the micrometre"}.get(unit, "")
    return (*doubts, *implausible(own.tolist(), named))


def implausible(spacing_mm: Sequence[float], why: str = "") -> tuple[Doubt, ...]:
    """A doubt about voxel sizes that no scanner produces, or none; ``why`` is appended to its text."""
    if all(_PLAUSIBLE_MM[0] <= mm <= _PLAUSIBLE_MM[1] for mm in spacing_mm):
        return ()
    return (Doubt("unit", f"its voxels are {rounded(spacing_mm)} mm{why}"),)


def write_nifti(
    path: Path,
    array: NDArray[Any],
    grid: Grid,
    *,
    packed: bool,
    header: NiftiHeader | None = None,
    slope: float = 1.0,
    legend: Mapping[int, str] | None = None,
) -> None:
    """Write a volume; see :func:`satunet.images.formats.write_file`."""
    image = _to_nifti(array, grid, header, slope, legend)
    from isal import igzip

    opener = igzip.open(path, "wb", compresslevel=1) if packed else path.open("wb")  # several times as fast as nibabel
    with opener as file:
        image.to_stream(file)


def _unit(header: NiftiHeader | None) -> float:
    return 1.0 if header is None else _MM_PER_UNIT.get(int(header["xyzt_units"]) & 7, 1.0)


def _bytes(shape: tuple[int, ...], dtype: np.dtype[Any]) -> int:
    size = dtype.itemsize
    for n in shape:
        size *= n
    return size


def _check_size(path: Path, offset: int, wanted: int) -> None:
    there = path.stat().st_size
    packed = path.name.lower().endswith(".gz")
    if (there * DEFLATE_MOST < offset + wanted) if packed else (there < offset + wanted):
        raise UnreadableImageError(
            path, f"the file has {there} bytes; the header promises {wanted} bytes of voxels: it is truncated"
        )


def _stored_voxels(loaded: Any, path: Path) -> NDArray[Any]:
    """The file's numbers, unscaled; a compressed file is read to its end, so that its checksum is verified."""
    shape = tuple(int(n) for n in loaded.shape)
    offset, dtype = int(loaded.dataobj.offset), np.dtype(loaded.dataobj.dtype)
    try:
        room = np.empty(_bytes(shape, dtype), dtype=np.uint8)
        with _opened(path) as file:
            file.seek(offset)
            filled = _fill(file, room)
            beyond = len(file.read(1)) if filled == room.size else 0
    except Exception as error:  # zlib, gzip, OSError, EOFError, MemoryError: damaged files raise any of them
        raise UnreadableImageError(path, f"the voxels cannot be read ({_last_line(error)})") from error
    if filled != room.size or beyond:
        found = "more" if beyond else str(filled)
        raise UnreadableImageError(path, f"the file holds {found} bytes of voxels; the header promises {room.size}")
    voxels: NDArray[Any] = room.view(dtype).reshape(shape, order="F")
    return voxels


def _opened(path: Path) -> Any:
    if not path.name.lower().endswith(".gz"):
        return path.open("rb")
    from isal import igzip

    return igzip.open(path, "rb")


def _fill(file: Any, room: NDArray[np.uint8]) -> int:
    view = room.data
    filled = 0
    while filled < room.size:
        count = file.readinto(view[filled : filled + _BLOCK])
        if not count:
            break
        filled += count
    return filled


def _require_spacing(loaded: Any, path: Path) -> None:
    """Refuse a spacing of 0 unless an sform gives the geometry: nibabel would silently make it 1 mm."""
    import nibabel as nib

    header = loaded.header
    if not isinstance(header, nib.Nifti1Header) or int(header["sform_code"]) or 1.0 not in header.get_zooms()[:3]:
        return
    with nib.openers.ImageOpener(str(path)) as file:
        stored = type(header).from_fileobj(file, check=False)["pixdim"][1:4]
    if (np.asarray(stored) == 0).any():
        raise UnreadableImageError(path, f"the header gives the spacing {rounded(stored)} mm; allowed is more than 0")


def _to_nifti(
    array: NDArray[Any], grid: Grid, header: NiftiHeader | None, slope: float, legend: Mapping[int, str] | None
) -> Any:
    import nibabel as nib

    affine = grid.affine.copy()
    if header is None:
        image = nib.Nifti1Image(array, affine)
        image.header.set_xyzt_units("mm")
    else:
        header = header.copy()
        header.set_data_dtype(array.dtype)
        header["cal_min"] = header["cal_max"] = 0
        header.extensions.clear()  # they describe the scan, not the result
        affine[:3] /= _unit(header)  # a result uses its scan's unit of length
        image = nib.Nifti1Image(array, affine, header)
    image.header.set_slope_inter(slope, 0)
    if legend:
        image.header.extensions.append(nib.nifti1.Nifti1Extension(_CARET, _label_table(legend)))
    return image


def _label_table(legend: Mapping[int, str]) -> bytes:
    """Label table in the XML format of Connectome Workbench."""
    root = ElementTree.Element("CaretExtension")
    volume = ElementTree.SubElement(root, "VolumeInformation", Index="0")
    table = ElementTree.SubElement(volume, "LabelTable")
    named = sorted({0: "background", **legend}.items())
    for (label, name), colour in zip(named, colours_of(name for _, name in named), strict=True):
        rgb = colour if label else (0, 0, 0)
        colours = {key: f"{value / 255:.4f}" for key, value in zip(("Red", "Green", "Blue"), rgb, strict=True)}
        entry = ElementTree.SubElement(table, "Label", {"Key": str(label), **colours, "Alpha": "1" if label else "0"})
        entry.text = name
    ElementTree.SubElement(volume, "VolumeType").text = "Label"
    return b'<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(root)


def _last_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
