from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from nnunetv2.utilities.dataset_name_id_conversion import convert_id_to_dataset_name
from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets

from satunet.cli import run
from satunet.datasets.checks import check_case, check_dataset
from satunet.datasets.paths import all_dataset_names, dataset_name_of, preprocessed_dir, raw_dir
from satunet.datasets.raw import load_dataset, modality_of_channel, scan_id, split_scan_id
from satunet.errors import DatasetError, DatasetNotFoundError, PathsNotSetError


def make(folder: Path, **changes: object) -> Path:
    content = {
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, "liver": 1, "kidneys": [2, 3], "ignore": 4},
        "numTraining": 1,
        "file_ending": ".nii.gz",
    } | changes
    folder.mkdir(parents=True)
    (folder / "dataset.json").write_text(json.dumps(content))
    for sub in ("imagesTr", "labelsTr"):
        (folder / sub).mkdir()
    return folder


def save(path: Path, value: int = 0) -> None:
    nib.save(nib.Nifti1Image(np.full((3, 3, 3), value, np.uint8), np.eye(4)), path)


def test_a_dataset_json_is_understood(nnunet_env: Path) -> None:
    folder = make(nnunet_env / "raw" / "Dataset007_X")
    save(folder / "imagesTr" / "a_b_0000.nii.gz")
    save(folder / "labelsTr" / "a_b.nii.gz", 3)
    dataset = load_dataset("7")
    assert dataset.modalities == ("ct",)
    assert dataset.labels == {"liver": (1,), "kidneys": (2, 3)}
    assert dataset.ignore_label == 4
    assert dataset.label_ids == {1, 2, 3, 4}
    (case,) = dataset.training_cases()
    assert case.identifier == "a_b"
    assert check_case(dataset, case) == []
    assert dataset.test_cases() == ()


def test_a_missing_channel_and_a_missing_label_are_named(nnunet_env: Path) -> None:
    folder = make(nnunet_env / "raw" / "Dataset007_X", channel_names={"0": "T1", "1": "T2"})
    save(folder / "imagesTr" / "a_0000.nii.gz")
    save(folder / "labelsTr" / "b.nii.gz")
    dataset = load_dataset(7)
    faults = {c.identifier: [str(f) for f in check_case(dataset, c)] for c in dataset.training_cases()}
    assert any("a_0001.nii.gz" in f for f in faults["a"])
    assert any("labelsTr/a.nii.gz" in f for f in faults["a"])
    assert len(faults["b"]) == 2


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"labels": {"background": 0}}, "nothing but the background"),
        ({"labels": {"liver": "one"}}, "'liver' must be one id"),
        ({"labels": []}, "'labels' must map"),
        ({"labels": {"background": 0, "liver": 1, "spleen": 1}}, "'liver' and 'spleen' have the same id 1"),
        ({"channel_names": {}}, "'channel_names' must map"),
    ],
)
def test_a_malformed_dataset_json_says_what_is_wrong(nnunet_env: Path, changes: dict, reason: str) -> None:
    make(nnunet_env / "raw" / "Dataset007_X", **changes)
    with pytest.raises(DatasetError, match=reason):
        load_dataset(7)


def test_an_empty_folder_and_a_broken_json(nnunet_env: Path) -> None:
    folder = make(nnunet_env / "raw" / "Dataset007_X")
    with pytest.raises(DatasetError, match="no training images"):
        load_dataset(7).training_cases()
    (folder / "dataset.json").write_text("{")
    with pytest.raises(DatasetError, match=r"dataset\.json"):
        load_dataset(7)


def test_datasets_are_found_by_id_and_name(nnunet_env: Path) -> None:
    make(nnunet_env / "raw" / "Dataset007_X")
    make(nnunet_env / "raw" / "Dataset010_Y")
    (nnunet_env / "raw" / "notes").mkdir()
    (nnunet_env / "raw" / "Dataset011_NoFolder").touch()
    (nnunet_env / "raw" / "Dataset012_Gone").symlink_to(nnunet_env / "nowhere")
    (nnunet_env / "raw" / "Dataset013_Loop").symlink_to(nnunet_env / "raw" / "Dataset013_Loop")
    assert all_dataset_names() == ("Dataset007_X", "Dataset010_Y")
    assert dataset_name_of("007") == dataset_name_of(7) == dataset_name_of("Dataset007_X") == "Dataset007_X"
    with pytest.raises(DatasetNotFoundError, match=r"id 8.*Dataset007_X, Dataset010_Y"):
        dataset_name_of(8)
    make(nnunet_env / "elsewhere")
    (nnunet_env / "raw" / "Dataset014_Linked").symlink_to(nnunet_env / "elsewhere")
    assert dataset_name_of(14) == "Dataset014_Linked"
    make(nnunet_env / "raw" / "Dataset007_Z")
    with pytest.raises(DatasetNotFoundError, match="not unique"):
        dataset_name_of(7)


def test_missing_variables_are_explained(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("nnUNet_raw", raising=False)
    with pytest.raises(PathsNotSetError, match=r"nnUNet_raw is not set.*export nnUNet_raw="):
        raw_dir()
    monkeypatch.setenv("nnUNet_raw", str(tmp_path / "none"))
    with pytest.raises(PathsNotSetError, match="not a folder"):
        raw_dir()
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path / "file" / "x"))
    with pytest.raises(PathsNotSetError, match="cannot be made"):
        preprocessed_dir()


@pytest.mark.parametrize(
    ("name", "modality"),
    [
        ("CT", "ct"),
        ("T1w MRI", "mri"),
        ("FLAIR", "mri"),
        ("PET (SUV)", "pet"),
        ("noNorm", "other"),
        ("rescale_to_0_1", "other"),
    ],
)
def test_modalities_by_channel_name(name: str, modality: str) -> None:
    assert modality_of_channel(name) == modality


def test_a_hint_helps_only_where_the_name_says_nothing() -> None:
    assert modality_of_channel("0", hint="Dataset001_Abdomen CT") == "ct"
    assert modality_of_channel("CT", hint="MRI and PET") == "ct"
    assert modality_of_channel("0", hint="CT and MR") == "other"


def test_scan_ids_are_invertible() -> None:
    assert split_scan_id(scan_id("Dataset007_X", "a__b_1", 3)) == ("Dataset007_X", "a__b_1", 3)
    with pytest.raises(ValueError, match="not the name of a scan"):
        split_scan_id("a_0000")


def test_the_real_datasets_have_no_faults(real_raw: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("nnUNet_raw", str(real_raw))
    monkeypatch.delenv("nnUNet_preprocessed", raising=False)
    names = all_dataset_names()
    assert len(names) == 27
    cases = [(d, c) for d in map(load_dataset, names) for c in d.training_cases()]
    assert len(cases) == 127
    assert [f for d, c in cases for f in check_case(d, c)] == []


@pytest.mark.parametrize("name", ["Dataset1000_X", "Dataset007_PET+CT", "Dataset007_My Data", "Dataset012_a-b.c"])
def test_every_name_that_nnunetv2_reads_is_a_dataset(nnunet_env: Path, name: str) -> None:
    folder = make(nnunet_env / "raw" / name)
    save(folder / "imagesTr" / "a_0000.nii.gz")
    save(folder / "labelsTr" / "a.nii.gz", 1)
    assert all_dataset_names() == (name,)
    number = int(name[7:].partition("_")[0])
    assert dataset_name_of(number) == name
    assert load_dataset(number).id == number
    assert convert_id_to_dataset_name(number) == name


def test_files_listed_by_path_are_cases(nnunet_env: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "more").mkdir(parents=True)
    monkeypatch.setenv("ELSEWHERE", str(elsewhere))
    listed = {
        "b": {"images": ["$ELSEWHERE/b.nii.gz"], "label": str(elsewhere / "more" / "b_seg.nii.gz")},
        "a": {"images": ["../../elsewhere/a.nii.gz"], "label": "$ELSEWHERE/more/a_seg.nii.gz"},
    }
    folder = make(nnunet_env / "raw" / "Dataset007_X", dataset=listed, numTraining=2)
    for part in ("imagesTr", "labelsTr"):
        (folder / part).rmdir()
    for case in "ab":
        save(elsewhere / f"{case}.nii.gz")
        save(elsewhere / "more" / f"{case}_seg.nii.gz", 1)
    dataset = load_dataset(7)
    assert dataset.has_scans
    cases = dataset.training_cases()
    assert [c.identifier for c in cases] == ["a", "b"]
    assert [check_case(dataset, case) for case in cases] == [[], []]
    assert check_dataset(dataset) == []
    theirs = get_filenames_of_train_images_and_targets(str(folder))
    for case in cases:
        assert case.label is not None
        assert str(case.label.resolve()) == theirs[case.identifier]["label"]
        assert [str(path.resolve()) for path in case.images] == theirs[case.identifier]["images"]
    (folder / "dataset.json").write_text(
        json.dumps(json.loads((folder / "dataset.json").read_text()) | {"dataset": {"a": {"images": [], "label": "x"}}})
    )
    with pytest.raises(DatasetError, match="'a' has 0 images for 1 channels"):
        load_dataset(7).training_cases()


def test_channels_without_numbers_are_taken_in_their_order(nnunet_env: Path) -> None:
    make(nnunet_env / "raw" / "Dataset007_X", channel_names={"CT": "CT"})
    dataset = load_dataset(7)
    assert dataset.channel_names == ("CT",)
    assert "no channel numbers" in dataset.remarks[0]


@pytest.mark.parametrize("ending", [".png", ".tif", ".gipl"])
def test_a_format_that_is_not_read_is_named(nnunet_env: Path, ending: str) -> None:
    folder = make(nnunet_env / "raw" / "Dataset007_X", file_ending=ending)
    (folder / "imagesTr" / f"a_0000{ending}").write_bytes(b"x")
    with pytest.raises(DatasetError, match=rf"file_ending is '\{ending}'; satunet reads volumes in \.nii\.gz"):
        load_dataset(7).training_cases()


def test_voxels_behind_a_header_are_no_strays_and_a_gap_of_millions_is_told(nnunet_env: Path) -> None:
    labels = {"background": 0, "liver": 1, "visual area": 614_454_277}
    folder = make(nnunet_env / "raw" / "Dataset007_X", file_ending=".mhd", labels=labels)
    for part, name in (("imagesTr", "a_0000"), ("labelsTr", "a")):
        image = sitk.GetImageFromArray(np.ones((3, 4, 5), np.uint8))
        sitk.WriteImage(image, str(folder / part / f"{name}.mhd"))
        assert (folder / part / f"{name}.raw").is_file()
    (folder / "imagesTr" / "other.raw").write_bytes(b"x")
    faults = check_dataset(load_dataset(7))
    assert any("1 files belong to no case, such as other.raw" in fault for fault in faults)
    assert any("missing are [2, 3, 4, 5, 6, 7, 8, 9, 10, 11]" in fault for fault in faults)
    assert len(faults) == 2


def test_whatever_is_wrong_with_one_dataset_the_others_are_listed(
    nnunet_env: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    good = make(nnunet_env / "raw" / "Dataset007_X")
    save(good / "imagesTr" / "a_0000.nii.gz")
    save(good / "labelsTr" / "a.nii.gz", 1)
    make(nnunet_env / "raw" / "Dataset008_Y", modalities=7)
    make(nnunet_env / "raw" / "Task005_Old")
    assert run(["datasets", "--present", "--json"]) == 1
    rows = {row["dataset"]: row for row in json.loads(capfd.readouterr().out)}
    assert "problem" not in rows["Dataset007_X"]
    assert "modalities" in rows["Dataset008_Y"]["problem"]
    assert "no command reads it" in rows["Task005_Old"]["problem"]
    run(["fingerprint", "-d", "all", "--processes", "1"])
    assert "left out, because datasets are named DatasetNNN_Name: Task005_Old" in " ".join(
        capfd.readouterr().err.split()
    )
