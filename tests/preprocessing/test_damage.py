"""Damage to a store: found where it is read, named, and repaired by the command that made it."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from satunet.errors import DatasetError
from satunet.preprocessing.store.arrays import PartSums, StoredArray, write_array


def flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 4
    path.write_bytes(content)


@pytest.fixture
def stored(tmp_path: Path) -> tuple[Path, np.ndarray, str]:
    array = np.random.default_rng(0).normal(size=(1, 40, 44, 70)).astype(np.float32)
    array[:, 20:] = 0
    return tmp_path / "a.b2nd", array, write_array(tmp_path / "a.b2nd", array, (16, 16, 16))


def test_an_index_reads_what_was_written_and_checks_the_chunks_it_touches(stored) -> None:
    path, array, sums = stored
    parts = PartSums.parse(sums)
    assert len(parts.chunks) > 4
    assert parts.places[-1][1] <= path.stat().st_size
    first = next(place for place in parts.places if place[1] > place[0])
    flip(path, first[0] + 40)
    lazy = StoredArray(path, size=path.stat().st_size, sums=sums)
    np.testing.assert_array_equal(lazy[0, 36:, 40:, 60:], array[0, 36:, 40:, 60:])  # the last chunk is whole
    for index in ((0, slice(0, 5), 3, slice(2, 9)), slice(None), (Ellipsis, 0), (0, 0)):
        with pytest.raises(DatasetError, match=r"a\.b2nd: damaged: chunk 0 of"):
            lazy[index]


def test_every_flipped_bit_of_an_array_is_found(stored) -> None:
    path, array, sums = stored
    whole, size = path.read_bytes(), path.stat().st_size
    rng = np.random.default_rng(1)
    places = [0, 11, 14, 20, size - 1, size - 20, *rng.integers(0, size, 40).tolist()]
    for at in places:
        flip(path, at)
        with pytest.raises(DatasetError, match=r"a\.b2nd: damaged"):
            StoredArray(path, size=size, sums=sums)[:]
        path.write_bytes(whole)
    np.testing.assert_array_equal(StoredArray(path, size=size, sums=sums)[:], array)


def test_a_truncated_or_missing_array_is_named(stored) -> None:
    path, _, sums = stored
    size = path.stat().st_size
    os.truncate(path, size - 1)
    with pytest.raises(DatasetError, match=rf"a\.b2nd: damaged: it has {size - 1} bytes"):
        StoredArray(path, size=size, sums=sums)
    path.unlink()
    with pytest.raises(DatasetError, match=r"a\.b2nd: cannot be read"):
        StoredArray(path, size=size, sums=sums)


def test_what_was_found_whole_is_not_read_again(stored) -> None:
    path, array, sums = stored
    checked = bytearray()
    StoredArray(path, sums=sums, checked=checked)[:]
    assert all(checked)
    parts = PartSums.parse(sums)
    assert len(checked) == 1 + len(parts.chunks)
    assert sum(size for size, _ in parts.chunks) < path.stat().st_size
    assert str(parts) == sums
    np.testing.assert_array_equal(StoredArray(path, sums=sums, checked=checked)[:], array)
