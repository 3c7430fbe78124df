"""Arrays of a store: Blosc2 files that are read in parts, with a checksum for every part.

To check a digest of the whole file, all of it would have to be read for each patch. Instead, the record of a scan has a
CRC-32 of every chunk and of the rest (header, offsets, trailer); indexing checks the chunks that it touches, each once
per process. Damaged bytes raise an error that names the file, and never reach the decompressor.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from satunet.errors import DatasetError
from satunet.jobs.files import atomic_path

_BUFFER = 1 << 18


@dataclass(frozen=True, kw_only=True)
class PartSums:
    """Checksums of the parts of a file; in a record, which may hold hundreds of them, they are a single text.

    Attributes:
        start: First byte of the first chunk.
        frame: CRC-32 of all bytes that belong to no chunk.
        chunks: (bytes, CRC-32) of every chunk, in file order; constant chunks have no bytes.
    """

    start: int
    frame: int
    chunks: tuple[tuple[int, int], ...]

    def __str__(self) -> str:
        return " ".join([f"{self.start:x}.{self.frame:x}", *(f"{size:x}.{crc:x}" for size, crc in self.chunks)])

    @classmethod
    def parse(cls, text: str) -> PartSums:
        """The inverse of ``str``.

        Raises:
            ValueError: The text is malformed.
        """
        pairs = [tuple(int(number, 16) for number in pair.split(".")) for pair in text.split()]
        if not pairs or any(len(pair) != 2 or pair[0] < 0 for pair in pairs):
            raise ValueError("no checksums")
        (start, frame), *chunks = pairs
        return cls(start=start, frame=frame, chunks=tuple((size, crc) for size, crc in chunks))

    @cached_property
    def places(self) -> tuple[tuple[int, int], ...]:
        """First byte of every chunk, and the byte after its last."""
        ends = list(itertools.accumulate((size for size, _ in self.chunks), initial=self.start))
        return tuple(itertools.pairwise(ends))

    @property
    def end(self) -> int:
        """The byte after the last chunk."""
        return self.places[-1][1] if self.places else self.start


def write_array(path: Path, array: NDArray[Any], patch_size: tuple[int, int, int]) -> str:
    """Write an array; the file appears complete or not at all.

    Args:
        path: The file.
        array: (1, X, Y, Z).
        patch_size: Patch that will be read; decides the chunks.

    Returns:
        Checksums of its parts: :class:`PartSums` as a text.
    """
    import blosc2
    from nnunetv2.training.dataloading.nnunet_dataset import comp_blosc2_params

    blocks, chunks = comp_blosc2_params(array.shape, patch_size, array.itemsize)
    # Measured: with LZ4HC, images decompress twice as fast as with ZSTD and take 5 % more bytes; level 1 writes four times
    # as fast as level 5 with 3 % more bytes. Label maps are half as large with ZSTD.
    codec, level = (blosc2.Codec.LZ4HC, 1) if array.dtype.kind == "f" else (blosc2.Codec.ZSTD, 5)
    shuffle = blosc2.Filter.SHUFFLE if array.itemsize > 1 else blosc2.Filter.NOFILTER
    with atomic_path(path) as temporary:
        # Packed in memory and written by Python, whose errors name the cause.
        packed = blosc2.asarray(
            np.ascontiguousarray(array),
            contiguous=True,
            chunks=tuple(int(c) for c in chunks),
            blocks=tuple(int(b) for b in blocks),
            cparams={"codec": codec, "clevel": level, "filters": [shuffle], "nthreads": 1},
            dparams={"nthreads": 1},  # stored in the file, which would otherwise depend on what the process did before
        )
        content = packed.to_cframe()
        temporary.write_bytes(content)
    return str(_sums_of(packed, content))


def _sums_of(packed: Any, content: bytes) -> PartSums:
    """Checksums of an array's parts, which are contiguous in its file."""
    start = end = int.from_bytes(content[11:15], "big")  # length of the header, as stored by the format
    chunks = []
    for number in range(packed.schunk.nchunks):
        chunk = packed.schunk.get_chunk(number)
        stored = content[end : end + len(chunk)] == chunk  # a constant chunk has no bytes of its own
        chunks.append((len(chunk), _crc(chunk)) if stored else (0, 0))
        end += len(chunk) if stored else 0
    sums = PartSums(start=start, frame=0, chunks=tuple(chunks))
    frame = _crc(content[sums.end :], _crc(content[:start]))
    return PartSums(start=start, frame=frame, chunks=sums.chunks)


class StoredArray:
    """An array of a store, lazy: an index reads and checks the chunks that it touches.

    Args:
        path: The file.
        size: Number of bytes that were written; ``None`` if unknown.
        sums: Checksums of its parts; empty for files of older versions, which are read unchecked.
        checked: Parts that were checked before, one byte per chunk and one for the rest; kept by callers that open the
            array often.

    Raises:
        DatasetError: The file is missing, or damaged; the message names it.
    """

    def __init__(
        self, path: Path, *, size: int | None = None, sums: str = "", checked: bytearray | None = None
    ) -> None:
        self.path = path
        try:
            there = path.stat().st_size
        except OSError as error:
            raise DatasetError(f"{path}: cannot be read ({error.strerror}); preprocess again") from error
        if size is not None and there != size:
            raise self._damaged(f"it has {there} bytes, {size} were written")
        self._sums = self._parsed(sums) if sums else None
        self._checked = checked if checked is not None else bytearray()
        if self._sums is not None and not self._checked:
            self._check_frame(self._sums)
        try:
            self._array = open_array(path)
        except Exception as error:  # blosc2 raises many kinds
            raise self._damaged(str(error)) from error
        if self._sums is not None and len(self._sums.chunks) != self._array.schunk.nchunks:
            raise self._damaged("it has another number of chunks")

    @property
    def shape(self) -> tuple[int, ...]:
        """(1, X, Y, Z)."""
        return tuple(self._array.shape)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of a value."""
        kind: np.dtype[Any] = np.dtype(self._array.dtype)
        return kind

    def __getitem__(self, index: Any) -> NDArray[Any]:
        """Read a part of the array.

        Raises:
            DatasetError: A chunk of the part is damaged.
        """
        if self._sums is not None:
            self._check(self._sums, index)
        try:
            found: NDArray[Any] = self._array[index]
        except (RuntimeError, ValueError) as error:  # of a file without checksums
            raise self._damaged(str(error)) from error
        return found

    def _check(self, sums: PartSums, index: Any) -> None:
        missing = [n for n in _touched(index, self.shape, self._array.chunks) if not self._checked[1 + n]]
        if not missing:
            return
        with self.path.open("rb", buffering=0) as file:
            for number in missing:
                start, end = sums.places[number]
                if _crc_in(file, start, end) != sums.chunks[number][1]:
                    raise self._damaged(f"chunk {number} of {len(sums.chunks)} is not what was written")
                self._checked[1 + number] = 1

    def _check_frame(self, sums: PartSums) -> None:
        with self.path.open("rb", buffering=0) as file:
            head = _crc_in(file, 0, sums.start)
            if _crc_in(file, sums.end, self.path.stat().st_size, head) != sums.frame:
                raise self._damaged("its header is not what was written")
        self._checked.extend(bytes(1 + len(sums.chunks)))
        self._checked[0] = 1

    def _parsed(self, sums: str) -> PartSums:
        try:
            return PartSums.parse(sums)
        except ValueError as error:
            raise DatasetError(f"{self.path}: its record holds no readable checksums") from error

    def _damaged(self, why: str) -> DatasetError:
        return DatasetError(
            f"{self.path}: damaged: {why}; 'satunet preprocess --verify' finds damaged scans, and 'satunet preprocess' then makes them again"
        )


def open_array(path: Path) -> Any:
    """A stored array as a lazy Blosc2 array, without checks."""
    import blosc2

    blosc2.set_nthreads(1)
    return blosc2.open(urlpath=str(path), mode="r", dparams={"nthreads": 1}, mmap_mode="r")


def _touched(index: Any, shape: Sequence[int], chunks: Sequence[int]) -> Iterator[int]:
    """Numbers of the chunks that an index of numbers and slices touches; all for any other index."""
    given = index if isinstance(index, tuple) else (index,)
    counts = [-(-n // c) for n, c in zip(shape, chunks, strict=True)]
    ranges = []
    for position, (n, c) in enumerate(zip(shape, chunks, strict=True)):
        part = given[position] if position < len(given) else slice(None)
        if isinstance(part, slice) and part.step in (None, 1):
            start, stop, _ = part.indices(n)
        elif isinstance(part, (int, np.integer)):
            start = int(part) % n
            stop = start + 1
        else:
            return iter(range(int(np.prod(counts))))
        ranges.append(range(start // c, -(-stop // c) if stop > start else start // c))
    strides = [int(np.prod(counts[axis + 1 :])) for axis in range(len(counts))]
    return (sum(i * s for i, s in zip(place, strides, strict=True)) for place in itertools.product(*ranges))


def _crc_in(file: BinaryIO, start: int, end: int, before: int = 0) -> int:
    """CRC-32 of some bytes of a file, read through a small buffer, which is faster than mapping the pages."""
    buffer = memoryview(bytearray(min(_BUFFER, max(0, end - start))))
    file.seek(start)
    while start < end:
        count = file.readinto(buffer[: end - start])  # type: ignore[attr-defined]
        if not count:
            return -1  # the file is shorter
        before = _crc(buffer[:count], before)
        start += count
    return before


def _crc(content: Any, before: int = 0) -> int:
    from isal import isal_zlib

    return int(isal_zlib.crc32(content, before))
