"""Locations of labels: some voxels of every label of a scan, so that training finds a label without reading the scan."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from satunet.errors import DatasetError
from satunet.images.label_ids import dense_ids
from satunet.jobs.files import atomic_path

LOCATIONS_PER_LABEL = 1000
ANNOTATED = -1
"""Key of the locations of all annotated voxels, including background, in scans with unlabelled parts (nnU-Net's
``ignore``)."""
Foreground = tuple[tuple[int, int, int], tuple[int, int, int]]
"""First voxel of a box, and the voxel after its last."""
_PIECE = 1 << 20


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


def read_locations(path: Path) -> dict[int, NDArray[np.int32]]:
    """Label id → (n, 3) voxel indices, as :func:`write_locations` wrote them.

    Raises:
        DatasetError: The file is missing, or damaged: every entry has a checksum.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            return {int(key): file[key] for key in file.files}
    except Exception as error:  # numpy, zipfile and zlib raise many kinds
        raise DatasetError(f"{path}: damaged, or no positions of labels ({error}); preprocess again") from error


def write_locations(path: Path, locations: Mapping[int, NDArray[np.int32]]) -> None:
    """As ``np.savez_compressed``, but without a timestamp, so that the same scan gives the same bytes."""
    with atomic_path(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        for label, places in locations.items():
            entry = zipfile.ZipInfo(f"{label}.npy")
            entry.compress_type = zipfile.ZIP_DEFLATED
            with archive.open(entry, "w") as file:
                np.lib.format.write_array(file, places, allow_pickle=False)


def _ranks(count: int, rng: np.random.Generator) -> NDArray[np.intp]:
    """Sorted indices of the items to take out of ``count``, at most :data:`LOCATIONS_PER_LABEL`."""
    if count <= LOCATIONS_PER_LABEL:
        return np.arange(count)
    return np.sort(rng.choice(count, LOCATIONS_PER_LABEL, replace=False))
