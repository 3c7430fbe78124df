"""Index of a store: everything that drawing crops needs to know about each scan, in one memory-mapped file.

At its start, training needs information on all scans, and so does each of its workers. Reading 22,000 JSON records
takes a minute and 70 MB per process; the pages of the index are shared by all processes of a machine.

``scans.index`` consists of three arrays as ``numpy.save`` writes them, one after the other: one row per scan, the
labels of all scans, and a hash of both. Each row has the hash of its record, as in the manifest. If a record has
changed, its row is made again; if the index is damaged, all of it is.
"""

from __future__ import annotations

import errno
import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from satunet.datasets.raw import MODALITIES, split_scan_id
from satunet.errors import DatasetError, DiskFullError
from satunet.jobs.files import atomic_path
from satunet.preprocessing.store.locations import Foreground, foreground_box
from satunet.preprocessing.store.scans import INDEX, ScanRecord, ScanStore, read_manifest

logger = logging.getLogger(__name__)

_LABELS = np.dtype([("id", "<i4"), ("voxels", "<i8")])
_DIGEST = 32


def _rows(name: int) -> np.dtype[Any]:
    return np.dtype(
        [
            ("scan", f"S{name}"),
            ("record", f"S{2 * _DIGEST}"),
            ("content", f"S{_DIGEST}"),
            ("modality", "u1"),
            ("located", "?"),
            ("shape", "<i4", 3),
            ("low", "<i4", 3),
            ("high", "<i4", 3),
            ("first", "<i8"),
            ("count", "<i4"),
        ]
    )


@dataclass(frozen=True, kw_only=True)
class IndexedScan:
    """A scan in the index.

    Attributes:
        scan: Name of the scan.
        modality: Modality.
        shape: (X, Y, Z) of the preprocessed scan.
        label_voxels: Label id → number of its voxels.
        foreground: Box of all labels; the whole scan if it shows none or its locations cannot be read.
    """

    scan: str
    modality: str
    shape: tuple[int, int, int]
    label_voxels: dict[int, int]
    foreground: Foreground

    @property
    def dataset(self) -> str:
        """Name of its dataset."""
        return split_scan_id(self.scan)[0]


class ScanIndex:
    """Some scans of a store, without a Python object for each.

    Args:
        rows: One row per scan of the store.
        labels: Labels of all scans.
        places: Rows of the selected scans, in order; all if not given.
        file: File from which the arrays are mapped, if they are.
    """

    def __init__(
        self,
        rows: NDArray[Any],
        labels: NDArray[Any],
        places: NDArray[np.int64] | None = None,
        file: Path | None = None,
    ) -> None:
        self._rows, self._labels, self._file = rows, labels, file
        self._places = np.arange(len(rows)) if places is None else places

    @classmethod
    def of(cls, store: ScanStore) -> ScanIndex:
        """The index of a store; if it is missing or outdated, it is made and, if possible, saved in the store.

        Args:
            store: Preprocessed scans.

        Raises:
            DatasetError: The record of a scan is damaged.
        """
        file = store.folder / INDEX
        manifest = read_manifest(store.folder)
        digests = {scan: manifest["scans"][scan] if manifest is not None else "" for scan in store.scan_ids}
        known = mapped_arrays(file)
        if known is None or not _is_of(known[0], digests):
            rows, labels = _made(store, digests, known)
            known = rows, labels
            try:
                _write(file, rows, labels)
                known = mapped_arrays(file) or known
            except (OSError, DiskFullError) as error:
                read_only = isinstance(error, OSError) and error.errno in (errno.EROFS, errno.EACCES, errno.EPERM)
                level = logging.DEBUG if read_only else logging.WARNING
                logger.log(level, "%s cannot be written, every training makes it again: %s", file, error)
        return cls(*known, file=file if isinstance(known[0], np.memmap) else None)

    def of_scans(self, scans: Sequence[str]) -> ScanIndex:
        """Only these scans, in this order.

        Raises:
            KeyError: A scan is not in the index.
        """
        place_of = {name: place for place, name in enumerate(self._rows["scan"].tolist())}
        places = np.fromiter((place_of[scan.encode()] for scan in scans), dtype=np.int64, count=len(scans))
        return ScanIndex(self._rows, self._labels, places, self._file)

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, number: int) -> IndexedScan:
        row = self._rows[self._places[number]]
        labels = self._labels[row["first"] : row["first"] + row["count"]]
        return IndexedScan(
            scan=row["scan"].decode(),
            modality=MODALITIES[row["modality"]],
            shape=_three(row["shape"]),
            label_voxels=dict(zip(labels["id"].tolist(), labels["voxels"].tolist(), strict=True)),
            foreground=(_three(row["low"]), _three(row["high"])),
        )

    @property
    def datasets(self) -> list[str]:
        """Dataset of every scan."""
        return [split_scan_id(name.decode())[0] for name in self._rows["scan"][self._places].tolist()]

    @property
    def contents(self) -> list[str]:
        """Hash of every scan's original voxels; empty if an older version wrote the scan."""
        return [digest.decode() for digest in self._rows["content"][self._places].tolist()]

    @property
    def shapes(self) -> NDArray[np.int32]:
        """(n, 3) voxels of every scan."""
        shapes: NDArray[np.int32] = self._rows["shape"][self._places]
        return shapes

    @property
    def extents(self) -> NDArray[np.int32]:
        """(n, 3) voxels of every scan's foreground box."""
        rows = self._rows[self._places]
        extents: NDArray[np.int32] = rows["high"] - rows["low"]
        return extents

    def shown(self) -> dict[str, frozenset[int]]:
        """Dataset → label ids that occur in its scans."""
        found: dict[str, set[int]] = {}
        for dataset, row in zip(self.datasets, self._rows[self._places], strict=True):
            ids = self._labels["id"][row["first"] : row["first"] + row["count"]]
            found.setdefault(dataset, set()).update(ids.tolist())
        return {dataset: frozenset(ids) for dataset, ids in found.items()}

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the path, so that a worker maps the file itself."""
        if self._file is None:
            return ScanIndex, (self._rows, self._labels, self._places)
        return _opened, (self._file, self._places, _digest(self._rows, self._labels))


def _opened(file: Path, places: NDArray[np.int64], digest: bytes) -> ScanIndex:
    """Open the same index as another process; in a newer one, the same rows could be other scans.

    Raises:
        DatasetError: The store was written in the meantime.
    """
    known = mapped_arrays(file)
    if known is None or _digest(*known) != digest:
        raise DatasetError(
            f"{file.parent}: its scans were preprocessed again since this run started; continue with --c"
        )
    return ScanIndex(*known, places, file)


def _three(values: NDArray[np.int32]) -> tuple[int, int, int]:
    x, y, z = values.tolist()
    return x, y, z


def mapped_arrays(file: Path) -> tuple[NDArray[Any], NDArray[Any]] | None:
    """Rows and labels of an index; ``None`` if the file is missing or damaged.

    Args:
        file: ``scans.index``.
    """
    try:
        with file.open("rb") as stream:
            rows, labels, digest = (_array_at(file, stream) for _ in range(3))
        if digest.tobytes() != _digest(rows, labels):
            return None
        return (rows, labels) if labels.dtype == _LABELS and rows.dtype == _rows(rows.dtype["scan"].itemsize) else None
    except Exception:  # numpy parses the header as Python, and raises what its parser raises
        return None


def _digest(*arrays: NDArray[Any]) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    for array in arrays:
        digest.update(np.ascontiguousarray(array).view(np.uint8).data)
    return digest.digest()


def _array_at(file: Path, stream: Any) -> np.memmap[Any, Any]:
    """Map the array at the stream's position; the stream is moved to its end."""
    np.lib.format.read_magic(stream)
    shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
    begin = stream.tell()
    array: np.memmap[Any, Any] = np.memmap(file, dtype=dtype, mode="r", offset=begin, shape=shape)
    stream.seek(begin + array.nbytes)
    return array


def _is_of(rows: NDArray[Any], digests: Mapping[str, str]) -> bool:
    """Whether the index is of exactly these records."""
    if "" in digests.values() or not rows["located"].all():
        return False
    names = [name.decode() for name in rows["scan"].tolist()]
    return dict(zip(names, (d.decode() for d in rows["record"].tolist()), strict=True)) == digests


def _made(
    store: ScanStore, digests: Mapping[str, str], known: tuple[NDArray[Any], NDArray[Any]] | None
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Rows of all scans; rows of unchanged records are taken from ``known``."""
    kept: dict[tuple[bytes, bytes], int] = {}
    if known is not None:
        pairs = zip(known[0]["scan"].tolist(), known[0]["record"].tolist(), strict=True)
        kept = {pair: place for place, pair in enumerate(pairs) if pair[1]}
    rows = np.zeros(len(digests), dtype=_rows(max((len(scan.encode()) for scan in digests), default=1)))
    labels, first = [], 0
    for place, (scan, digest) in enumerate(digests.items()):
        before = kept.get((scan.encode(), digest.encode()))
        if before is not None and known is not None and known[0]["located"][before]:
            row = known[0][before]
            own = np.array(known[1][row["first"] : row["first"] + row["count"]])
            for name in rows.dtype.names or ():
                rows[name][place] = row[name]
        else:
            own = _fill(rows, place, scan, digest, store)
        rows["first"][place], rows["count"][place] = first, len(own)
        labels.append(own)
        first += len(own)
    return rows, np.concatenate(labels) if labels else np.zeros(0, dtype=_LABELS)


def _fill(rows: NDArray[Any], place: int, scan: str, digest: str, store: ScanStore) -> NDArray[Any]:
    """Fill a scan's row from its record."""
    record: ScanRecord = store.read_record(scan)
    located, box = True, record.foreground
    if box is None:  # an older version wrote the record
        try:
            box = foreground_box(record.shape, store.locations(scan))
        except Exception as error:  # numpy and zipfile raise many kinds on a damaged file
            logger.error("%s: its label locations cannot be read (%s)", scan, error)
            located, box = False, ((0, 0, 0), record.shape)
    values = (scan, digest, record.content, MODALITIES.index(record.modality), located, record.shape, *box, 0, 0)
    rows[place] = tuple(v.encode() if isinstance(v, str) else v for v in values)
    return np.array(list(record.label_voxels.items()), dtype=_LABELS)


def _write(file: Path, rows: NDArray[Any], labels: NDArray[Any]) -> None:
    with atomic_path(file) as temporary, temporary.open("wb") as stream:
        for array in (rows, labels, np.frombuffer(_digest(rows, labels), dtype=np.uint8)):
            np.lib.format.write_array(stream, array, version=(1, 0), allow_pickle=False)
