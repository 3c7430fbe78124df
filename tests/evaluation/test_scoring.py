"""Label maps looked up by id, folders of masks, and predictions found by name."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from satunet.evaluation.scoring.label_index import LabelIndex, grown_box, union_box
from satunet.evaluation.scoring.predictions import ambiguous, find_predictions
from satunet.evaluation.scoring.rules import Rules
from satunet.evaluation.scoring.scores import METRICS, Row


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int32, np.uint32, np.int64, np.uint64])
@given(
    ids=st.lists(st.sampled_from([0, 1, 2, 3, 7, 100, 65_535, 65_536, 3_000_000]), min_size=8, max_size=8),
    asked=st.lists(st.sampled_from([0, 1, 2, 3, 5, 7, 100, 65_535, 65_536, 3_000_000, 4_000_000]), max_size=7),
    background=st.booleans(),
)
def test_boxes_and_masks_of_ids(dtype: type, ids: list[int], asked: list[int], background: bool) -> None:
    values = np.array([i if i <= np.iinfo(dtype).max else 9 for i in ids], dtype)
    if not background:
        values[values == 0] = 1
    labels = np.zeros((4, 5, 6), dtype) if background else np.full((4, 5, 6), values[0])
    labels[1:3, 2:4, 3:5] = values.reshape(2, 2, 2)
    index = LabelIndex(labels)
    expected = np.isin(labels.astype(np.int64), [i for i in asked if i > 0])
    box = index.box(asked)
    if not expected.any():
        assert box is None
        whole = (slice(0, 4), slice(0, 5), slice(0, 6))
        assert not index.mask(asked, whole).any()
        return
    places = np.argwhere(expected)
    assert box == tuple(slice(a, b + 1) for a, b in zip(places.min(0), places.max(0), strict=True))
    found = index.mask(asked, box)
    assert found.dtype == bool
    np.testing.assert_array_equal(found, expected[box])


def test_negative_ids_are_refused() -> None:
    with pytest.raises(ValueError, match="not negative, got -1"):
        LabelIndex(np.array([[[-1, 2]]]))
    assert LabelIndex(np.zeros((2, 2, 2), np.int16)).box([1]) is None
    assert LabelIndex(np.zeros((0, 2, 2), np.int16)).box([1]) is None


def test_boxes() -> None:
    a, b = (slice(1, 2), slice(4, 6), slice(0, 3)), (slice(0, 2), slice(5, 9), slice(2, 4))
    assert union_box([a, b]) == (slice(0, 2), slice(4, 9), slice(0, 4))
    assert grown_box(a, (9, 6, 9)) == (slice(0, 3), slice(3, 6), slice(0, 4))
    assert grown_box((slice(0, 9), slice(2, 3), slice(7, 9)), (9, 6, 9)) == (slice(0, 9), slice(1, 4), slice(6, 9))


def test_predictions_are_found_by_the_names_that_are_in_use(tmp_path: Path) -> None:
    for name in ("a.nii.gz", "b_0001.nii.gz", "b_0000.nii.gz", "Dataset001_X__c__0002.nii.gz", "stray.nii.gz", "a.json",
                 ".hidden.nii.gz"):  # fmt: skip
        (tmp_path / name).write_bytes(b"")
    for folder, content in (("d.e", "liver.nii.gz"), ("empty", None), ("masks", "liver.nii.gz")):
        (tmp_path / folder).mkdir()
        if content:
            (tmp_path / folder / content).write_bytes(b"")
    found, others = find_predictions(tmp_path, ["a", "b", "c", "d.e", "z"])
    assert {case: [(f.scan, f.channel) for f in scans] for case, scans in found.items()} == {
        "a": [("a", None)],
        "b": [("b_0000", 0), ("b_0001", 1)],
        "c": [("Dataset001_X__c__0002", 2)],
        "d.e": [("d.e", None)],
        "z": [],
    }
    assert [p.name for p in others] == ["masks", "stray.nii.gz"]
    assert find_predictions(tmp_path / "none", ["a"]) == ({"a": []}, [])
    assert ambiguous(found["b"]) is None
    assert ambiguous(found["a"]) is None
    assert ambiguous([]) is None
    twice = [*found["a"], *found["b"][:1]]
    assert ambiguous(twice) == "several predictions of one scan: a.nii.gz, b_0000.nii.gz; only one is allowed"
    assert ambiguous([found["b"][0], found["b"][0]]) is not None


def test_rules_of_some_classes_keep_their_tolerances() -> None:
    rules = Rules(tolerances=("liver=3", "spleen=1.5"), tolerance_mm=2.0, trust_shape=True)
    some = rules.of_classes(["liver", "aorta"])
    assert some.tolerances_mm == {"liver": 3.0}
    assert (some.tolerance_of("liver"), some.tolerance_of("spleen")) == (3.0, 2.0)
    assert some.comparable()["trust_shape"] is True
    assert "trust_shape" not in Rules().comparable()
    assert Rules().organs == "whole"


def test_unsigned_ids_of_every_size_are_found() -> None:
    """scipy's search for objects does not take the largest unsigned types."""
    labels = np.zeros((5, 4, 3), np.uint8)
    labels[1:3, 2:4, 1:2] = 7
    for kind in (np.uint8, np.int8, np.uint16, np.int16, np.uint32, np.int32, np.uint64, np.int64):
        index = LabelIndex(labels.astype(kind))
        box = index.box((7,))
        assert box == (slice(1, 3), slice(2, 4), slice(1, 2)), kind
        mask = index.mask((7,), box)
        assert mask.dtype == np.bool_ and mask.all()
        assert index.box((3,)) is None


def test_the_prediction_of_a_case_comes_before_those_of_its_channels(tmp_path: Path) -> None:
    for name in ("a_0001.nii.gz", "a_0000.nii.gz", "a.nii.gz"):
        (tmp_path / name).write_bytes(b"")
    found, _ = find_predictions(tmp_path, ["a"])
    assert [f.channel for f in found["a"]] == [None, 0, 1]


def test_what_was_not_measured_is_no_number() -> None:
    row = Row(case="a", scan="a", class_name="liver", dsc=1.0, nsd=1.0, reference_ml=0.0, prediction_ml=0.0)
    counts = (row.lesions, row.lesions_found, row.lesions_predicted, row.lesions_false)
    assert all(math.isnan(n) for n in (*counts, *(row.metric(m) for m in METRICS if m not in ("dsc", "nsd"))))
