"""What a model has earned, and a competitor that looks at no image."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from satunet.datasets.raw import Dataset
from satunet.evaluation.benchmark.copying import copied_labels
from satunet.evaluation.benchmark.judging import Judged, earned, means, offered_space
from satunet.labels import build_label_space


def row(name: str, dsc: float, *, dataset: str = "A", modality: str = "mri", reference_ml: float = 1.0) -> Judged:
    return Judged(
        dataset=dataset, case="c", modality=modality, class_name=name, dsc=dsc, nsd=dsc / 2,
        reference_ml=reference_ml, predicted_ml=1.0,
    )  # fmt: skip


ROWS = [
    row("thalamus", 0.9),
    row("thalamus", 0.5),
    row("thalamus", 0.2, dataset="B"),
    row("putamen", 0.6),
    row("putamen", 0.3),
    row("brainstem", 0.8, modality="ct"),
    row("brainstem", 0.1),
    row("amygdala", math.nan, reference_ml=0.0),
]


def test_a_class_is_earned_by_all_scans_that_were_judged() -> None:
    few = [row("pons", 0.6), row("pons", 0.1, dataset="B"), row("pons", 0.1, dataset="C")]
    for trained_on in ({"A"}, set[str]()):
        assert earned(few, trained_on) == ([], {"pons (mri)": 0.267})
    most = [row("pons", 0.4), *[row("pons", 0.8, dataset="B")] * 4]
    scores, missed = earned(most, trained_on={"A"})
    assert [(s.dataset, s.dsc, s.kept_out) for s in scores] == [("A", 0.4, True), ("B", 0.8, False)]
    assert not missed


def test_a_class_is_earned_modality_by_modality() -> None:
    scores, missed = earned(ROWS, trained_on={"A"})
    assert {(s.class_name, s.modality) for s in scores} == {("thalamus", "mri"), ("brainstem", "ct")}
    assert missed == {"brainstem (mri)": 0.1, "putamen (mri)": 0.45}


def test_every_dataset_has_its_own_score_whether_it_flatters_or_not() -> None:
    scores, _ = earned(ROWS, trained_on={"A"})
    rows = {s.dataset: s for s in scores if s.class_name == "thalamus"}
    assert (rows["A"].dsc, rows["A"].scans, rows["A"].kept_out) == (0.7, 2, True)
    assert (rows["B"].dsc, rows["B"].nsd, rows["B"].kept_out) == (0.2, 0.1, False)


def test_means_leave_out_scans_that_do_not_show_a_class() -> None:
    assert means(ROWS)["A"]["thalamus"] == pytest.approx({"dsc": 0.7, "nsd": 0.35, "scans": 2})
    assert "amygdala" not in means(ROWS)["A"]


def test_the_offered_classes_are_those_with_scores_in_their_modalities() -> None:
    labels = {"thalamus": (1,), "brainstem": (2,), "putamen": (3,)}
    dataset = Dataset(
        id=1, name="Dataset001_A", folder=Path(), channel_names=("a", "b"), modalities=("mri", "ct"), labels=labels
    )
    space = offered_space(build_label_space([dataset]), earned(ROWS, trained_on=())[0])
    assert {c.name: c.modalities for c in space.classes} == {"thalamus": ("mri",), "brainstem": ("ct",)}
    assert set(space.ids["Dataset001_A"]) == {"thalamus", "brainstem"}


def test_a_copy_onto_the_same_scan_is_the_label_map() -> None:
    labels = np.arange(60).reshape(3, 4, 5)
    box = (slice(0, 3), slice(0, 4), slice(0, 5))
    assert np.array_equal(copied_labels(labels, box, (3, 4, 5), box), labels)


def test_a_copy_is_moved_and_stretched_from_box_to_box() -> None:
    labels = np.zeros((8, 4, 4), np.int64)
    labels[2:4, 1:3, 1:3] = 7
    copied = copied_labels(labels, np.s_[2:4, 1:3, 1:3], (10, 6, 6), np.s_[4:8, 0:2, 3:5])
    expected = np.zeros((10, 6, 6), np.int64)
    expected[4:8, 0:2, 3:5] = 7
    assert np.array_equal(copied, expected)
