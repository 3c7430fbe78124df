"""The benchmark from folders to report, with stand-ins for the networks."""

from __future__ import annotations

import os
import shutil
import sys
import weakref
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import satunet.prediction.specialist
from satunet.catalogue import load_catalogue
from satunet.datasets import load_dataset
from satunet.errors import DatasetError, ModelError, UserError
from satunet.evaluation import competitors as module
from satunet.evaluation import evaluate as module_evaluate
from satunet.evaluation import run_benchmark as module_run
from satunet.evaluation.rules import Rules
from satunet.evaluation.run_benchmark import Contest, run_benchmark
from satunet.evaluation.tasks import classes_to_score, make_task
from satunet.files import mask_file_name, read_json, write_json
from satunet.geometry import Grid
from satunet.imageio import read_label_map, write_label_map, write_volume
from satunet.labels import build_label_space
from satunet.progress import JobSummary
from satunet.trainers.specialist import specialist_folder

GRID = Grid(shape=(12, 10, 8), affine=np.diag([1.0, 1.0, 2.0, 1.0]))
NAMES = ("Dataset001_A", "Dataset002_B", "Dataset003_C")


def make_dataset(folder: Path, *, test_cases: bool) -> None:
    labels = {"background": 0, "liver": 1, "liver tumour": 2}
    write_json(folder / "dataset.json", {"channel_names": {"0": "CT"}, "labels": labels, "numTraining": 3,
                                         "file_ending": ".nii.gz"})  # fmt: skip
    array = np.zeros(GRID.shape, dtype=np.uint8)
    array[2:9, 2:8, 1:7], array[4:6, 4:6, 3:5] = 1, 2
    for images, references, cases in (("imagesTr", "labelsTr", "abc"), ("imagesTs", "labelsTs", "xyz")):
        for case in cases if test_cases or images == "imagesTr" else "":
            write_volume(folder / images / f"{case}_0000.nii.gz", array.astype(np.float32) * 50, like=GRID)
            write_label_map(folder / references / f"{case}.nii.gz", array, like=GRID)


@pytest.fixture
def stage(nnunet_env: Path, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Two datasets with test cases, one without; a unified network that is right and a specialist that is not."""
    for name in NAMES:
        make_dataset(nnunet_env / "raw" / name, test_cases=name != NAMES[1])
    space = build_label_space([load_dataset(n) for n in NAMES])
    scans = {"train": [], "val": [f"{NAMES[1]}__b__0000"]}
    write_json(nnunet_env / "preprocessed" / "Dataset900_Unified" / "splits_final.json", [scans])
    model = SimpleNamespace(space=space, fold=0, path=nnunet_env / "results", checkpoint="checkpoint_final.pth", network=torch.nn.Linear(3, 2),
                            plan=SimpleNamespace(dataset_name="Dataset900_Unified"))  # fmt: skip
    monkeypatch.setattr(module.ModelFolder, "load", lambda path, fold=None: model)
    monkeypatch.setattr(module, "Predictor", lambda loaded, device: SimpleNamespace(model=loaded))
    calls: list[tuple[str, tuple[str, ...]]] = []

    def references(images: Sequence[Path]) -> list[tuple[str, Any]]:
        found = []
        for path in images:
            case, folder = path.name.split("_0000")[0], path.parent.parent
            labels = "labelsTs" if path.parent.name == "imagesTs" else "labelsTr"
            found.append((case, read_label_map(folder / labels / f"{case}.nii.gz").array))
        return found

    def predict_folder(jobs: Sequence[Any], output: Path, predictor: Any, prompts: Any) -> JobSummary:
        dataset = output.parent.name
        calls.append((dataset, tuple(prompts)))
        assert {job.modality for job in jobs} == {"ct"}
        images = [job.path for job in jobs]
        summary = JobSummary("prediction")
        for case, labels in references(images):
            if case == "z":
                continue  # a scan that fails
            if (output / case / "manifest.json").is_file():
                summary.skipped(case)
                continue
            summary.done(case)
            for name in prompts:
                ids = space.ids_of(dataset if dataset in space.ids else NAMES[0], name)
                write_label_map(output / case / f"{mask_file_name(name)}.nii.gz", np.isin(labels, ids), like=GRID)
            write_json(output / case / "manifest.json", {"seconds": 2.0, "prompts": []})
        if any(p.name.startswith("z") for p in images):
            summary.failures["z"] = "out of memory"
        return summary

    def predict_specialist(
        name: str, cases: Sequence[tuple[str, Sequence[Path]]], output: Path, **_: Any
    ) -> dict[str, str]:
        if name == NAMES[2]:
            raise ModelError("not trained")
        for case, labels in references([images[0] for _, images in cases]):
            if (output / f"{case}.nii.gz").is_file():
                continue
            write_label_map(output / f"{case}.nii.gz", np.roll(labels, 1, axis=0), like=GRID)
        return {}

    monkeypatch.setattr(module, "predict_folder", predict_folder)
    monkeypatch.setattr(satunet.prediction.specialist, "predict_specialist", predict_specialist)
    return SimpleNamespace(root=nnunet_env, calls=calls, model=nnunet_env / "results", space=space)


@pytest.fixture
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out what takes most of the time and is tested elsewhere."""
    monkeypatch.setattr(module_run, "draw_cases", lambda cases: [])
    for chart in ("scatter", "dataset_bars", "class_bars", "bland_altman"):
        monkeypatch.setattr(f"satunet.evaluation.charts.{chart}", lambda *args, **options: None)


def contest(stage: SimpleNamespace, **options: Any) -> Contest:
    return Contest(model=stage.model, output=stage.root / "bench", **options)


def test_everything_is_scored_and_every_failure_is_told(stage: SimpleNamespace) -> None:
    output = stage.root / "bench"
    tables, summary = run_benchmark([*NAMES], contest(stage))
    assert tables.competitors == ("satunet", "nnU-Net")
    datasets = {g.name: g for g in tables.datasets}
    assert {n: g.cases for n, g in datasets.items()} == {NAMES[0]: 3, NAMES[1]: 1, NAMES[2]: 3}
    assert datasets[NAMES[1]].scores["satunet"]["dsc"] == 1  # the fold's validation case
    assert datasets[NAMES[0]].scores["satunet"]["dsc"] == pytest.approx(2 / 3)  # one scan failed and counts 0
    assert 0.3 < datasets[NAMES[0]].scores["nnU-Net"]["dsc"] < 1
    assert tables.missing == {"nnU-Net": {NAMES[2]: "not trained"}}
    assert tables.waiting == ()
    assert summary.exit_code == 1
    expected = {
        f"nnU-Net/{NAMES[2]}/fold_0",
        f"satunet/{NAMES[0]}/fold_0/z",
        f"satunet/{NAMES[0]}/fold_0/z: prediction",
    }
    assert expected <= set(summary.failures)
    assert len(summary.failures) == 5  # scan z of two datasets, each as a prediction and as a score, and the specialist
    assert [g.name for g in tables.totals] == ["all classes", "anatomy", "lesions"]
    lesion = next(r for r in tables.classes if r.lesion)
    assert lesion.scores["satunet"]["lesion_f1"] == pytest.approx(2 / 3)
    assert tables.costs["satunet"].parameters == 8
    assert 0 < (tables.costs["satunet"].seconds_per_scan or 0) < 2  # reading and preparing too, as for the others
    assert (tables.costs["satunet"].memory_bytes or 0) > 1e6
    for file in ("report.html", "report.md", "classes.csv", "per_case.csv", "benchmark_summary.json",
                 f"scores/nnU-Net/{NAMES[0]}/fold_0/per_case.csv"):  # fmt: skip
        assert (output / file).is_file()
    assert "not trained" in (output / "report.html").read_text("utf-8")
    runs = read_json(output / "predictions" / "nnU-Net" / NAMES[0] / "fold_0" / "runs.json")["runs"]
    assert [r["scans"] for r in runs] == [3]


@pytest.mark.usefixtures("no_pictures")
def test_a_second_run_scores_only_what_changed(stage: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    first, _ = run_benchmark([NAMES[0]], contest(stage))
    scored: list[Path] = []
    real = module_run.evaluate_cases

    def counted(references: Any, predictions: Path, *args: Any, **options: Any) -> Any:
        scored.append(predictions)
        return real(references, predictions, *args, **options)

    monkeypatch.setattr(module_run, "evaluate_cases", counted)
    again, _ = run_benchmark([NAMES[0]], contest(stage))
    assert scored == []
    assert again.classes == first.classes
    place = stage.root / "bench" / "predictions" / "nnU-Net" / NAMES[0] / "fold_0"
    write_label_map(place / "x.nii.gz", np.zeros(GRID.shape, dtype=np.uint8), like=GRID)
    changed, _ = run_benchmark([NAMES[0]], contest(stage))
    assert scored == [place]
    assert changed.classes != first.classes
    run_benchmark([NAMES[0]], contest(stage, rules=Rules(tolerance_mm=2.0)))
    assert len(scored) == 3  # other rules: both competitors again
    table = stage.root / "bench" / "scores" / "nnU-Net" / NAMES[0] / "fold_0" / "per_case.csv"
    table.write_text("half of")
    tables, _ = run_benchmark([NAMES[0]], contest(stage, rules=Rules(tolerance_mm=2.0)))
    assert len(scored) == 4
    assert tables.missing == {}
    monkeypatch.setattr(module_run, "EVALUATION_VERSION", 1)
    run_benchmark([NAMES[0]], contest(stage, rules=Rules(tolerance_mm=2.0)))
    assert len(scored) == 6  # scores of another version


@pytest.mark.usefixtures("no_pictures")
def test_what_could_not_be_scored_is_tried_again(stage: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    real = module_evaluate._score_case

    def dying(task: Any) -> Any:
        if task.case == "x":
            raise RuntimeError("the worker died")
        return real(task)

    monkeypatch.setattr(module_evaluate, "_score_case", dying)
    before, summary = run_benchmark([NAMES[0]], contest(stage, specialists=False))
    assert "not scored: the worker died" in summary.failures[f"satunet/{NAMES[0]}/fold_0/x"]
    monkeypatch.setattr(module_evaluate, "_score_case", real)
    after, _ = run_benchmark([NAMES[0]], contest(stage, specialists=False))
    assert (before.classes[0].scans, after.classes[0].scans) == (2, 3)


@pytest.mark.usefixtures("no_pictures")
def test_a_channel_that_fails_counts_zero_and_nothing_old_is_scored(
    stage: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = NAMES[0]
    folder = stage.root / "raw" / name
    content = read_json(folder / "dataset.json")
    write_json(folder / "dataset.json", content | {"channel_names": {"0": "CT", "1": "CT"}})
    for case in "xyz":
        shutil.copy(folder / "imagesTs" / f"{case}_0000.nii.gz", folder / "imagesTs" / f"{case}_0001.nii.gz")

    def predict_folder(jobs: Sequence[Any], output: Path, predictor: Any, prompts: Any) -> JobSummary:
        summary = JobSummary("prediction")
        for job in jobs:
            labels = read_label_map(folder / "labelsTs" / f"{job.name[0]}.nii.gz").array
            for prompt in prompts:
                mask = np.isin(labels, stage.space.ids_of(name, prompt))
                write_label_map(output / job.name / f"{mask_file_name(prompt)}.nii.gz", mask, like=GRID)
            if job.name == "x_0001":
                summary.failures[job.name] = "cannot be read"  # masks of another network lie there
            else:
                summary.done(job.name)
                write_json(output / job.name / "manifest.json", {"prompts": []})
        return summary

    monkeypatch.setattr(module, "predict_folder", predict_folder)
    tables, summary = run_benchmark([name], contest(stage, specialists=False))
    assert tables.datasets[0].scores["satunet"]["dsc"] == pytest.approx(5 / 6)
    assert f"satunet/{name}/fold_0/x_0001" in summary.failures
    assert tables.datasets[0].failures == {"satunet": 1}


@pytest.mark.usefixtures("no_pictures")
def test_a_specialist_that_was_trained_again_is_predicted_again(stage: SimpleNamespace) -> None:
    before, _ = run_benchmark([NAMES[0]], contest(stage))
    place = stage.root / "bench" / "predictions" / "nnU-Net" / NAMES[0] / "fold_0"
    for case in "xyz":  # what another network found
        write_label_map(place / f"{case}.nii.gz", np.zeros(GRID.shape, dtype=np.uint8), like=GRID)
    checkpoint = specialist_folder(NAMES[0]) / "fold_0" / "checkpoint_final.pth"
    checkpoint.parent.mkdir(parents=True)
    torch.save({"network_weights": {}}, checkpoint)
    old = place.joinpath("x.nii.gz").stat().st_mtime - 60
    os.utime(checkpoint, (old, old))
    kept, _ = run_benchmark([NAMES[0]], contest(stage))
    assert kept.datasets[0].scores["nnU-Net"]["dsc"] == 0  # predictions that are newer than the checkpoint are its own
    os.utime(checkpoint, (old + 120, old + 120))
    again, _ = run_benchmark([NAMES[0]], contest(stage))
    assert again.datasets[0].scores["nnU-Net"] == before.datasets[0].scores["nnU-Net"]
    assert [r["scans"] for r in read_json(place / "runs.json")["runs"]] == [3]


@pytest.mark.usefixtures("no_pictures")
def test_a_competitor_has_the_memory_for_itself(stage: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[tuple[str, bool]] = []
    made: list[Any] = []

    class Loaded:
        def __init__(self, model: Any, device: str) -> None:
            self.model = model
            made.append(weakref.ref(self))

    def seen(module: Any, name: str) -> None:
        predict = getattr(module, name)

        def and_look(*args: Any, **options: Any) -> Any:
            held.append((name, any(one() is not None for one in made)))
            return predict(*args, **options)

        monkeypatch.setattr(module, name, and_look)

    monkeypatch.setattr(module, "Predictor", Loaded)
    seen(module, "predict_folder")
    seen(satunet.prediction.specialist, "predict_specialist")
    tables, _ = run_benchmark([*NAMES[:2]], contest(stage))
    assert held == [("predict_folder", True), ("predict_specialist", False)] * 2
    assert tables.costs["satunet"].parameters == 8
    held.clear()
    made.clear()
    run_benchmark([*NAMES[:2]], contest(stage, specialists=False))
    assert len(made) == 1, "alone, it is loaded once"


@pytest.mark.usefixtures("no_pictures")
def test_an_interrupted_run_leaves_a_partial_report(stage: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module_run, "_REPORT_SECONDS", 0.0)
    predict = module.UnifiedCompetitor.predict

    def interrupted(self: module.UnifiedCompetitor, task: Any) -> dict[str, str]:
        if task.dataset.name == NAMES[2]:
            raise KeyboardInterrupt
        return predict(self, task)

    monkeypatch.setattr(module.UnifiedCompetitor, "predict", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_benchmark([*NAMES], contest(stage))
    page = (stage.root / "bench" / "report.html").read_text("utf-8")
    assert "Partial." in page
    assert f"satunet/{NAMES[2]}/fold_0" in page
    monkeypatch.setattr(module.UnifiedCompetitor, "predict", predict)
    tables, _ = run_benchmark([*NAMES], contest(stage))
    assert len(tables.datasets) == 3
    assert "Partial." not in (stage.root / "bench" / "report.html").read_text("utf-8")


@pytest.mark.usefixtures("no_pictures")
def test_other_competitors_bring_their_own_predictions(stage: SimpleNamespace) -> None:
    folder = stage.root / "theirs" / NAMES[0]
    for case in "xy":
        labels = read_label_map(stage.root / "raw" / NAMES[0] / "labelsTs" / f"{case}.nii.gz").array
        write_label_map(folder / f"{case}.nii.gz", labels, like=GRID)
    write_json(stage.root / "theirs" / "cost.json", {"models": 3, "parameters": 9})
    others = {"theirs": stage.root / "theirs"}
    tables, summary = run_benchmark([NAMES[0]], contest(stage, specialists=False, folders=others))
    assert tables.competitors == ("satunet", "theirs")
    assert tables.datasets[0].scores["theirs"]["dsc"] == pytest.approx(2 / 3)  # case z is lacking: it counts 0
    assert f"theirs/{NAMES[0]}/fold_0/z" in summary.failures
    assert tables.costs["theirs"].parameters == 9
    with pytest.raises(UserError, match="names satunet are taken"):
        run_benchmark([NAMES[0]], contest(stage, folders={"satunet": folder}))
    with pytest.raises(UserError, match="cannot be one"):
        run_benchmark([NAMES[0]], contest(stage, folders={"a/b": folder}))


@pytest.mark.usefixtures("no_pictures")
def test_label_maps_of_others_may_have_ids_of_their_own(stage: SimpleNamespace) -> None:
    folder = stage.root / "theirs" / NAMES[0]
    for case in "xyz":
        labels = read_label_map(stage.root / "raw" / NAMES[0] / "labelsTs" / f"{case}.nii.gz").array
        write_label_map(folder / f"{case}.nii.gz", np.array([0, 2, 1], dtype=np.uint8)[labels], like=GRID)
    others = {"theirs": stage.root / "theirs"}
    tables, _ = run_benchmark([NAMES[0]], contest(stage, specialists=False, folders=others))
    assert tables.datasets[0].scores["theirs"]["dsc"] < 0.9
    write_json(folder / "dataset.json", {"labels": {"background": 0, "spleen": 7, "liver": 2, "liver tumour": 1}})
    tables, summary = run_benchmark([NAMES[0]], contest(stage, specialists=False, folders=others))
    assert tables.datasets[0].scores["theirs"]["dsc"] == 1
    assert not any(name.startswith("theirs") for name in summary.failures)


@pytest.mark.usefixtures("no_pictures")
def test_a_command_makes_predictions_once(stage: SimpleNamespace) -> None:
    script = stage.root / "their model.py"
    script.write_text(
        "import json, pathlib, shutil, sys\n"
        "scans, out, classes = (pathlib.Path(p) for p in sys.argv[1:4])\n"
        "assert json.loads(classes.read_text())['classes']\n"
        "for scan in scans.glob('*_0000.nii.gz'):\n"
        "    case = scan.name[:-12]\n"
        "    shutil.copy(scan.resolve().parents[1] / 'labelsTs' / f'{case}.nii.gz', out / f'{case}.nii.gz')\n"
        "open(out / 'calls.txt', 'a').write('x')\n"
    )
    command = f"{sys.executable} '{script}' {{input}} {{output}} {{classes}}"
    for _ in range(2):
        tables, _ = run_benchmark([NAMES[0]], contest(stage, specialists=False, commands={"theirs": command}))
    assert tables.datasets[0].scores["theirs"]["dsc"] == 1
    assert (stage.root / "bench" / "predictions" / "theirs" / NAMES[0] / "fold_0" / "calls.txt").read_text() == "x"
    cost = tables.costs["theirs"]
    assert (cost.seconds_per_scan or 0) > 0
    assert (cost.memory_bytes or 0) > 1e6
    silent = f"{sys.executable} -c pass {{output}}"  # finds nothing: what the command before found is not its own
    tables, summary = run_benchmark([NAMES[0]], contest(stage, specialists=False, commands={"theirs": silent}))
    assert tables.datasets[0].scores["theirs"]["dsc"] == 0
    done = stage.root / "bench" / "predictions" / "theirs" / NAMES[0] / "fold_0.done.json"
    run_benchmark([NAMES[0]], contest(stage, specialists=False, commands={"theirs": command}))
    assert read_json(done)["classes"] == {"liver": [1, 2], "liver tumor": [2]}  # others, and it is called again
    failing = f"{sys.executable} -c 'import sys; sys.exit(\"no GPU here\")' {{output}}"
    tables, summary = run_benchmark([NAMES[0]], contest(stage, specialists=False, commands={"broken": failing}))
    assert "ended with code 1: no GPU here" in summary.failures[f"broken/{NAMES[0]}/fold_0"]
    assert tables.competitors == ("satunet",)
    with pytest.raises(UserError, match=r"must say where \{output\} goes"):
        run_benchmark([NAMES[0]], contest(stage, commands={"theirs": "predict {input}"}))


@pytest.mark.usefixtures("no_pictures")
def test_folds_are_pooled_and_only_shared_ones_count(stage: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    name = NAMES[1]
    splits = [{"train": [], "val": [f"{name}__{case}__0000"]} for case in "ab"]
    write_json(stage.root / "preprocessed" / "Dataset900_Unified" / "splits_final.json", splits)
    model = module.ModelFolder.load(stage.model)

    def load(path: Path, fold: Any = None) -> Any:
        return SimpleNamespace(**{**vars(model), "fold": fold})

    monkeypatch.setattr(module.ModelFolder, "load", load)
    tables, _ = run_benchmark([name, name], contest(stage, folds=(0, 1, 1, 0)))  # given twice, counted once
    assert tables.datasets[0].cases == 2
    assert [len(stage.calls), tables.classes[0].scans] == [2, 2]
    text = (stage.root / "bench" / "per_case.csv").read_text()
    assert {line.split(",")[2:5:2][0] for line in text.splitlines()[1:]} == {"a", "b"}
    # The specialist of fold 1 was trained on what is to be scored.
    write_json(stage.root / "preprocessed" / name / "splits_final.json", [{"train": ["b", "c"], "val": ["a"]}] * 2)
    tables, summary = run_benchmark([name], contest(stage, folds=(0, 1)))
    assert "fold 1 trains on 1 of the 1 cases" in summary.failures[f"nnU-Net/{name}/fold_1"]
    assert tables.datasets[0].cases == 1
    assert tables.missing["nnU-Net"][name].startswith("fold 1: ")


@pytest.mark.usefixtures("no_pictures")
def test_external_datasets_are_scored_whole_and_apart(stage: SimpleNamespace) -> None:
    folder = stage.root / "raw" / "Dataset004_Elsewhere"
    make_dataset(folder, test_cases=False)
    content = read_json(folder / "dataset.json")
    write_json(folder / "dataset.json", content | {"labels": {"background": 0, "Liver": 1, "pancreas": 2}})
    tables, _ = run_benchmark([NAMES[0], folder.name], contest(stage, specialists=False))
    assert [g.name for g in tables.totals] == ["all classes", "anatomy", "lesions", "external: all classes"]
    external = next(g for g in tables.datasets if g.name == folder.name)
    assert (external.cases, external.classes) == (3, 1)
    assert any("1 of 2 classes are not scored" in note and "pancreas" in note for note in tables.notes)
    assert any(note.startswith("External datasets") for note in tables.notes)


@pytest.mark.usefixtures("no_pictures")
def test_a_dataset_with_nothing_to_score_is_told_in_the_report(stage: SimpleNamespace) -> None:
    write_json(stage.root / "preprocessed" / "Dataset900_Unified" / "splits_final.json", [{"train": [], "val": []}])
    tables, summary = run_benchmark([NAMES[0], NAMES[1]], contest(stage, specialists=False))
    assert [g.name for g in tables.datasets] == [NAMES[0]]
    assert any(NAMES[1] in note and "fold 0 holds out no case" in note for note in tables.notes)
    assert NAMES[1] in summary.failures


def test_the_only_case_of_a_dataset_is_trained_on_and_not_scored(stage: SimpleNamespace) -> None:
    scan, other = (f"{NAMES[1]}__{case}__0000" for case in "ab")
    file = stage.root / "preprocessed" / "Dataset900_Unified" / "splits_final.json"
    write_json(file, [{"train": [scan], "val": [scan, other]}])
    task = make_task(load_dataset(NAMES[1]), stage.space, 0, "Dataset900_Unified")
    assert [c.identifier for c in task.cases] == ["b"]
    write_json(file, [{"train": [scan], "val": [scan]}])
    with pytest.raises(DatasetError, match="fold 0 holds out no case of it"):
        make_task(load_dataset(NAMES[1]), stage.space, 0, "Dataset900_Unified")


@pytest.mark.usefixtures("no_pictures")
def test_a_split_that_changed_after_the_training_is_found(stage: SimpleNamespace) -> None:
    split = {"train": [f"{NAMES[1]}__b__0000"], "val": [f"{NAMES[1]}__a__0000"]}
    write_json(stage.model / "fold_0" / "split.json", split)
    tables, summary = run_benchmark([NAMES[0], NAMES[1]], contest(stage, specialists=False))
    assert "was trained on 1 of the 1 cases of fold 0" in summary.failures[NAMES[1]]
    assert [g.name for g in tables.datasets] == [NAMES[0]]  # its test cases are no matter of splits


@pytest.mark.usefixtures("no_pictures")
def test_training_cases_are_scored_only_with_a_note(stage: SimpleNamespace) -> None:
    model = module.ModelFolder.load(stage.model)
    model.fold = "all"  # type: ignore[misc]
    tables, _ = run_benchmark([NAMES[1]], contest(stage, specialists=False))
    assert "scores are of training cases" in tables.notes[0]
    assert tables.notes[0] in (stage.root / "bench" / "report.html").read_text("utf-8")


def test_classes_are_those_that_the_dataset_lists(stage: SimpleNamespace) -> None:
    classes = classes_to_score(load_dataset(NAMES[0]))
    assert sorted(ids for ids in classes.values()) == [(1, 2), (2,)]  # the tumor lies in the liver


def test_a_published_dataset_has_the_classes_of_its_publication(nnunet_env: Path) -> None:
    record = load_catalogue().by_name("CHAOS_MRI")
    assert record is not None
    folder = nnunet_env / "raw" / record.folder
    write_json(folder / "dataset.json", {"channel_names": {"0": "MRI"}, "labels": {"background": 0, **record.labels}})
    assert set(classes_to_score(load_dataset(record.folder))) == set(record.classes)
    assert len(record.classes) > len(record.labels)  # it lists unions


def test_nothing_to_score(stage: SimpleNamespace) -> None:
    write_json(stage.root / "preprocessed" / "Dataset900_Unified" / "splits_final.json", [])
    with pytest.raises(UserError, match="nothing could be scored"):
        run_benchmark([NAMES[1]], contest(stage))
    dataset = load_dataset(NAMES[1])
    with pytest.raises(DatasetError, match="no validation scans of fold 0"):
        make_task(dataset, stage.space, 0, "Dataset900_Unified")
