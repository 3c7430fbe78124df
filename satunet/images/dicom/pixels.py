"""Voxels of a series: stored numbers, decompressed if necessary, scaled by each slice's own slope and intercept."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from satunet.errors import UnreadableImageError
from satunet.images.dicom.headers import quiet
from satunet.images.dicom.series import Series, found_in
from satunet.images.dicom.stack import Slice
from satunet.images.dicom.unpack import unpack
from satunet.images.formats import native
from satunet.images.image import Image

_WHOLE = 2.0**30
"""Largest slope and intercept with which stored numbers of 32 bits still fit into 64."""
_UNITS_OF_THEIR_OWN = ("ct", "pet")
"""Modalities whose values have a physical unit; an inverted display (MONOCHROME1) does not change them."""


def read_series(series: Series) -> Image:
    """Read a series as one volume.

    Returns:
        An image whose array is (columns, rows, slices): integers if all slopes and intercepts are integers, else
        float32; Hounsfield units for CT.

    Raises:
        UnreadableImageError: The series is not a volume, or one of its files cannot be read; the message names the
            file.
    """
    if series.fault:
        raise _refused(series, series.fault)
    if not series.slices or series.grid is None:
        found = found_in(series.files).series
        if len(found) != 1 or found[0].fault or not found[0].slices:
            raise _refused(series, found[0].fault if len(found) == 1 else f"{len(found)} series in its files")
        series = found[0]
    assert series.grid is not None
    volume = _room(series)
    places = defaultdict(list)
    for k, one in enumerate(series.slices):
        places[one.file].append(k)
    for file, ks in places.items():
        if not file.is_file():
            raise _refused(series, f"{file.name}: no such file")
        frames = _frames(series, file, [series.slices[k].frame for k in ks])
        for k, stored in zip(ks, frames, strict=True):
            _scale(series.slices[k], stored, volume[:, :, k].T)
    if any(s.photometric == "MONOCHROME1" for s in series.slices) and series.modality not in _UNITS_OF_THEIR_OWN:
        volume = volume.min() + volume.max() - volume
    return Image(array=_smallest(volume), grid=series.grid, path=series.folder)


def _refused(series: Series, reason: str) -> UnreadableImageError:
    called = f"series {series.uid}" if series.uid else "DICOM files"
    return UnreadableImageError(series.folder, f"{called} cannot be read as a volume: {reason}")


def _room(series: Series) -> NDArray[Any]:
    """An empty array for the volume: integers wide enough for every slope and intercept, else float32."""
    assert series.grid is not None
    lowest, highest = 0.0, 0.0
    whole = True
    for one in series.slices:
        allocated, bits, _, signed = one.stored
        whole &= (
            allocated <= 32
            and max(abs(one.slope), abs(one.intercept)) < _WHOLE
            and one.slope == int(one.slope)
            and one.intercept == int(one.intercept)
        )
        low, high = (-(2.0 ** (bits - 1)), 2.0 ** (bits - 1) - 1) if signed else (0.0, 2.0**bits - 1)
        ends = sorted((low * one.slope + one.intercept, high * one.slope + one.intercept))
        lowest, highest = min(lowest, ends[0]), max(highest, ends[1])
    dtype = (
        np.result_type(np.min_scalar_type(int(lowest)), np.min_scalar_type(int(highest)), np.int16) if whole else None
    )
    wanted = np.float32 if dtype is None or dtype.kind == "f" else dtype
    try:
        return np.empty(series.grid.shape, dtype=wanted, order="F")
    except MemoryError as error:
        raise _refused(series, f"its {math.prod(series.grid.shape)} voxels do not fit into memory") from error


def _smallest(volume: NDArray[Any]) -> NDArray[Any]:
    """The volume in 16 bits where its values fit: most scanners store 12."""
    if volume.dtype.kind != "f" and volume.dtype.itemsize > 2:
        for dtype in (np.int16, np.uint16):
            if np.iinfo(dtype).min <= volume.min() and volume.max() <= np.iinfo(dtype).max:
                return volume.astype(dtype)
    return volume


def _scale(one: Slice, stored: NDArray[Any], out: NDArray[Any]) -> None:
    """Scale stored numbers (rows, columns) into ``out``, in the volume's type."""
    if out.dtype.kind == "f":
        np.multiply(stored, one.slope, out=out, casting="unsafe", dtype=np.float64)
        out += np.float32(one.intercept)
    else:
        # The type holds the smallest and largest possible result; an overflow on the way there wraps back.
        slope, intercept = np.array([int(one.slope), int(one.intercept)]).astype(out.dtype)
        np.multiply(stored.astype(out.dtype), slope, out=out)
        np.add(out, intercept, out=out)


def _frames(series: Series, file: Path, wanted: list[int]) -> Iterator[NDArray[Any]]:
    """Stored numbers of the wanted frames of a file, each (rows, columns)."""
    try:
        with quiet():
            yield from _decoded(file, wanted, series.slices)
    except UnreadableImageError:
        raise
    except Exception as error:  # pydicom and numpy pass on any error
        text = (str(error).splitlines() or [type(error).__name__])[0]
        raise _refused(series, f"the pixels of {file.name} cannot be read ({text[:150]})") from error


def _decoded(file: Path, wanted: list[int], slices: tuple[Slice, ...]) -> Iterator[NDArray[Any]]:
    from pydicom import dcmread

    data = dcmread(file, force=True)
    one = next(s for s in slices if s.file == file)
    frames = int(data.get("NumberOfFrames") or 1)
    if (int(data.Rows), int(data.Columns)) != (one.rows, one.columns) or max(wanted) >= frames:
        raise ValueError("the file has changed since it was found")
    syntax = data.file_meta.get("TransferSyntaxUID")
    if syntax is not None and not syntax.is_private and syntax.is_compressed:
        packed = _packed_frames(data, frames)
        for array in unpack(str(syntax), [packed[number] for number in wanted], (one.rows, one.columns), one.stored[0]):
            yield _numbers(array, one.stored)
        return
    big = syntax is not None and not syntax.is_little_endian
    dtype, content = _native(data, one.stored, big)
    size = one.rows * one.columns
    if len(content) < frames * size * dtype.itemsize:
        raise ValueError(f"{len(content)} bytes; the header promises {frames * size * dtype.itemsize}")
    for number in wanted:
        array = np.frombuffer(content, dtype=dtype, count=size, offset=number * size * dtype.itemsize)
        yield _numbers(array.reshape(one.rows, one.columns), one.stored)


def _native(data: Any, stored: tuple[int, int, int, int], big: bool) -> tuple[np.dtype[Any], bytes]:
    """Data type and bytes of uncompressed pixels."""
    if "PixelData" not in data:
        raise ValueError("it has no integer pixels (PixelData); floating-point maps are not supported")
    if stored[0] not in (8, 16, 32):
        raise ValueError(f"{stored[0]} bits are allocated for a pixel; allowed are 8, 16 and 32")
    content = data["PixelData"].value
    if big and stored[0] == 8 and data["PixelData"].VR == "OW":  # bytes that were byte-swapped in pairs
        content = np.frombuffer(content, dtype=">u2").astype("<u2").tobytes()
    return np.dtype((">" if big else "<") + f"u{stored[0] // 8}"), content


def _packed_frames(data: Any, frames: int) -> list[bytes]:
    from pydicom.encaps import generate_frames

    packed = list(generate_frames(data.PixelData, number_of_frames=frames))
    if len(packed) != frames:
        raise ValueError(f"{len(packed)} frames; the header promises {frames}")
    return packed


def _numbers(array: NDArray[Any], stored: tuple[int, int, int, int]) -> NDArray[Any]:
    """The stored bits of each allocated word as numbers, sign included."""
    allocated, bits, high, signed = stored
    if not (1 <= bits <= allocated and bits - 1 <= high < allocated):
        raise ValueError(f"{bits} bits are stored up to bit {high} of {allocated}, which is impossible")
    unsigned = array.view(np.dtype(f"{array.dtype.byteorder}u{array.dtype.itemsize}"))
    width = 8 * array.dtype.itemsize
    # Shift out the bits above the stored ones, then those below; a signed type extends the sign.
    values = native(unsigned) << np.uint8(width - 1 - high)
    if signed:
        values = values.view(values.dtype.str.replace("u", "i"))
    return values >> values.dtype.type(width - bits)
