"""Preprocessed scans on disk.

A scan consists of four files: ``<scan>.b2nd`` (image) and ``<scan>_seg.b2nd`` (label ids) are Blosc2 arrays with
nnU-Net's chunk sizes, so that reading a patch touches few chunks; ``<scan>_locations.npz`` has the locations of labels;
``<scan>.json`` is the record: metadata, stamp of the inputs, sizes and hashes of the other files. The record is written
last: without it, a scan does not exist, whatever a killed run left behind. ``manifest.json`` names the plan and lists
its scans, each with the hash of its record; scans that it does not list are from another plan, or their inputs can no
longer be used. ``scans.index`` holds what training needs to know about all scans, see
:mod:`satunet.preprocessing.index`; it is made again whenever it is outdated.
"""

from __future__ import annotations

import hashlib
import os
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from satunet.datasets.raw import split_scan_id
from satunet.errors import DatasetError, SatunetError
from satunet.images.label_ids import dense_ids
from satunet.jobs.files import atomic_path, flush_to_disk, parse_json, read_json, write_json
from satunet.jobs.fresh import Stamp, content_hash
from satunet.jobs.records import from_plain, load_record, save_record
from satunet.plan import UnifiedPlan
from satunet.preprocessing.arrays import StoredArray, write_array
from satunet.preprocessing.transform import ScanGeometry

STORE_VERSION = 2
LOCATIONS_PER_LABEL = 1000
ANNOTATED = -1
"""Key of the locations of all annotated voxels, including background, in scans with unlabelled parts (nnU-Net's
``ignore``)."""
INDEX = "scans.index"
Foreground = tuple[tuple[int, int, int], tuple[int, int, int]]
"""First voxel of a box, and the voxel after its last."""
_PIECE = 1 << 20
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
        sums: Name ending → checksums of an array's parts (:class:`satunet.preprocessing.arrays.PartSums`); empty if an
            older version wrote the scan.
        source: Hash of the input files and settings, in records of version 2.
        foreground: Box of all labels, see :func:`foreground_box`; ``None`` if an older version wrote the scan.
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
        """Label id → (n, 3) indices of its voxels, at most :data:`LOCATIONS_PER_LABEL`, drawn uniformly.

        If parts of a scan are not labelled, there is an entry :data:`ANNOTATED` as well.
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
    _write_locations(files[2], locations)
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


def label_locations(
    labels: NDArray[np.unsignedinteger[Any]], *, ignored: int | None = None, seed: int = 0
) -> tuple[dict[int, int], dict[int, NDArray[np.int32]]]:
    """Voxel counts and some voxel indices of every label.

    Args:
        labels: (X, Y, Z).
        ignored: Id of unlabelled voxels, if there are any; it is not counted as a label.
        seed: Seed of the draw.

    Returns:
        Label id → voxels; label id, and :data:`ANNOTATED` if some are ignored → (n, 3) indices,
        n ≤ :data:`LOCATIONS_PER_LABEL`.
    """
    ids, dense = dense_ids(labels)
    flat = dense.ravel()
    counts = np.zeros(len(ids), dtype=np.int64)
    for start in range(0, flat.size, _PIECE):
        counts += np.bincount(flat[start : start + _PIECE], minlength=counts.size)
    voxels = {place: int(counts[place]) for place in np.flatnonzero(counts).tolist() if ids[place] not in (0, ignored)}
    rng = np.random.default_rng(seed)
    # First the ranks of the voxels to take are drawn for each label; then one pass collects them.
    ranks = {place: _ranks(count, rng) for place, count in voxels.items()}
    found: dict[int, list[NDArray[np.intp]]] = {place: [] for place in voxels}
    seen = dict.fromkeys(voxels, 0)
    for start in range(0, flat.size, _PIECE):
        piece = flat[start : start + _PIECE]
        foreground = np.flatnonzero(piece)
        order = foreground[np.argsort(piece[foreground], kind="stable")]
        present, starts, sizes = np.unique(piece[order], return_index=True, return_counts=True)
        for place, first, size in zip(present.tolist(), starts.tolist(), sizes.tolist(), strict=True):
            if place not in voxels:
                continue
            low, high = np.searchsorted(ranks[place], (seen[place], seen[place] + size))
            found[place].append(start + order[first + ranks[place][low:high] - seen[place]])
            seen[place] += size
    chosen = {ids[place]: np.concatenate(members) for place, members in found.items()}
    if ignored is not None:
        annotated = np.flatnonzero(labels.ravel() != ignored)
        chosen[ANNOTATED] = annotated[_ranks(annotated.size, rng)]
    locations = {
        label: np.stack(np.unravel_index(places, labels.shape), axis=1).astype(np.int32)
        for label, places in chosen.items()
    }
    return {ids[place]: count for place, count in voxels.items()}, locations


def foreground_box(shape: tuple[int, int, int], locations: Mapping[int, NDArray[np.int32]]) -> Foreground:
    """Box of all labels, from their stored voxels; the whole scan if there are none.

    Args:
        shape: (X, Y, Z) of the preprocessed scan.
        locations: Label id → (n, 3) voxel indices.
    """
    places = [p for label, p in locations.items() if len(p) and label != ANNOTATED]
    if not places:
        return (0, 0, 0), shape
    low = np.min([p.min(axis=0) for p in places], axis=0)
    high = np.max([p.max(axis=0) for p in places], axis=0) + 1
    return (int(low[0]), int(low[1]), int(low[2])), (int(high[0]), int(high[1]), int(high[2]))


def _ranks(count: int, rng: np.random.Generator) -> NDArray[np.intp]:
    """Sorted indices of the items to take out of ``count``, at most :data:`LOCATIONS_PER_LABEL`."""
    if count <= LOCATIONS_PER_LABEL:
        return np.arange(count)
    return np.sort(rng.choice(count, LOCATIONS_PER_LABEL, replace=False))


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


def read_locations(path: Path) -> dict[int, NDArray[np.int32]]:
    """Label id → (n, 3) voxel indices, as :func:`write_scan` wrote them.

    Raises:
        DatasetError: The file is missing, or damaged: every entry has a checksum.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            return {int(key): file[key] for key in file.files}
    except Exception as error:  # numpy, zipfile and zlib raise many kinds
        raise DatasetError(f"{path}: damaged, or no positions of labels ({error}); preprocess again") from error


def _write_locations(path: Path, locations: Mapping[int, NDArray[np.int32]]) -> None:
    """As ``np.savez_compressed``, but without a timestamp, so that the same scan gives the same bytes."""
    with atomic_path(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        for label, places in locations.items():
            entry = zipfile.ZipInfo(f"{label}.npy")
            entry.compress_type = zipfile.ZIP_DEFLATED
            with archive.open(entry, "w") as file:
                np.lib.format.write_array(file, places, allow_pickle=False)
