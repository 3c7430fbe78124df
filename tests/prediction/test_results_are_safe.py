"""No output replaces an input, nothing stale is believed, and what cannot be done is one sentence."""

from __future__ import annotations

import csv
import os
import random
import re
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from satunet.errors import PromptError, UnreadableImageError, UserError
from satunet.evaluation.scoring.masks import FolderMasks, PredictedLabels
from satunet.geometry import Grid
from satunet.jobs.files import parse_json, read_json, unseal
from satunet.labels.scored import ScoredClasses
from satunet.prediction import ModelFolder, Outputs, Predictor
from satunet.prediction.door import limits as module_limits
from satunet.prediction.door.inputs import Scan, collect_scans
from satunet.prediction.door.jobs import ScanJob, resolve
from satunet.prediction.folder import predict_folder, predict_jobs
from satunet.prediction.results.manifests import write_statistics
from satunet.prompts import PromptMatch
from tests.prediction.conftest import model_of

TWO = ({"liver": (1,), "spleen": (2,)}, "ct"), ({"liver": (1,), "brain tumor": (2,)}, "mri")


def scan(bright: slice = slice(3, 9)) -> np.ndarray:
    array = np.ones((18, 16, 20), np.float32)
    array[bright, 4:8, 5:12] = 5
    return array


def save(path: Path, array: np.ndarray | None = None, spacing: float = 1.0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(scan() if array is None else array, np.diag([spacing, spacing, spacing, 1])), path)
    return path


def mask(path: Path) -> np.ndarray:
    return np.asarray(nib.load(path).dataobj) > 0


@pytest.fixture
def predictor(model: ModelFolder) -> Predictor:
    return Predictor(model, device="cpu", precision="float32")


@pytest.fixture
def combining(predictor: Predictor) -> Predictor:
    return predictor.changed(outputs=Outputs(combine=True))


@pytest.mark.parametrize("way", ["same", "relative", "linked folder", "linked scan", "hard link"])
def test_a_combined_map_never_replaces_a_scan(
    tmp_path: Path, combining: Predictor, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = save(tmp_path / "in" / "a.nii.gz")
    before, output, given = file.read_bytes(), tmp_path / "in", file
    if way == "relative":
        monkeypatch.chdir(tmp_path / "in")
        output, given = Path(), Path("../in/a.nii.gz")
    elif way == "linked folder":
        output = tmp_path / "link"
        output.symlink_to(tmp_path / "in")
    elif way in ("linked scan", "hard link"):
        output = tmp_path / "out"
        output.mkdir()
        (output / "a.nii.gz").symlink_to(file) if way == "linked scan" else os.link(file, output / "a.nii.gz")
    with pytest.raises(UserError, match="would replace an input"):
        predict_folder([given], output, combining, ["bright"])
    assert file.read_bytes() == before
    assert sorted(p.name for p in (tmp_path / "in").iterdir()) == ["a.nii.gz"]


@pytest.mark.parametrize("combine", [False, True])
def test_no_result_of_a_series_replaces_an_input(
    tmp_path: Path, predictor: Predictor, combine: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("highdicom")
    from tests.images.test_dicom import write_series

    monkeypatch.setattr("satunet.prediction.results.outputs.comes_in_numbers", lambda *_: True)
    write_series(tmp_path / "in" / "x", modality="MR")
    every = Outputs(combine=combine, probabilities=not combine, instances=not combine, dicom_seg=True, rtstruct=True,
                    dicom_sr=True, measures=True, preview=True)  # fmt: skip
    predictor = predictor.changed(outputs=every)
    jobs = resolve(collect_scans([tmp_path / "in"]), ["bright"], predictor.vocabulary, predictor.options)
    assert predict_jobs(jobs, tmp_path / "first", predictor).done_items == ["x_4"]
    written = [f.relative_to(tmp_path / "first") for f in sorted((tmp_path / "first").rglob("*")) if f.is_file()]
    endings = {".nii.gz", ".json", ".dcm", ".png", ".csv"}
    assert {e for e in endings for f in written if f.name.endswith(e)} == endings
    assert len([f for f in written if f.suffix == ".dcm"]) == 3
    assert combine or {"bright_probability.nii.gz", "bright_instances.nii.gz"} <= {f.name for f in written}
    for name in written:
        output = tmp_path / "out" / name.as_posix().replace("/", " ")
        precious = output / name
        precious.parent.mkdir(parents=True)
        precious.write_bytes(b"precious")
        with pytest.raises(UserError, match=f"{re.escape(name.name)}: this result would replace an input"):
            predict_jobs(jobs, output, predictor, inputs=[precious])
        assert [f for f in output.rglob("*") if f.is_file()] == [precious], "refused before anything is written"
        assert precious.read_bytes() == b"precious"


def test_label_maps_do_not_lie_among_scans(tmp_path: Path, combining: Predictor) -> None:
    save(tmp_path / "a_0000.nii.gz")
    with pytest.raises(UserError, match="the next run would take them for scans"):
        predict_folder([tmp_path], tmp_path, combining, ["bright"])
    assert [p.name for p in tmp_path.iterdir()] == ["a_0000.nii.gz"]


@pytest.mark.parametrize("name", ["../a", "..", "", "a/b", "a\\b", "/a"])
def test_a_name_is_no_path(tmp_path: Path, predictor: Predictor, name: str) -> None:
    file = save(tmp_path / "in" / "a.nii.gz")
    with pytest.raises(UserError, match="cannot be the name of its results"):
        predict_folder([Scan(path=file, name=name)], tmp_path / "out" / "deep", predictor, ["bright"])
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["a.nii.gz", "in"]


def test_two_results_of_one_name_are_refused(tmp_path: Path, predictor: Predictor) -> None:
    scans = [Scan(path=save(tmp_path / f"{name}.nii.gz"), name=name) for name in ("a", "A")]
    with pytest.raises(UserError, match="2 scans would have results with the same name, such as 'a'"):
        predict_folder(scans, tmp_path / "out", predictor, ["bright"])


def test_a_mask_never_replaces_another_scan(tmp_path: Path, predictor: Predictor) -> None:
    files = [save(tmp_path / "a.nii.gz"), save(tmp_path / "a" / "BRIGHT.nii.gz")]
    linked = tmp_path / "a" / "bright.nii.gz"
    os.link(files[1], linked)  # as a file system without case has it
    with pytest.raises(UserError, match=r"bright\.nii\.gz: this result would replace an input"):
        predict_folder(files, tmp_path, predictor, ["bright"])
    with pytest.raises(UserError, match=r"bright\.nii\.gz: this result would replace an input"):
        predict_folder(files, tmp_path, predictor, None)  # every class: 'bright' is one
    assert len(predict_folder(files, tmp_path, predictor, ["left bright"]).done_items) == 2


def test_somebody_elses_json_beside_a_scan_stays(tmp_path: Path, combining: Predictor) -> None:
    save(tmp_path / "in" / "a.nii.gz")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a.json").write_text('{"RepetitionTime": 2}')
    done = predict_folder([tmp_path / "in"], tmp_path / "out", combining, ["bright"])
    assert "was not written by satunet" in done.failures["a"]
    assert (tmp_path / "out" / "a.json").read_text() == '{"RepetitionTime": 2}'


def test_the_same_name_in_another_folder_is_another_scan(
    tmp_path: Path, predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path / "p1" / "a.nii.gz")
    save(tmp_path / "p2" / "a.nii.gz", scan(slice(10, 12)))
    for patient, expected in (("p1", scan()), ("p2", scan(slice(10, 12)))):
        monkeypatch.chdir(tmp_path / patient)
        assert predict_folder([Path("a.nii.gz")], tmp_path / "out", predictor, ["bright"]).done_items == ["a"]
        assert np.array_equal(mask(tmp_path / "out" / "a" / "bright.nii.gz"), expected > 3)


@pytest.mark.parametrize("what", ["content, same size and time", "shape", "voxels behind a header"])
def test_a_scan_that_was_replaced_is_predicted_again(tmp_path: Path, predictor: Predictor, what: str) -> None:
    new = scan()[2:11, :9, 3:13] if what == "shape" else scan(slice(10, 16))
    if what == "voxels behind a header":
        file, raw = tmp_path / "in" / "a.mhd", tmp_path / "in" / "a.raw"
        file.parent.mkdir()
        sitk.WriteImage(sitk.GetImageFromArray(scan().transpose()), str(file))
    else:
        file = raw = save(tmp_path / "in" / "a.nii")
    status = raw.stat()
    arguments = ([file.parent], tmp_path / "out", predictor, ["bright"])
    assert predict_folder(*arguments).done_items == ["a"]
    assert predict_folder(*arguments).skipped_items == ["a"]
    if what == "voxels behind a header":
        raw.write_bytes(np.ascontiguousarray(new.transpose()).tobytes())
    else:
        save(file, new)
    os.utime(raw, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert predict_folder(*arguments).done_items == ["a"]
    found = tmp_path / "out" / "a" / f"bright{'.mhd' if what == 'voxels behind a header' else '.nii'}"
    image = sitk.GetArrayFromImage(sitk.ReadImage(str(found))).transpose()
    assert image.shape == new.shape
    assert np.array_equal(image > 0, new > 3)


@pytest.mark.parametrize("damage", ["empty", "shorter", "other", "gone", "manifest", "old manifest"])
def test_outputs_are_checked_before_they_are_believed(tmp_path: Path, predictor: Predictor, damage: str) -> None:
    save(tmp_path / "in" / "a.nii.gz")
    arguments = ([tmp_path / "in"], tmp_path / "out", predictor, ["bright"])
    predict_folder(*arguments)
    file = tmp_path / "out" / "a" / "bright.nii.gz"
    content = file.read_bytes()
    manifest = tmp_path / "out" / "a" / "manifest.json"
    if damage == "gone":
        file.unlink()
    elif damage == "manifest":
        manifest.write_text('{"version": 5, "stamp": []}')
    elif damage == "old manifest":
        manifest.write_text('{"version": 3, "prompts": []}')
    else:
        file.write_bytes({"empty": b"", "shorter": content[:-9], "other": content[:-1] + b"x"}[damage])
    assert predict_folder(*arguments).done_items == ["a"]
    assert np.array_equal(mask(file), scan() > 3)
    assert predict_folder(*arguments).skipped_items == ["a"]


def test_a_flipped_bit_of_a_manifest_is_found(tmp_path: Path, predictor: Predictor) -> None:
    save(tmp_path / "in" / "a.nii.gz")
    arguments = ([tmp_path / "in"], tmp_path / "out", predictor, ["bright"])
    predict_folder(*arguments)
    file = tmp_path / "out" / "a" / "manifest.json"
    sound, said = file.read_bytes(), read_json(file)
    digest = sound.index(b'"content_sha256"')  # another key is one that nobody asks for, beside what was written
    found: list[bytes] = []
    named = 0
    draw = random.Random(0)
    bits = [8 * byte + draw.randrange(8) for byte in range(len(sound))]  # one of each byte
    for bit in bits:
        damaged = bytearray(sound)
        damaged[bit // 8] ^= 1 << bit % 8
        try:
            content = unseal(parse_json(bytes(damaged), file), file)
        except ValueError as error:
            found.append(bytes(damaged))
            named += str(file) in str(error)
        else:
            lasting = content if not digest <= bit // 8 < digest + 16 else {k: content[k] for k in said}
            assert lasting == said, f"bit {bit % 8} of byte {bit // 8} is not found"
    assert named == len(found) > 0.95 * len(bits)
    for damaged in found[:: len(found) // 3]:
        file.write_bytes(damaged)
        with pytest.raises(UnreadableImageError, match=r"manifest\.json: not a manifest"):
            FolderMasks(file.parent)
        assert predict_folder(*arguments).done_items == ["a"]
        assert read_json(file)["prompts"] == said["prompts"]


def test_what_a_result_was_made_with_counts(tmp_path: Path, model: ModelFolder, predictor: Predictor) -> None:
    save(tmp_path / "in" / "a.nii.gz")
    places = [tmp_path / "in"], tmp_path / "out"
    assert predict_folder(*places, predictor, ["bright"]).done_items
    for other in (
        predictor.changed(modality="ct"),
        predictor.changed(mirror=True),
        predictor.changed(fast=True),
        predictor.changed(outputs=Outputs(probabilities=True)),
        predictor,
    ):
        assert predict_folder(*places, other, ["bright"]).done_items == ["a"]
        assert predict_folder(*places, other, ["bright"]).skipped_items == ["a"]
    assert predict_folder(*places, predictor.changed(batch=4, memory_gb=1.0), ["bright"]).skipped_items == ["a"]


def test_a_folder_that_was_moved_stays_done(tmp_path: Path, predictor: Predictor) -> None:
    save(tmp_path / "old" / "in" / "a.nii.gz")
    predict_folder([tmp_path / "old" / "in"], tmp_path / "old" / "out", predictor, ["bright"])
    shutil.copytree(tmp_path / "old", tmp_path / "new")
    assert predict_folder([tmp_path / "new" / "in"], tmp_path / "new" / "out", predictor, ["bright"]).skipped_items


def test_a_scan_that_fails_leaves_no_mask_of_the_one_before(tmp_path: Path, predictor: Predictor) -> None:
    save(tmp_path / "in" / "a.nii.gz")
    predict_folder([tmp_path / "in"], tmp_path / "out", predictor, ["bright", "left bright"])
    assert predict_folder([tmp_path / "in"], tmp_path / "out", predictor, ["left bright"]).done_items
    assert sorted(p.name for p in (tmp_path / "out" / "a").iterdir()) == ["left_bright.nii.gz", "manifest.json"]


def test_every_class_in_one_map_shows_parts_over_wholes(tmp_path: Path) -> None:
    model = model_of(({"left lung": (1,), "right lung": (2,), "liver": (3,), "liver tumor": (4,)}, "ct"))
    predictor = Predictor(model, device="cpu", precision="float32", outputs=Outputs(combine=True))
    save(tmp_path / "a.nii.gz")
    assert predict_folder([tmp_path / "a.nii.gz"], tmp_path / "out", predictor, None).exit_code == 0
    legend = read_json(tmp_path / "out" / "a.json")
    names = [e["prompt"] for e in legend["prompts"]]
    labels = np.asarray(nib.load(tmp_path / "out" / "a.nii.gz").dataobj)
    shown = {names[i - 1] for i in np.unique(labels) if i}
    # All masks are the same here: on top is the last one that is no whole of another.
    assert shown == {"right lung"}
    assert set(legend["labels"]) == shown
    write_statistics(tmp_path / "out", ["a"], combine=True)
    rows = {r["prompt"]: r for r in csv.DictReader((tmp_path / "out" / "statistics.csv").open())}
    for name, row in rows.items():
        assert int(row["voxels"]) == int((labels == names.index(name) + 1).sum())
        assert float(row["volume_ml"] or 0) + float(row["covered_ml"] or 0) == pytest.approx((scan() > 3).sum() / 1000)
    assert rows["lung"]["mean_intensity"] == ""


def test_what_is_not_seen_has_no_mask_and_is_scored_as_absent(tmp_path: Path, predictor: Predictor) -> None:
    save(tmp_path / "a.nii.gz", np.ones((8, 9, 10), np.float32))  # constant: nothing exceeds its mean
    predict_folder([tmp_path / "a.nii.gz"], tmp_path / "out", predictor, ["bright", "left bright"])
    assert [p.name for p in (tmp_path / "out" / "a").iterdir()] == ["manifest.json"]
    for entry in read_json(tmp_path / "out" / "a" / "manifest.json")["prompts"]:
        assert (entry["seen"], entry["file"], entry["voxels"]) == (False, None, 0)
    grid = Grid(shape=(8, 9, 10), affine=np.eye(4))
    masks = FolderMasks(tmp_path / "out" / "a", grid)
    assert masks.knows("bright")
    assert not masks.knows("liver")
    assert masks.box("left bright") is None
    combined = predictor.changed(outputs=Outputs(combine=True))
    predict_folder([tmp_path / "a.nii.gz"], tmp_path / "map", combined, ["bright"])
    labels = PredictedLabels(tmp_path / "map" / "a.nii.gz", grid, ScoredClasses(classes=()))
    assert labels.knows("bright")
    assert labels.box("bright") is None
    assert not labels.knows("left bright")


def test_a_whole_under_its_parts_is_scored_with_them(tmp_path: Path) -> None:
    model = model_of(({"left lung": (1,), "right lung": (2,)}, "ct"))
    predictor = Predictor(model, device="cpu", precision="float32", outputs=Outputs(combine=True))
    save(tmp_path / "a.nii.gz")
    predict_folder([tmp_path / "a.nii.gz"], tmp_path / "out", predictor, None)
    grid = Grid(shape=(18, 16, 20), affine=np.eye(4))
    labels = PredictedLabels(tmp_path / "out" / "a.nii.gz", grid, ScoredClasses(classes=()))
    box = labels.box("lung")
    assert box is not None
    whole = np.zeros(grid.shape, bool)
    whole[box] = labels.mask("lung", box)
    assert np.array_equal(whole, scan() > 3)
    assert labels.box("left lung") is None  # the right one lies over it, voxel for voxel


@pytest.mark.parametrize("name", ["...nii.gz", "prediction_summary.nii.gz", "predict.log.nii.gz", "CON.nii.gz"])
def test_odd_names_of_scans_stay_in_the_folder(tmp_path: Path, combining: Predictor, name: str) -> None:
    save(tmp_path / "in" / "x.nii.gz").rename(tmp_path / "in" / name)
    for how, folder in ((combining, "combined"), (combining.changed(outputs=Outputs()), "masks")):
        output = tmp_path / folder / "out"
        assert len(predict_folder([tmp_path / "in" / name], output, how, ["bright"]).done_items) == 1
        assert [p.name for p in (tmp_path / folder).iterdir()] == ["out"]
        assert read_json(output / "prediction_summary.json")["job"] == "prediction"


def test_odd_prompts_get_a_mask_each(tmp_path: Path, model: ModelFolder) -> None:
    long = "a large heterogeneously enhancing mass in the left lobe with washout on the delayed phase, " * 4
    odd = ["../../evil", "/etc/passwd", "a/b", "a:b", "CON", "-rf", ".hidden", "a\\b", "x\x00y", "=1+1", "🙂", long,
           long + ".", "б" * 120, "bright", "BRIGHT", "bright probability"]  # fmt: skip
    predictor = Predictor(model, device="cpu", precision="float32", outputs=Outputs(probabilities=True))

    save(tmp_path / "a.nii.gz")
    job = ScanJob(
        scan=Scan(path=tmp_path / "a.nii.gz", name="a"),
        requested=tuple(odd),
        matches=tuple(PromptMatch(prompt=p, class_name="bright", status="known") for p in odd),
        modality="mri",
    )
    assert predict_jobs([job], tmp_path / "out", predictor).failures == {}
    entries = [e for e in read_json(tmp_path / "out" / "a" / "manifest.json")["prompts"] if e["file"]]
    assert len(entries) == len(odd)
    assert len({e["file"].lower() for e in entries}) == len(entries)
    assert len(list((tmp_path / "out" / "a").iterdir())) == 2 * len(entries) + 1
    for entry in entries:
        assert np.array_equal(mask(tmp_path / "out" / "a" / entry["file"]), scan() > 3)


def test_a_scan_too_large_for_memory_is_known_from_its_header(
    tmp_path: Path, predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module_limits, "available_memory", lambda: 4_000_000_000)
    save(tmp_path / "in" / "good.nii.gz")
    save(tmp_path / "in" / "metre.nii.gz", spacing=1000.0)
    header = nib.Nifti1Header()
    header.set_data_dtype(np.float32)
    header.set_data_shape((1500, 1500, 1500))
    header.set_sform(np.eye(4), 1)
    header["vox_offset"] = 352
    header["magic"] = b"n+1"
    (tmp_path / "in" / "huge.nii").write_bytes(header.binaryblock + b"\0" * 4)
    done = predict_folder([tmp_path / "in"], tmp_path / "out", predictor, ["bright"])
    assert done.done_items == ["good"]
    assert "would need" in done.failures["metre"]
    assert "18 × 16 × 20 voxels of 1e+03 × 1e+03 × 1e+03 mm" in done.failures["metre"]
    assert set(done.failures) == {"metre", "huge"}


def test_places_that_cannot_be_written_are_one_sentence(
    tmp_path: Path, predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path / "in" / "a.nii.gz")
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(UserError, match="results need a folder"):
            predict_folder([tmp_path / "in"], place, predictor, ["bright"])

    def refuse(**options: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(module_limits.tempfile, "TemporaryFile", refuse)
    with pytest.raises(UserError, match=r"cannot write results to this folder \(Read-only file system"):
        predict_folder([tmp_path / "in"], tmp_path / "out", predictor, ["bright"])


def test_images_that_are_no_scan_are_one_sentence(tmp_path: Path, predictor: Predictor) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    colours = np.zeros((4, 5, 6), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    nib.save(nib.Nifti1Image(colours, np.eye(4)), folder / "rgb.nii.gz")
    nib.save(nib.Nifti1Image(np.zeros((4, 5, 6, 3), np.float32), np.eye(4)), folder / "four.nii.gz")
    nib.save(nib.Nifti1Image(np.zeros((4, 5, 6, 1, 3), np.float32), np.eye(4)), folder / "vector.nii.gz")
    nib.save(nib.Nifti1Image(np.zeros((4, 5, 6), np.complex64), np.eye(4)), folder / "complex.nii.gz")
    vector = sitk.GetImageFromArray(np.zeros((4, 5, 6, 3), np.float32), isVector=True)
    sitk.WriteImage(vector, str(folder / "vector_mha.mha"))
    sitk.WriteImage(vector, str(folder / "vector_nrrd.nrrd"))
    sitk.WriteImage(sitk.Image([4, 5], sitk.sitkFloat32), str(folder / "flat.mha"))
    done = predict_folder([folder], tmp_path / "out", predictor, ["bright"])
    assert done.done_items == []
    assert len(done.failures) == 7
    for name, reason in done.failures.items():
        assert reason.startswith(str(folder)), (name, reason)
        assert "allowed" in reason, (name, reason)
        assert "\n" not in reason


def test_a_class_that_was_never_learned_from_such_scans_is_said(tmp_path: Path) -> None:
    predictor = Predictor(model_of(*TWO), device="cpu", precision="float32", modality="ct")
    save(tmp_path / "a.nii.gz")
    predict_folder([tmp_path / "a.nii.gz"], tmp_path / "out", predictor, ["liver", "brain tumor"])
    liver, tumor = read_json(tmp_path / "out" / "a" / "manifest.json")["prompts"]
    assert "note" not in liver
    assert tumor["note"] == (
        "'brain tumor' was learned from mri only, but this scan is taken as ct: its mask is a guess"
    )
    with pytest.raises(PromptError, match=r"--strict: .*learned from mri only"):
        predict_folder([tmp_path / "a.nii.gz"], tmp_path / "o2", predictor.changed(strict=True), ["brain tumor"])


def test_one_text_is_one_prompt_and_a_generator_is_read(predictor: Predictor) -> None:
    image = (scan(), np.eye(4))
    assert [m.match.prompt for m in predictor.predict(image, "left bright").masks] == ["left bright"]
    assert len(predictor.predict(image, (p for p in ("bright", "left bright"))).masks) == 2
    with pytest.raises(PromptError, match="none may be empty"):
        predictor.predict(image, (p for p in ()))
    with pytest.raises(PromptError, match="must be at least one text"):
        predictor.predict(image, [None])


def test_a_prompt_file_may_begin_with_a_mark(tmp_path: Path) -> None:
    from satunet.prediction.door.inputs import read_pairs, read_prompts

    (tmp_path / "p.txt").write_text("\ufeffliver\r\nspleen\n", encoding="utf-8")
    assert read_prompts(tmp_path / "p.txt") == ("liver", "spleen")
    (tmp_path / "p.json").write_text(
        '\ufeff[{"image": "a.nii", "prompts": ["liver"], "modality": "MR"}]', encoding="utf-8"
    )
    assert read_pairs(tmp_path / "p.json")[0].modality == "mri"
    (tmp_path / "p.json").write_text('[{"image": "a.nii", "prompts": ["liver"], "modality": "xray"}]')
    with pytest.raises(UserError, match="entry 1: modality 'xray'; allowed are ct"):
        read_pairs(tmp_path / "p.json")
