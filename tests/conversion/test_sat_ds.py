"""SAT-DS's jsonl files: links, splits and folds, sequences, faults, runs that are killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from satunet.conversion import convert, read_sat_ds
from satunet.datasets.catalogue import load_catalogue
from satunet.datasets.raw import load_dataset
from satunet.errors import UserError
from satunet.labels import build_label_space
from satunet.labels.build import catalogue_record
from tests.conversion.layouts import boxes, read, row, save, scan, write_rows
from tests.killing import BEFORE_RENAME

AMOS = ["spleen", "right kidney", "left kidney", "gallbladder", "esophagus", "liver", "stomach", "aorta",
        "inferior vena cava", "pancreas", "right adrenal gland", "left adrenal gland", "duodenum", "urinary bladder",
        "kidney", "adrenal gland"]  # fmt: skip


def amos(source: Path, cases: int = 4) -> Path:
    rows = []
    for number in range(cases):
        name = f"amos_{number:04d}.nii.gz"
        save(source / "data/nii/AMOS22/imagesTr" / name, scan(number))
        save(source / "data/nii/AMOS22/labelsTr" / name, boxes(14))
        rows.append(row("AMOS22_CT", f"data/nii/AMOS22/imagesTr/{name}", f"data/nii/AMOS22/labelsTr/{name}", AMOS))
    return write_rows(source / "data/jsonl/AMOS22_CT.jsonl", rows)


def test_what_is_right_already_is_linked_and_known_to_the_catalogue(nnunet_env: Path, source: Path) -> None:
    summary = convert(read_sat_ds(amos(source)))
    assert (summary.failures, len(summary.done_items)) == ({}, 4)
    folder = nnunet_env / "raw" / "Dataset003_AMOS22CT"
    for part, name in (("imagesTr", "amos_0002_0000.nii.gz"), ("labelsTr", "amos_0002.nii.gz")):
        original = source / "data/nii/AMOS22" / part / "amos_0002.nii.gz"
        assert os.path.samefile(folder / part / name, original)
    dataset = load_dataset(3)
    assert dataset.modalities == ("ct",)
    assert len(dataset.training_cases()) == 4
    record, problem = catalogue_record(dataset, load_catalogue())
    assert record is not None and problem is None
    assert set(build_label_space([dataset]).ids[dataset.name]) == {name.lower() for name in AMOS}
    assert not (folder / "splits_final.json").exists()  # a case a patient: nnU-Net's own folds do


@pytest.mark.parametrize("link", ["hard", "symbolic", "copy"])
def test_every_kind_of_link(nnunet_env: Path, source: Path, link: str) -> None:
    convert(read_sat_ds(amos(source, 1)), link=link)
    made = nnunet_env / "raw/Dataset003_AMOS22CT/imagesTr/amos_0000_0000.nii.gz"
    original = source / "data/nii/AMOS22/imagesTr/amos_0000.nii.gz"
    assert made.is_symlink() == (link == "symbolic")
    assert os.path.samefile(made, original) == (link != "copy")
    np.testing.assert_array_equal(read(made), read(original))


def test_test_patients_never_reach_training_and_a_changed_split_moves_them(nnunet_env: Path, source: Path) -> None:
    jsonl = amos(source)
    split = source / "split.json"
    folder = nnunet_env / "raw/Dataset003_AMOS22CT"

    def cases(part: str) -> list[str]:
        return sorted(p.name[:9] for p in (folder / part).glob("*.nii.gz"))

    split.write_text(json.dumps({"id_loc": -1, "train": ["amos_0000.nii.gz", "amos_0001.nii.gz"], "val": [],
                                 "test": ["amos_0003.nii.gz"]}))  # fmt: skip
    summary = convert(read_sat_ds(jsonl, split=split))
    assert cases("imagesTr") == cases("labelsTr") == ["amos_0000", "amos_0001"]
    assert cases("imagesTs") == cases("labelsTs") == ["amos_0003"]
    assert "1 scans" in summary.notes["left out by the split"]
    assert [case.identifier for case in load_dataset(3).test_cases() if case.label] == ["amos_0003"]

    split.write_text(json.dumps({"train": ["amos_0003.nii.gz"], "val": [], "test": ["amos_0001.nii.gz"]}))
    convert(read_sat_ds(jsonl, split=split))
    assert (cases("imagesTr"), cases("labelsTr")) == (["amos_0003"], ["amos_0003"])
    assert (cases("imagesTs"), cases("labelsTs")) == (["amos_0001"], ["amos_0001"])
    assert json.loads((folder / "dataset.json").read_text())["numTraining"] == 1


def test_one_bad_case_is_counted_and_the_rest_is_resumed(nnunet_env: Path, source: Path) -> None:
    jsonl = amos(source)
    bad = source / "data/nii/AMOS22/labelsTr/amos_0001.nii.gz"
    save(bad, boxes(17))
    (source / "data/nii/AMOS22/imagesTr/amos_0002.nii.gz").unlink()
    with jsonl.open("a") as file:
        file.write("{half a row\n")
    summary = convert(read_sat_ds(jsonl))
    assert set(summary.failures) == {"amos_0001", "amos_0002", "AMOS22_CT.jsonl:5"}
    assert "[15, 16, 17]" in summary.failures["amos_0001"] and str(bad) in summary.failures["amos_0001"]
    assert "no such file" in summary.failures["amos_0002"]
    assert summary.exit_code == 1
    folder = nnunet_env / "raw/Dataset003_AMOS22CT"
    assert sorted(p.name for p in (folder / "imagesTr").iterdir()) == ["amos_0000_0000.nii.gz", "amos_0003_0000.nii.gz"]

    save(bad, boxes(14))
    again = convert(read_sat_ds(jsonl))
    assert (again.done_items, sorted(again.skipped_items)) == (["amos_0001"], ["amos_0000", "amos_0003"])


KILLED = f"""{BEFORE_RENAME}
from satunet.conversion import convert, read_sat_ds
convert(read_sat_ds(pathlib.Path(sys.argv[2]), split=pathlib.Path(sys.argv[3])))
"""


@pytest.mark.parametrize("renames", [1, 5])
def test_a_conversion_that_is_killed_leaves_no_dataset_and_goes_on(
    nnunet_env: Path, source: Path, renames: int
) -> None:
    """Also a second one, with another split: no test patient of it is left in training."""
    jsonl, split = amos(source), source / "split.json"
    names = [f"amos_{i:04d}.nii.gz" for i in range(4)]
    split.write_text(json.dumps({"train": names[2:], "val": [], "test": names[:2]}))
    convert(read_sat_ds(jsonl, split=split))
    split.write_text(json.dumps({"train": names[:2], "val": [], "test": names[2:]}))
    command = [sys.executable, "-c", KILLED, str(renames), str(jsonl), str(split)]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    assert subprocess.run(command, env=environment, check=False).returncode == -signal.SIGKILL
    folder = nnunet_env / "raw/Dataset003_AMOS22CT"
    assert not (folder / "dataset.json").exists()
    assert not {p.name[:9] for p in (folder / "imagesTr").iterdir()} & {"amos_0002", "amos_0003"}
    again = convert(read_sat_ds(jsonl, split=split))
    assert len(again.skipped_items) == (renames - 1) // 3  # classes.json is one, a case three
    assert len(again.skipped_items) + len(again.done_items) == 4
    assert [c.identifier for c in load_dataset(3).training_cases()] == ["amos_0000", "amos_0001"]
    assert not list(folder.rglob(".tmp-*"))


def test_a_dataset_that_was_not_converted_is_not_touched(nnunet_env: Path, source: Path) -> None:
    folder = nnunet_env / "raw/Dataset003_AMOS22CT"
    folder.mkdir()
    (folder / "dataset.json").write_text("{}")
    with pytest.raises(UserError, match="not converted"):
        convert(read_sat_ds(amos(source)))
    assert (folder / "dataset.json").read_text() == "{}"


def test_every_published_jsonl_is_understood(shared_dir: Path, tmp_path: Path) -> None:
    """All 72: each class of each row has published ids, and with the published split no patient is in two parts."""
    heads = sorted((shared_dir / "reference/sat_ds/jsonl_head").glob("*.jsonl"))
    assert len(heads) == 72
    for head in heads:
        first = json.loads(head.read_text().splitlines()[0])
        here = tmp_path / first["image"]
        here.parent.mkdir(parents=True, exist_ok=True)
        if not here.exists():
            here.touch()
        source = read_sat_ds(head, root=tmp_path, split=shared_dir / "reference/sat_ds/split_json")
        record = load_catalogue().by_name(first["dataset"])
        assert record is not None and source.name == record.folder
        assert not source.faults
        assert source.modalities == (record.modality,)
        assert source.cases
        # dataset.json says what the published one says; ids of no class are those that SAT skips, too
        published = json.loads((shared_dir / "reference/sat_ds/datasets" / source.name / "dataset.json").read_text())
        assert source.table.dataset_labels() == published["labels"]
        assert dict(enumerate(source.channel_names)) == {int(k): v for k, v in published["channel_names"].items()}
        assert source.extra["overwrite_image_reader_writer"] == published["overwrite_image_reader_writer"]
        nameless = {label for label, members in source.table.members.items() if not members}
        assert nameless <= {label for name, label in record.labels.items() if name == "rectum"}, head


def brats(source: Path, patients: int = 6) -> Path:
    labels = ["necrotic brain tumor core", "brain edema", "enhancing brain tumor", "brain tumor"]
    rows = []
    for number in range(patients):
        folder = f"BraTS-GLI-{number:05d}-000"
        save(source / folder / f"{folder}-seg.nii.gz", boxes(3))
        for place, sequence in enumerate(("t1n", "t1c", "t2w", "t2f")):
            name = f"{folder}/{folder}-{sequence}.nii.gz"
            save(source / name, scan(10 * number + place))
            rows.append(row("BraTS2023_GLI", name, f"{folder}/{folder}-seg.nii.gz", labels, modality="MRI", patient_id=folder))  # fmt: skip
    return write_rows(source / "BraTS2023_GLI.jsonl", rows)


def test_sequences_of_a_patient_stay_in_one_fold(nnunet_env: Path, source: Path) -> None:
    assert convert(read_sat_ds(brats(source))).failures == {}
    dataset = load_dataset(10)
    assert len(dataset.training_cases()) == 24
    folds = json.loads((dataset.folder / "splits_final.json").read_text())
    assert len(folds) == 5
    for fold in folds:
        patients = {part: {case[:19] for case in fold[part]} for part in ("train", "val")}
        assert patients["train"].isdisjoint(patients["val"])
        assert len(fold["train"]) + len(fold["val"]) == 24
    assert sorted(case for fold in folds for case in fold["val"]) == [c.identifier for c in dataset.training_cases()]


def test_frames_of_a_patient_stay_in_one_fold(nnunet_env: Path, source: Path) -> None:
    """ACDC's patient ids name frames: the catalogue knows which part of them is the patient."""
    labels = ["left heart ventricle", "right heart ventricle", "myocardium"]
    rows = []
    for patient in range(5):
        for frame in (1, 10):
            name = f"patient{patient:03d}_frame{frame:02d}.nii.gz"
            save(source / name, scan(patient))
            save(source / f"gt_{name}", boxes(3))
            rows.append(row("ACDC", name, f"gt_{name}", labels, modality="MRI"))
    assert convert(read_sat_ds(write_rows(source / "ACDC.jsonl", rows))).failures == {}
    for fold in json.loads((nnunet_env / "raw/Dataset002_ACDC/splits_final.json").read_text()):
        assert len(fold["val"]) == 2
        assert fold["val"][0][:10] == fold["val"][1][:10]


def test_a_split_that_parts_the_visits_of_a_patient_is_told(nnunet_env: Path, source: Path) -> None:
    names = [f"P{patient:03d}-{visit}" for patient in (1, 2, 3) for visit in (1, 2)]
    rows = []
    for name in names:
        save(source / f"{name}.nii.gz", scan())
        save(source / f"{name}_gt.nii.gz", boxes(3))
        rows.append(row("CMRxMotion", f"{name}.nii.gz", f"{name}_gt.nii.gz", ["left heart ventricle", "myocardium",
                        "right heart ventricle"], modality="MRI", patient_id=name))  # fmt: skip
    split = source / "split.json"
    split.write_text(json.dumps({"train": names[:3], "val": [], "test": names[3:]}))
    summary = convert(read_sat_ds(write_rows(source / "CMRxMotion.jsonl", rows), split=split))
    assert summary.notes["patients"].startswith("1 of 2 test patients")
    assert "P002" in summary.notes["patients"]


def test_sequences_as_channels(nnunet_env: Path, source: Path) -> None:
    jsonl = brats(source, 2)
    assert convert(read_sat_ds(jsonl, sequences="channels")).failures == {}
    dataset = load_dataset(10)
    assert dataset.channel_names == ("MRI t1n", "MRI t1c", "MRI t2w", "MRI t2f")
    assert dataset.modalities == ("mri",) * 4
    first = dataset.training_cases()[0]
    assert first.identifier == "BraTS-GLI-00000-000"
    np.testing.assert_array_equal(read(first.images[2]), scan(2))
    # back to cases: nothing of the channels stays
    convert(read_sat_ds(jsonl))
    assert len(list((dataset.folder / "imagesTr").iterdir())) == 8
    lines = jsonl.read_text().splitlines()
    jsonl.write_text("\n".join(lines[:-1]))
    with pytest.raises(UserError, match="3 to 4 scans"):
        read_sat_ds(jsonl, sequences="channels")


def test_a_validation_part_of_a_split_is_the_fold(nnunet_env: Path, source: Path) -> None:
    split = source / "split.json"
    names = [f"amos_{i:04d}.nii.gz" for i in range(4)]
    split.write_text(json.dumps({"train": names[:2], "val": names[2:3], "test": names[3:]}))
    convert(read_sat_ds(amos(source), split=split))
    folds = json.loads((nnunet_env / "raw/Dataset003_AMOS22CT/splits_final.json").read_text())
    assert folds == [{"train": ["amos_0000", "amos_0001"], "val": ["amos_0002"]}]
    split.write_text(json.dumps({"train": names, "val": [], "test": names[:1]}))
    summary = convert(read_sat_ds(amos(source), split=split))  # as that of MSD_Prostate, in which one patient is twice
    assert "amos_0000" in summary.notes["in two parts of the split"]
    assert "amos_0000" not in [case.identifier for case in load_dataset(3).training_cases()]


def test_wrong_calls_say_what_is_wrong(nnunet_env: Path, source: Path) -> None:
    jsonl = amos(source, 2)
    with pytest.raises(UserError, match="--root"):
        read_sat_ds(write_rows(source / "x.jsonl", [row("AMOS22_CT", "nowhere/a.nii.gz", "b", AMOS)]))
    with pytest.raises(UserError, match="not in the catalogue"):
        read_sat_ds(write_rows(source / "x.jsonl", [row("Unknown", "a.nii.gz", "b", ["x"])]))
    with pytest.raises(UserError, match="rows of 2 datasets"):
        read_sat_ds(write_rows(source / "x.jsonl", [row(d, "a.nii.gz", "b", ["x"]) for d in ("A", "B")]))
    rows = [row("AMOS22_CT", f"{m}.nii.gz", "b", AMOS, modality=m) for m in ("CT", "PET")]
    with pytest.raises(UserError, match="several modalities"):
        read_sat_ds(write_rows(source / "x.jsonl", rows), root=source)
    with pytest.raises(UserError, match="no split for"):
        read_sat_ds(jsonl, split=source)
    with pytest.raises(UserError, match="has no row of SAT-DS"):
        read_sat_ds(write_rows(source / "x.jsonl", [{"a": 1}]))


def test_an_image_whose_name_no_file_system_takes_is_told_with_its_list(tmp_path: Path) -> None:
    entry = {"image": "ü" * 300, "mask": "b.nii.gz", "label": ["liver"], "modality": "CT", "dataset": "Rows"}
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps(entry | {"patient_id": "1", "official_split": "unknown"}) + "\n")
    with pytest.raises(UserError, match=r"rows\.jsonl.*too long for a file"):
        read_sat_ds(rows, dataset_id=8, name="Rows")
