"""What makes a comparison unfair is refused or said: each test fails when its guard is taken away."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from satunet.datasets.people import find_people
from satunet.datasets.raw import load_dataset
from satunet.errors import ModelError, UserError
from satunet.evaluation.benchmark.conclusions.results import Cost
from satunet.evaluation.benchmark.guards import budget_notes, patient_notes, require_same_cases, require_unseen
from satunet.evaluation.benchmark.tasks import Task, make_task
from satunet.evaluation.scoring.run import evaluate_cases
from satunet.evaluation.scoring.scores import Evaluation, Row
from satunet.images.image import write_label_map
from satunet.jobs.files import write_json
from satunet.models.trained_scans import TrainedScans

from .conftest import GRID, NAMES, Stage, in_datasets, scored


def evaluation(cases: str, classes: tuple[str, ...] = ("liver",)) -> Evaluation:
    rows = [Row(case=c, scan=c, class_name=n, dsc=0.5, nsd=0.5, reference_ml=1.0, prediction_ml=1.0)
            for c in cases for n in classes]  # fmt: skip
    return Evaluation(
        rows=tuple(rows), classes=scored(dict.fromkeys(classes, (1,))).classes, cases=tuple(cases), failures={}
    )


class Trained:
    """A competitor that was trained on some cases."""

    def __init__(self, *cases: str, name: str = "ours") -> None:
        self.cases, self.name = frozenset(cases), name

    def trained_cases(self, task: Task) -> frozenset[str]:
        return self.cases


def test_other_cases_or_classes_are_not_compared() -> None:
    require_same_cases(in_datasets({"A": {"x": evaluation("abc"), "y": evaluation("cba")}}))
    with pytest.raises(
        UserError, match=r"A: x and y were scored on different cases \(3 and 2, of which 2 are the same\)"
    ):
        require_same_cases(in_datasets({"A": {"x": evaluation("abc"), "y": evaluation("ab")}}))
    with pytest.raises(UserError, match="different classes"):
        require_same_cases(in_datasets({"A": {"x": evaluation("a", ("liver", "spleen")), "y": evaluation("a")}}))


def test_a_benchmark_compares_only_the_same_cases(stage: Stage) -> None:
    def fewer(references: dict[str, Path], predictions: Path, *arguments: object, **options: object) -> object:
        if "nnU-Net" in predictions.parts:
            references = {c: p for c, p in references.items() if c != "z"}
        return evaluate_cases(references, predictions, *arguments, **options)  # type: ignore[arg-type]

    with pytest.raises(UserError, match="scored on different cases"):
        stage.run([NAMES[0]], stage.specialist(), score=fewer)


@pytest.mark.parametrize("name", [NAMES[0], NAMES[1]])  # test cases, and cases of the fold
def test_no_side_is_scored_on_what_it_was_trained_on(stage: Stage, name: str) -> None:
    task = make_task(load_dataset(name), stage.network())
    case = task.cases[0].identifier
    require_unseen(Trained("a"), task)
    with pytest.raises(ModelError, match=rf"ours was trained on 1 of the {len(task.cases)} cases .* such as {case}"):
        require_unseen(Trained("a", case), task)
    require_unseen(Trained(case), replace(task, trained_on=True))  # said in the report instead


def test_both_sides_are_asked(stage: Stage) -> None:
    write_json(stage.root / "preprocessed" / NAMES[0] / "splits_final.json", [{"train": ["x", "a"], "val": ["b"]}])
    tables, summary = stage.run([NAMES[0]], stage.specialist())
    assert "nnU-Net was trained on 1 of the 3 cases" in summary.failures[f"nnU-Net/{NAMES[0]}/fold_0"]
    assert tables.competitors == ("satunet",)
    # The unified network: a test case that was among its scans, and an external dataset that it has seen.
    TrainedScans.of([f"{NAMES[0]}__y__0000"]).save(stage.model / "trained_scans.json")
    _, summary = stage.run([NAMES[0], NAMES[1]])
    assert "satunet was trained on 1 of the 3 cases" in summary.failures[NAMES[0]]


def test_patients_that_were_seen_at_another_visit_are_told(stage: Stage) -> None:
    write_json(stage.root / "raw" / NAMES[0] / "patients.json", {"x": "one", "y": "two", "a": "one", "b": "three"})
    dataset = load_dataset(NAMES[0])
    people = find_people([dataset], {NAMES[0]: list("abcxyz")})
    task = make_task(dataset, stage.network(), people=people)
    assert task.patient("x") == task.patient("a") == f"{NAMES[0]}/a"
    assert task.patient("z") == f"{NAMES[0]}/z"
    [note] = patient_notes([Trained("a", "b"), Trained("b", name="theirs")], [task])
    assert (
        "1 of the 3 patients that are scored have other cases that ours was trained on, such as Dataset001_A/a" in note
    )
    assert patient_notes([Trained("a")], [replace(task, trained_on=True)]) == []
    write_json(stage.root / "preprocessed" / NAMES[0] / "splits_final.json", [{"train": ["a"], "val": ["b"]}])
    tables, _ = stage.run([NAMES[0]], stage.specialist())
    assert any("patients that are scored have other cases that nnU-Net was trained on" in n for n in tables.notes)


def test_patients_are_the_units_of_a_benchmark(stage: Stage) -> None:
    write_json(stage.root / "raw" / NAMES[0] / "patients.json", {"x": "one", "y": "one", "z": "one"})
    tables, _ = stage.run([NAMES[0]], stage.specialist())
    assert {c.units for c in tables.comparisons if c.kind == "dataset"} == {1}


def test_a_patient_of_two_datasets_is_one_unit(stage: Stage) -> None:
    for name in (NAMES[0], NAMES[2]):
        write_json(stage.root / "raw" / name / "patients.json", {"x": "one", "y": "two", "z": "three"})
    tables, _ = stage.run([NAMES[0], NAMES[2]], stage.unified(name="again"))
    assert {c.units for c in tables.comparisons if c.kind in ("total", "dataset")} == {3}


def test_unequal_budgets_are_told() -> None:
    def cost(steps: int | None, models: int = 1) -> Cost:
        return Cost(models=models, training_steps=steps)

    assert budget_notes({"x": cost(1000), "y": cost(1040, 3)}) == []
    [note] = budget_notes({"x": cost(1000), "y": cost(3000, 3)})
    assert note == "Training budgets are not equal: x 1,000 steps of one network, y 3,000 steps of 3 networks together"
    [note] = budget_notes({"x": cost(1000), "y": cost(None)})
    assert "budgets of y are unknown" in note
    assert budget_notes({"x": cost(1000), "boxes": Cost()}) == []  # no network, no budget


def test_budgets_are_told_in_a_benchmark(stage: Stage) -> None:
    write_json(stage.model / "fold_0" / "training_config.json", {"steps": 500})

    class Theirs(type(stage.unified())):  # type: ignore[misc]
        def cost(self, tasks: object) -> Cost:
            return Cost(models=1, training_steps=100)

    others = Theirs(
        model=stage.model, output=stage.root / "bench" / "predictions", name="theirs", load=stage.load,
        predict_scans=stage.right_scans,
    )  # fmt: skip
    tables, _ = stage.run([NAMES[0]], others)
    assert (
        "Training budgets are not equal: satunet 500 steps of one network, theirs 100 steps of one network"
        in tables.notes
    )


def test_a_manifest_names_files_beside_it_and_no_others(tmp_path: Path) -> None:
    labels = np.zeros(GRID.shape, dtype=np.uint8)
    labels[2:5, 2:5, 2:5] = 1
    write_label_map(tmp_path / "labelsTs" / "a.nii.gz", labels, like=GRID)
    references = {"a": tmp_path / "labelsTs" / "a.nii.gz"}
    classes = scored({"liver": (1,)})
    for file in ("../../labelsTs/a.nii.gz", str(references["a"]), "..", "sub/a.nii.gz"):
        write_json(
            tmp_path / "p" / "a" / "manifest.json", {"prompts": [{"prompt": "liver", "class": "liver", "file": file}]}
        )
        found, summary = evaluate_cases(references, tmp_path / "p", classes)
        assert found.mean("dsc") == 0
        assert "allowed are names of files that lie beside the manifest" in found.failures["a"]
        assert summary.exit_code == 1
    (tmp_path / "p" / "a" / "manifest.json").unlink()
    (tmp_path / "p" / "a" / "liver.nii.gz").symlink_to(references["a"])
    assert "link to the reference" in evaluate_cases(references, tmp_path / "p", classes)[0].failures["a: liver"]
    (tmp_path / "q").mkdir()
    (tmp_path / "q" / "a.nii.gz").symlink_to(references["a"])
    assert "link to the reference" in evaluate_cases(references, tmp_path / "q", classes)[0].failures["a"]
    write_label_map(tmp_path / "elsewhere.nii.gz", labels, like=GRID)
    (tmp_path / "q" / "a.nii.gz").unlink()
    (tmp_path / "q" / "a.nii.gz").symlink_to(tmp_path / "elsewhere.nii.gz")
    assert evaluate_cases(references, tmp_path / "q", classes)[0].mean("dsc") == 1
