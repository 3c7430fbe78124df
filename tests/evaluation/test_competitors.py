"""Those who take part in a benchmark, with stand-ins for the networks."""

from __future__ import annotations

import os
import sys
import weakref
from typing import Any

import numpy as np
import pytest
import torch

from satunet.errors import UserError
from satunet.evaluation.benchmark.competitors.brought import CommandCompetitor, FolderCompetitor
from satunet.images.image import read_label_map, write_label_map
from satunet.jobs.files import read_json, write_json
from satunet.trainers.specialist.trainer import specialist_folder

from .conftest import GRID, NAMES, Stage


def test_a_specialist_that_was_trained_again_is_predicted_again(stage: Stage) -> None:
    before, _ = stage.run([NAMES[0]], stage.specialist())
    place = stage.root / "bench" / "predictions" / "nnU-Net" / NAMES[0] / "fold_0"
    checkpoint = specialist_folder(NAMES[0]) / "fold_0" / "checkpoint_final.pth"
    checkpoint.parent.mkdir(parents=True)
    torch.save({"network_weights": {}}, checkpoint)
    stage.run([NAMES[0]], stage.specialist())
    for case in "xyz":  # what another network would find
        write_label_map(place / f"{case}.nii.gz", np.zeros(GRID.shape, dtype=np.uint8), like=GRID)
    os.utime(checkpoint)
    kept, _ = stage.run([NAMES[0]], stage.specialist())
    assert kept.datasets[0].scores["nnU-Net"]["dsc"] == 0  # a checkpoint of the same content is the same network
    torch.save({"network_weights": {}, "epoch": 2}, checkpoint)
    os.utime(checkpoint, (0, 0))  # copied with its old time
    again, _ = stage.run([NAMES[0]], stage.specialist())
    assert again.datasets[0].scores["nnU-Net"] == before.datasets[0].scores["nnU-Net"]
    assert [r["scans"] for r in read_json(place / "runs.json")["runs"]] == [3]


def test_a_competitor_has_the_memory_for_itself(stage: Stage) -> None:
    held: list[tuple[str, bool]] = []
    made: list[Any] = []
    load, scans, cases = stage.load, stage.predict_scans, stage.predict_cases

    class Loaded:
        def __init__(self, *arguments: Any) -> None:
            self.model = load(*arguments).model
            made.append(weakref.ref(self))

    def seen(name: str, predict: Any) -> Any:
        def and_look(*arguments: Any, **options: Any) -> Any:
            held.append((name, any(one() is not None for one in made)))
            return predict(*arguments, **options)

        return and_look

    stage.load = Loaded  # type: ignore[method-assign,assignment]
    stage.predict_scans, stage.predict_cases = seen("scans", scans), seen("cases", cases)
    tables, _ = stage.run([*NAMES[:2]], stage.specialist())
    assert held == [("scans", True), ("cases", False)] * 2
    assert tables.costs["satunet"].parameters == 8
    held.clear()
    made.clear()
    stage.run([*NAMES[:2]])
    assert len(made) == 1, "alone, it is loaded once"


def test_other_competitors_bring_their_own_predictions(stage: Stage) -> None:
    folder = stage.root / "theirs" / NAMES[0]
    for case in "xy":
        labels = read_label_map(stage.root / "raw" / NAMES[0] / "labelsTs" / f"{case}.nii.gz").array
        write_label_map(folder / f"{case}.nii.gz", labels, like=GRID)
    write_json(stage.root / "theirs" / "cost.json", {"models": 3, "parameters": 9})
    theirs = FolderCompetitor(name="theirs", place=stage.root / "theirs")
    tables, summary = stage.run([NAMES[0]], theirs)
    assert tables.competitors == ("satunet", "theirs")
    assert tables.datasets[0].scores["theirs"]["dsc"] == pytest.approx(2 / 3)  # case z is lacking: it counts 0
    assert f"theirs/{NAMES[0]}/fold_0/z" in summary.failures
    assert tables.costs["theirs"].parameters == 9
    with pytest.raises(UserError, match="names satunet are already used"):
        stage.contest(FolderCompetitor(name="satunet", place=folder))
    with pytest.raises(UserError, match="cannot be used"):
        stage.contest(FolderCompetitor(name="a/b", place=folder))


def test_label_maps_of_others_may_have_ids_of_their_own(stage: Stage) -> None:
    folder = stage.root / "theirs" / NAMES[0]
    for case in "xyz":
        labels = read_label_map(stage.root / "raw" / NAMES[0] / "labelsTs" / f"{case}.nii.gz").array
        write_label_map(folder / f"{case}.nii.gz", np.array([0, 2, 1], dtype=np.uint8)[labels], like=GRID)
    theirs = FolderCompetitor(name="theirs", place=stage.root / "theirs")
    tables, _ = stage.run([NAMES[0]], theirs)
    assert tables.datasets[0].scores["theirs"]["dsc"] < 0.9
    write_json(folder / "dataset.json", {"labels": {"background": 0, "spleen": 7, "liver": 2, "liver tumour": 1}})
    tables, summary = stage.run([NAMES[0]], theirs)
    assert tables.datasets[0].scores["theirs"]["dsc"] == 1
    assert not any(name.startswith("theirs") for name in summary.failures)


def test_a_command_makes_predictions_once(stage: Stage) -> None:
    def called(command: str, name: str = "theirs") -> CommandCompetitor:
        return CommandCompetitor(name=name, command=command, output=stage.root / "bench" / "predictions")

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
        tables, _ = stage.run([NAMES[0]], called(command))
    assert tables.datasets[0].scores["theirs"]["dsc"] == 1
    assert (stage.root / "bench" / "predictions" / "theirs" / NAMES[0] / "fold_0" / "calls.txt").read_text() == "x"
    cost = tables.costs["theirs"]
    assert (cost.seconds_per_case or 0) > 0
    assert (cost.memory_bytes or 0) > 1e6
    silent = f"{sys.executable} -c pass {{output}}"  # finds nothing: what the command before found is not its own
    tables, summary = stage.run([NAMES[0]], called(silent))
    assert tables.datasets[0].scores["theirs"]["dsc"] == 0
    done = stage.root / "bench" / "predictions" / "theirs" / NAMES[0] / "fold_0.done.json"
    stage.run([NAMES[0]], called(command))
    assert read_json(done)["classes"] == {"liver": [1, 2], "liver tumor": [2]}  # others, and it is called again
    failing = f"{sys.executable} -c 'import sys; sys.exit(\"no GPU here\")' {{output}}"
    tables, summary = stage.run([NAMES[0]], called(failing, "broken"))
    assert "ended with code 1: no GPU here" in summary.failures[f"broken/{NAMES[0]}/fold_0"]
    assert tables.competitors == ("satunet",)
    with pytest.raises(UserError, match=r"must say where \{output\} goes"):
        called("predict {input}")
