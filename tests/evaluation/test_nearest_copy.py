"""The copy baseline: labels of the nearest other patient, moved by the affines."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from satunet.datasets.people import find_people
from satunet.datasets.raw import load_dataset
from satunet.evaluation.benchmark.competitors.nearest_copy import NearestCopyCompetitor, copied, distance_mm
from satunet.evaluation.benchmark.tasks import Task, make_task
from satunet.geometry import Grid, reorient
from satunet.images.image import Image, read_label_map, write_label_map, write_volume
from satunet.jobs.files import read_json, write_json

from .conftest import NAMES, Stage


def grid(origin: tuple[float, float, float] = (0, 0, 0), shape: tuple[int, int, int] = (12, 10, 8)) -> Grid:
    affine = np.diag([1.0, 1.0, 2.0, 1.0])
    affine[:3, 3] = origin
    return Grid(shape=shape, affine=affine)


def test_labels_are_laid_on_in_millimetres() -> None:
    labels = np.zeros((12, 10, 8), dtype=np.uint8)
    labels[3:6, 2:5, 1:4] = 7
    there = Image(array=labels, grid=grid())
    moved = copied(there, grid((2.0, -1.0, 2.0)))
    expected = np.zeros_like(labels)
    expected[1:4, 3:6, 0:3] = 7
    np.testing.assert_array_equal(moved, expected)
    # Another direction of the axes and half the spacing: the same millimetres.
    affine = np.diag([1.0, 1.0, 1.0, 1.0])
    affine[2, 3] = -0.4  # no voxel lies halfway between two
    fine = Grid(shape=(12, 10, 16), affine=affine)
    turned_array, turned_grid = reorient(labels, there.grid, "LPI")
    np.testing.assert_array_equal(copied(Image(array=turned_array, grid=turned_grid), fine), copied(there, fine))
    assert (copied(there, fine) == 7).sum() == 2 * (labels == 7).sum()


def test_fields_of_view_far_apart_are_laid_on_each_other() -> None:
    labels = np.zeros((12, 10, 8), dtype=np.uint8)
    labels[5:7, 4:6, 3:5] = 1
    moved = copied(Image(array=labels, grid=grid()), grid((500.0, 0, 0), (14, 10, 8)))
    centre = np.argwhere(moved).mean(axis=0)
    assert centre.tolist() == [6.5, 4.5, 3.5]  # the middle of the new field of view


def test_distance_of_fields_of_view() -> None:
    assert distance_mm(grid(), grid()) == 0
    assert distance_mm(grid(), grid((3.0, 4.0, 0.0))) == pytest.approx(5)
    turned = reorient(np.zeros((12, 10, 8)), grid(), "PIL")[1]
    assert distance_mm(grid(), turned) == pytest.approx(0)
    assert distance_mm(grid(), grid(shape=(12, 10, 10))) == pytest.approx(2)  # 4 mm at one of two ends


def of_people(stage: Stage) -> Task:
    dataset = load_dataset(NAMES[0])
    return make_task(dataset, stage.network(), people=find_people([dataset], {NAMES[0]: list("abcxyz")}))


@pytest.fixture
def task(stage: Stage) -> Task:
    """Cases x, y, z to score; a and b near x, b of the same patient as x, c far away."""
    folder = stage.root / "raw" / NAMES[0]
    for number, (case, origin) in enumerate((("a", 3.0), ("b", 0.5), ("c", 50.0)), start=1):
        array = np.full((12, 10, 8), number % 2 + 1, dtype=np.uint8)
        write_volume(folder / "imagesTr" / f"{case}_0000.nii.gz", array.astype(np.float32), like=grid((origin, 0, 0)))
        write_label_map(folder / "labelsTr" / f"{case}.nii.gz", array, like=grid((origin, 0, 0)))
    write_json(folder / "patients.json", {"x": "one", "b": "one"})
    return of_people(stage)


def copied_from(competitor: NearestCopyCompetitor, task: Task) -> dict[str, str | None]:
    return {
        c: read_json(competitor.folder(task) / f"{c}.copied.json")["stamp"]["combined"]["case"] for c in task.references
    }


def test_the_nearest_case_of_another_patient_is_copied(task: Task, tmp_path: Path) -> None:
    competitor = NearestCopyCompetitor(output=tmp_path / "out")
    assert competitor.predict(task) == {}
    assert copied_from(competitor, task) == {"x": "a", "y": "b", "z": "b"}
    assert competitor.cost([task]) is None
    file = competitor.folder(task) / "x.nii.gz"
    stamp = file.stat().st_mtime_ns
    competitor.predict(task)
    assert file.stat().st_mtime_ns == stamp
    # The label map that was copied is another one now: the copy is made again.
    source = task.dataset.folder / "labelsTr" / "a.nii.gz"
    write_label_map(source, np.ones((12, 10, 8), dtype=np.uint8), like=grid((3.0, 0, 0)))
    competitor.predict(task)
    assert set(np.unique(read_label_map(file).array)) == {0, 1}


def test_with_nobody_to_copy_from_nothing_is_predicted(stage: Stage, tmp_path: Path) -> None:
    folder = stage.root / "raw" / NAMES[0]
    write_json(folder / "patients.json", dict.fromkeys("abcxyz", "one"))
    task = of_people(stage)
    competitor = NearestCopyCompetitor(output=tmp_path / "out")
    assert competitor.predict(task) == {}
    assert not read_label_map(competitor.folder(task) / "x.nii.gz").array.any()
    assert set(copied_from(competitor, task).values()) == {None}


def test_a_column_of_the_benchmark(stage: Stage) -> None:
    tables, _ = stage.run(NAMES[:2], NearestCopyCompetitor(output=stage.root / "bench" / "predictions"))
    # All cases of the stage are alike: a copy is right, where the unified network failed in one of three.
    scores = {g.name: g.scores for g in tables.datasets}
    assert scores[NAMES[0]]["nearest copy"]["dsc"] == 1 > scores[NAMES[0]]["satunet"]["dsc"]
    assert scores[NAMES[1]]["nearest copy"]["dsc"] == 1  # of the fold's only case, from the others
    assert "nearest copy" not in tables.costs


def test_an_external_dataset_is_copied_from_patient_to_patient(stage: Stage, tmp_path: Path) -> None:
    task = make_task(load_dataset(NAMES[1]), stage.network())
    whole = Task(dataset=task.dataset, fold=0, cases=task.dataset.training_cases(), classes=task.classes, external=True,
                 patients={"a": "one", "b": "one"})  # fmt: skip
    competitor = NearestCopyCompetitor(output=tmp_path / "out")
    competitor.predict(whole)
    assert copied_from(competitor, whole) == {"a": "c", "b": "c", "c": "a"}
