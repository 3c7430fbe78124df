"""Folders in the Decathlon's format and DICOM series, and the command that converts them all."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from satunet.cli import run
from satunet.conversion import convert, is_msd, read_dicom, read_msd
from satunet.datasets.raw import load_dataset
from satunet.errors import UserError
from satunet.images.image import read_image, read_label_map
from tests.conversion.layouts import AFFINE, boxes, read, row, save, scan, write_rows
from tests.images.test_dicom import ARRAY, write_series

ROOT = Path(__file__).resolve().parents[2]


def prostate(source: Path, cases: int = 3) -> Path:
    """Two channels in one four-dimensional file, as Task05 has them."""
    folder = source / "Task05_Prostate"
    for number in range(cases):
        both = np.stack([scan(number), scan(100 + number)], axis=-1)
        save(folder / f"imagesTr/prostate_{number:02d}.nii.gz", both)
        save(folder / f"labelsTr/prostate_{number:02d}.nii.gz", boxes(2))
    save(folder / "imagesTs/prostate_50.nii.gz", np.stack([scan(50), scan(51)], axis=-1))
    content = {
        "name": "PROSTATE", "description": "Prostate zones", "reference": "Radboud", "licence": "CC-BY-SA 4.0",
        "tensorImageSize": "4D", "modality": {"0": "T2", "1": "ADC"},
        "labels": {"0": "background", "1": "PZ", "2": "TZ"},
        "training": [{"image": f"./imagesTr/prostate_{n:02d}.nii.gz", "label": f"./labelsTr/prostate_{n:02d}.nii.gz"}
                     for n in range(cases)],
        "test": ["./imagesTs/prostate_50.nii.gz"],
    }  # fmt: skip
    (folder / "dataset.json").write_text(json.dumps(content))
    return folder


def test_channels_of_the_decathlon_are_split_and_labels_linked(nnunet_env: Path, source: Path) -> None:
    folder = prostate(source)
    assert is_msd(folder)
    assert convert(read_msd(folder)).failures == {}
    dataset = load_dataset("Dataset005_Prostate")
    assert (dataset.channel_names, dataset.modalities) == (("T2", "ADC"), ("mri", "mri"))
    assert dataset.labels == {"PZ": (1,), "TZ": (2,)}
    cases = dataset.training_cases()
    assert [case.identifier for case in cases] == ["prostate_00", "prostate_01", "prostate_02"]
    for number, case in enumerate(cases):
        for channel, seed in enumerate((number, 100 + number)):
            image = nib.load(case.images[channel])
            np.testing.assert_array_equal(np.asanyarray(image.dataobj), scan(seed))
            np.testing.assert_allclose(image.affine, AFFINE)
        assert case.label is not None and os.path.samefile(case.label, folder / f"labelsTr/{case.identifier}.nii.gz")
    assert [case.identifier for case in dataset.test_cases()] == ["prostate_50"]
    again = convert(read_msd(folder))
    assert (len(again.done_items), len(again.skipped_items)) == (0, 4)
    with pytest.raises(UserError, match="no number"):
        read_dicom(folder, dataset_id=None)


def test_it_is_what_nnunetv2_makes_of_it(nnunet_env: Path, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from nnunetv2.dataset_conversion import convert_MSD_dataset as peer

    folder = prostate(source)
    convert(read_msd(folder))
    theirs = nnunet_env / "theirs"
    theirs.mkdir()
    monkeypatch.setenv("nnUNet_raw", str(theirs))
    peer.convert_msd_dataset(str(folder), num_processes=1)
    own, other = nnunet_env / "raw/Dataset005_Prostate", theirs / "Dataset005_Prostate"
    files = sorted(str(p.relative_to(other)) for p in other.rglob("*.nii.gz"))
    assert files == sorted(str(p.relative_to(own)) for p in own.rglob("*.nii.gz"))
    for file in files:
        np.testing.assert_array_equal(read(own / file), read(other / file))
    contents = [json.loads((f / "dataset.json").read_text()) for f in (own, other)]
    assert all(contents[0][key] == contents[1][key] for key in ("labels", "channel_names", "file_ending"))


def test_dicom_series_become_cases(nnunet_env: Path, source: Path) -> None:
    for patient, uid in (("P1", "1.2.3"), ("P2", "1.2.4"), ("P3", "1.2.5")):
        write_series(source / "study" / patient / "ct", uid=uid, skip=2 if patient == "P3" else None)
    labels = source / "labels"
    image = read_image_of(source / "study/P1/ct")
    truth = (image.array > 0).astype(np.uint8)
    save(labels / "P1_ct.nii.gz", np.flip(truth, 0), flipped(image.grid.affine, truth.shape[0]))
    (labels / "dataset.json").write_text(json.dumps({"labels": {"background": 0, "bone": 1}}))
    summary = convert(read_dicom(source / "study", dataset_id=90, name="Mine", labels=labels))
    assert set(summary.failures) == {"P3_ct"}
    assert "slices" in summary.failures["P3_ct"] or "missing" in summary.failures["P3_ct"]
    dataset = load_dataset("Dataset090_Mine")
    assert dataset.modalities == ("ct",)
    case = dataset.training_cases()[0]
    made = read_image(case.images[0])
    np.testing.assert_array_equal(made.array, image.array)
    np.testing.assert_allclose(made.grid.affine, image.grid.affine, atol=1e-4)
    assert case.label is not None
    np.testing.assert_array_equal(read_label_map(case.label, grid=made.grid).array, truth)
    assert [case.identifier for case in dataset.test_cases()] == ["P2_ct"]


def test_dicom_without_labels_and_with_two_series_in_a_folder(nnunet_env: Path, source: Path) -> None:
    write_series(source / "a", uid="1.2.3")
    for file in sorted((source / "a").iterdir()):
        shutil.move(file, source / f"first_{file.name}")
    (source / "a").rmdir()
    write_series(source / "b", uid="1.2.4")
    for file in sorted((source / "b").iterdir()):
        shutil.move(file, source / f"second_{file.name}")
    (source / "b").rmdir()
    summary = convert(read_dicom(source, dataset_id=91))
    assert (summary.failures, len(summary.done_items)) == ({}, 2)
    assert "nothing can be trained" in summary.notes["labels"]
    assert len(load_dataset(91).test_cases()) == 2
    write_series(source / "mr", uid="1.2.6", modality="MR")
    with pytest.raises(UserError, match="several modalities"):
        read_dicom(source, dataset_id=91)


def test_meta_images_are_made_nifti(nnunet_env: Path, source: Path) -> None:
    """An ``.mhd`` names another file, which a link would not take along."""
    image = sitk.GetImageFromArray(ARRAY.transpose(2, 1, 0))
    image.SetSpacing((0.5, 0.6, 2.0))
    image.SetOrigin((3.0, -4.0, 5.0))
    sitk.WriteImage(image, str(source / "a.mhd"))
    sitk.WriteImage(sitk.Cast(image > 0, sitk.sitkUInt8), str(source / "a_mask.mhd"))
    jsonl = write_rows(source / "SLIVER07.jsonl", [row("SLIVER07", "a.mhd", "a_mask.mhd", ["liver"])])
    assert run(["convert", "-i", str(jsonl), "-np", "1"]) == 0
    case = load_dataset(62).training_cases()[0]
    assert case.images[0].name == "a_0000.nii.gz"
    np.testing.assert_array_equal(read(case.images[0]), ARRAY)
    made, original = read_image(case.images[0]), read_image(source / "a.mhd")
    np.testing.assert_allclose(made.grid.affine, original.grid.affine, atol=1e-5)


def test_the_command_from_downloads_to_a_plan(nnunet_env: Path, source: Path) -> None:
    """A real process: jsonl files with a bad row and a Decathlon folder, in one call; then the plan of both."""
    for n in range(3):
        save(source / f"data/ct_{n}.nii.gz", scan(n))
        save(source / f"data/mask_{n}.nii.gz", boxes(1))
    rows = [row("MSD_Spleen", f"data/ct_{n}.nii.gz", f"data/mask_{n}.nii.gz", ["spleen"]) for n in range(3)]
    write_rows(source / "jsonl/MSD_Spleen.jsonl", [*rows, row("MSD_Spleen", "data/ct_9.nii.gz", "x", ["spleen"])])
    prostate(source)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "satunet", "convert", "-np", "1", "-i", str(source / "jsonl"), str(source)]
    done = subprocess.run(command, env=environment, capture_output=True, encoding="utf-8")
    assert done.returncode == 1, done.stderr
    assert "ct_9" in done.stderr and "no such file" in done.stderr
    assert "3 to train on" in done.stderr
    assert {p.name for p in (nnunet_env / "raw").iterdir() if p.is_dir()} == {
        "Dataset005_Prostate",
        "Dataset050_MSDSpleen",
    }
    assert run(["plan", "-d", "5", "50", "-np", "1"]) == 0
    # of several inputs, only those without a number of their own take the given ones
    mine = write_rows(source / "Mine.jsonl", [row("Mine", "data/ct_0.nii.gz", "data/mask_0.nii.gz", ["x"])])
    assert run(["convert", "-np", "0", "--id", "70", "-i", str(source / "Task05_Prostate"), str(mine)]) == 0
    assert (nnunet_env / "raw/Dataset070_Mine/dataset.json").is_file()
    assert run(["convert", "-i", str(source / "nowhere")]) == 2


def read_image_of(folder: Path):  # type: ignore[no-untyped-def]
    from satunet.images.dicom import find_series, read_series

    return read_series(find_series(folder)[0])


def flipped(affine: np.ndarray, size: int) -> np.ndarray:
    turn = np.diag([-1.0, 1, 1, 1])
    turn[0, 3] = size - 1
    return affine @ turn


def test_a_task_of_nnunet_v1_has_its_channels_in_files(nnunet_env: Path, source: Path) -> None:
    folder = source / "Task500_Old"
    for case in ("a", "b"):
        for channel in range(2):
            save(folder / "imagesTr" / f"{case}_{channel:04d}.nii.gz", scan(channel))
        save(folder / "labelsTr" / f"{case}.nii.gz", boxes(1))
    save(folder / "imagesTs" / "t_0000.nii.gz", scan(0))
    save(folder / "imagesTs" / "t_0001.nii.gz", scan(1))
    content = {
        "name": "Old", "modality": {"0": "T1", "1": "T2"}, "labels": {"0": "background", "1": "lesion of liver"},
        "numTraining": 2, "tensorImageSize": "4D", "test": ["./imagesTs/t.nii.gz"],
        "training": [{"image": f"./imagesTr/{c}.nii.gz", "label": f"./labelsTr/{c}.nii.gz"} for c in "ab"],
    }  # fmt: skip
    (folder / "dataset.json").write_text(json.dumps(content))
    summary = convert(read_msd(folder))
    assert summary.failures == {}
    dataset = load_dataset(500)
    assert dataset.channel_names == ("T1", "T2")
    assert [c.identifier for c in dataset.training_cases()] == ["a", "b"]
    np.testing.assert_array_equal(read(dataset.folder / "imagesTr" / "b_0001.nii.gz"), scan(1))
    assert [c.identifier for c in dataset.test_cases()] == ["t"]


@pytest.mark.parametrize("image", ["/", "a\0b.nii.gz", f"{'n' * 300}.nii.gz"], ids=["root", "null", "long"])
def test_an_image_that_is_no_path_is_a_fault_of_its_entry(nnunet_env: Path, source: Path, image: str) -> None:
    folder = prostate(source)
    content = json.loads((folder / "dataset.json").read_text())
    content["training"][0]["image"] = image
    (folder / "dataset.json").write_text(json.dumps(content))
    dataset = read_msd(folder)
    assert len(dataset.cases) == 3
    ((entry, reason),) = dataset.faults.items()
    assert entry == str(content["training"][0]) and reason.startswith("not the entry of a scan (")


def test_channels_in_a_list_are_no_dataset_of_the_decathlon(source: Path) -> None:
    folder = prostate(source)
    content = json.loads((folder / "dataset.json").read_text())
    (folder / "dataset.json").write_text(json.dumps({**content, "modality": [5]}))
    with pytest.raises(UserError, match=r"dataset\.json: not a dataset in the Decathlon's format \(IndexError"):
        read_msd(folder)
