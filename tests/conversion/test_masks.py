"""The forms in which SAT-DS's masks are published: other ids, stacks, files a class, packed arrays, overlaps."""

from __future__ import annotations

import json
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from satunet.conversion import convert, read_sat_ds
from satunet.conversion.classes import published_table
from satunet.datasets.catalogue import load_catalogue
from satunet.datasets.raw import load_dataset
from satunet.labels import build_label_space
from tests.conversion.layouts import AFFINE, SHAPE, boxes, read, row, save, scan, write_rows


@pytest.mark.parametrize(("dataset", "labels", "stored"), [
    ("ACDC", ["left heart ventricle", "right heart ventricle", "myocardium", "heart ventricle"], [3, 1, 2]),
    ("LUNA16", ["left lung", "right lung", "trachea", "lung"], [3, 4, 5]),
    ("MM_WHS_CT", ["myocardium", "left heart atrium", "left heart ventricle", "right heart atrium",
                   "right heart ventricle", "heart ascending aorta", "pulmonary artery"],
     [205, 420, 500, 550, 600, 820, 850]),
])  # fmt: skip
def test_ids_of_the_makers_become_the_published_ones(
    nnunet_env: Path, source: Path, dataset: str, labels: list[str], stored: list[int]
) -> None:
    truth = boxes(len(stored))
    raw = np.array([0, *stored])[truth].astype(np.int16)
    save(source / "image.nii.gz", scan())
    save(source / "mask.nii.gz", raw)
    jsonl = write_rows(source / f"{dataset}.jsonl", [row(dataset, "image.nii.gz", "mask.nii.gz", labels)])
    assert convert(read_sat_ds(jsonl)).failures == {}
    record = load_catalogue().by_name(dataset)
    assert record is not None
    made = read(nnunet_env / "raw" / record.folder / "labelsTr" / "image.nii.gz")
    for place, name in enumerate(labels[: len(stored)], start=1):
        np.testing.assert_array_equal(made == record.labels[name], truth == place)


def stack(first: bool) -> tuple[np.ndarray, list[str]]:
    """Four tracts inside a brain, as BrainPTM has them."""
    names = ["Left Optic Radiation", "Right Optic Radiation", "Left Corticospinal Tract", "Right Corticospinal Tract",
             "Brain"]  # fmt: skip
    masks = np.stack([boxes(4) == i for i in (1, 2, 3, 4)] + [np.ones(SHAPE, bool)])
    masks[4, 0] = False
    return (masks if first else np.moveaxis(masks, 0, -1)).astype(np.uint8), names


@pytest.mark.parametrize("first", [True, False])
def test_stacks_of_masks(nnunet_env: Path, source: Path, first: bool) -> None:
    masks, names = stack(first)
    save(source / "T1.nii.gz", scan())
    save(source / "label.nii.gz", masks)
    content = row("BrainPTM", "T1.nii.gz", "label.nii.gz", [*names, "Optic Radiation"], modality="MRI T1", patient_id="case_7")  # fmt: skip
    assert convert(read_sat_ds(write_rows(source / "BrainPTM.jsonl", [content]))).failures == {}
    dataset = load_dataset(9)
    assert dataset.modalities == ("mri",)
    made = read(dataset.folder / "labelsTr/case_7.nii.gz")
    ids = build_label_space([dataset]).ids[dataset.name]
    channels = masks if first else np.moveaxis(masks, -1, 0)
    for name, mask in zip(names, channels, strict=True):
        np.testing.assert_array_equal(np.isin(made, ids[name.lower()]), mask > 0)


def test_overlaps_of_a_dataset_nobody_knows_are_kept_to_the_voxel(nnunet_env: Path, source: Path) -> None:
    """Three overlapping classes, other overlaps in each case: each combination gets an id, and no class loses any."""
    rng = np.random.default_rng(3)
    names = ["organ", "part of it", "vessel"]
    truth = {}
    rows = []
    for number in range(4):
        masks = rng.random((3, *SHAPE)) < 0.3 * (number + 1) / 4
        if number == 0:
            masks[1:] = False
        truth[f"case_{number}"] = masks
        save(source / f"case_{number}.nii.gz", scan(number))
        save(source / f"mask_{number}.nii.gz", masks.astype(np.uint8))
        rows.append(row("Mine", f"case_{number}.nii.gz", f"mask_{number}.nii.gz", names))
    jsonl = write_rows(source / "Mine.jsonl", rows)
    for processes in (1, 2):
        summary = convert(read_sat_ds(jsonl, dataset_id=80), processes=processes)
        assert summary.failures == {}
    assert len(summary.skipped_items) == 4
    dataset = load_dataset("Dataset080_Mine")
    assert max(dataset.label_ids) == 7
    for name, masks in truth.items():
        made = read(dataset.folder / "labelsTr" / f"{name}.nii.gz")
        for label, mask in zip(names, masks, strict=True):
            np.testing.assert_array_equal(np.isin(made, dataset.labels[label]), mask)
    described = json.loads((dataset.folder / "dataset.json").read_text())
    assert len(described["regions_class_order"]) == 3
    # ids that are on disk stay when a case with a new combination comes
    save(source / "case_9.nii.gz", scan(9))
    save(source / "mask_9.nii.gz", np.ones((3, *SHAPE), np.uint8))
    write_rows(jsonl, [*rows, row("Mine", "case_9.nii.gz", "mask_9.nii.gz", names)])
    assert convert(read_sat_ds(jsonl, dataset_id=80)).done_items == ["case_9"]
    assert load_dataset(80).labels == dataset.labels


@pytest.mark.parametrize("form", ["stack", "map"])
@pytest.mark.parametrize(
    "orders",
    [
        (["liver", "spleen"], ["spleen", "liver"]),
        (["liver", "spleen"], ["spleen"]),
        (["spleen"], ["liver", "spleen"]),
        (["liver"], ["spleen"]),
    ],
)
def test_a_row_says_itself_which_classes_its_masks_are(
    nnunet_env: Path, source: Path, form: str, orders: tuple[list[str], list[str]]
) -> None:
    truth = {"liver": boxes(2) == 1, "spleen": boxes(2) == 2}
    rows = []
    for number, order in enumerate(orders):
        stacked = np.stack([truth[name] for name in order])
        array = stacked if form == "stack" else (stacked * np.arange(1, len(order) + 1)[:, None, None, None]).sum(0)
        save(source / f"case_{number}.nii.gz", scan(number))
        save(source / f"mask_{number}.nii.gz", array.astype(np.uint8))
        rows.append(row("Mine", f"case_{number}.nii.gz", f"mask_{number}.nii.gz", order))
    read_rows = read_sat_ds(write_rows(source / "Mine.jsonl", rows), dataset_id=80)
    partial = {tuple(sorted(order)) for order in orders} != {("liver", "spleen")}
    assert ("labels" in read_rows.notes) == partial  # a class that a row does not list counts as absent
    assert convert(read_rows).failures == {}
    dataset = load_dataset(80)
    for number, order in enumerate(orders):
        made = read(dataset.folder / "labelsTr" / f"case_{number}.nii.gz")
        for name, ids in dataset.labels.items():
            np.testing.assert_array_equal(np.isin(made, ids), truth[name] & (name in order), err_msg=name)


def test_ids_that_a_row_does_not_list_are_refused(nnunet_env: Path, source: Path) -> None:
    rows = []
    for number, order in enumerate((["liver", "spleen"], ["spleen"])):
        save(source / f"case_{number}.nii.gz", scan(number))
        save(source / f"map_{number}.nii.gz", boxes(2))
        rows.append(row("Mine", f"case_{number}.nii.gz", f"map_{number}.nii.gz", order))
    summary = convert(read_sat_ds(write_rows(source / "Mine.jsonl", rows), dataset_id=80))
    assert list(summary.failures) == ["case_1"]
    assert "label ids [2] belong to no class; allowed are [1]" in summary.failures["case_1"]


def test_packed_arrays(nnunet_env: Path, source: Path) -> None:
    """``renorm_image`` and a cut mask a class, in the orientation in which SAT trains on the dataset."""
    truth = boxes(3, (6, 7, 5))
    image = np.random.default_rng(0).normal(size=(1, *truth.shape)).astype(np.float32)
    np.save(source / "12.npy", image)
    names = ["cervical vertebrae 1 (c1)", "cervical vertebrae 2 (c2)", "cervical vertebrae 3 (c3)", "lumbar vertebrae"]
    cuts: list[object] = []
    (source / "seg/12").mkdir(parents=True)
    for i, name in enumerate(names):
        inside = np.argwhere(truth == i + 1)
        if not len(inside):
            cuts.append(False)
            continue
        low, high = inside.min(0), inside.max(0) + 1
        cuts.append([*map(int, low), *map(int, high)])
        window = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
        np.save(source / "seg/12" / f"{name}.npy", (truth == i + 1)[window])
    content = row("VerSe", "gone.nii.gz", "gone.nii.gz", names, patient_id="sub-verse004") | {
        "renorm_image": "12.npy", "renorm_segmentation_dir": "seg/12", "renorm_y1x1z1_y2x2z2": cuts,
    }  # fmt: skip
    assert convert(read_sat_ds(write_rows(source / "VerSe.jsonl", [content]))).failures == {}
    folder = nnunet_env / "raw/Dataset070_VerSe"
    made = nib.load(folder / "imagesTr/sub-verse004_0000.nii.gz")
    assert "".join(nib.aff2axcodes(made.affine)) == "ASR"
    np.testing.assert_allclose(made.header.get_zooms(), (1, 1, 3))
    np.testing.assert_array_equal(made.get_fdata(dtype=np.float32), image[0])
    np.testing.assert_array_equal(read(folder / "labelsTr/sub-verse004.nii.gz"), truth)


def test_a_folder_with_a_file_a_class(nnunet_env: Path, source: Path) -> None:
    truth = boxes(3)
    save(source / "s0001/ct.nii.gz", scan())
    names = ["liver", "spleen", "left kidney", "right kidney"]
    for i, name in enumerate(names[:3], start=1):
        save(source / "s0001/segmentations" / f"{name}.nii.gz", (truth == i).astype(np.uint8))
    jsonl = write_rows(source / "Mine.jsonl", [row("Mine", "s0001/ct.nii.gz", "s0001/segmentations", names, patient_id="s0001")])  # fmt: skip
    assert convert(read_sat_ds(jsonl, dataset_id=81)).failures == {}
    np.testing.assert_array_equal(read(nnunet_env / "raw/Dataset081_Mine/labelsTr/s0001.nii.gz"), truth)


def test_other_axes_are_turned_and_other_places_refused(nnunet_env: Path, source: Path) -> None:
    truth = boxes(4)
    liver = ["liver", "kidney", "spleen", "pancreas"]
    turned = nib.as_closest_canonical(nib.Nifti1Image(truth, AFFINE))
    moved = AFFINE.copy()
    moved[:3, 3] += 4
    save(source / "a.nii.gz", scan())
    nib.save(turned, source / "turned.nii.gz")
    save(source / "moved.nii.gz", truth, moved)
    rows = [row("AbdomenCT1K", "a.nii.gz", "turned.nii.gz", liver)]
    assert convert(read_sat_ds(write_rows(source / "x.jsonl", rows))).failures == {}
    made = nnunet_env / "raw/Dataset001_AbdomenCT1K/labelsTr/a.nii.gz"
    np.testing.assert_array_equal(read(made), truth)
    rows = [row("AbdomenCT1K", "a.nii.gz", "moved.nii.gz", liver)]
    source_of = read_sat_ds(write_rows(source / "x.jsonl", rows))
    summary = convert(source_of)
    assert "--trust_shape" in summary.failures["a"] and "moved.nii.gz" in summary.failures["a"]
    assert not made.exists()
    assert convert(source_of, trust_shape=True).failures == {}
    np.testing.assert_array_equal(read(made), truth)


def test_one_class_may_be_soft_or_scaled(nnunet_env: Path, source: Path) -> None:
    truth = boxes(1)
    rows = []
    for name, mask in (("scaled", truth * 255), ("soft", truth * np.float32(0.9) + np.float32(0.01))):
        save(source / f"{name}.nii.gz", scan())
        save(source / f"{name}_mask.nii.gz", mask)
        rows.append(row("CHAOS_CT", f"{name}.nii.gz", f"{name}_mask.nii.gz", ["liver"]))
    assert convert(read_sat_ds(write_rows(source / "CHAOS_CT.jsonl", rows))).failures == {}
    for name in ("scaled", "soft"):
        np.testing.assert_array_equal(read(nnunet_env / f"raw/Dataset017_CHAOSCT/labelsTr/{name}.nii.gz"), truth)


def test_a_stack_is_read_in_slabs(nnunet_env: Path, source: Path) -> None:
    names = [f"structure {i}" for i in range(70)]
    masks = np.stack([boxes(70) == i + 1 for i in range(70)]).astype(np.uint8)
    save(source / "a.nii.gz", scan())
    save(source / "m.nii.gz", masks)
    started = time.monotonic()
    assert convert(read_sat_ds(write_rows(source / "Mine.jsonl", [row("Mine", "a.nii.gz", "m.nii.gz", names)]), dataset_id=82)).failures == {}  # fmt: skip
    assert time.monotonic() - started < 20
    np.testing.assert_array_equal(read(nnunet_env / "raw/Dataset082_Mine/labelsTr/a.nii.gz"), boxes(70))


def test_a_published_table_paints_what_its_ids_cannot_tell() -> None:
    record = load_catalogue().by_name("HAN_Seg")
    assert record is not None
    table = published_table(("Left Carotid artery", "Mandible", "Carotid artery"), record)
    assert table.id_of(frozenset(["Left Carotid artery", "Carotid artery"])) == 4
    assert table.id_of(frozenset(["Left Carotid artery", "Carotid artery", "Mandible"])) in (4, 19)
    assert table.id_of(frozenset()) == 0
