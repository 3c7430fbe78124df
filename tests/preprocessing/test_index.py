"""The index of a store says what the records say, and follows them."""

from __future__ import annotations

import dataclasses
import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from satunet.datasets.raw import MODALITIES
from satunet.errors import DatasetError, DiskFullError
from satunet.geometry import Grid
from satunet.jobs.files import write_json
from satunet.jobs.records import save_record
from satunet.preprocessing.store.index import ScanIndex
from satunet.preprocessing.store.locations import label_locations
from satunet.preprocessing.store.scans import INDEX, ScanRecord, ScanStore, file_hash, scan_files, write_scan
from satunet.preprocessing.transform import ScanGeometry

SHAPE = (7, 6, 5)


def geometry(shape: tuple[int, int, int]) -> ScanGeometry:
    grid = Grid(shape=shape, affine=np.eye(4))
    x, y, z = (slice(0, n) for n in shape)
    return ScanGeometry(original=grid, orientation="RAS", crop=(x, y, z), shape=shape, spacing_mm=(1.0, 1.0, 1.0))


def put(folder: Path, scan: str, labels: np.ndarray, modality: str = "ct") -> None:
    folder.mkdir(exist_ok=True)
    voxels, locations = label_locations(labels)
    record = ScanRecord(
        scan=scan, modality=modality, label_voxels=voxels, geometry=geometry(labels.shape), content=f"{len(scan):032d}"
    )
    write_scan(folder, record, labels[None].astype(np.float32), labels[None], locations, (4, 4, 4))


def listed(folder: Path) -> ScanStore:
    scans = sorted(p.name[: -len(".json")] for p in folder.glob("*__*.json"))
    write_json(folder / "manifest.json", {"version": 2, "plan": "p", "preprocessing": {}, "complete": True,
                                          "scans": {s: file_hash(scan_files(folder, s)[-1]) for s in scans}})  # fmt: skip
    return ScanStore(folder)


def some(seed: int, shape: tuple[int, int, int] = SHAPE) -> np.ndarray:
    rng = np.random.default_rng(seed)
    labels = np.zeros(shape, dtype=np.uint8)
    low = rng.integers(0, np.array(shape) - 1)
    high = [int(rng.integers(a + 1, n + 1)) for a, n in zip(low, shape, strict=True)]
    labels[low[0] : high[0], low[1] : high[1], low[2] : high[2]] = rng.integers(1, 9)
    return labels


@pytest.fixture
def store(tmp_path: Path) -> ScanStore:
    folder = tmp_path / "store"
    for number in range(5):
        put(folder, f"Dataset00{1 + number % 2}_Ä__case{number}__0", some(number), MODALITIES[number % 3])
    put(folder, "Dataset001_Ä__empty__0", np.zeros(SHAPE, np.uint8))
    return listed(folder)


def test_it_says_what_the_voxels_say(store: ScanStore) -> None:
    index = ScanIndex.of(store)
    assert len(index) == 6
    assert (store.folder / INDEX).is_file()
    for number, scan in enumerate(store.scan_ids):
        entry, labels = index[number], np.asarray(store.labels(scan)[:])[0]
        assert (entry.scan, entry.dataset) == (scan, scan.partition("__")[0])
        assert entry.modality == store.record(scan).modality
        assert entry.shape == labels.shape
        ids, counts = np.unique(labels[labels > 0], return_counts=True)
        assert entry.label_voxels == dict(zip(ids.tolist(), counts.tolist(), strict=True))
        places = np.argwhere(labels) if ids.size else np.argwhere(np.ones(labels.shape))
        assert entry.foreground == (tuple(places.min(0)), tuple(places.max(0) + 1))
    of_one = index.of_scans([store.scan_ids[3], store.scan_ids[0]])
    assert [of_one[i].scan for i in range(2)] == [store.scan_ids[3], store.scan_ids[0]]
    assert of_one.contents == [store.record(s).content for s in (store.scan_ids[3], store.scan_ids[0])]
    assert of_one.shown() == {
        d: frozenset(
            i for s in (store.scan_ids[3], store.scan_ids[0]) if s.startswith(d) for i in store.record(s).label_voxels
        )
        for d in of_one.datasets
    }
    np.testing.assert_array_equal(of_one.shapes, [SHAPE, SHAPE])
    with pytest.raises(KeyError):
        index.of_scans(["Dataset001_Ä__another__0"])


def test_it_is_read_not_made_again_until_a_record_changes(store: ScanStore, monkeypatch: pytest.MonkeyPatch) -> None:
    ScanIndex.of(store)
    read: list[str] = []
    original = ScanStore.read_record
    monkeypatch.setattr(ScanStore, "read_record", lambda self, scan: (read.append(scan), original(self, scan))[1])
    ScanIndex.of(ScanStore(store.folder))
    assert read == []
    changed, gone = store.scan_ids[1], store.scan_ids[2]
    put(store.folder, changed, some(99, (9, 4, 8)))
    for file in scan_files(store.folder, gone):
        file.unlink()
    put(store.folder, "Dataset003_New__a__0", some(7))
    index = ScanIndex.of(listed(store.folder))
    assert sorted(read) == [changed, "Dataset003_New__a__0"]
    names = [index[i].scan for i in range(len(index))]
    assert gone not in names and "Dataset003_New__a__0" in names
    assert index.of_scans([changed])[0].shape == (9, 4, 8)


@given(seed=st.integers(0, 10_000))
@settings(max_examples=60, deadline=None)
def test_a_damaged_index_is_made_again(seed: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("damaged") / "store"
    for number in range(2):
        put(folder, f"Dataset001_A__case{number}__0", some(number))
    store = listed(folder)
    before = ScanIndex.of(store)
    said = [before[0], before[1]]
    rng = np.random.default_rng(seed)
    content = bytearray((folder / INDEX).read_bytes())
    if seed % 3 == 0:
        content = content[: int(rng.integers(0, len(content)))]
    else:
        content[int(rng.integers(0, len(content)))] ^= 1 << int(rng.integers(0, 8))
    del before  # its map
    (folder / INDEX).unlink()
    (folder / INDEX).write_bytes(content)
    again = ScanIndex.of(store)
    assert [again[0], again[1]] == said


def test_a_store_of_an_earlier_version_has_its_boxes_found(store: ScanStore, caplog: pytest.LogCaptureFixture) -> None:
    expected = [ScanIndex.of(store)[i] for i in range(6)]
    for scan in store.scan_ids:
        save_record(scan_files(store.folder, scan)[-1], dataclasses.replace(store.record(scan), foreground=None))
    scan_files(store.folder, store.scan_ids[0])[2].write_bytes(b"no zip")
    index = ScanIndex.of(listed(store.folder))
    assert [index[i] for i in range(1, 6)] == expected[1:]
    assert index[0].foreground == ((0, 0, 0), SHAPE)
    assert "cannot be read" in caplog.text


def test_a_worker_maps_the_file_and_a_store_that_may_only_be_read_has_one_too(
    store: ScanStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = ScanIndex.of(store).of_scans([store.scan_ids[4], store.scan_ids[1]])
    sent = pickle.dumps(index)
    assert len(sent) < 600
    assert [pickle.loads(sent)[i] for i in range(2)] == [index[0], index[1]]
    first = index[0]
    del index
    put(store.folder, "Dataset000_Before__all__0", some(3))  # every other scan is a row further down
    again = listed(store.folder)
    ScanIndex.of(again)
    with pytest.raises(DatasetError, match="preprocessed again"):
        pickle.loads(sent)
    for error in (OSError(30, "Read-only file system"), DiskFullError("no space left")):
        (store.folder / INDEX).unlink(missing_ok=True)

        def refuse(*_: object, error: Exception = error) -> None:
            raise error

        monkeypatch.setattr("satunet.preprocessing.store.index._write", refuse)
        alone = ScanIndex.of(again).of_scans([store.scan_ids[4]])
        assert not (store.folder / INDEX).exists()
        assert pickle.loads(pickle.dumps(alone))[0] == first


def test_a_damaged_record_is_named(store: ScanStore) -> None:
    scan_files(store.folder, store.scan_ids[2])[-1].write_text("[]")
    with pytest.raises(DatasetError, match=store.scan_ids[2]):
        ScanIndex.of(listed(store.folder))
