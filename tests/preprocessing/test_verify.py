"""Faults of a store, each made on purpose, and what the verification says of it."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from satunet.errors import DatasetError
from satunet.jobs.files import read_json, write_json
from satunet.jobs.records import load_record, save_record
from satunet.preprocessing.store import verify
from satunet.preprocessing.store.locations import ANNOTATED, LOCATIONS_PER_LABEL, label_locations
from satunet.preprocessing.store.scans import ScanRecord, file_hash, read_manifest, scan_files, write_manifest
from satunet.preprocessing.store.verify import verify_store
from tests.preprocessing.test_store import PLAN, write

SCAN = "Dataset001_X__a__0001"
OTHER = "Dataset001_X__b__0001"


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """Two scans with their manifest."""
    folder = tmp_path / "store"
    folder.mkdir()
    write(folder, "a")
    write(folder, "b")
    scans = {scan: file_hash(scan_files(folder, scan)[-1]) for scan in (SCAN, OTHER)}
    write_manifest(folder, PLAN, scans, complete=True)
    assert set(read_manifest(folder)["scans"]) == {SCAN, OTHER}
    return folder


def test_a_store_that_is_whole(store: Path) -> None:
    (store / ".lock").touch()  # of a preprocessing that is running, or was killed
    summary = verify_store(store, plan=PLAN)
    assert (summary.exit_code, summary.failures, sorted(summary.done_items)) == (0, {}, [SCAN, OTHER])
    assert not summary.notes
    (store / "left_behind.txt").write_text("x")
    summary = verify_store(store)
    assert summary.exit_code == 0
    assert summary.notes["not in the manifest"] == "1 files, which no command reads: left_behind.txt"


@pytest.mark.parametrize("part", range(4))
def test_a_file_that_is_missing(store: Path, part: int) -> None:
    victim = scan_files(store, SCAN)[part]
    victim.unlink()
    summary = verify_store(store)
    assert summary.exit_code == 1
    assert summary.done_items == [OTHER]
    assert summary.failures == {SCAN: f"{victim.name} is missing"}


@pytest.mark.parametrize("part", range(3))
def test_a_file_whose_content_changed(store: Path, part: int) -> None:
    victim = scan_files(store, SCAN)[part]
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 1
    victim.write_bytes(bytes(content))
    assert verify_store(store).failures == {SCAN: f"{victim.name} is not what was written: its content has changed"}
    size = len(content)
    victim.write_bytes(bytes(content[:-3]))
    assert verify_store(store).failures == {SCAN: f"{victim.name} has {size - 3} bytes, {size} were written"}


def test_all_faults_of_a_scan_are_told_at_once(store: Path) -> None:
    image, labels, *_ = scan_files(store, SCAN)
    image.unlink()
    labels.write_bytes(b"")
    said = str(verify_store(store).failures[SCAN])
    assert f"{image.name} is missing; {labels.name} has 0 bytes" in said


def test_a_record_that_is_another_or_none(store: Path) -> None:
    file = scan_files(store, SCAN)[-1]
    content = read_json(file)
    write_json(file, content | {"modality": "ct"})
    assert verify_store(store).failures == {SCAN: f"{file.name} is not the record that the manifest lists"}
    for wrong, why in (
        ("{", "not JSON"),
        ("[]", "not a scan record"),
        ("{}", "store version"),
        ("3", "a number"),
    ):
        file.write_text(wrong)
        said = str(verify_store(store).failures[SCAN])
        assert said.startswith(f"{file}: ") and why in said
    file.unlink()
    assert verify_store(store).failures == {SCAN: f"{file.name} is missing"}


def test_files_of_another_scan_under_this_name(store: Path) -> None:
    """What the writer could do wrong: everything is as written, and does not belong together."""
    record, _ = write(store, "c", (10, 11, 12))
    small = "Dataset001_X__c__0001"
    for file in scan_files(store, SCAN)[:2]:
        shutil.copy(file, store / file.name.replace(SCAN, small))
    files = {f.name[len(small) :]: (f.stat().st_size, file_hash(f)) for f in scan_files(store, small)[:3]}
    record = replace(load_record(scan_files(store, small)[-1], ScanRecord), files=files)
    save_record(scan_files(store, small)[-1], record)
    write_manifest(store, PLAN, {small: file_hash(scan_files(store, small)[-1])}, complete=True)
    said = str(verify_store(store).failures[small])
    assert "has the shape (1, 20, 18, 9), the record says (1, 10, 11, 12)" in said
    assert said.count("has the shape") == 2


def test_another_plan_and_a_run_that_did_not_end(store: Path) -> None:
    other = replace(PLAN, spacing_mm=(3.0, 3.0, 3.0))
    summary = verify_store(store, plan=other)
    assert "made with another plan" in str(summary.failures["manifest.json"])
    assert sorted(summary.done_items) == [SCAN, OTHER]
    scans = read_manifest(store)["scans"]
    write_manifest(store, PLAN, scans, complete=False)
    assert "did not finish" in str(verify_store(store, plan=PLAN).failures["manifest.json"])
    (store / "manifest.json").unlink()
    with pytest.raises(DatasetError, match="no manifest of a store"):
        verify_store(store)


def test_locations_of_large_maps_are_drawn_from_all_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """In pieces, as a map is walked: each voxel once, none of another label, and evenly over the map."""
    monkeypatch.setattr("satunet.preprocessing.store.locations._PIECE", 1000)
    rng = np.random.default_rng(1)
    labels = rng.choice([0, 3, 70_000, 9], size=(50, 40, 30), p=[0.2, 0.3, 0.499, 0.001]).astype(np.int32)
    voxels, places = label_locations(labels, ignored=9)
    assert voxels == {i: int((labels == i).sum()) for i in (3, 70_000)}
    assert places.keys() == {3, 70_000, ANNOTATED}
    for label, found in places.items():
        assert len(np.unique(found, axis=0)) == len(found) == min(LOCATIONS_PER_LABEL, (labels == label).sum() or 10**9)
        seen = labels[tuple(found.T)]
        assert (seen != 9).all() if label == ANNOTATED else (seen == label).all()
        np.testing.assert_allclose(found.mean(axis=0), (np.array(labels.shape) - 1) / 2, atol=1.5)
    assert set(np.unique(labels[tuple(places[ANNOTATED].T)])) == {0, 3, 70_000}
    again = label_locations(labels, ignored=9)[1]
    assert all(np.array_equal(places[i], again[i]) for i in places)


def test_a_record_that_lists_no_file(store: Path) -> None:
    image, *_, file = scan_files(store, SCAN)
    record = load_record(file, ScanRecord)
    save_record(file, replace(record, files={k: v for k, v in record.files.items() if k != image.name[len(SCAN) :]}))
    assert f"{image.name} has {image.stat().st_size} bytes, 0 were written" in str(verify_store(store).failures[SCAN])


def test_a_case_that_cannot_be_looked_at_is_told_why(nnunet_env: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = nnunet_env / "raw" / "Dataset001_X"
    for part in ("imagesTr", "labelsTr"):
        (folder / part).mkdir(parents=True)
    nib.save(nib.Nifti1Image(np.ones((4, 4, 4), np.float32), np.eye(4)), folder / "imagesTr" / "a_0000.nii.gz")
    nib.save(nib.Nifti1Image(np.ones((4, 4, 4), np.uint8), np.eye(4)), folder / "labelsTr" / "a.nii.gz")
    content = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "liver": 1}, "numTraining": 1}
    write_json(folder / "dataset.json", content | {"file_ending": ".nii.gz"})

    def broken(_: object) -> None:
        raise DatasetError("the disk was pulled out")

    monkeypatch.setattr(verify, "_look_at", broken)
    summary = verify.verify_datasets(["Dataset001_X"], processes=0)
    assert summary.failures == {"Dataset001_X/a": "the disk was pulled out"}
