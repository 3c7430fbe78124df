"""Preprocessed scans on disk.

A scan consists of four files: ``<scan>.b2nd`` (image) and ``<scan>_seg.b2nd`` (label ids) are Blosc2 arrays with
nnU-Net's chunk sizes, so that reading a patch touches few chunks; ``<scan>_locations.npz`` has the locations of labels;
``<scan>.json`` is the record: metadata, stamp of the inputs, sizes and hashes of the other files. The record is written
last: without it, a scan does not exist, whatever a killed run left behind. ``manifest.json`` names the plan and lists
its scans, each with the hash of its record; scans that it does not list are from another plan, or their inputs can no
longer be used. ``scans.index`` holds what training needs to know about all scans, see
:mod:`satunet.preprocessing.store.index`; it is made again whenever it is outdated.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from satunet.datasets.raw import split_scan_id
from satunet.errors import DatasetError, SatunetError
from satunet.jobs.files import flush_to_disk, parse_json, read_json, write_json
from satunet.jobs.fresh import Stamp, content_hash
from satunet.jobs.records import from_plain, load_record, save_record
from satunet.plan import UnifiedPlan
from satunet.preprocessing.store.arrays import StoredArray, write_array
from satunet.preprocessing.store.locations import Foreground, foreground_box, read_locations, write_locations
from satunet.preprocessing.transform import ScanGeometry

STORE_VERSION = 2
INDEX = "scans.index"
_MANIFEST = "manifest.json"
ARRAY_ENDINGS = (".b2nd", "_seg.b2nd", "_locations.npz")
_ENDINGS = (*ARRAY_ENDINGS, ".json")


@dataclass(frozen=True, kw_only=True, eq=False)
class ScanRecord:
    """Metadata of a preprocessed scan; a record.

    Attributes:
        scan: Name of the scan: dataset, case and channel, see :func:`satunet.datasets.raw.scan_id`.
        modality: Modality.
        label_voxels: Label id → number of its voxels in the preprocessed scan, without the ignore label.
        geometry: Geometry that leads back to the scan's file.
        made_of: Stamp of the input files and settings; empty if an older version wrote the scan.
        content: Hash of the original voxels, independent of their file; empty if an older version wrote the scan.
        files: Name ending → (bytes, hash) of the files beside the record.
        sums: Name ending → checksums of an array's parts (:class:`satunet.preprocessing.store.arrays.PartSums`); empty if an
            older version wrote the scan.
        source: Hash of the input files and settings, in records of version 2.
        foreground: Box of all labels, see :func:`~satunet.preprocessing.store.locations.foreground_box`; ``None`` if an older version wrote the scan.
    """

    RECORD_VERSION: ClassVar[int] = 4

    scan: str
    modality: str
    label_voxels: dict[int, int]
    geometry: ScanGeometry
    made_of: Stamp = field(default_factory=Stamp)
    content: str = ""
    files: dict[str, tuple[int, str]] = field(default_factory=dict)
    sums: dict[str, str] = field(default_factory=dict)
    source: str = ""
    foreground: Foreground | None = None

    def __post_init__(self) -> None:
        split_scan_id(self.scan)

    @classmethod
    def upgrade(cls, content: dict[str, Any], version: int) -> dict[str, Any]:
        """Version 2 had two hashes in place of the stamp; version 3 had no checksums of parts.

        Raises:
            DatasetError: The version is older than 2.
        """
        if version < 2:
            raise DatasetError(f"store version {version}; this satunet reads {STORE_VERSION}; preprocess again")
        return {name: value for name, value in content.items() if name != "stamp"}

    @property
    def dataset(self) -> str:
        """Name of its dataset."""
        return split_scan_id(self.scan)[0]

    @property
    def case(self) -> str:
        """Identifier of its case."""
        return split_scan_id(self.scan)[1]

    @property
    def channel(self) -> int:
        """Channel of the case."""
        return split_scan_id(self.scan)[2]

    @property
    def shape(self) -> tuple[int, int, int]:
        """(X, Y, Z) of the preprocessed scan."""
        return self.geometry.shape


@dataclass(frozen=True, kw_only=True)
class RecordHead:
    """The part of a record that decides whether a scan must be made again.

    Attributes:
        scan: Name of the scan.
        made_of: Stamp of the input files and settings.
        files: Name ending → (bytes, hash) of the files beside the record.
    """

    scan: str
    made_of: Stamp
    files: dict[str, tuple[int, str]]


def record_head(folder: Path, scan: str, digest: str) -> RecordHead | None:
    """The head of a record, for runs that look at thousands of them; ``None`` if it is not the known one.

    Args:
        folder: The store.
        scan: Name of the scan.
        digest: Hash of its record in the manifest, which makes other checks of the content needless.
    """
    try:
        with open(f"{folder}/{scan}.json", "rb", buffering=0) as stream:
            content = stream.read()
        if hashlib.sha256(content).hexdigest() != digest:
            return None
        fields = parse_json(content, scan)
        if fields["version"] != ScanRecord.RECORD_VERSION:
            return None
        parts = {"scan": fields["scan"], "made_of": fields["made_of"], "files": fields["files"]}
        return from_plain(parts, RecordHead, source=scan)
    except (OSError, ValueError, KeyError, TypeError, SatunetError):
        return None


class ScanStore:
    """A folder of preprocessed scans.

    Raises:
        DatasetError: The folder does not exist or holds no scan.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        if not self.scan_ids:
            raise DatasetError(f"{folder}: no preprocessed scans here; make them with 'satunet plan_and_preprocess'")

    def __getstate__(self) -> dict[str, Any]:
        """Pickle without caches; another process reads what it needs."""
        return {"folder": self.folder}

    @cached_property
    def scan_ids(self) -> tuple[str, ...]:
        """Names of all complete scans of the manifest, sorted."""
        if not self.folder.is_dir():
            return ()
        files = (name for name in os.listdir(self.folder) if name.endswith(".json") and not name.startswith("."))
        present = {name[: -len(".json")] for name in files if "__" in name}
        manifest = read_manifest(self.folder)
        if manifest is None and (self.folder / _MANIFEST).is_file():
            raise DatasetError(
                f"{self.folder / _MANIFEST}: damaged, or of another version; 'satunet preprocess' makes it again"
            )
        return tuple(sorted(present if manifest is None else present & set(manifest["scans"])))

    @cached_property
    def _records(self) -> dict[str, ScanRecord]:
        return {}

    def record(self, scan: str) -> ScanRecord:
        """The record of a scan."""
        if scan not in self._records:
            self._records[scan] = self.read_record(scan)
        return self._records[scan]

    def read_record(self, scan: str) -> ScanRecord:
        """The record of a scan, read without caching; for loops over all scans."""
        return load_record(self.folder / f"{scan}.json", ScanRecord, error=DatasetError)

    def image(self, scan: str) -> StoredArray:
        """(1, X, Y, Z) float32, lazy: index it to read a part."""
        return self._array(scan, _ENDINGS[0])

    def labels(self, scan: str) -> StoredArray:
        """(1, X, Y, Z) label ids, lazy: index it to read a part."""
        return self._array(scan, _ENDINGS[1])

    def _array(self, scan: str, ending: str) -> StoredArray:
        if (scan, ending) not in self._parts:
            record = self.read_record(scan)
            for each in _ENDINGS[:2]:
                size, _ = record.files.get(each, (None, ""))
                self._parts[scan, each] = (size, record.sums.get(each, ""), bytearray())
        size, sums, checked = self._parts[scan, ending]
        return StoredArray(self.folder / f"{scan}{ending}", size=size, sums=sums, checked=checked)

    @cached_property
    def _parts(self) -> dict[tuple[str, str], tuple[int | None, str, bytearray]]:
        """Sizes and checksums of the arrays that were opened, and which of their parts were checked."""
        return {}

    def locations(self, scan: str) -> dict[int, NDArray[np.int32]]:
        """Label id → (n, 3) indices of its voxels, at most :data:`~satunet.preprocessing.store.locations.LOCATIONS_PER_LABEL`, drawn uniformly.

        If parts of a scan are not labelled, there is an entry :data:`~satunet.preprocessing.store.locations.ANNOTATED` as well.
        """
        return read_locations(self.folder / f"{scan}_locations.npz")


def write_scan(
    folder: Path,
    record: ScanRecord,
    image: NDArray[np.float32],
    labels: NDArray[np.unsignedinteger[Any]],
    locations: Mapping[int, NDArray[np.int32]],
    patch_size: tuple[int, int, int],
) -> int:
    """Write a scan's four files, the record last.

    Args:
        folder: The store.
        record: Record of the scan.
        image: (1, X, Y, Z).
        labels: (1, X, Y, Z).
        locations: Label id → (n, 3).
        patch_size: Patch that will be read; decides the chunks.

    Returns:
        Bytes written.
    """
    files = scan_files(folder, record.scan)
    files[3].unlink(missing_ok=True)  # from here until the end, the scan does not exist
    sums = {
        ending: write_array(file, array, patch_size)
        for ending, file, array in zip(_ENDINGS, files, (image, labels), strict=False)
    }
    write_locations(files[2], locations)
    described = {
        ending: (file.stat().st_size, content_hash(file)) for ending, file in zip(_ENDINGS, files[:3], strict=False)
    }
    flush_to_disk(files[:3])  # the record promises them
    box = foreground_box(record.shape, locations)
    save_record(files[3], replace(record, files=described, sums=sums, foreground=box))
    return sum(size for size, _ in described.values()) + files[3].stat().st_size


def is_whole(folder: Path, record: ScanRecord | RecordHead) -> bool:
    """Whether the files of a scan are undamaged; they are read."""
    try:
        return all(
            is_of_hash(folder / f"{record.scan}{ending}", digest) for ending, (_, digest) in record.files.items()
        )
    except OSError:
        return False


def complete_record(folder: Path, scan: str) -> ScanRecord | None:
    """The record of a scan, if its other files exist with the right sizes, else ``None``."""
    *_, file = scan_files(folder, scan)
    try:
        record = load_record(file, ScanRecord)
        sizes = {ending: (folder / f"{scan}{ending}").stat().st_size for ending in _ENDINGS[:3]}
    except (OSError, SatunetError):
        return None
    return record if sizes == {ending: size for ending, (size, _) in record.files.items()} else None


def remove_scan(folder: Path, scan: str) -> None:
    """Remove the files of a scan, the record first."""
    for file in reversed(scan_files(folder, scan)):
        file.unlink(missing_ok=True)


def scan_files(folder: Path, scan: str) -> list[Path]:
    """Image, labels, locations and record of a scan."""
    return [folder / f"{scan}{ending}" for ending in _ENDINGS]


def write_manifest(folder: Path, plan: UnifiedPlan, scans: Mapping[str, str], *, complete: bool) -> None:
    """Write the manifest, which lists the scans of a plan.

    Args:
        folder: The store.
        plan: Plan by which they are preprocessed.
        scans: Names of scans → hashes of their records.
        complete: Whether the run that made them was completed.
    """
    content = {
        "version": STORE_VERSION,
        "plan": plan.content_hash(),
        "preprocessing": plan.preprocessing(),
        "complete": complete,
        "scans": dict(sorted(scans.items())),
    }
    write_json(folder / _MANIFEST, content, sealed=True)


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest of a store; ``None`` if it is missing, unreadable or of another version."""
    try:
        content = read_json(folder / _MANIFEST)
    except (OSError, ValueError):
        return None
    if not isinstance(content, dict) or content.get("version") != STORE_VERSION:
        return None
    scans = content.get("scans")
    whole = isinstance(scans, dict) and all(isinstance(digest, str) for digest in scans.values())
    kinds = {"plan": str, "preprocessing": dict, "complete": bool}
    return content if whole and all(isinstance(content.get(key), kind) for key, kind in kinds.items()) else None


def is_of_hash(path: Path, digest: str) -> bool:
    """Whether a file has a given hash, of the current kind or of that of older versions.

    Raises:
        OSError: The file cannot be read.
    """
    return digest == (file_hash(path) if len(digest) == 32 else content_hash(path))


def file_hash(path: Path) -> str:
    """Hash of a file's content, as in stores of older versions; new ones use
    :func:`~satunet.jobs.fresh.content_hash`.
    """
    digest = hashlib.blake2b(digest_size=16)
    with Path(path).open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
