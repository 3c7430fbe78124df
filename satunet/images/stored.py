"""Voxels as a file stores them, for the formats that satunet reads itself (MetaImage, NRRD, NIfTI).

The module of a format parses its header, in Python, and describes what the file must hold as a :class:`Stored`. This
module checks that description against the file before it allocates memory, and reads the voxels. Compressed voxels are
verified by the checksum at their end, so that a damaged file is an error and never a wrong image.

Rejected: reading MetaImage and NRRD with SimpleITK. Its C++ parsers crash or hang on a wrong number in a header, which
ends the whole job.
"""

from __future__ import annotations

import bz2
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from satunet.errors import MissingFileError, NotThreeDimensionalError, UnreadableImageError
from satunet.geometry import Grid

Encoding = Literal["raw", "zlib", "gzip", "bzip2", "text", "hex"]

DEFLATE_MOST = 1032
"""Largest compression ratio that the deflate format allows."""
MOST_AXES = 16
_MOST_HEADER = 4 << 20
"""Largest size of a header in bytes; Slicer's longest descriptions of segments take a tenth of it."""
_BLOCK = 1 << 20
_FARTHEST_MM = 1e7
_WIDEST_MM = 1e4


@dataclass(frozen=True, kw_only=True)
class Stored:
    """Description of a file's voxels, from its header.

    Attributes:
        path: The file with the header; errors name it.
        shape: Sizes of the axes, the fastest first.
        affine: 4 × 4 float64, voxel index → RAS+ mm, for the first three axes.
        dtype: Type of a voxel, with its byte order.
        encoding: Compression of the bytes.
        files: Files that hold the voxels, in order; each is compressed separately.
        offset: Bytes before the voxels in each file; ``-1`` means that raw voxels end where the file ends.
        lines: Lines to skip in each file; ``offset`` counts from after them.
        packed: Size of the compressed voxels in bytes, if the header gives it.
        spaced: Whether the header gives voxel sizes; else they are taken to be 1 mm.
    """

    path: Path
    shape: tuple[int, ...]
    affine: NDArray[np.float64]
    dtype: np.dtype[Any]
    encoding: Encoding
    files: tuple[Path, ...]
    offset: int = 0
    lines: int = 0
    packed: int | None = None
    spaced: bool = True

    def __post_init__(self) -> None:
        if not 1 <= len(self.shape) <= MOST_AXES or any(n < 1 for n in self.shape):
            raise UnreadableImageError(
                self.path, f"the header gives the sizes {self.shape}; allowed are 1 to {MOST_AXES} numbers above 0"
            )

    @property
    def bytes(self) -> int:
        """Size of all voxels in bytes, uncompressed."""
        return math.prod(self.shape) * self.dtype.itemsize

    def grid(self) -> Grid:
        """Shape and affine; raises as :func:`grid_of`."""
        return grid_of(self.path, self.shape, self.affine)

    def check_sizes(self) -> None:
        """Compare the sizes of the files with what the header declares; no voxel is read.

        Raises:
            MissingFileError: A file that the header names is not there.
            UnreadableImageError: A file is too short or too long.
        """
        each = self._bytes_of_each()
        for file in self.files:
            if not file.is_file():
                raise MissingFileError(self.path, f"its voxels are in {file.name}, and there is no such file")
            there = file.stat().st_size - max(self.offset, 0)
            _check_size(self.path, self.encoding, there, each, self.dtype.itemsize, skips=self.lines or self.offset < 0)

    def read(self) -> NDArray[Any]:
        """The voxels.

        Returns:
            (X, Y, Z, …) in the header's byte order and Fortran order.

        Raises:
            MissingFileError, UnreadableImageError: As in :meth:`check_sizes`; or the voxels are damaged.
        """
        self.check_sizes()
        each = self._bytes_of_each()
        if self.encoding in ("text", "hex"):
            values = np.concatenate([self._written_out(file, each) for file in self.files])
        else:
            buffer = _room(self.path, self.bytes)
            for number, file in enumerate(self.files):
                with file.open("rb") as handle, _named(self.path):
                    self._seek(handle, file, each)
                    _fill(self.path, handle, buffer[number * each : (number + 1) * each], self.encoding, self.packed)
            values = buffer.view(self.dtype)
        return values.reshape(self.shape, order="F")

    def _bytes_of_each(self) -> int:
        if not self.files or self.bytes % len(self.files):
            raise UnreadableImageError(
                self.path, f"{self.shape} voxels cannot be divided equally among {len(self.files)} files"
            )
        return self.bytes // len(self.files)

    def _seek(self, handle: Any, file: Path, each: int) -> None:
        if self.offset < 0:
            handle.seek(max(0, file.stat().st_size - each))
            return
        # The offset counts from the start of the file, or from after the skipped lines.
        if self.lines:
            for _ in range(self.lines):
                if not handle.readline(_BLOCK):
                    raise UnreadableImageError(
                        self.path, f"the header says to skip {self.lines} lines; there are fewer"
                    )
            handle.seek(self.offset, 1)
        else:
            handle.seek(self.offset)

    def _written_out(self, file: Path, each: int) -> NDArray[Any]:
        with file.open("rb") as handle:
            self._seek(handle, file, each)
            content = handle.read()
        count = each // self.dtype.itemsize
        try:
            if self.encoding == "hex":
                values = np.frombuffer(bytes.fromhex(content.decode("ascii")), dtype=self.dtype)
            else:
                words = content.decode("ascii").replace(",", " ").split()
                read = np.array(words, dtype=np.float64 if self.dtype.kind == "f" else object)
                values = (read if self.dtype.kind == "f" else np.array([int(w) for w in words])).astype(self.dtype)
        except (ValueError, OverflowError) as error:
            raise UnreadableImageError(self.path, f"the voxels cannot be read ({error})") from error
        if values.size != count:
            raise UnreadableImageError(self.path, f"{values.size} voxels in the file; the header says {count}")
        return values


def grid_of(path: Path, shape: tuple[int, ...], affine: NDArray[np.float64]) -> Grid:
    """A grid from shape and affine; trailing axes of size one are dropped.

    Args:
        path: The file, for errors.
        shape: Shape of the array.
        affine: 4 × 4, voxel index → RAS+ mm.

    Raises:
        NotThreeDimensionalError: Not three axes.
        UnreadableImageError: A singular affine, or one with positions that no scanner could produce.
    """
    if len(shape) < 3 or any(n != 1 for n in shape[3:]):
        raise NotThreeDimensionalError(path, f"the image has the shape {shape}; allowed is one volume with three axes")
    try:
        grid = Grid(shape=(shape[0], shape[1], shape[2]), affine=affine)
    except ValueError as error:
        raise UnreadableImageError(path, str(error)) from error
    if max(grid.spacing_mm) > _WIDEST_MM or np.abs(grid.affine[:3, 3]).max() > _FARTHEST_MM:
        raise UnreadableImageError(
            path,
            f"the header gives voxels of {rounded(grid.spacing_mm)} mm at {rounded(grid.affine[:3, 3])} mm; allowed are "
            f"voxels up to {_WIDEST_MM:g} mm within {_FARTHEST_MM:g} mm of the origin",
        )
    return grid


def inside_folder(path: Path, name: str) -> Path:
    """The file that a header names for its voxels; it must lie in the header's folder or below.

    Raises:
        UnreadableImageError: It lies elsewhere: a header must not turn arbitrary files of the machine into voxels.
        MissingFileError: There is no such regular file (it may be a device or a pipe).
    """
    folder = path.parent
    file = folder / name
    try:
        # If the header is a symbolic link, its voxels may lie beside the link or beside the header itself.
        homes = {folder.resolve(), path.resolve().parent}
        within = any(file.resolve().is_relative_to(home) for home in homes)
        regular = file.is_file()
    except (OSError, ValueError, RuntimeError) as error:
        raise UnreadableImageError(path, f"its voxels are in {name[:200]!r}, which is not a file name") from error
    if not within:
        raise UnreadableImageError(
            path, f"its voxels are in {name[:200]!r}; allowed are files in the header's own folder"
        )
    if not regular:
        raise MissingFileError(path, f"its voxels are in {name[:200]!r}; there is no such file beside it")
    return file


def header_bytes(path: Path) -> bytes:
    """The first bytes of a file, enough for its whole header.

    Raises:
        UnreadableImageError: The file cannot be read.
    """
    try:
        with path.open("rb") as file:
            return file.read(_MOST_HEADER)
    except OSError as error:
        raise UnreadableImageError(path, f"cannot be read ({error.strerror})") from error


def integers(path: Path, key: str, text: str, *, count: int | None = None) -> tuple[int, ...]:
    """Integers in the text of a header's field.

    Raises:
        UnreadableImageError: The text is something else, or has another number of them than ``count``.
    """
    words = text.split()
    try:
        values = tuple(int(word) for word in words[:64])
    except ValueError as error:
        raise _not_numbers(path, key, text, "whole numbers") from error
    if len(words) > 64 or (count is not None and len(words) != count) or not values:
        raise _not_numbers(path, key, text, f"{count or 'some'} whole numbers")
    return values


def numbers(path: Path, key: str, text: str, *, count: int) -> NDArray[np.float64]:
    """Finite numbers in the text of a header's field.

    Raises:
        UnreadableImageError: The text is something else, or has another number of them than ``count``.
    """
    words = text.split()
    try:
        values = np.array([float(word) for word in words[: count + 1]], dtype=np.float64)
    except ValueError as error:
        raise _not_numbers(path, key, text, f"{count} numbers") from error
    if len(words) != count or not np.isfinite(values).all() or np.abs(values).max(initial=0) > 1e30:
        raise _not_numbers(path, key, text, f"{count} finite numbers")
    return values


def rounded(values: Any) -> tuple[float, ...]:
    """Numbers rounded to four significant digits, for messages."""
    return tuple(float(f"{float(v):.4g}") for v in values)


def _not_numbers(path: Path, key: str, text: str, allowed: str) -> UnreadableImageError:
    return UnreadableImageError(path, f"the header's {key} is {text[:80]!r}; expected {allowed}")


def _check_size(path: Path, encoding: Encoding, there: int, wanted: int, itemsize: int, *, skips: bool | int) -> None:
    """Raise :class:`~satunet.errors.UnreadableImageError` if a file of this size cannot hold the voxels."""
    if encoding == "raw":
        wrong = there < wanted if skips else there != wanted
    elif encoding in ("zlib", "gzip"):
        wrong = there * DEFLATE_MOST < wanted
    elif encoding == "hex":
        wrong = there < 2 * wanted
    elif encoding == "text":
        wrong = there + 1 < 2 * (wanted // itemsize)
    else:
        wrong = there < 1  # bzip2 has no useful bound; it is decompressed block by block
    if wrong:
        packed = "" if encoding == "raw" else f" ({encoding})"
        raise UnreadableImageError(
            path, f"the voxels take {max(there, 0)} bytes{packed} in the file; the header promises {wanted} unpacked"
        )


def _room(path: Path, size: int) -> NDArray[np.uint8]:
    try:
        return np.empty(size, dtype=np.uint8)
    except (MemoryError, ValueError) as error:
        raise UnreadableImageError(path, f"its {size} bytes of voxels do not fit into memory") from error


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Turn any error of reading and decompressing into one that names the file."""
    try:
        yield
    except UnreadableImageError:
        raise
    except Exception as error:  # zlib.error, isal_zlib.error, OSError, EOFError: damaged files raise any of them
        raise UnreadableImageError(path, f"the voxels cannot be read ({str(error) or type(error).__name__})") from error


def _fill(path: Path, handle: Any, room: NDArray[np.uint8], encoding: Encoding, packed: int | None) -> None:
    """Decompress into a buffer that must be filled exactly; checksums are verified."""
    if encoding == "raw":
        _fill_raw(path, handle, room)
        return
    unpack = _unpacker(encoding)
    filled, left = 0, packed
    while not unpack.eof:
        block = handle.read(_BLOCK if left is None else min(_BLOCK, left))
        if not block:
            raise UnreadableImageError(path, "the packed voxels end early: the file is truncated")
        left = None if left is None else left - len(block)
        while block or (filled < room.size and not unpack.eof and not getattr(unpack, "needs_input", True)):
            piece = unpack.decompress(block, max_length=min(room.size - filled, 16 * _BLOCK) + 1)
            if len(piece) > room.size - filled:
                raise UnreadableImageError(path, f"more voxels in the file than the header says ({room.size} bytes)")
            room[filled : filled + len(piece)] = np.frombuffer(piece, dtype=np.uint8)
            filled += len(piece)
            block = getattr(unpack, "unconsumed_tail", b"")
            if unpack.eof:
                break
    if filled != room.size:
        raise UnreadableImageError(path, f"{filled} bytes of voxels in the file; the header promises {room.size}")


def _fill_raw(path: Path, handle: Any, room: NDArray[np.uint8]) -> None:
    view = room.data
    filled = 0
    while filled < room.size:
        count = handle.readinto(view[filled : filled + 64 * _BLOCK])  # type: ignore[attr-defined]
        if not count:
            raise UnreadableImageError(path, f"{filled} bytes of voxels in the file; the header promises {room.size}")
        filled += count


def _unpacker(encoding: Encoding) -> Any:
    if encoding == "bzip2":
        return bz2.BZ2Decompressor()
    from isal import isal_zlib

    return isal_zlib.decompressobj(wbits=31 if encoding == "gzip" else 15)
