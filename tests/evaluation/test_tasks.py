"""Which cases and classes a benchmark scores."""

from __future__ import annotations

import csv
import dataclasses
import math
from pathlib import Path

import pytest

from satunet.datasets.catalogue import load_catalogue
from satunet.datasets.raw import load_dataset
from satunet.errors import DatasetError, UserError
from satunet.evaluation.benchmark.conclusions.results import Comparison
from satunet.evaluation.benchmark.tasks import make_task
from satunet.evaluation.report.document import sentences
from satunet.images.content import voxel_digest
from satunet.images.image import read_image, write_volume
from satunet.jobs.files import read_json, write_json
from satunet.labels.scored import classes_of_dataset
from satunet.models.trained_scans import TrainedScans

from .conftest import NAMES, Stage, make_dataset


def test_external_datasets_are_scored_whole_and_apart(stage: Stage) -> None:
    folder = stage.root / "raw" / "Dataset004_Elsewhere"
    make_dataset(folder, test_cases=False)
    content = read_json(folder / "dataset.json")
    write_json(folder / "dataset.json", content | {"labels": {"background": 0, "Liver": 1, "pancreas": 2}})
    tables, _ = stage.run([NAMES[0], folder.name])
    assert [g.name for g in tables.totals] == ["all classes", "anatomy", "lesions", "external: all classes"]
    external = next(g for g in tables.datasets if g.name == folder.name)
    assert (external.cases, external.classes) == (3, 1)
    assert any("1 of 2 classes are not scored" in note and "pancreas" in note for note in tables.notes)
    assert any(note.startswith("External datasets") for note in tables.notes)


def test_a_dataset_with_nothing_to_score_is_told_in_the_report(stage: Stage) -> None:
    write_json(stage.root / "preprocessed" / "Dataset900_Unified" / "splits_final.json", [{"train": [], "val": []}])
    tables, summary = stage.run([NAMES[0], NAMES[1]])
    assert [g.name for g in tables.datasets] == [NAMES[0]]
    assert any(NAMES[1] in note and "fold 0 holds out no case" in note for note in tables.notes)
    assert NAMES[1] in summary.failures


def test_the_only_case_of_a_dataset_is_trained_on_and_not_scored(stage: Stage) -> None:
    scan, other = (f"{NAMES[1]}__{case}__0000" for case in "ab")
    file = stage.root / "preprocessed" / "Dataset900_Unified" / "splits_final.json"
    write_json(file, [{"train": [scan], "val": [scan, other]}])
    task = make_task(load_dataset(NAMES[1]), stage.network())
    assert [c.identifier for c in task.cases] == ["b"]
    write_json(file, [{"train": [scan], "val": [scan]}])
    with pytest.raises(DatasetError, match="fold 0 holds out no case of it"):
        make_task(load_dataset(NAMES[1]), stage.network())


def test_a_split_that_changed_after_the_training_is_found(stage: Stage) -> None:
    split = {"train": [f"{NAMES[1]}__b__0000"], "val": [f"{NAMES[1]}__a__0000"]}
    write_json(stage.model / "fold_0" / "split.json", split)
    tables, summary = stage.run([NAMES[0], NAMES[1]])
    assert "was trained on 1 of the 1 cases of fold 0" in summary.failures[NAMES[1]]
    assert [g.name for g in tables.datasets] == [NAMES[0]]  # its test cases are no matter of splits


def test_an_exported_model_is_not_scored_on_what_it_was_trained_on(stage: Stage) -> None:
    for case, refused in (("b", True), ("c", False)):
        TrainedScans.of([f"{NAMES[1]}__{case}__0000"]).save(stage.model / "trained_scans.json")
        tables, summary = stage.run([NAMES[0], NAMES[1]])
        assert ("was trained on 1 of the 1 cases" in summary.failures.get(NAMES[1], "")) == refused
        assert [g.name for g in tables.datasets] == [NAMES[0]] + [NAMES[1]] * (not refused)


def test_a_scan_of_another_name_is_known_by_its_voxels(stage: Stage) -> None:
    (image,) = (c.images[0] for c in load_dataset(NAMES[1]).training_cases() if c.identifier == "b")
    scan = read_image(image)
    write_volume(image, scan.array + 1, like=scan)  # all other scans of the stage have the same voxels
    digest = voxel_digest(read_image(image))
    for known, refused in ((digest, True), (digest[::-1], False)):
        TrainedScans.of(["Dataset777_Another__x__0000"], [known]).save(stage.model / "trained_scans.json")
        _, summary = stage.run([NAMES[0], NAMES[1]])
        assert ("was trained on 1 of the 1 cases" in summary.failures.get(NAMES[1], "")) == refused


def test_training_cases_are_scored_only_with_a_note(stage: Stage) -> None:
    stage.fold = "all"
    tables, _ = stage.run([NAMES[1]])
    assert "scores are of training cases" in tables.notes[0]
    assert tables.notes[0] in (stage.root / "bench" / "report.html").read_text("utf-8")
    assert tables.trained_on == (NAMES[1],)


def test_a_verdict_on_training_cases_says_so(stage: Stage) -> None:
    stage.fold = "all"
    tables, _ = stage.run([NAMES[1]])
    total = Comparison(
        kind="total", where="total", first="a", second="b", metric="dsc", difference=0.1, low=math.nan, high=math.nan,
        pairs=2, wins=2, ties=0, losses=0, units=3,
    )  # fmt: skip
    (said,) = sentences(dataclasses.replace(tables, comparisons=(total,)))
    assert said.startswith("Over 2 pairs of dataset and class, 1 dataset with cases that were trained on, a is better")
    (said,) = sentences(dataclasses.replace(tables, comparisons=(total,), trained_on=()))
    assert "trained on" not in said


@pytest.mark.parametrize("how", ["by name", "by content"])
def test_a_network_of_all_cases_is_scored_on_those_that_it_has_not_seen(stage: Stage, how: str) -> None:
    stage.fold = "all"
    seen = next(c for c in load_dataset(NAMES[1]).training_cases() if c.identifier == "b")
    scan = read_image(seen.images[0])
    write_volume(seen.images[0], scan.array + 1, like=scan)  # all other scans of the stage have the same voxels
    name = f"{NAMES[1]}__b__0000" if how == "by name" else "Dataset777_Another__x__0000"
    digests = [voxel_digest(read_image(seen.images[0]))] if how == "by content" else []
    TrainedScans.of([name], digests).save(stage.model / "trained_scans.json")
    tables, _ = stage.run([NAMES[1]])
    every = [c.identifier for c in load_dataset(NAMES[1]).training_cases()]
    (scores,) = (stage.root / "bench" / "scores" / "satunet" / NAMES[1]).glob("*/per_case.csv")
    with scores.open() as file:
        assert {row["case"] for row in csv.DictReader(file)} == set(every) - {"b"}
    assert f"1 of {len(every)} cases are left out, because the unified network was trained on them" in tables.notes[0]


def test_other_patients_of_a_dataset_that_it_knows_are_no_training_cases(stage: Stage) -> None:
    stage.fold = "all"
    TrainedScans.of(["Dataset777_Another__x__0000"]).save(stage.model / "trained_scans.json")
    tables, _ = stage.run([NAMES[1]])
    assert not any("training cases" in note or "left out" in note for note in tables.notes)


def test_classes_are_those_that_the_dataset_lists(stage: Stage) -> None:
    classes = classes_of_dataset(load_dataset(NAMES[0])).ids
    assert sorted(classes.values()) == [(1, 2), (2,)]  # the tumor lies in the liver


def test_a_published_dataset_has_the_classes_of_its_publication(nnunet_env: Path) -> None:
    record = load_catalogue().by_name("CHAOS_MRI")
    assert record is not None
    folder = nnunet_env / "raw" / record.folder
    write_json(folder / "dataset.json", {"channel_names": {"0": "MRI"}, "labels": {"background": 0, **record.labels}})
    assert set(classes_of_dataset(load_dataset(record.folder)).names) == set(record.classes)
    assert len(record.classes) > len(record.labels)  # it lists unions


def test_nothing_to_score(stage: Stage) -> None:
    write_json(stage.root / "preprocessed" / "Dataset900_Unified" / "splits_final.json", [])
    with pytest.raises(
        UserError, match=rf"scored: {NAMES[1]}: .*splits_final\.json: no validation scans of fold 0; it has 0 folds$"
    ):
        stage.run([NAMES[1]])
    dataset = load_dataset(NAMES[1])
    with pytest.raises(DatasetError, match="no validation scans of fold 0"):
        make_task(dataset, stage.network())
