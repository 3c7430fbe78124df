"""Runs over real files on disk, good and bad."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from satunet.demo.synthetic import ORGANS, SPACING_MM, make_synthetic_datasets
from satunet.errors import DatasetError
from satunet.jobs.files import read_json, write_json
from satunet.labels import LabelSpace
from satunet.network.config import NetworkConfig
from satunet.plan import UnifiedPlan
from satunet.planners.options import PlanOptions
from satunet.preprocessing.pipeline import plan_and_preprocess
from satunet.preprocessing.run import preprocess_datasets
from satunet.preprocessing.store.scans import ScanStore
from satunet.preprocessing.store.verify import verify_datasets, verify_store
from satunet.preprocessing.transform import restore

NETWORK = NetworkConfig.auto(
    features_per_stage=(8, 16), strides=((1, 1, 1), (2, 2, 2)), kernel_sizes=((3, 3, 3),) * 2, text_dim=24
)


def plan(spacing: tuple[float, float, float] = (4.0, 4.0, 4.0)) -> UnifiedPlan:
    return UnifiedPlan(spacing_mm=spacing, patch_size=(16, 16, 16), network=NETWORK)


def store_of(env: Path, made: UnifiedPlan | None = None) -> ScanStore:
    made = made or plan()
    return ScanStore(env / "preprocessed" / made.dataset_name / made.data_identifier)


def test_everything_a_trainer_needs_is_written(nnunet_env: Path) -> None:
    names = make_synthetic_datasets(nnunet_env / "raw", cases=3)
    same = plan(SPACING_MM)  # nothing is resampled: the labels must be those of the file
    summary = preprocess_datasets(same, names, processes=1)
    assert summary.failures == {}
    assert len(summary.done_items) == 6
    store = store_of(nnunet_env)
    assert len(store.scan_ids) == 6
    folder = nnunet_env / "preprocessed" / plan().dataset_name
    space = LabelSpace.load(folder / "label_space.json")
    described = json.loads((folder / "dataset.json").read_text())
    assert list(described["labels"]) == ["background", *space.class_names]
    folds = json.loads((folder / "splits_final.json").read_text())
    assert set(folds[0]["train"]) | set(folds[0]["val"]) == set(store.scan_ids)
    assert json.loads((store.folder / "manifest.json").read_text())["complete"] is True
    for scan in store.scan_ids:
        record = store.record(scan)
        assert record.geometry.grid.orientation == "RAS"
        names_of = [o.names[0 if "CT" in record.dataset else 1] for o in ORGANS]
        organs = [o for o, given in zip(ORGANS, names_of, strict=True) if given is not None]
        truth = nib.load(nnunet_env / "raw" / record.dataset / "labelsTr" / f"{record.case}.nii.gz")
        for label, organ in enumerate(organs, start=1):
            there = store.labels(scan)[:][0] == label
            assert there.sum() == record.label_voxels[label]
            assert there.sum() * record.geometry.grid.voxel_ml == pytest.approx(organ.volume_ml, rel=0.12)
            index = np.argwhere(there).mean(axis=0)
            centre = record.geometry.grid.affine[:3, :3] @ index + record.geometry.grid.affine[:3, 3]
            np.testing.assert_allclose(centre, organ.centre_mm, atol=5)  # cases are shifted by up to 4 mm
            back = restore(there.astype(np.float32), record.geometry)
            np.testing.assert_array_equal(back, np.asarray(truth.dataobj) == label)


def test_processes_give_what_one_gives(nnunet_env: Path) -> None:
    names = make_synthetic_datasets(nnunet_env / "raw", cases=2)
    preprocess_datasets(plan(), names, processes=1)
    store = store_of(nnunet_env)
    before = {scan: (store.image(scan)[:], store.labels(scan)[:]) for scan in store.scan_ids}
    shutil.rmtree(store.folder)
    assert preprocess_datasets(plan(), names, processes=2).failures == {}
    for scan, (image, labels) in before.items():
        np.testing.assert_array_equal(store_of(nnunet_env).image(scan)[:], image)
        np.testing.assert_array_equal(store_of(nnunet_env).labels(scan)[:], labels)


def test_a_rerun_does_only_what_changed(nnunet_env: Path) -> None:
    name, _ = make_synthetic_datasets(nnunet_env / "raw", cases=4)
    preprocess_datasets(plan(), [name])
    images = nnunet_env / "raw" / name / "imagesTr"
    assert len(preprocess_datasets(plan(), [name]).skipped_items) == 4

    os.utime(images / "case_00_0000.nii.gz")  # touched, same content
    image = nib.load(images / "case_01_0000.nii.gz")
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj) + 1, image.affine), images / "case_01_0000.nii.gz")
    next(iter(store_of(nnunet_env).folder.glob("*case_02*_seg.b2nd"))).unlink()  # damaged store
    again = preprocess_datasets(plan(), [name])
    assert sorted(s.split("__")[1] for s in again.done_items) == ["case_01", "case_02"]
    assert len(again.skipped_items) == 2

    other = preprocess_datasets(plan((3.0, 4.0, 4.0)), [name])
    assert len(other.done_items) == 4


def test_scans_of_datasets_that_were_left_out_are_not_used(nnunet_env: Path) -> None:
    first, second = make_synthetic_datasets(nnunet_env / "raw", cases=2)
    preprocess_datasets(plan(), [first, second])
    preprocess_datasets(plan(), [second])
    assert {s.split("__")[0] for s in store_of(nnunet_env).scan_ids} == {second}
    assert len(preprocess_datasets(plan(), [first, second]).skipped_items) == 4


def test_a_killed_run_leaves_no_scan_of_the_old_plan_to_be_used(
    nnunet_env: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, _ = make_synthetic_datasets(nnunet_env / "raw", cases=2)
    preprocess_datasets(plan(), [name])

    def killed(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("satunet.preprocessing.run._preprocess_scan", killed)
    with pytest.raises(KeyboardInterrupt):
        preprocess_datasets(plan((5.0, 5.0, 5.0)), [name])
    with pytest.raises(DatasetError):
        store_of(nnunet_env)
    monkeypatch.undo()


def test_a_rerun_reads_no_array_and_one_listing_of_the_store(nnunet_env: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 22,000 scans, a rerun must not stat every file for itself, and must not ask cattrs for every record."""
    name, _ = make_synthetic_datasets(nnunet_env / "raw", cases=3)
    preprocess_datasets(plan(), [name])
    folder = store_of(nnunet_env).folder
    time.sleep(2.1)  # until times can be trusted
    assert len(preprocess_datasets(plan(), [name]).skipped_items) == 3
    before = (folder / "manifest.json").read_bytes(), (folder / "checked.json").read_bytes()
    listings = []
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda place: listings.append(Path(place)) or scandir(place))
    for module in ("scans", "wholeness"):
        monkeypatch.setattr(f"satunet.preprocessing.store.{module}.is_whole", lambda *_: pytest.fail("arrays are read"))
    monkeypatch.setattr("satunet.preprocessing.run.complete_record", lambda *_: pytest.fail("records are read twice"))
    assert len(preprocess_datasets(plan(), [name]).skipped_items) == 3
    assert ((folder / "manifest.json").read_bytes(), (folder / "checked.json").read_bytes()) == before
    assert 1 <= listings.count(folder) <= 4


def test_scans_of_a_run_that_did_not_end_are_not_made_again(nnunet_env: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name, _ = make_synthetic_datasets(nnunet_env / "raw", cases=3)
    time.sleep(2.1)  # until times can be trusted
    preprocess_datasets(plan(), [name])
    file = store_of(nnunet_env).folder / "manifest.json"
    whole = read_json(file)
    write_json(file, whole | {"scans": {}, "complete": False}, sealed=True)  # as a killed run leaves it
    monkeypatch.setattr("satunet.preprocessing.run._preprocess_case", lambda _: pytest.fail("a worker is asked"))
    again = preprocess_datasets(plan(), [name])
    assert len(again.skipped_items) == 3 and not again.done_items
    assert read_json(file) == whole


@pytest.mark.parametrize("known", [True, False], ids=["in the manifest", "of a run that did not end"])
@pytest.mark.parametrize("which", [".b2nd", "_seg.b2nd", "_locations.npz", ".json"])
def test_a_rerun_makes_a_scan_again_of_which_a_file_is_damaged(nnunet_env: Path, which: str, known: bool) -> None:
    name, _ = make_synthetic_datasets(nnunet_env / "raw", cases=2)
    time.sleep(2.1)  # until times can be trusted
    preprocess_datasets(plan(), [name])
    store = store_of(nnunet_env)
    scan = store.scan_ids[1]
    file = store.folder / f"{scan}{which}"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1  # the size is the same
    if which == ".json":
        content = bytearray(file.read_bytes().replace(b'"modality": "ct"', b'"modality": "us"', 1))  # still a record
    sound, time_ns = file.read_bytes(), file.stat().st_mtime_ns
    file.write_bytes(content)
    os.utime(file, ns=(time_ns, time_ns))
    if not known:
        manifest = store.folder / "manifest.json"
        write_json(manifest, read_json(manifest) | {"scans": {}, "complete": False}, sealed=True)
    again = preprocess_datasets(plan(), [name])
    assert again.done_items == [scan]
    assert file.read_bytes() == sound
    assert verify_store(store.folder).failures == {}


def spoil(raw: Path, name: str) -> dict[str, str]:
    """Six bad cases among eight; case → a part of the reason that must be given."""
    images, labels = raw / name / "imagesTr", raw / name / "labelsTr"

    def change(case: int, change_image=None, change_label=None) -> None:  # type: ignore[no-untyped-def]
        for path, function in (
            (images / f"case_{case:02d}_0000.nii.gz", change_image),
            (labels / f"case_{case:02d}.nii.gz", change_label),
        ):
            if function is not None:
                loaded = nib.load(path)
                array, affine = function(np.asarray(loaded.dataobj).copy(), loaded.affine.copy())
                nib.save(nib.Nifti1Image(array, affine), path)

    def put(array: np.ndarray, value: float) -> np.ndarray:
        array[3, 3, 3] = value
        return array

    corrupt = images / "case_00_0000.nii.gz"
    corrupt.write_bytes(corrupt.read_bytes()[:2000])
    change(1, None, lambda a, m: (a[:-1], m))
    change(2, None, lambda a, m: (put(a, 77), m))
    change(3, lambda a, m: (put(a.astype(np.float32), np.nan), m))
    change(4, lambda a, m: (np.stack([a, a], axis=-1), m))
    (images / "case_05_0000.nii.gz").unlink()
    (labels / "case_06.nii.gz").unlink()
    return {
        "case_00": "cannot be read",
        "case_01": "another grid",
        "case_02": "[77]",
        "case_03": "NaN",
        "case_04": "three axes",
        "case_05": "case_05_0000.nii.gz: no such file",
        "case_06": "case_06.nii.gz: no such file",
    }


@pytest.mark.parametrize("processes", [1, 2])
def test_every_bad_case_is_named_and_the_rest_is_done(nnunet_env: Path, processes: int) -> None:
    name, good = make_synthetic_datasets(nnunet_env / "raw", cases=8)
    reasons = spoil(nnunet_env / "raw", name)
    empty = nnunet_env / "raw" / "Dataset903_Empty"
    shutil.copytree(nnunet_env / "raw" / good, empty)
    shutil.rmtree(empty / "imagesTr")
    shutil.rmtree(empty / "labelsTr")
    summary = plan_and_preprocess(
        [name, good, empty.name], PlanOptions(spacing_mm=(4, 4, 4), gpu_memory_gb=1), processes=processes
    )
    assert summary.exit_code == 1
    assert len(summary.done_items) == 8 + 1
    found = dict(summary.failures)
    assert "no training images" in found.pop(empty.name)
    assert {scan.split("__")[1] for scan in found} == set(reasons)
    for scan, reason in found.items():
        assert reasons[scan.split("__")[1]] in reason, reason
    store = store_of(nnunet_env)
    assert len(store.scan_ids) == 9
    folds = json.loads((store.folder.parent / "splits_final.json").read_text())
    assert set(folds[0]["train"]) | set(folds[0]["val"]) == set(store.scan_ids)


def test_a_scan_that_went_bad_is_taken_out_of_the_store(nnunet_env: Path) -> None:
    name, _ = make_synthetic_datasets(nnunet_env / "raw", cases=3)
    preprocess_datasets(plan(), [name])
    image = nnunet_env / "raw" / name / "imagesTr" / "case_01_0000.nii.gz"
    image.write_bytes(b"no image")
    summary = preprocess_datasets(plan(), [name])
    assert [s.split("__")[1] for s in summary.failures] == ["case_01"]
    store = store_of(nnunet_env)
    assert len(store.scan_ids) == 2
    assert not list(store.folder.glob("*case_01*"))


def test_a_bad_channel_does_not_take_the_others_with_it(nnunet_env: Path) -> None:
    name, _ = make_synthetic_datasets(nnunet_env / "raw", cases=3)
    folder = nnunet_env / "raw" / name
    content = json.loads((folder / "dataset.json").read_text())
    (folder / "dataset.json").write_text(json.dumps(content | {"channel_names": {"0": "T1", "1": "T2"}}))
    for case in (0, 1):
        source = folder / "imagesTr" / f"case_{case:02d}_0000.nii.gz"
        shutil.copyfile(source, source.with_name(f"case_{case:02d}_0001.nii.gz"))
    summary = preprocess_datasets(plan(), [name])
    assert len(summary.done_items) == 5
    assert [s.split("__")[1:] for s in summary.failures] == [["case_02", "0001"]]


def test_nothing_usable_at_all_is_an_error_of_the_call(nnunet_env: Path) -> None:
    name, _ = make_synthetic_datasets(nnunet_env / "raw", cases=2)
    for file in (nnunet_env / "raw" / name / "imagesTr").iterdir():
        file.write_bytes(b"")
    with pytest.raises(DatasetError, match="could be preprocessed"):
        preprocess_datasets(plan(), [name])


def test_one_scan_in_two_datasets_is_one_person_in_every_fold(nnunet_env: Path) -> None:
    first, _ = make_synthetic_datasets(nnunet_env / "raw", cases=6)
    second = nnunet_env / "raw" / "Dataset903_Again"
    shutil.copytree(nnunet_env / "raw" / first, second)
    for part, ending in (("imagesTr", "_0000.nii.gz"), ("labelsTr", ".nii.gz")):
        for number in range(6):  # the same scans under other names, in another order
            (second / part / f"case_{number:02d}{ending}").rename(second / part / f"x{5 - number}{ending}")
    shared = verify_datasets([first, second.name])
    assert shared.failures == {}
    assert "6 pairs of cases belong to one person, matched by voxels, such as" in shared.notes["people"]
    options = PlanOptions(spacing_mm=(4, 4, 4), gpu_memory_gb=1)
    summary = plan_and_preprocess([first, second.name], options)
    assert summary.exit_code == 0
    assert "one person, matched by voxels" in summary.notes["people"]
    folds = json.loads((nnunet_env / "preprocessed" / "Dataset900_Unified" / "splits_final.json").read_text())
    for fold in folds:
        assert fold["val"]
        for number in range(6):
            sides = {part for part in fold for scan in (f"{first}__case_{number:02d}__0000", f"{second.name}__x{5 - number}__0000") if scan in fold[part]}  # fmt: skip
            assert len(sides) == 1


def test_a_broken_split_ends_the_call_before_anything_is_done(nnunet_env: Path) -> None:
    name, _ = make_synthetic_datasets(nnunet_env / "raw", cases=2)
    (nnunet_env / "raw" / name / "splits_final.json").write_text("[{")
    with pytest.raises(DatasetError, match=r"splits_final\.json"):
        plan_and_preprocess([name], PlanOptions(spacing_mm=(4, 4, 4), gpu_memory_gb=1))
    assert not list((nnunet_env / "preprocessed").rglob("*.b2nd"))
