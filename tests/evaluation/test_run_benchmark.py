"""The benchmark from folders to report, with stand-ins for the networks."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from satunet.evaluation.benchmark import run as module_run
from satunet.evaluation.run import run_benchmark
from satunet.evaluation.scoring import run as module_evaluate
from satunet.evaluation.scoring.rules import Rules
from satunet.evaluation.scoring.run import evaluate_cases
from satunet.images.image import read_label_map, write_label_map
from satunet.jobs.files import mask_file_name, read_json, write_json
from satunet.jobs.progress import JobSummary

from .conftest import GRID, NAMES, Stage


def test_everything_is_scored_and_every_failure_is_told(stage: Stage) -> None:
    output = stage.root / "bench"
    tables, summary = stage.run([*NAMES], stage.specialist(), pictures=True)
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
    lesion = next(r for r in tables.classes if r.scored.lesion)
    assert lesion.scores["satunet"]["lesion_f1"] == pytest.approx(2 / 3)
    assert tables.costs["satunet"].parameters == 8
    assert 0 < (tables.costs["satunet"].seconds_per_case or 0) < 2  # reading and preparing too, as for the others
    assert (tables.costs["satunet"].memory_bytes or 0) > 1e6
    for file in ("report.html", "report.md", "classes.csv", "per_case.csv", "benchmark_summary.json",
                 f"scores/nnU-Net/{NAMES[0]}/fold_0/per_case.csv"):  # fmt: skip
        assert (output / file).is_file()
    assert "not trained" in (output / "report.html").read_text("utf-8")
    runs = read_json(output / "predictions" / "nnU-Net" / NAMES[0] / "fold_0" / "runs.json")["runs"]
    assert [r["scans"] for r in runs] == [3]


def test_a_second_run_scores_only_what_changed(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    scored: list[Path] = []

    def counted(references: Any, predictions: Path, *arguments: Any, **options: Any) -> Any:
        scored.append(predictions)
        return evaluate_cases(references, predictions, *arguments, **options)

    def again(**rules: Any) -> Any:
        scored.clear()
        return stage.run([NAMES[0]], stage.specialist(), score=counted, rules=Rules(**rules))[0]

    first = again()
    assert len(scored) == 2
    assert again().classes == first.classes
    assert scored == []
    place = stage.root / "bench" / "predictions" / "nnU-Net" / NAMES[0] / "fold_0"
    write_label_map(place / "x.nii.gz", np.zeros(GRID.shape, dtype=np.uint8), like=GRID)
    assert again().classes != first.classes
    assert scored == [place]
    again(tolerance_mm=2.0)
    assert len(scored) == 2  # other rules: both competitors again
    again(tolerance_mm=2.0, organs="listed")
    assert len(scored) == 2  # other ids
    table = stage.root / "bench" / "scores" / "nnU-Net" / NAMES[0] / "fold_0" / "per_case.csv"
    table.write_text("half of")
    assert again(tolerance_mm=2.0, organs="listed").missing == {}
    assert len(scored) == 1
    monkeypatch.setattr(module_run, "EVALUATION_VERSION", 1)
    again(tolerance_mm=2.0, organs="listed")
    assert len(scored) == 2  # scores of another version


def test_what_could_not_be_scored_is_tried_again(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    real = module_evaluate._score_case

    def dying(task: Any) -> Any:
        if task.case == "x":
            raise RuntimeError("the worker died")
        return real(task)

    monkeypatch.setattr(module_evaluate, "_score_case", dying)
    before, summary = stage.run([NAMES[0]])
    assert "not scored: RuntimeError: the worker died" in summary.failures[f"satunet/{NAMES[0]}/fold_0/x"]
    monkeypatch.setattr(module_evaluate, "_score_case", real)
    after, _ = stage.run([NAMES[0]])
    assert (before.classes[0].scans, after.classes[0].scans) == (2, 3)


def two_channels(stage: Stage, name: str) -> Path:
    """A dataset in which every test case has a second channel."""
    folder = stage.root / "raw" / name
    write_json(folder / "dataset.json", read_json(folder / "dataset.json") | {"channel_names": {"0": "CT", "1": "CT"}})
    for case in "xyz":
        shutil.copy(folder / "imagesTs" / f"{case}_0000.nii.gz", folder / "imagesTs" / f"{case}_0001.nii.gz")
    return folder


def test_a_channel_that_fails_counts_zero_and_nothing_old_is_scored(stage: Stage) -> None:
    name = NAMES[0]
    folder = two_channels(stage, name)

    def predict_scans(jobs: Sequence[Any], output: Path, predictor: Any, prompts: Any) -> JobSummary:
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

    stage.predict_scans = predict_scans
    tables, summary = stage.run([name])
    assert tables.datasets[0].scores["satunet"]["dsc"] == pytest.approx(5 / 6)
    assert f"satunet/{name}/fold_0/x_0001" in summary.failures
    assert tables.datasets[0].failures == {"satunet": 1}
    [run] = read_json(stage.root / "bench" / "predictions" / "satunet" / name / "fold_0" / "runs.json")["runs"]
    assert (run["cases"], run["scans"]) == (2, 5)  # of case x one channel is lacking


def test_an_interrupted_run_leaves_a_partial_report(stage: Stage) -> None:
    predict = stage.predict_scans

    def interrupted(jobs: Any, output: Path, *arguments: Any) -> JobSummary:
        if output.parent.name == NAMES[2]:
            raise KeyboardInterrupt
        return predict(jobs, output, *arguments)

    stage.predict_scans = interrupted
    with pytest.raises(KeyboardInterrupt):
        run_benchmark([*NAMES], stage.contest(stage.specialist()), pictures=False, report_seconds=0.0)
    page = (stage.root / "bench" / "report.html").read_text("utf-8")
    assert "Partial." in page
    assert f"satunet/{NAMES[2]}/fold_0" in page
    stage.predict_scans = predict
    tables, _ = stage.run([*NAMES], stage.specialist())
    assert len(tables.datasets) == 3
    assert "Partial." not in (stage.root / "bench" / "report.html").read_text("utf-8")


def test_folds_are_pooled_and_only_shared_ones_count(stage: Stage) -> None:
    name = NAMES[1]
    splits = [{"train": [], "val": [f"{name}__{case}__0000"]} for case in "ab"]
    write_json(stage.root / "preprocessed" / "Dataset900_Unified" / "splits_final.json", splits)
    tables, _ = stage.run([name, name], stage.specialist(), folds=(0, 1, 1, 0))  # given twice, counted once
    assert tables.datasets[0].cases == 2
    assert [len(stage.calls), tables.classes[0].scans] == [2, 2]
    text = (stage.root / "bench" / "per_case.csv").read_text()
    assert {line.split(",")[2:5:2][0] for line in text.splitlines()[1:]} == {"a", "b"}
    # The specialist of fold 1 was trained on what is to be scored.
    write_json(stage.root / "preprocessed" / name / "splits_final.json", [{"train": ["b", "c"], "val": ["a"]}] * 2)
    tables, summary = stage.run([name], stage.specialist(), folds=(0, 1))
    assert "trained on 1 of the 1 cases of fold 1" in summary.failures[f"nnU-Net/{name}/fold_1"]
    assert tables.datasets[0].cases == 1
    assert tables.missing["nnU-Net"][name].startswith("fold 1: ")
