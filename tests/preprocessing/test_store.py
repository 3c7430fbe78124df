from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import blosc2
import numpy as np
import pytest

from satunet.datasets.raw import scan_id
from satunet.errors import DatasetError
from satunet.geometry import Grid
from satunet.images.image import Image
from satunet.jobs.records import to_plain
from satunet.network.config import NetworkConfig
from satunet.plan import UnifiedPlan
from satunet.preprocessing.store.arrays import write_array
from satunet.preprocessing.store.locations import ANNOTATED, LOCATIONS_PER_LABEL, label_locations
from satunet.preprocessing.store.scans import (
    ScanRecord,
    ScanStore,
    complete_record,
    remove_scan,
    scan_files,
    write_manifest,
    write_scan,
)
from satunet.preprocessing.transform import preprocess_image

NETWORK = NetworkConfig.auto(
    features_per_stage=(8, 16), strides=((1, 1, 1), (2, 2, 2)), kernel_sizes=((3, 3, 3),) * 2, text_dim=24
)
PLAN = UnifiedPlan(spacing_mm=(2.0, 2.0, 2.0), patch_size=(16, 16, 16), network=NETWORK)


def write(folder: Path, case: str = "a_b", shape: tuple[int, int, int] = (20, 18, 9)) -> tuple[ScanRecord, np.ndarray]:
    rng = np.random.default_rng(0)
    grid = Grid(shape=shape, affine=np.diag([2.0, 2.0, 2.0, 1.0]))
    prepared = preprocess_image(Image(array=rng.normal(size=shape), grid=grid), modality="mri", plan=PLAN)
    labels = rng.choice([0, 1, 300], size=(1, *shape)).astype(np.uint16)
    voxels, locations = label_locations(labels[0])
    record = ScanRecord(
        scan=scan_id("Dataset001_X", case, 1), modality="mri", label_voxels=voxels,
        geometry=prepared.geometry,
    )  # fmt: skip
    write_scan(folder, record, prepared.array, labels, locations, PLAN.patch_size)
    return record, np.stack([prepared.array, labels.astype(np.float32)])


def test_a_scan_is_read_as_it_was_written(tmp_path: Path) -> None:
    record, expected = write(tmp_path)
    store = ScanStore(tmp_path)
    assert store.scan_ids == ("Dataset001_X__a_b__0001",)
    scan = store.scan_ids[0]
    found = store.record(scan)
    assert to_plain(replace(found, files={}, sums={}, foreground=None)) == to_plain(record)
    assert {scan + ending for ending in found.files} == {p.name for p in tmp_path.iterdir() if p.suffix != ".json"}
    assert (found.case, found.channel, found.shape) == ("a_b", 1, (20, 18, 9))
    image, labels = store.image(scan), store.labels(scan)
    assert (image.dtype, labels.dtype) == (np.float32, np.uint16)
    np.testing.assert_array_equal(image[:], expected[0])
    np.testing.assert_array_equal(labels[0, 3:9, :, 4], expected[1][0, 3:9, :, 4])
    for label, places in store.locations(scan).items():
        assert places.dtype == np.int32
        assert (labels[:][0][tuple(places.T)] == label).all()
    assert store.locations(scan).keys() == found.label_voxels.keys() == {1, 300}


def test_the_bytes_of_an_array_do_not_depend_on_what_the_process_did_before(tmp_path: Path) -> None:
    array = np.arange(4096, dtype=np.float32).reshape(1, 16, 16, 16)
    before = blosc2.nthreads
    try:
        for threads in (1, 2):
            blosc2.set_nthreads(threads)
            write_array(tmp_path / f"{threads}.b2nd", array, patch_size=(8, 8, 8))
    finally:
        blosc2.set_nthreads(before)
    assert (tmp_path / "1.b2nd").read_bytes() == (tmp_path / "2.b2nd").read_bytes()


def test_locations_are_all_or_an_even_draw() -> None:
    labels = np.zeros((40, 40, 40), np.uint8)
    labels[5:35, 5:35, 5:35] = 2
    labels[0, 0, 0] = 7
    voxels, locations = label_locations(labels)
    assert voxels == {2: 27000, 7: 1}
    np.testing.assert_array_equal(locations[7], [[0, 0, 0]])
    assert locations[2].shape == (LOCATIONS_PER_LABEL, 3)
    assert len(np.unique(locations[2], axis=0)) == LOCATIONS_PER_LABEL
    np.testing.assert_allclose(locations[2].mean(axis=0), 19.5, atol=1.5)
    assert label_locations(np.zeros((3, 3, 3), np.uint8)) == ({}, {})


def test_the_record_has_the_box_of_all_labels(tmp_path: Path) -> None:
    shape = (20, 18, 9)
    record, _ = write(tmp_path, "whole")
    image, labels = np.zeros((1, *shape), np.float32), np.full((1, *shape), 9, np.uint8)
    labels[0, 4:18, 2:15, 1:8] = 0
    labels[0, 5:9, 3, 2:7], labels[0, 12, 6:14, 5] = 1, 2
    for case, ids, box in (
        ("two", (1, 2), ((5, 3, 2), (13, 14, 7))),
        ("one", (1,), ((5, 3, 2), (9, 4, 7))),
        ("none", (), ((0, 0, 0), shape)),
    ):
        shown = np.where(np.isin(labels, (*ids, 9)), labels, 0)
        voxels, locations = label_locations(shown[0], ignored=9)
        assert (ANNOTATED in locations) and voxels.keys() == set(ids), "what nobody looked at is no label"
        own = replace(record, scan=scan_id("Dataset001_X", case, 1), label_voxels=voxels)
        write_scan(tmp_path, own, image, shown, locations, PLAN.patch_size)
        assert ScanStore(tmp_path).record(own.scan).foreground == box


def test_a_scan_without_its_record_does_not_exist(tmp_path: Path) -> None:
    write(tmp_path, "a")
    record, _ = write(tmp_path, "b")
    scan_files(tmp_path, record.scan)[-1].unlink()
    assert ScanStore(tmp_path).scan_ids == ("Dataset001_X__a__0001",)


def test_a_truncated_array_is_not_complete(tmp_path: Path) -> None:
    record, _ = write(tmp_path)
    assert complete_record(tmp_path, record.scan) is not None
    array = scan_files(tmp_path, record.scan)[0]
    array.write_bytes(array.read_bytes()[:-10])
    assert complete_record(tmp_path, record.scan) is None


def test_scans_outside_the_manifest_are_not_used(tmp_path: Path) -> None:
    kept, _ = write(tmp_path, "a")
    write(tmp_path, "b")
    write_manifest(tmp_path, PLAN, dict.fromkeys([kept.scan, "Dataset001_X__gone__0000"], ""), complete=True)
    assert ScanStore(tmp_path).scan_ids == (kept.scan,)


def test_an_empty_or_missing_store_says_what_to_do(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(DatasetError, match="plan_and_preprocess"):
            ScanStore(folder)


def test_a_record_of_another_version_is_named(tmp_path: Path) -> None:
    record, _ = write(tmp_path)
    file = scan_files(tmp_path, record.scan)[-1]
    file.write_text(file.read_text().replace('"version": 4', '"version": 1'))
    with pytest.raises(DatasetError, match=file.name):
        ScanStore(tmp_path).record(record.scan)


def test_removing_leaves_nothing(tmp_path: Path) -> None:
    record, _ = write(tmp_path)
    remove_scan(tmp_path, record.scan)
    remove_scan(tmp_path, record.scan)
    assert list(tmp_path.iterdir()) == []
