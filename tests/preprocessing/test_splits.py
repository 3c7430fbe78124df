from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from sklearn.model_selection import KFold

from satunet.datasets.raw import split_scan_id
from satunet.errors import DatasetError
from satunet.preprocessing.splits import share_folds, unified_splits


def scans(dataset: str, cases: list[str], channels: int = 1) -> list[str]:
    return [f"{dataset}__{case}__{channel:04d}" for case in cases for channel in range(channels)]


def test_five_or_more_cases_are_split_as_by_nnunet_with_channels_together(nnunet_env: Path) -> None:
    cases = [f"case_{i:02d}" for i in range(12)]
    folds = unified_splits(scans("Dataset001_X", cases, channels=2))
    expected = KFold(n_splits=5, shuffle=True, random_state=12345).split(cases)
    for fold, (train, val) in zip(folds, expected, strict=True):
        assert {split_scan_id(s)[1] for s in fold["train"]} == set(np.array(cases)[train])
        assert {split_scan_id(s)[1] for s in fold["val"]} == set(np.array(cases)[val])
        assert len(fold["train"]) + len(fold["val"]) == 24


def test_every_case_validates_once_if_there_are_five(nnunet_env: Path) -> None:
    everything = scans("Dataset001_X", list("abcdefg")) + scans("Dataset002_Y", list("mnopq"))
    folds = unified_splits(everything)
    assert sorted(s for fold in folds for s in fold["val"]) == sorted(everything)


@pytest.mark.parametrize("count", [2, 3, 4])
def test_few_cases_leave_one_out(nnunet_env: Path, count: int) -> None:
    folds = unified_splits(scans("Dataset001_X", list("abcd")[:count]))
    for fold in folds:
        assert len(fold["val"]) == 1
        assert set(fold["val"]).isdisjoint(fold["train"])
    assert len({fold["val"][0] for fold in folds}) == count


def test_a_single_case_trains_and_validates(nnunet_env: Path) -> None:
    for fold in unified_splits(scans("Dataset001_X", ["a"])):
        assert fold["train"] == fold["val"] == ["Dataset001_X__a__0000"]


@pytest.mark.parametrize("where", ["preprocessed", "raw"])
def test_a_given_split_is_taken_over_and_new_cases_are_trained_on(nnunet_env: Path, where: str) -> None:
    folder = nnunet_env / where / "Dataset001_X"
    folder.mkdir()
    given = [{"train": ["a", "gone"], "val": ["b"]}, {"train": ["b"], "val": ["a"]}]
    (folder / "splits_final.json").write_text(json.dumps(given))
    folds = unified_splits(scans("Dataset001_X", ["a", "b", "new"]))
    assert folds[0] == {"train": scans("Dataset001_X", ["a", "new"]), "val": scans("Dataset001_X", ["b"])}
    assert folds[1] == folds[3] == {"train": scans("Dataset001_X", ["b", "new"]), "val": scans("Dataset001_X", ["a"])}


def test_the_specialist_gets_the_same_folds_and_a_published_split_goes_first(nnunet_env: Path) -> None:
    for folder in ("raw", "preprocessed"):
        (nnunet_env / folder / "Dataset001_X").mkdir()
    own = nnunet_env / "preprocessed/Dataset001_X/splits_final.json"
    cases = list("abc")
    share_folds("Dataset001_X", cases)
    assert [fold["val"] for fold in json.loads(own.read_text())] == [["a"], ["b"], ["c"], ["a"], ["b"]]
    assert unified_splits(scans("Dataset001_X", cases))[1]["val"] == scans("Dataset001_X", ["b"])
    published = [{"train": ["a", "b"], "val": ["c"]}]
    (nnunet_env / "raw/Dataset001_X/splits_final.json").write_text(json.dumps(published))
    share_folds("Dataset001_X", cases)
    assert json.loads(own.read_text())[0] == published[0]
    assert unified_splits(scans("Dataset001_X", cases))[0]["val"] == scans("Dataset001_X", ["c"])
    own.write_text(json.dumps([{"train": ["a"], "val": ["b", "c"]}]))
    (nnunet_env / "raw/Dataset001_X/splits_final.json").unlink()
    share_folds("Dataset001_X", cases)
    assert json.loads(own.read_text()) == [{"train": ["a"], "val": ["b", "c"]}]  # someone's own split stays


def test_a_failed_case_does_not_move_the_others(nnunet_env: Path) -> None:
    cases = list("abcdefghij")
    whole = unified_splits(scans("Dataset001_X", cases))
    without = unified_splits(scans("Dataset001_X", [c for c in cases if c != "d"]), {"Dataset001_X": cases})
    lost = "Dataset001_X__d__0000"
    assert without == [{part: [s for s in fold[part] if s != lost] for part in fold} for fold in whole]


def test_a_malformed_split_is_named(nnunet_env: Path) -> None:
    folder = nnunet_env / "raw" / "Dataset001_X"
    folder.mkdir()
    (folder / "splits_final.json").write_text('[{"training": []}]')
    with pytest.raises(DatasetError, match="splits_final"):
        unified_splits(scans("Dataset001_X", ["a"]))
