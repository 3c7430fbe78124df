"""Folders of predictions: matching, ids, failures that count, files."""

from __future__ import annotations

import csv
import math
import shutil
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from satunet.errors import DatasetError, ScanError, UserError
from satunet.evaluation.scoring import run as module_run
from satunet.evaluation.scoring.masks import class_names_in
from satunet.evaluation.scoring.predictions import find_predictions
from satunet.evaluation.scoring.rules import Rules
from satunet.evaluation.scoring.run import evaluate_cases, references_in
from satunet.evaluation.scoring.scores import Evaluation, mean_of
from satunet.geometry import Grid
from satunet.images.image import write_label_map
from satunet.jobs.files import mask_file_name, read_json, write_json
from satunet.jobs.workers import Workers
from satunet.labels.scored import ScoredClass, ScoredClasses

from .conftest import scored

SPACING = (2.0, 1.0, 1.0)
GRID = Grid(shape=(8, 7, 6), affine=np.diag([*SPACING, 1.0]))
CLASSES = scored({"left a/b": (1,), "right": (2,), "both": (1, 2), "never": (5,)})


def reference() -> np.ndarray:
    labels = np.zeros(GRID.shape, dtype=np.uint8)
    labels[1:3, 1:5, 1:5], labels[5:7, 1:5, 1:5] = 1, 2
    return labels


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """A folder of three references, ``one``, ``two`` and ``two_0001``, and an empty one for predictions."""
    for case in ("one", "two", "two_0001"):
        write_label_map(tmp_path / "labelsTs" / f"{case}.nii.gz", reference(), like=GRID)
    (tmp_path / "predicted").mkdir()
    return tmp_path / "labelsTs", tmp_path / "predicted"


def write_masks(folder: Path, labels: np.ndarray, *, leave_out: str = "") -> None:
    for name, ids in CLASSES.ids.items():
        if name != leave_out:
            write_label_map(folder / f"{mask_file_name(name)}.nii.gz", np.isin(labels, ids), like=GRID)


def evaluate_folder(predicted: Path, references: Path, classes: ScoredClasses, **options: Any) -> Evaluation:
    return evaluate_cases(references_in(references), predicted, classes, **options)[0]


def scores_of(evaluation: Evaluation, scan: str) -> dict[str, float]:
    return {r.class_name: r.dsc for r in evaluation.rows if r.scan == scan}


def test_label_maps_mask_folders_and_scan_names_score_alike(folders: tuple[Path, Path]) -> None:
    references, predicted = folders
    labels = reference()
    labels[2] = 0  # half of class 1
    write_label_map(predicted / "one.nrrd", labels, like=GRID)
    write_masks(predicted / "two", labels)
    write_masks(predicted / "Dataset001_X__two_0001__0000", labels)
    evaluation = evaluate_folder(predicted, references, CLASSES)
    assert evaluation.failures == {}
    assert evaluation.exit_code == 0
    expected = {"left a/b": 2 * 16 / 48, "right": 1.0, "both": 2 * 48 / 112, "never": 1.0}
    for scan in ("one", "two", "Dataset001_X__two_0001__0000"):
        assert scores_of(evaluation, scan) == pytest.approx(expected)
    row = evaluation.rows[0]
    assert (row.reference_ml, row.prediction_ml) == pytest.approx((0.064, 0.032))
    means = {s.class_name: s.metric("dsc") for s in evaluation.class_summaries}
    assert means == pytest.approx(expected)
    assert evaluation.mean("dsc") == pytest.approx(sum(expected.values()) / 4)


@pytest.mark.parametrize("processes", [1, 2])
def test_a_missing_prediction_scores_zero_for_what_is_there_and_nothing_for_what_is_not(
    folders: tuple[Path, Path], processes: int
) -> None:
    references, predicted = folders
    for case in ("one", "two_0001"):
        write_label_map(predicted / f"{case}.nii.gz", reference(), like=GRID)
    evaluation = evaluate_folder(predicted, references, CLASSES, processes=processes)
    assert list(evaluation.failures) == ["two"]
    assert evaluation.exit_code == 1
    scores = scores_of(evaluation, "two")
    assert [scores[c] for c in ("left a/b", "right", "both")] == [0, 0, 0]
    assert math.isnan(scores["never"])
    summary = next(s for s in evaluation.class_summaries if s.class_name == "right")
    assert (summary.scored, summary.present) == (3, 3)
    assert summary.metric("dsc") == pytest.approx(2 / 3)
    assert (summary.metrics["dsc"].n, summary.metrics["dsc"].worst) == (3, 0)
    assert summary.metrics["hd95_mm"].n == 2  # a distance to nothing is left out, and the count says so


def bad_grid(path: Path) -> None:
    write_label_map(path, reference(), like=Grid(shape=GRID.shape, affine=np.diag([2.0, 1.0, 1.5, 1.0])))


def bad_ids(path: Path) -> None:
    write_label_map(path, np.where(reference() == 2, 77, reference()), like=GRID)


def truncated(path: Path) -> None:
    write_label_map(path, reference(), like=GRID)
    path.write_bytes(path.read_bytes()[:60])


def not_integers(path: Path) -> None:
    from satunet.images.image import write_volume

    write_volume(path, reference().astype(np.float32) * 0.4, like=GRID)


@pytest.mark.parametrize(
    ("make", "reason"),
    [(bad_grid, "grid"), (bad_ids, "77"), (truncated, "readable"), (not_integers, "not integers")],
)
def test_a_prediction_that_cannot_be_used_is_a_counted_failure(
    folders: tuple[Path, Path], make: object, reason: str
) -> None:
    references, predicted = folders
    make(predicted / "one.nii.gz")  # type: ignore[operator]
    for case in ("two", "two_0001"):
        write_label_map(predicted / f"{case}.nii.gz", reference(), like=GRID)
    evaluation = evaluate_folder(predicted, references, CLASSES)
    assert list(evaluation.failures) == ["one"]
    assert reason in evaluation.failures["one"]
    assert scores_of(evaluation, "one")["right"] == 0
    assert scores_of(evaluation, "two")["right"] == 1


def test_one_missing_mask_fails_its_class_alone(folders: tuple[Path, Path]) -> None:
    references, predicted = folders
    for case in ("one", "two", "two_0001"):
        write_masks(predicted / case, reference(), leave_out="right" if case == "one" else "")
    evaluation = evaluate_folder(predicted, references, CLASSES)
    assert list(evaluation.failures) == ["one: right"]
    assert "no mask of 'right'" in evaluation.failures["one: right"]
    assert scores_of(evaluation, "one")["right"] == 0
    assert scores_of(evaluation, "one")["both"] == 1
    assert evaluation.job_summary().exit_code == 1


def test_a_manifest_tells_the_files_of_classes(folders: tuple[Path, Path]) -> None:
    references, predicted = folders
    folder = predicted / "one"
    for file, ids in (("x", (1,)), ("y", (2,)), ("z", (1, 2)), ("n", (5,))):
        write_label_map(folder / f"{file}.nii.gz", np.isin(reference(), ids), like=GRID)
    entries = [
        {"prompt": "a and b on the left", "class": "left a/b", "file": "x.nii.gz"},
        {"prompt": "right", "class": "right", "file": "y.nii.gz"},
        {"prompt": "both", "class": None, "file": "z.nii.gz"},
        {"prompt": "never", "class": "never", "file": "n.nii.gz"},
    ]
    write_json(folder / "manifest.json", {"version": 1, "prompts": entries})
    evaluation, summary = evaluate_cases({"one": references / "one.nii.gz"}, predicted, CLASSES)
    assert evaluation.mean("nsd") == 1
    assert summary.exit_code == 0


def test_legend_own_ids_and_given_ids(folders: tuple[Path, Path]) -> None:
    references, predicted = folders
    one = {"one": references / "one.nii.gz"}
    swapped = np.array([0, 12, 11], dtype=np.uint8)[reference()]
    write_label_map(predicted / "one.nii.gz", swapped, like=GRID)
    classes = scored({"left a/b": (1,), "right": (2,)})
    given = scored({"left a/b": (12,), "right": (11,)})
    assert evaluate_cases(one, predicted, classes)[0].failures["one"].startswith(str(predicted))
    assert evaluate_cases(one, predicted, classes, predicted=given)[0].mean("dsc") == 1
    write_json(predicted / "one.json", {"labels": {"left a/b": 12, "RIGHT": 11}, "prompts": [
        {"prompt": "RIGHT", "class": "right", "label": 11}]})  # fmt: skip
    assert evaluate_cases(one, predicted, classes)[0].mean("dsc") == 1
    failures = evaluate_cases(one, predicted, scored({**classes.ids, "spleen": (1, 2, 3)}))[0].failures
    assert list(failures) == ["one: spleen"]
    union = {"prompt": "both sides", "class": "both", "label": 12, "labels": [11, 12]}
    write_json(predicted / "one.json", {"labels": {"both": 12, "part": 11}, "prompts": [union]})
    assert evaluate_cases(one, predicted, scored({"both": (1, 2)}))[0].mean("dsc") == 1
    write_json(predicted / "one.json", {"labels": [1]})
    assert "legend" in evaluate_cases(one, predicted, classes)[0].failures["one"]


def test_names_that_are_cases_are_never_channels() -> None:
    cases = ("two", "two_0001")
    found, others = find_predictions(Path("/nowhere"), cases)
    assert found == {"two": [], "two_0001": []}
    assert others == []


def test_channels_are_scans_of_their_own(tmp_path: Path, folders: tuple[Path, Path]) -> None:
    references, predicted = folders
    one = {"one": references / "one.nii.gz"}
    write_label_map(predicted / "one_0000.nii.gz", reference(), like=GRID)
    write_label_map(predicted / "Dataset001_X__one__0002.nii.gz", np.zeros_like(reference()), like=GRID)
    evaluation, _ = evaluate_cases(one, predicted, CLASSES, channels=(0, 1, 2))
    assert list(dict.fromkeys(r.scan for r in evaluation.rows)) == [
        "one_0000", "Dataset001_X__one__0002", "one_0001"]  # fmt: skip
    assert list(evaluation.failures) == ["one_0001"]
    assert next(s for s in evaluation.class_summaries if s.class_name == "right").metric("dsc") == pytest.approx(1 / 3)
    assert evaluate_cases(one, predicted, CLASSES)[0].failures == {}
    # A case without any prediction weighs as much as one with a prediction of every channel.
    two = one | {"two": references / "two.nii.gz"}
    evaluation, _ = evaluate_cases(two, predicted, CLASSES, channels=(0, 2))
    assert list(evaluation.failures) == ["two_0000", "two_0002"]
    assert next(s for s in evaluation.class_summaries if s.class_name == "right").metric("dsc") == pytest.approx(1 / 4)


def test_two_predictions_of_one_scan_are_an_error(folders: tuple[Path, Path]) -> None:
    references, predicted = folders
    one = {"one": references / "one.nii.gz"}
    write_label_map(predicted / "one.nii.gz", reference(), like=GRID)
    write_masks(predicted / "one", reference())
    evaluation, _ = evaluate_cases(one, predicted, CLASSES)
    assert "several predictions of one scan: one, one.nii.gz" in evaluation.failures["one"]
    assert scores_of(evaluation, "one")["right"] == 0


@pytest.mark.parametrize("error", [MemoryError(), ScanError(Path("a"), "no room")])
def test_a_prediction_for_which_memory_is_missing_is_not_scored(
    folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    references, predicted = folders
    for case in ("one", "two", "two_0001"):
        write_label_map(predicted / f"{case}.nii.gz", reference(), like=GRID)

    def starved(*_: Any, **__: Any) -> Any:
        raise error from MemoryError()

    monkeypatch.setattr(module_run, "score_class", starved)
    evaluation = evaluate_folder(predicted, references, CLASSES)
    assert evaluation.rows == ()
    assert set(evaluation.failures) == {"one", "two", "two_0001"}
    assert all(reason.startswith("not scored: ") for reason in evaluation.failures.values())


@pytest.mark.parametrize("masks", [False, True])
def test_cases_are_scored_side_by_side_as_far_as_memory_allows(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, masks: bool
) -> None:
    grid, classes = Grid(shape=(100, 110, 120), affine=np.eye(4)), scored({"left": (1,), "right": (300,)})
    labels = np.full(grid.shape, 1, dtype=np.uint16)
    labels[50:60] = 300
    for case in (tmp_path / "references" / "large", tmp_path / "predicted" / "large"):
        if masks:
            for name, (value,) in classes.ids.items():
                write_label_map(case / "segmentations" / f"{name}.nii.gz", labels == value, like=grid)
        else:
            write_label_map(case.with_name("large.nii.gz"), labels, like=grid)
    references = references_in(tmp_path / "references")
    tracemalloc.start()
    try:
        one, _ = evaluate_cases(references, tmp_path / "predicted", classes)
        peak_gb = tracemalloc.get_traced_memory()[1] / 1e9
    finally:
        tracemalloc.stop()
    references["broken"] = tmp_path / "references" / "none.nii.gz"
    for room, alone in ((0.6, True), (3.0, False)):
        caplog.clear()
        workers = Workers(processes=2, memory_gb=room * peak_gb)
        found, summary = evaluate_cases(references, tmp_path / "predicted", classes, processes=workers)
        assert ("runs alone" in caplog.text) == alone
        assert scores_of(found, "large") == scores_of(one, "large") == {"left": 1.0, "right": 1.0}
        assert list(summary.failures) == ["broken"]


def test_a_reference_that_cannot_be_read_is_counted_and_not_scored(folders: tuple[Path, Path]) -> None:
    references, predicted = folders
    (references / "one.nii.gz").write_bytes(b"no image")
    for case in ("one", "two", "two_0001"):
        write_label_map(predicted / f"{case}.nii.gz", reference(), like=GRID)
    evaluation = evaluate_folder(predicted, references, CLASSES)
    assert "not scored" in evaluation.failures["one"]
    assert scores_of(evaluation, "one") == {}
    assert evaluation.mean("dsc") == 1


def test_spacing_is_rounded_so_that_an_oblique_affine_does_not_move_a_surface(tmp_path: Path) -> None:
    # One voxel of 1.0000001 mm is not more than 1 mm away.
    grid = Grid(shape=GRID.shape, affine=np.diag([1.0000001] * 3 + [1.0]))
    write_label_map(tmp_path / "r" / "one.nii", reference() > 0, like=grid)
    write_label_map(tmp_path / "p" / "one.nii", np.roll(reference(), 1, axis=2) > 0, like=grid)
    evaluation = evaluate_folder(tmp_path / "p", tmp_path / "r", scored({"a": (1,)}))
    assert evaluation.mean("nsd") == 1


def test_files_hold_everything(folders: tuple[Path, Path], tmp_path: Path) -> None:
    references, predicted = folders
    labels = reference()
    labels[1] = 0
    write_label_map(predicted / "one.nii.gz", labels, like=GRID)
    evaluation = evaluate_folder(predicted, references, CLASSES, rules=Rules(tolerance_mm=2.0, policy="nnunet"))
    evaluation.save(tmp_path / "scores")
    assert sorted(p.name for p in (tmp_path / "scores").iterdir()) == ["per_case.csv", "per_class.csv", "summary.json"]
    loaded = Evaluation.load(tmp_path / "scores")
    assert (loaded.classes, loaded.cases, loaded.failures) == (
        evaluation.classes,
        evaluation.cases,
        evaluation.failures,
    )
    assert loaded.rules == evaluation.rules
    assert loaded.rules["distances"] is True
    assert (loaded.rules["tolerance_mm"], loaded.rules["policy"]) == (2, "nnunet")
    for before, after in zip(evaluation.rows, loaded.rows, strict=True):
        assert after.dsc == pytest.approx(before.dsc, nan_ok=True)
        assert (after.case, after.class_name, after.error) == (before.case, before.class_name, before.error)
    content = read_json(tmp_path / "scores" / "summary.json")
    assert content["version"] == 4
    assert content["per_class"]["never"]["dsc"] is None
    with (tmp_path / "scores" / "per_class.csv").open() as stream:
        rows = {r["class"]: r for r in csv.DictReader(stream)}
    assert rows["never"]["dsc"] == ""
    assert float(rows["right"]["dsc"]) == pytest.approx(1 / 3)
    never = next(s for s in evaluation.class_summaries if s.class_name == "never")
    assert all(math.isnan(spread.worst) and math.isnan(spread.mean) for spread in never.metrics.values())
    assert loaded.rows[0].dsc != 0.125
    table = tmp_path / "scores" / "per_case.csv"
    kept = table.read_bytes()
    table.write_text(table.read_text("utf-8").replace(repr(float(loaded.rows[0].dsc)), "0.125", 1), "utf-8")
    assert table.read_bytes() != kept
    with pytest.raises(UserError, match=r"per_case\.csv is damaged"):
        Evaluation.load(tmp_path / "scores")
    table.write_bytes(kept)
    write_json(tmp_path / "scores" / "summary.json", content | {"version": 99})
    with pytest.raises(UserError, match="version 99"):
        Evaluation.load(tmp_path / "scores")
    with pytest.raises(UserError, match="not the results"):
        Evaluation.load(tmp_path)


def test_wrong_calls(folders: tuple[Path, Path], tmp_path: Path) -> None:
    references, predicted = folders
    with pytest.raises(UserError, match="no classes"):
        evaluate_folder(predicted, references, scored({}))
    with pytest.raises(UserError, match="tolerance"):
        Rules(tolerance_mm=-1.0)
    with pytest.raises(UserError, match="no such folder of predictions"):
        evaluate_folder(tmp_path / "nowhere", references, CLASSES)
    with pytest.raises(DatasetError, match="no such folder"):
        references_in(tmp_path / "nowhere")
    write_label_map(references / "one.nrrd", reference(), like=GRID)
    with pytest.raises(DatasetError, match="two reference label maps of one case"):
        references_in(references)


def test_references_may_be_folders_of_masks_in_any_spelling(tmp_path: Path) -> None:
    # As TotalSegmentator keeps them: <case>/segmentations/<class>.nii.gz, also for the predictions.
    labels = reference()
    for case in ("s1", "s2"):
        folder = tmp_path / "r" / case / "segmentations"
        write_label_map(folder / "kidney_left.nii.gz", labels == 1, like=GRID)
        if case == "s1":
            write_label_map(folder / "liver.nii.gz", labels == 2, like=GRID)
        write_label_map(tmp_path / "p" / case / "Left Kidney.nii.gz", labels == 1, like=GRID)
        write_label_map(tmp_path / "p" / case / "liver.nii.gz", labels == 2, like=GRID)
    found = references_in(tmp_path / "r")
    assert class_names_in(found["s1"]) == ["left kidney", "liver"]
    evaluation, _ = evaluate_cases(found, tmp_path / "p", scored({"left kidney": (), "liver": ()}))
    assert evaluation.failures == {}
    assert [(r.case, r.class_name, r.dsc) for r in evaluation.rows] == [
        ("s1", "left kidney", 1.0), ("s1", "liver", 1.0), ("s2", "left kidney", 1.0)]  # fmt: skip


def test_lesions_volumes_and_distances_reach_the_tables(folders: tuple[Path, Path], tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    from pyarrow import parquet

    references, predicted = folders
    labels = reference()
    labels[1] = 0
    write_label_map(predicted / "one.nii.gz", labels, like=GRID)
    one = {"one": references / "one.nii.gz"}
    evaluation, _ = evaluate_cases(one, predicted, CLASSES.with_lesions({"both"}))
    rows = {r.class_name: r for r in evaluation.rows}
    assert (rows["left a/b"].volume_error, rows["left a/b"].absolute_volume_error) == (-0.5, 0.5)
    assert rows["left a/b"].hd95_mm == 2.0
    assert (rows["both"].lesions, rows["both"].lesions_found, rows["both"].lesion_f1) == (2, 2, 1)
    assert math.isnan(rows["left a/b"].lesions)
    evaluation.save(tmp_path / "scores", parquet=True)
    table = parquet.read_table(tmp_path / "scores" / "per_case.parquet").to_pylist()
    assert [r["class"] for r in table] == list(CLASSES.names)
    assert table[0]["hd95_mm"] == 2.0
    assert Evaluation.load(tmp_path / "scores").rows[2] == rows["both"]


def test_a_class_without_a_mask_is_the_union_of_its_parts(folders: tuple[Path, Path]) -> None:
    references, predicted = folders
    one = {"one": references / "one.nii.gz"}
    write_masks(predicted / "one", reference(), leave_out="both")
    evaluation, _ = evaluate_cases(one, predicted, CLASSES)
    assert evaluation.failures == {}
    assert scores_of(evaluation, "one")["both"] == 1
    (predicted / "one" / f"{mask_file_name('right')}.nii.gz").unlink()
    assert sorted(evaluate_cases(one, predicted, CLASSES)[0].failures) == ["one: both", "one: right"]


def test_a_combined_map_has_small_masks_on_top_of_large_ones(folders: tuple[Path, Path]) -> None:
    references, predicted = folders
    one = {"one": references / "one.nii.gz"}
    # "both" is painted first, "right" over it: what is left of the label of "both" is not all of it.
    labels = np.array([0, 11, 12], dtype=np.uint8)[reference()]
    write_label_map(predicted / "one.nii.gz", labels, like=GRID)
    write_json(predicted / "one.json", {"labels": {"both": 11, "right": 12}, "prompts": []})
    classes = scored({"right": (2,), "both": (1, 2)})
    assert evaluate_cases(one, predicted, classes)[0].mean("dsc") == 1
    # Without a label of its own, it is what its parts are.
    write_json(predicted / "one.json", {"labels": {"left a/b": 11, "right": 12}, "prompts": []})
    evaluation, _ = evaluate_cases(one, predicted, scored({"left a/b": (1,), "right": (2,), "both": (1, 2)}))
    assert evaluation.mean("dsc") == 1


def test_a_lesion_is_part_of_its_organ_or_not(folders: tuple[Path, Path]) -> None:
    references, predicted = folders
    one = {"one": references / "one.nii.gz"}
    organ_without = ScoredClass(name="kidney", ids=(1,), excludes=("kidney tumor",))
    tumor = ScoredClass(name="kidney tumor", ids=(2,), lesion=True)
    listed = ScoredClasses(classes=(organ_without, tumor), allowed_ids=frozenset({1, 2}))
    whole = scored({"kidney": (1, 2), "kidney tumor": (2,)})
    # As satunet predicts: the organ's mask holds the tumor.
    for name, ids in whole.ids.items():
        write_label_map(predicted / "one" / f"{mask_file_name(name)}.nii.gz", np.isin(reference(), ids), like=GRID)
    for classes in (listed, whole):
        assert evaluate_cases(one, predicted, classes)[0].mean("dsc") == 1
    lesions = {r.class_name: r.lesion_f1 for r in evaluate_cases(one, predicted, listed)[0].rows}
    assert math.isnan(lesions["kidney"]) and lesions["kidney tumor"] == 1, "what is not called a lesion is none"
    # A label map that takes all of the tumor for kidney: wrong by nnU-Net's way of counting, right by the other.
    shutil.rmtree(predicted / "one")
    write_label_map(predicted / "one.nii.gz", reference() > 0, like=GRID)
    assert scores_of(evaluate_cases(one, predicted, whole)[0], "one")["kidney"] == 1
    assert scores_of(evaluate_cases(one, predicted, listed)[0], "one")["kidney"] == pytest.approx(2 / 3)


def test_ignored_voxels_reach_the_scores(folders: tuple[Path, Path]) -> None:
    references, predicted = folders
    labels = reference()
    labels[:4] = 3  # nobody looked at the half with the left one
    write_label_map(references / "one.nii.gz", labels, like=GRID)
    write_label_map(predicted / "one.nii.gz", reference(), like=GRID)
    one = {"one": references / "one.nii.gz"}
    classes = scored({"left a/b": (1,), "right": (2,)}, ignore_id=3)
    scores = scores_of(evaluate_cases(one, predicted, classes)[0], "one")
    assert scores == {"left a/b": 1.0, "right": 1.0}  # the left one is absent where somebody looked, and not found
    write_label_map(references / "one.nii.gz", np.full_like(labels, 3), like=GRID)
    assert all(math.isnan(v) for v in scores_of(evaluate_cases(one, predicted, classes)[0], "one").values())


def test_mean_leaves_out_nan() -> None:
    assert mean_of([1.0, math.nan, 0.0]) == 0.5
    assert math.isnan(mean_of([math.nan]))
    assert math.isnan(mean_of([]))


@pytest.mark.parametrize("masks", [False, True])
def test_shapes_are_trusted_where_that_is_said(folders: tuple[Path, Path], masks: bool) -> None:
    """A prediction that lies elsewhere by its header scores 0, or what its voxels score."""
    references, predicted = folders
    moved = GRID.affine.copy()
    moved[0, 3] = 50
    elsewhere = Grid(shape=GRID.shape, affine=moved)
    for case in ("one", "two", "two_0001"):
        if masks:
            for name, ids in CLASSES.ids.items():
                file = predicted / case / f"{mask_file_name(name)}.nii.gz"
                write_label_map(file, np.isin(reference(), ids), like=elsewhere)
        else:
            write_label_map(predicted / f"{case}.nii.gz", reference(), like=elsewhere)
    assert evaluate_folder(predicted, references, CLASSES).mean("dsc") < 0.5
    trusting = evaluate_folder(predicted, references, CLASSES, rules=Rules(trust_shape=True))
    assert (trusting.mean("dsc"), trusting.failures) == (1.0, {})
