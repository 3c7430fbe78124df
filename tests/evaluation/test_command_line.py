"""``satunet evaluate`` and the options of ``satunet benchmark``, from the command line."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from satunet.cli import parse, run
from satunet.cli.benchmark import Benchmark
from satunet.errors import UserError
from satunet.evaluation.scoring.rules import Rules
from satunet.geometry import Grid
from satunet.images.image import write_label_map
from satunet.jobs.files import read_json, write_json

GRID = Grid(shape=(10, 8, 6), affine=np.diag([1.0, 1.0, 2.0, 1.0]))
LABELS = {"background": 0, "liver": 1, "liver tumour": 2}


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """A dataset with two test references, and a folder with a prediction of one, whose ids are the other way round."""
    labels = np.zeros(GRID.shape, dtype=np.uint8)
    labels[2:8, 1:7, 1:5], labels[4:6, 3:5, 2:4] = 1, 2
    for case in ("a", "b"):
        write_label_map(tmp_path / "data" / "labelsTs" / f"{case}.nii.gz", labels, like=GRID)
    write_json(tmp_path / "data" / "dataset.json", {"labels": LABELS})
    predicted = tmp_path / "predicted"
    write_label_map(predicted / "a.nii.gz", np.array([0, 2, 1], dtype=np.uint8)[labels], like=GRID)
    write_json(predicted / "dataset.json", {"labels": {"background": 0, "Liver_Tumor": 1, "LIVER": 2}})
    return tmp_path / "data" / "labelsTs", predicted


def test_evaluate(folders: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    references, predicted = folders
    arguments = ["evaluate", "-p", str(predicted), "-r", str(references), "-np", "0", "--tolerances", "Liver=2"]
    assert run([*arguments, "--parquet"]) == 1  # b has no prediction
    content = read_json(predicted / "scores" / "summary.json")
    assert content["per_class"]["liver"]["dsc"] == 0.5
    assert content["rules"]["tolerances_mm"] == {"liver": 2.0}
    assert [c["name"] for c in content["classes"] if c["lesion"]] == ["liver tumor"]
    assert content["per_class"]["liver tumor"]["lesion_f1"] == 0.5
    assert list(content["failures"]) == ["b"]
    with (predicted / "scores" / "per_case.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [(r["case"], r["class"], r["dsc"]) for r in rows][:2] == [("a", "liver", "1.0"), ("a", "liver tumor", "1.0")]
    assert "no prediction" in rows[2]["error"]
    assert (predicted / "scores" / "per_case.parquet").is_file()
    printed = capsys.readouterr()
    assert "lesion F1" in printed.out
    assert "b: no prediction" in " ".join(printed.err.split())


def test_an_empty_folder_is_all_failures(folders: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert run(["evaluate", "-p", str(tmp_path / "empty"), "-r", str(folders[0]), "-np", "0", "--no_distances"]) == 1
    content = read_json(tmp_path / "empty" / "scores" / "summary.json")
    assert sorted(content["failures"]) == ["a", "b"]
    assert content["mean"]["dsc"] == 0
    assert run(["evaluate", "-p", str(tmp_path / "nothing"), "-r", str(folders[0])]) == 2
    assert run(["evaluate", "-p", str(tmp_path / "empty"), "-r", str(tmp_path / "empty")]) == 2


def test_what_is_typed_wrong_is_said(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match=r"CLASS=MM, such as aorta=2; got 'aorta'"):
        Rules(tolerances=("aorta",))
    with pytest.raises(UserError, match="got -1"):
        Rules(tolerances=("aorta=-1",))
    with pytest.raises(SystemExit) as ended:
        parse(["benchmark", "-d", "1", "-o", str(tmp_path), "--correction", "bonferroni"])
    assert ended.value.code == 2


def test_benchmark_options(tmp_path: Path) -> None:
    command = parse([
        "benchmark", "-d", "1", "2", "-o", str(tmp_path), "-f", "0", "1", "--competitors", "ts=/x", "--commands",
        "own=run {input} {output} --size=3", "--medsam", "folder", "--medsam_boxes", "tight", "oracle",
        "--copy_baseline", "--organs", "listed", "--tolerance", "2",
    ])  # fmt: skip
    assert isinstance(command, Benchmark)
    assert command.folds == ("0", "1")
    assert command.rules == Rules(organs="listed", tolerance_mm=2.0)
    assert command.commands == ("own=run {input} {output} --size=3",)
    assert [c.name for c in command._others()] == ["ts", "own", "MedSAM tight", "oracle box", "nearest copy"]


def test_a_file_of_some_classes_scores_these_alone(folders: tuple[Path, Path], tmp_path: Path) -> None:
    references, predicted = folders
    (predicted / "dataset.json").unlink()
    labels = np.zeros(GRID.shape, dtype=np.uint8)
    labels[2:8, 1:7, 1:5], labels[4:6, 3:5, 2:4], labels[0] = 1, 2, 3
    write_json(tmp_path / "data" / "dataset.json", {"labels": LABELS | {"ignore": 3}})
    for case in ("a", "b"):
        write_label_map(references / f"{case}.nii.gz", labels, like=GRID)
        found = labels.copy()
        found[0] = 2  # where nobody looked
        write_label_map(predicted / f"{case}.nii.gz", found, like=GRID)
    some = tmp_path / "some.json"
    write_json(some, {"labels": {"background": 0, "lesion": 2}})
    arguments = ["evaluate", "-p", str(predicted), "-r", str(references), "-np", "0", "--labels", str(some)]
    assert run(arguments) == 0
    content = read_json(predicted / "scores" / "summary.json")
    assert content["per_class"].keys() == {"lesion"}
    assert content["per_class"]["lesion"]["dsc"] == 1  # the ignored voxels are those of the dataset's own file
    assert content["per_class"]["lesion"]["present"] == 2


def test_ids_of_an_organ_are_chosen_and_said(folders: tuple[Path, Path]) -> None:
    references, predicted = folders
    (predicted / "dataset.json").unlink()
    labels = np.zeros(GRID.shape, dtype=np.uint8)
    labels[2:8, 1:7, 1:5] = 1  # all of the tumor is taken for liver
    for case in ("a", "b"):
        write_label_map(predicted / f"{case}.nii.gz", labels, like=GRID)
    arguments = ["evaluate", "-p", str(predicted), "-r", str(references), "-np", "0"]
    found = {}
    for organs in ("whole", "listed"):
        assert run([*arguments, "--organs", organs]) == 0
        content = read_json(predicted / "scores" / "summary.json")
        assert content["rules"]["organs"] == organs
        found[organs] = content["per_class"]["liver"]["dsc"], content["classes"][0]["ids"]
    assert found["whole"] == (1, [1, 2])
    tumor, both = 2 * 2 * 2, 6 * 6 * 4
    assert found["listed"] == (pytest.approx(2 * (both - tumor) / (2 * both - tumor)), [1])


def test_lesions_that_are_typed(folders: tuple[Path, Path]) -> None:
    references, predicted = folders
    arguments = ["evaluate", "-p", str(predicted), "-r", str(references), "-np", "0"]
    assert run([*arguments, "--lesions", "Liver"]) == 1  # b has no prediction
    content = read_json(predicted / "scores" / "summary.json")
    assert [c["name"] for c in content["classes"] if c["lesion"]] == ["liver"]
    assert run([*arguments, "--lesions", "spleen"]) == 2
