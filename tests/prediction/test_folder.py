from __future__ import annotations

import csv
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from satunet.errors import DiskFullError, PromptError, UserError
from satunet.jobs.files import read_json
from satunet.prediction import ModelFolder, Predictor
from satunet.prediction.door.inputs import collect_scans, read_pairs, read_prompts
from satunet.prediction.folder import predict_folder
from satunet.prediction.masks.postprocess import Postprocessing
from satunet.prediction.options import Outputs
from satunet.prediction.results.manifests import write_statistics

AFFINE = np.array([[0, -1, 0, 10], [1, 0, 0, -20], [0, 0, 1, 30], [0, 0, 0, 1]], dtype=float)


def scan() -> np.ndarray:
    array = np.ones((18, 16, 20), np.float32)
    array[3:9, 4:8, 5:12] = 5
    return array


def save(path: Path, array: np.ndarray | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(scan() if array is None else array, AFFINE), path)
    return path


@pytest.fixture
def predictor(model: ModelFolder) -> Predictor:
    return Predictor(model, device="cpu", precision="float32")


def test_results_are_in_the_scans_own_grid_and_format(tmp_path: Path, predictor: Predictor) -> None:
    save(tmp_path / "in" / "a_0000.nii.gz")
    sitk.WriteImage(sitk.GetImageFromArray(scan().transpose()), str(tmp_path / "in" / "b.mha"))
    summary = predict_folder([tmp_path / "in"], tmp_path / "out", predictor, ["bright", "bright (left)"])
    assert summary.exit_code == 0
    mask = nib.load(tmp_path / "out" / "a" / "bright.nii.gz")
    assert np.array_equal(mask.affine, AFFINE)
    assert np.array_equal(np.asarray(mask.dataobj) > 0, scan() > 3)
    other = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "out" / "b" / "bright.mha"))).transpose()
    assert np.array_equal(other > 0, scan() > 3)
    manifest = read_json(tmp_path / "out" / "a" / "manifest.json")
    entry = manifest["prompts"][0]
    assert entry["voxels"] == int((scan() > 3).sum())
    assert entry["volume_ml"] == pytest.approx(entry["voxels"] / 1000)
    assert entry["mean_intensity"] == 5
    assert manifest["prompts"][1]["class"] == "left bright"
    assert manifest["weights"] == "abc"
    assert manifest["modality_from"]


def test_bad_scans_are_counted_and_the_others_done(tmp_path: Path, predictor: Predictor) -> None:
    save(tmp_path / "in" / "good.nii.gz")
    (tmp_path / "in" / "text.nii.gz").write_text("no image")
    save(tmp_path / "in" / "nan.nii.gz", np.full((4, 4, 4), np.nan, np.float32))
    save(tmp_path / "in" / "four.nii.gz", np.zeros((4, 4, 4, 2), np.float32))
    summary = predict_folder([tmp_path / "in", tmp_path / "none.nii.gz"], tmp_path / "out", predictor, ["bright"])
    assert summary.exit_code == 1
    assert summary.done_items == ["good"]
    assert set(summary.failures) == {"text", "nan", "four", "none"}
    assert "NaN" in summary.failures["nan"]
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["good", "prediction_summary.json"]


def test_a_second_run_does_what_is_missing(tmp_path: Path, predictor: Predictor) -> None:
    for name in ("a", "b"):
        save(tmp_path / "in" / f"{name}.nii.gz")
    arguments = ([tmp_path / "in"], tmp_path / "out", predictor, ["bright"])
    assert len(predict_folder(*arguments).done_items) == 2
    (tmp_path / "out" / "b" / "bright.nii.gz").unlink()
    again = predict_folder(*arguments)
    assert (again.skipped_items, again.done_items) == (["a"], ["b"])
    assert predict_folder([tmp_path / "in"], tmp_path / "out", predictor, ["left bright"]).skipped_items == []
    assert len(predict_folder(*arguments[:2], predictor.changed(overwrite=True), ["bright"]).done_items) == 2


def test_an_unknown_prompt_is_in_the_manifest_and_has_no_file(tmp_path: Path, predictor: Predictor) -> None:
    save(tmp_path / "a.nii.gz")
    summary = predict_folder([tmp_path / "a.nii.gz"], tmp_path / "out", predictor, ["bright", "coffee cup"])
    assert summary.exit_code == 0
    entry = read_json(tmp_path / "out" / "a" / "manifest.json")["prompts"][1]
    assert (entry["status"], entry["file"]) == ("unknown", None)
    assert entry["nearest"]
    assert set(entry) == {"prompt", "class", "status", "similarity", "nearest", "file", "note"}
    assert {p.name for p in (tmp_path / "out" / "a").iterdir()} == {"bright.nii.gz", "manifest.json"}


def test_combined_label_maps_have_a_legend(tmp_path: Path, predictor: Predictor) -> None:
    save(tmp_path / "a.nii.gz")
    combined = predictor.changed(outputs=Outputs(combine=True))
    predict_folder([tmp_path / "a.nii.gz"], tmp_path / "out", combined, ["bright", "left bright"])
    legend = read_json(tmp_path / "out" / "a.json")
    labels = np.asarray(nib.load(tmp_path / "out" / "a.nii.gz").dataobj)
    assert set(np.unique(labels)) == {0, 2}  # a part lies over its whole
    assert legend["labels"] == {"left bright": 2}  # and the legend says what the map shows
    assert predict_folder([tmp_path / "a.nii.gz"], tmp_path / "out", combined, ["bright", "left bright"]).skipped_items


def test_all_classes_of_the_modality(tmp_path: Path, predictor: Predictor) -> None:
    save(tmp_path / "a.nii.gz")
    predict_folder([tmp_path / "a.nii.gz"], tmp_path / "out", predictor, None)
    manifest = read_json(tmp_path / "out" / "a" / "manifest.json")
    assert [e["prompt"] for e in manifest["prompts"]] == ["bright", "left bright", "right bright"]
    assert (
        predict_folder([tmp_path / "a.nii.gz"], tmp_path / "o2", predictor.changed(modality="ct"), None).exit_code == 1
    )


def test_names_of_results(tmp_path: Path) -> None:
    for name in ("x_0000.nii.gz", "x_0001.nii.gz", "y_0000.nii.gz"):
        (tmp_path / name).write_bytes(b"")
    assert [j.name for j in collect_scans([tmp_path])] == ["x_0000", "x_0001", "y"]
    beside = [tmp_path / "y_0000.nii.gz", tmp_path / "y.nii.gz"]
    assert [j.name for j in collect_scans(beside)] == ["y_0000", "y"]
    twins = [tmp_path / "x_0000.nii.gz", tmp_path / "sub" / "x_0000.nii.gz"]
    assert [j.name for j in collect_scans(twins)] == [f"{tmp_path.name}_x_0000", "sub_x_0000"]
    assert len(collect_scans([tmp_path, tmp_path / "y_0000.nii.gz"])) == 3  # a file that is named twice is one scan
    formats = [tmp_path / "z.nii.gz", tmp_path / "z.mha"]
    assert [j.name for j in collect_scans(formats)] == ["z_nii_gz", "z_mha"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no images in this folder"):
        collect_scans([tmp_path / "empty"])


def test_prompt_files(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("# organs\nliver\n\nleft kidney\nliver\n")
    assert read_prompts(tmp_path / "p.txt") == ("liver", "left kidney")
    (tmp_path / "p.txt").write_text("# nothing\n")
    with pytest.raises(PromptError, match="no prompts"):
        read_prompts(tmp_path / "p.txt")
    with pytest.raises(PromptError, match=r"none\.txt"):
        read_prompts(tmp_path / "none.txt")


def test_scans_with_prompts_of_their_own(tmp_path: Path, predictor: Predictor) -> None:
    save(tmp_path / "in" / "a.nii.gz")
    save(tmp_path / "in" / "b.nii.gz")
    lines = [
        {"image": "in/a.nii.gz", "prompts": ["bright"]},
        {"image": "in/b.nii.gz", "label": ["left bright", "right bright"], "modality": "MRI"},
    ]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (tmp_path / "pairs.json").write_text(json.dumps(lines))
    jobs = read_pairs(tmp_path / "pairs.jsonl")
    assert jobs == read_pairs(tmp_path / "pairs.json")
    assert predict_folder(jobs, tmp_path / "out", predictor, None).exit_code == 0
    assert {p.name for p in (tmp_path / "out" / "a").iterdir()} == {"bright.nii.gz", "manifest.json"}
    manifest = read_json(tmp_path / "out" / "b" / "manifest.json")
    assert [e["prompt"] for e in manifest["prompts"]] == ["left bright", "right bright"]
    assert manifest["modality_from"] == "list of scans"
    assert predict_folder(jobs, tmp_path / "out", predictor, None).skipped_items == ["a", "b"]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"image": "a.nii.gz"}', "line 1: must be an object with 'image' and a list of 'prompts'"),
        ('{"image": 3, "prompts": ["x"]}', "'image' must be a path, got 3"),
        ('{"image": "a\\u0000b", "prompts": ["x"]}', "'image' must be a path, got 'a"),
        ('{"image": " ", "prompts": ["x"]}', "'image' must be a path, got ' '"),
        ('{"image": "/", "prompts": ["x"]}', "line 1: 'image' is '/', the root of the file system"),
        ('{"image": "/usr/..", "prompts": ["x"]}', "line 1: 'image' is '/usr/..', the root of the file system"),
        ('{"image": "a", "prompts": ["x"]}\n{"image"', "line 2: not JSON"),
        ("[1]", "entry 1: must be an object"),
        ("[1", "not JSON"),
        ("\n", "no images in it"),
    ],
)
def test_lists_that_cannot_be_read(tmp_path: Path, text: str, reason: str) -> None:
    (tmp_path / "l.jsonl").write_text(text)
    with pytest.raises(UserError, match=reason):
        read_pairs(tmp_path / "l.jsonl")


def test_statistics_have_a_row_for_every_prompt_also_of_earlier_runs(tmp_path: Path, predictor: Predictor) -> None:
    save(tmp_path / "in" / "a.nii.gz")
    arguments = ([tmp_path / "in"], tmp_path / "out", predictor, ["bright", "coffee cup"])
    predict_folder(*arguments)
    save(tmp_path / "in" / "b.nii.gz")
    assert predict_folder(*arguments).skipped_items == ["a"]
    file = write_statistics(tmp_path / "out", ["a", "b", "failed"], combine=False)
    rows = list(csv.DictReader(file.open()))
    assert [(r["scan"], r["prompt"]) for r in rows] == [(s, p) for s in "ab" for p in ("bright", "coffee cup")]
    assert float(rows[0]["volume_ml"]) == pytest.approx((scan() > 3).sum() / 1000)
    assert rows[1]["voxels"] == ""


def test_probabilities_agree_with_masks(tmp_path: Path, predictor: Predictor) -> None:
    save(tmp_path / "a.nii.gz")
    both = predictor.changed(outputs=Outputs(probabilities=True))
    predict_folder([tmp_path / "a.nii.gz"], tmp_path / "out", both, ["bright"])
    file = nib.load(tmp_path / "out" / "a" / "bright_probability.nii.gz")
    assert file.get_data_dtype() == np.uint8
    values = np.asarray(file.dataobj)
    assert np.array_equal(values > 0.5, scan() > 3)
    assert values.max() == pytest.approx(1)
    with pytest.raises(UserError, match="not with one combined"):
        Outputs(combine=True, probabilities=True)


def test_dicom_series_are_predicted_and_give_a_segmentation_object(tmp_path: Path, predictor: Predictor) -> None:
    highdicom = pytest.importorskip("highdicom")
    from tests.images.test_dicom import write_series

    write_series(tmp_path / "in" / "patient" / "x", modality="MR")
    both = predictor.changed(outputs=Outputs(dicom_seg=True, rtstruct=True))
    summary = predict_folder([tmp_path / "in"], tmp_path / "out", both, ["bright"])
    assert summary.failures == {}
    folder = tmp_path / "out" / "patient_x_4"
    assert read_json(folder / "manifest.json")["modality_from"] == "DICOM header"
    mask = nib.load(folder / "bright.nii.gz")
    image = predictor.predict(collect_scans([tmp_path / "in"])[0].read(), ["bright"])
    assert np.array_equal(np.asarray(mask.dataobj) > 0, image.masks[0].mask)
    assert highdicom.seg.segread(str(folder / "segmentation.dcm")).SegmentSequence[-1].SegmentLabel == "bright"
    assert read_json(folder / "manifest.json")["dicom"] == ["segmentation.dcm", "structures.dcm"]
    assert predict_folder([tmp_path / "in"], tmp_path / "out", both, ["bright"]).skipped_items
    (folder / "structures.dcm").unlink()
    assert predict_folder([tmp_path / "in"], tmp_path / "out", both, ["bright"]).done_items
    combined = predictor.changed(outputs=Outputs(combine=True, dicom_seg=True, rtstruct=True))
    predict_folder([tmp_path / "in"], tmp_path / "combined", combined, ["bright"])
    assert (tmp_path / "combined" / "patient_x_4_structures.dcm").is_file()


@pytest.mark.parametrize("combine", [False, True])
def test_dicom_series_give_a_report_of_measures(tmp_path: Path, predictor: Predictor, combine: bool) -> None:
    pydicom = pytest.importorskip("pydicom")
    pytest.importorskip("highdicom")
    from tests.images.test_dicom import write_series

    write_series(tmp_path / "in" / "x", modality="MR")
    outputs = Outputs(dicom_sr=True, measures=True, combine=combine)
    summary = predict_folder([tmp_path / "in"], tmp_path / "out", predictor.changed(outputs=outputs), ["cup", "bright"])
    assert summary.failures == {}
    folder, start = (tmp_path / "out", "x_4_") if combine else (tmp_path / "out" / "x_4", "")
    manifest = read_json(folder / ("x_4.json" if combine else "manifest.json"))
    assert manifest["dicom"] == [f"{start}segmentation.dcm", f"{start}report.dcm"]
    report = pydicom.dcmread(folder / f"{start}report.dcm")
    numbers = [float(e.value) for e in report.iterall() if e.keyword == "NumericValue"]
    with (folder / f"{start}measures.csv").open() as file:
        (row,) = csv.DictReader(file)
    columns = ("volume_ml", "surface_cm2", "major_axis_mm", "minor_axis_mm", "least_axis_mm", "mean", "deviation")
    assert numbers == [float(row[column]) for column in columns]


def test_series_of_one_number_in_nested_folders_are_told_apart(tmp_path: Path) -> None:
    from tests.images.test_dicom import write_series

    write_series(tmp_path / "in" / "patient" / "x", uid="1.2.3", modality="MR")
    write_series(tmp_path / "other", uid="1.2.4", modality="MR")
    for k, file in enumerate(sorted((tmp_path / "other").iterdir())):
        file.rename(tmp_path / "in" / "patient" / "x" / f"more{k}.dcm")
    write_series(tmp_path / "in" / "second", uid="1.2.5")
    names = {job.name for job in collect_scans([tmp_path / "in"])}
    assert names == {"patient_x_4_1.2.3", "patient_x_4_1.2.4", "second_4"}


def test_masks_may_be_cleaned(tmp_path: Path, model: ModelFolder) -> None:
    array = scan()
    array[5, 5, 8] = 1  # a hole
    array[15, 14, 17] = 5  # an island
    cleaned = Predictor(
        model, device="cpu", precision="float32", postprocessing=Postprocessing(largest_component=True, fill_holes=True)
    )
    found = cleaned.predict((array, AFFINE), ["bright"]).masks[0].mask
    assert np.array_equal(found, scan() > 3)
    plain = Predictor(model, device="cpu", precision="float32").predict((array, AFFINE), ["bright"]).masks[0].mask
    assert np.array_equal(plain, array > 3)


def test_a_full_disk_ends_the_run_at_once(
    tmp_path: Path, predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    from isal import igzip

    for name in "abcdef":
        save(tmp_path / "in" / f"{name}.nii.gz")
    opened, looked = igzip.open, []

    def full(path: Path, mode: str = "rb", **options: int) -> object:
        if mode != "wb":
            return opened(path, mode, **options)
        looked.append(path.parent.name)
        if path.parent.name != "a":
            path.write_bytes(b"half")
            raise OSError(28, "No space left on device")
        return opened(path, mode, **options)

    monkeypatch.setattr(igzip, "open", full)
    with pytest.raises(DiskFullError, match="no space left"):
        predict_folder([tmp_path / "in"], tmp_path / "out", predictor, ["bright"])
    assert (tmp_path / "out" / "a" / "manifest.json").is_file()
    assert list((tmp_path / "out" / "b").iterdir()) == []
    assert set(looked) <= set("abcd")  # what was under way, and no more
    monkeypatch.undo()
    again = predict_folder([tmp_path / "in"], tmp_path / "out", predictor, ["bright"])
    assert (again.skipped_items, again.done_items) == (["a"], list("bcdef"))


def test_ranks_share_the_scans(tmp_path: Path, predictor: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in "abcde":
        save(tmp_path / "in" / f"{name}.nii.gz")
    done = []
    for rank in range(2):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", "2")
        done.append(predict_folder([tmp_path / "in"], tmp_path / "out", predictor, ["bright"]).done_items)
    assert done == [["a", "c", "e"], ["b", "d"]]
    assert (tmp_path / "out" / "prediction_summary_1.json").is_file()
