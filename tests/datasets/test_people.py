from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from satunet.datasets.people import find_people
from satunet.datasets.raw import Dataset, load_dataset
from satunet.errors import DatasetError
from satunet.images.content import voxel_digest
from satunet.images.image import read_image


def dataset(folder: Path, name: str, source: str | None = None) -> Dataset:
    (folder / name).mkdir(exist_ok=True)
    return Dataset(
        id=1, name=name, folder=folder / name, channel_names=("CT",), modalities=("ct",), labels={"liver": (1,)},
        source=source,
    )  # fmt: skip


def test_patients_json_names_persons_in_all_datasets(tmp_path: Path) -> None:
    a, b = dataset(tmp_path, "Dataset001_A"), dataset(tmp_path, "Dataset002_B")
    (a.folder / "patients.json").write_text(json.dumps({"a0": "7", "a1": "8", "a2": "7"}))
    (b.folder / "patients.json").write_text(json.dumps({"b0": 8}))
    people = find_people([b, a], {a.name: ["a0", "a1", "a2"], b.name: ["b0", "b1"]})
    assert people.of(a.name, "a2") == people.of(a.name, "a0") == (a.name, "a0")
    assert people.of(b.name, "b0") == people.of(a.name, "a1") == (a.name, "a1")
    assert people.of(b.name, "b1") == (b.name, "b1")
    assert people.findings == (
        "Dataset001_A: 1 pair of cases belongs to one person, matched by patients.json, such as a0 and a2",
        "Dataset001_A and Dataset002_B: 1 pair of cases belongs to one person, matched by patients.json, such as a1 and b0",
    )
    (b.folder / "patients.json").write_text("[]")
    with pytest.raises(DatasetError, match=r"patients\.json: must map cases to persons"):
        find_people([b], {b.name: ["b0"]})


@pytest.mark.parametrize(
    ("first", "second", "one"),
    [
        ("github lab/study @abc t1", "github lab/study @abc flair", True),
        ("https://doi.org/10.1000/xyz1, T1", "doi 10.1000/xyz1", False),
        ("10.1000/xyz1", "the data of 10.1000/xyz1.", True),
        ("King's College London", "King's College London", True),
        ("github lab/study", "github lab/other", False),
        (None, None, False),
    ],
)
def test_one_name_is_one_person_where_the_source_is_one(
    tmp_path: Path, first: str | None, second: str | None, one: bool
) -> None:
    a, b = dataset(tmp_path, "Dataset001_A", first), dataset(tmp_path, "Dataset002_B", second)
    people = find_people([a, b], {a.name: ["case_1"], b.name: ["case_1", "case_2"]})
    assert (people.of(b.name, "case_1") == (a.name, "case_1")) == one
    assert people.of(b.name, "case_2") == (b.name, "case_2")


def test_the_catalogue_knows_visits_of_one_patient(tmp_path: Path) -> None:
    acdc = dataset(tmp_path, "Dataset002_ACDC")
    cases = ["patient001_frame01", "patient001_frame12", "patient002_frame01"]
    people = find_people([acdc], {acdc.name: cases})
    assert people.of(acdc.name, cases[1]) == (acdc.name, cases[0])
    assert people.of(acdc.name, cases[2]) == (acdc.name, cases[2])


def test_chains_of_what_is_common_are_one_person(tmp_path: Path) -> None:
    names = [f"Dataset00{i}_D" for i in range(4)]
    datasets = [dataset(tmp_path, name) for name in names]
    scans = {(names[3], "x"): ["s1", "s2"], (names[1], "y"): ["s2"], (names[2], "z"): ["s1"], (names[0], "w"): [""]}
    people = find_people(datasets, {d: [c] for (d, c) in scans}, scans)
    assert {people.of(d, c) for (d, c) in scans} == {(names[1], "y"), (names[0], "w")}


def test_a_scan_is_known_by_its_voxels(tmp_path: Path) -> None:
    voxels = np.random.default_rng(0).integers(-1000, 1000, (6, 7, 8)).astype(np.int16)
    affine = np.diag([-1.0, 2.0, 3.0, 1.0])
    image = nib.Nifti1Image(voxels, affine)
    nib.save(image, tmp_path / "a.nii.gz")
    nib.save(nib.Nifti1Image(voxels.astype(np.float64), affine), tmp_path / "b.nii")
    nib.save(nib.as_closest_canonical(image), tmp_path / "c.nii.gz")
    nib.save(nib.Nifti1Image(voxels + 1, affine), tmp_path / "other.nii.gz")
    nib.save(nib.Nifti1Image(np.zeros((3, 3, 3), np.uint8), affine), tmp_path / "empty.nii.gz")
    found = {name: voxel_digest(read_image(tmp_path / name)) for name in sorted(p.name for p in tmp_path.iterdir())}
    assert found["a.nii.gz"] == found["b.nii"] == found["c.nii.gz"]
    assert found["other.nii.gz"] not in (found["a.nii.gz"], "")
    assert found["empty.nii.gz"] == ""


def test_the_real_datasets_share_patients(real_raw: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("nnUNet_raw", str(real_raw))
    monkeypatch.delenv("nnUNet_preprocessed", raising=False)
    names = [p.name for p in sorted(real_raw.iterdir()) if p.name.startswith("Dataset")]
    datasets = [load_dataset(name) for name in names]
    people = find_people(datasets, {d.name: [c.identifier for c in d.training_cases()] for d in datasets})
    sarcoma = [n for n in names if "SoftTissueSarcoma" in n]
    assert len({people.of(n, "sts_019") for n in sarcoma if "MR" not in n}) == 1
    assert people.of("Dataset328_WhiteMatterLesion_MR", "subj_03") == ("Dataset302_BrainRegions_MR", "subj_03")
