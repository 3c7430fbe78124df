from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.model_selection import KFold

from satunet.datasets.people import People
from satunet.datasets.raw import scan_id, split_scan_id
from satunet.errors import DatasetError
from satunet.preprocessing.splits import Folds, case_folds, share_folds, unified_splits

NAME = "Dataset001_X"


def scans(dataset: str, cases: list[str], channels: int = 1) -> list[str]:
    return [scan_id(dataset, case, channel) for case in cases for channel in range(channels)]


def folds_of(cases: list[str], dataset: str = NAME) -> list[dict[str, list[str]]]:
    return list(case_folds({dataset: cases}).by_dataset[dataset])


def write_split(env: Path, content: object, where: str = "raw") -> Path:
    file = env / where / NAME / "splits_final.json"
    file.parent.mkdir(exist_ok=True)
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    return file


def test_five_or_more_cases_are_split_as_by_nnunet_with_channels_together(nnunet_env: Path) -> None:
    cases = [f"case_{i:02d}" for i in range(12)]
    folds = unified_splits(scans(NAME, cases, channels=2), case_folds({NAME: cases}))
    expected = KFold(n_splits=5, shuffle=True, random_state=12345).split(cases)
    for fold, (train, val) in zip(folds, expected, strict=True):
        assert {split_scan_id(s)[1] for s in fold["train"]} == set(np.array(cases)[train])
        assert {split_scan_id(s)[1] for s in fold["val"]} == set(np.array(cases)[val])
        assert len(fold["train"]) + len(fold["val"]) == 24


def test_every_case_validates_once_if_there_are_five(nnunet_env: Path) -> None:
    cases = {NAME: list("abcdefg"), "Dataset002_Y": list("mnopq")}
    everything = [scan for dataset, names in cases.items() for scan in scans(dataset, names)]
    folds = unified_splits(everything, case_folds(cases))
    assert sorted(s for fold in folds for s in fold["val"]) == sorted(everything)


@pytest.mark.parametrize("count", [2, 3, 4])
def test_few_cases_leave_one_out(nnunet_env: Path, count: int) -> None:
    folds = folds_of(list("abcd")[:count])
    assert [fold["val"] for fold in folds] == [["abcd"[i % count]] for i in range(5)]
    for fold in folds:
        assert sorted(fold["train"] + fold["val"]) == list("abcd")[:count]


def test_a_single_case_trains_and_validates(nnunet_env: Path) -> None:
    assert folds_of(["a"]) == [{"train": ["a"], "val": ["a"]}] * 5


@pytest.mark.parametrize("where", ["preprocessed", "raw"])
def test_a_given_split_is_taken_over_and_new_cases_are_trained_on(nnunet_env: Path, where: str) -> None:
    write_split(nnunet_env, [{"train": ["a", "gone"], "val": ["b"]}, {"train": ["b"], "val": ["a"]}], where)
    found = case_folds({NAME: ["a", "b", "new"]})
    folds = found.by_dataset[NAME]
    assert folds[0] == {"train": ["a", "new"], "val": ["b"]}
    assert folds[1] == folds[3] == {"train": ["b", "new"], "val": ["a"]}
    notes = "; ".join(found.notes)
    assert "names 1 cases that Dataset001_X does not have, such as gone" in notes
    assert "does not name 1 cases, such as new; they are trained on" in notes
    # the specialist has the same cases, also those that are new
    share_folds(NAME, found)
    assert json.loads((nnunet_env / "preprocessed" / NAME / "splits_final.json").read_text()) == list(folds)


def test_the_specialist_gets_the_same_folds_and_a_published_split_goes_first(nnunet_env: Path) -> None:
    own = nnunet_env / "preprocessed" / NAME / "splits_final.json"
    cases = list("abc")
    share_folds(NAME, case_folds({NAME: cases}))
    assert [fold["val"] for fold in json.loads(own.read_text())] == [["a"], ["b"], ["c"], ["a"], ["b"]]
    published = [{"train": ["a", "b"], "val": ["c"]}]
    file = write_split(nnunet_env, published)
    share_folds(NAME, case_folds({NAME: cases}))
    assert json.loads(own.read_text()) == published * 5
    file.unlink()
    before = own.stat().st_mtime_ns
    share_folds(NAME, case_folds({NAME: cases}))
    assert own.stat().st_mtime_ns == before  # what agrees stays as it is


def test_the_specialist_goes_without_cases_that_cannot_be_used(nnunet_env: Path) -> None:
    """nnunetv2 would train on a scan whose label map lies beside it; the unified network does not."""
    own = nnunet_env / "preprocessed" / NAME / "splits_final.json"
    found = case_folds({NAME: list("abcdefghij")})
    share_folds(NAME, found, unusable={"d"})
    folds = json.loads(own.read_text())
    assert [sorted(f["train"] + f["val"]) for f in folds] == [list("abcefghij")] * 5
    assert all(
        f["val"] == [c for c in g["val"] if c != "d"] for f, g in zip(folds, found.by_dataset[NAME], strict=True)
    )


def test_a_failed_case_does_not_move_the_others(nnunet_env: Path) -> None:
    cases = list("abcdefghij")
    folds = case_folds({NAME: cases})
    whole = unified_splits(scans(NAME, cases), folds)
    lost = scan_id(NAME, "d", 0)
    without = unified_splits([s for s in scans(NAME, cases) if s != lost], folds)
    assert without == [{part: [s for s in fold[part] if s != lost] for part in fold} for fold in whole]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ([{"training": []}], "list of folds, each with lists of cases"),
        ({"train": ["a"], "val": ["b"]}, "list of folds"),
        (["a"], "list of folds"),
        ([{"train": "ab", "val": ["b"]}], "list of folds"),
        ([], "list of folds"),
        ("[{", "not JSON"),
        ([{"train": ["q"], "val": ["r"]}], r"none of the 1 cases that fold 0 lists under 'train' .* such as 'q'"),
        ([{"train": ["a"], "val": ["r"]}], r"none of the 1 cases that fold 0 lists under 'val'"),
        ([{"train": ["a", "b"], "val": ["b"]}], r"fold 0 lists 1 cases under both 'train' and 'val', such as 'b'"),
    ],
)
def test_a_split_that_cannot_be_meant_is_refused(nnunet_env: Path, content: object, reason: str) -> None:
    file = write_split(nnunet_env, content)
    with pytest.raises(DatasetError, match=reason) as caught:
        case_folds({NAME: ["a", "b"]})
    assert str(file) in str(caught.value)


@pytest.mark.parametrize("ending", ["_0000", ".nii.gz", "_0000.nii.gz"])
def test_names_of_files_are_names_of_cases(nnunet_env: Path, ending: str) -> None:
    write_split(nnunet_env, [{"train": [f"a{ending}", f"c_0001{ending}"], "val": [f"b{ending}", f"b{ending}"]}])
    assert folds_of(["a", "b", "c_0001"])[0] == {"train": ["a", "c_0001"], "val": ["b"]}


def test_ten_folds_are_ten_and_others_are_repeated(nnunet_env: Path) -> None:
    cases = [f"p{i}" for i in range(10)]
    write_split(nnunet_env, [{"train": [c for c in cases if c != out], "val": [out]} for out in cases])
    found = case_folds({NAME: cases, "Dataset002_Y": list("abcde")})
    assert [fold["val"] for fold in found.by_dataset[NAME]] == [[c] for c in cases]
    other = found.by_dataset["Dataset002_Y"]
    assert len(other) == 10
    assert list(other[:5]) == list(other[5:]) == folds_of(list("abcde"), "Dataset002_Y")
    assert len(unified_splits(scans(NAME, cases), found)) == 10


def nobody_is_on_both_sides(found: Folds, people: People) -> bool:
    for fold in range(len(next(iter(found.by_dataset.values())))):
        sides: dict[str, set[tuple[str, str]]] = {"train": set(), "val": set()}
        for dataset, folds in found.by_dataset.items():
            if folds[fold]["train"] != folds[fold]["val"]:
                for part, persons in sides.items():
                    persons |= {people.of(dataset, case) for case in folds[fold][part]}
        if sides["train"] & sides["val"]:
            return False
    return True


def test_a_person_is_on_one_side_in_all_datasets(nnunet_env: Path) -> None:
    cases = {NAME: [f"p{i}" for i in range(12)], "Dataset002_Y": ["p0", "p3", "p7"], "Dataset003_Z": ["p3"]}
    persons = {("Dataset002_Y", c): (NAME, c) for c in cases["Dataset002_Y"]} | {("Dataset003_Z", "p3"): (NAME, "p3")}
    people = People(persons=persons)
    found = case_folds(cases, people)
    assert nobody_is_on_both_sides(found, people)
    assert not nobody_is_on_both_sides(case_folds(cases), people)
    for name in (NAME, "Dataset002_Y"):
        assert all(fold["val"] and fold["train"] for fold in found.by_dataset[name]), name
    # the specialist of one person has nobody else to validate on
    share_folds("Dataset003_Z", found)
    own = json.loads((nnunet_env / "preprocessed" / "Dataset003_Z" / "splits_final.json").read_text())
    assert own == [{"train": ["p3"], "val": ["p3"]}] * 5


def test_a_given_split_decides_for_the_persons_in_it(nnunet_env: Path) -> None:
    write_split(nnunet_env, [{"train": ["a", "b", "c"], "val": ["d", "e"]}])
    people = People(persons={("Dataset002_Y", "x"): (NAME, "d"), ("Dataset002_Y", "y"): (NAME, "a")})
    found = case_folds({NAME: list("abcde"), "Dataset002_Y": list("vwxyz")}, people)
    assert list(found.by_dataset[NAME]) == [{"train": ["a", "b", "c"], "val": ["d", "e"]}] * 5
    for fold in found.by_dataset["Dataset002_Y"]:
        assert "x" in fold["val"]
        assert "y" in fold["train"]
    assert nobody_is_on_both_sides(found, people)


def test_of_two_given_splits_none_trains_on_whom_the_other_validates(nnunet_env: Path) -> None:
    write_split(nnunet_env, [{"train": ["a", "b"], "val": ["c"]}])
    file = nnunet_env / "raw" / "Dataset002_Y" / "splits_final.json"
    file.parent.mkdir()
    file.write_text(json.dumps([{"train": ["c", "d"], "val": ["e"]}]))
    people = People(persons={("Dataset002_Y", "c"): (NAME, "c")})
    found = case_folds({NAME: list("abc"), "Dataset002_Y": list("cde")}, people)
    assert found.by_dataset["Dataset002_Y"][0] == {"train": ["d"], "val": ["e"]}
    assert "Dataset002_Y: 1 cases, such as c, belong to people who are validated" in "; ".join(found.notes)


@given(
    st.lists(st.lists(st.integers(0, 30), min_size=1, max_size=14, unique=True), min_size=1, max_size=4),
    st.integers(0, 2**31),
)
def test_whoever_is_in_whatever_datasets_is_on_one_side(datasets: list[list[int]], seed: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("nnUNet_raw", "/")
        patch.setenv("nnUNet_preprocessed", "/tmp")
        cases = {f"Dataset90{i}_D{seed}": [f"c{n}" for n in numbers] for i, numbers in enumerate(datasets)}
        first: dict[str, tuple[str, str]] = {}
        persons = {(d, c): first.setdefault(c, (d, c)) for d, names in cases.items() for c in names}
        people = People(persons=persons)
        found = case_folds(cases, people)
    assert nobody_is_on_both_sides(found, people)
    for dataset, names in cases.items():
        for fold in found.by_dataset[dataset]:
            assert set(fold["train"]) | set(fold["val"]) == set(names)
            assert fold["val"] or len(names) == 1
        assert {case for fold in found.by_dataset[dataset] for case in fold["val"]} == set(names)


def test_thousands_of_cases_are_split_at_once(nnunet_env: Path) -> None:
    cases = [f"case_{i:05d}" for i in range(8000)]
    write_split(nnunet_env, [{"train": cases[100:4000], "val": cases[:100]}] * 5)
    people = People(persons={("Dataset002_Y", c): (NAME, c) for c in cases[::2]})
    started = time.perf_counter()
    case_folds({NAME: cases, "Dataset002_Y": cases}, people)
    assert time.perf_counter() - started < 3


@pytest.mark.parametrize("dataset", ["Dataset001_My__Data", "Dataset001_A_", "Dataset001_A%5F_", "Dataset001_100%"])
@pytest.mark.parametrize("case", ["p0", "_p__0", "p0_"])
def test_any_name_of_a_dataset_keeps_its_split(nnunet_env: Path, dataset: str, case: str) -> None:
    assert split_scan_id(scan_id(dataset, case, 1)) == (dataset, case, 1)
    cases = [case, *"abcd"]
    folds = case_folds({dataset: cases})
    found = unified_splits(scans(dataset, cases), folds)
    assert sorted(s for fold in found for s in fold["val"]) == sorted(scans(dataset, cases))


def test_a_split_made_for_a_specialist_follows_the_cases_and_a_users_does_not(nnunet_env: Path) -> None:
    """A case that is taken out, or added, changes what was made here; what somebody wrote is asked about."""
    from satunet.jobs.files import read_json, write_json

    name = NAME
    (nnunet_env / "preprocessed" / name).mkdir()
    cases = [f"case_{i:02d}" for i in range(6)]
    file = nnunet_env / "preprocessed" / name / "splits_final.json"
    share_folds(name, case_folds({name: cases}))
    assert {c for fold in read_json(file) for c in fold["val"]} == set(cases)
    fewer = cases[:5]
    share_folds(name, case_folds({name: fewer}))
    assert {c for fold in read_json(file) for c in fold["val"]} == set(fewer)
    write_json(file, [{"train": cases[1:], "val": cases[:1]}])  # by hand
    with pytest.raises(DatasetError, match="none of the 1 cases that fold 0 lists under 'val'"):
        case_folds({name: cases[1:]})


def test_the_folds_of_one_dataset_are_those_of_nnunetv2(nnunet_env: Path) -> None:
    from nnunetv2.utilities.crossval_split import generate_crossval_split

    for count in (5, 6, 9, 10, 11, 64, 203, 1001):
        cases = [f"case_{number:04d}" for number in range(count)]
        folds = case_folds({"Dataset001_A": cases}).by_dataset["Dataset001_A"]
        theirs = generate_crossval_split(cases, seed=12345, n_splits=5)
        assert [{part: sorted(map(str, fold[part])) for part in ("train", "val")} for fold in theirs] == list(folds)
