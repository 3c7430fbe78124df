"""Rows, tables, painted maps and protected files of results, from manifests written by hand."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from satunet.errors import UserError
from satunet.jobs.files import read_json, write_json
from satunet.prediction import ModelFolder, Predictor
from satunet.prediction.folder import predict_folder
from satunet.prediction.masks.boxed import BoxedMask
from satunet.prediction.options import Outputs
from satunet.prediction.results.manifests import files_of, is_foreign, result_rows, write_statistics
from satunet.prediction.results.painting import paint
from satunet.prediction.results.places import Protected, manifest_file


def write_manifests(folder: Path, combine: bool = False) -> None:
    found = {
        "prompt": "the liver", "class": "liver", "status": "exact", "seen": True, "voxels": 12, "volume_ml": 1234.56,
        "mean_intensity": 3.5, "covered_ml": 0.25, "box": [[1, 2], [3, 4], [6, 12]], "file": "the liver.nii.gz", "label": 1,
        "confidence": 0.876, "note": "as a whole",
    }  # fmt: skip
    absent = found | {"prompt": "spleen", "class": "spleen", "voxels": 0, "volume_ml": 0.0, "box": None, "seen": False}
    del absent["covered_ml"], absent["confidence"], absent["note"]
    unknown = {"prompt": "=cup", "class": None, "status": "unknown", "file": None}
    noted = unknown | {"prompt": "mug", "note": "no such class"}
    for name, prompts in (("a", [found, absent, unknown, noted]), ("b", [found | {"box": None}])):
        write_json(manifest_file(folder, name, combine), {"prompts": prompts, "modality": "ct", "stamp": {}})


@pytest.mark.parametrize("combine", [False, True])
def test_rows_for_people(tmp_path: Path, combine: bool) -> None:
    write_manifests(tmp_path, combine)
    (tmp_path / "broken.json").write_text("{")
    rows = result_rows(tmp_path, ["broken", "a", "lost", "b"], combine)
    expected = [
        {"prompt": "the liver", "class": "liver", "ml": "1,234.6", "where": "slices 7 to 12", "confidence": "0.88"},
        {"prompt": "spleen", "class": "", "ml": "0.0", "where": "not seen"},
        {"prompt": "=cup", "class": "", "ml": "", "where": "no mask: unknown"},
        {"prompt": "mug", "class": "", "ml": "", "where": "no mask: no such class"},
    ]
    assert rows[:4] == [{"scan": "a"} | row for row in expected]
    assert rows[4:] == [{"scan": "b"} | expected[0] | {"where": ""}]
    assert result_rows(tmp_path, ["a"], combine) == expected


@pytest.mark.parametrize(("count", "told"), [(1, "1 instance"), (3, "3 instances")])
def test_instances_are_counted_for_people(tmp_path: Path, count: int, told: str) -> None:
    entry = {
        "prompt": "ribs", "class": "ribs", "status": "exact", "voxels": 9, "volume_ml": 1.0, "box": [[0, 1], [0, 1], [2, 5]],
        "instances": [{"number": n + 1} for n in range(count)],
    }  # fmt: skip
    write_json(manifest_file(tmp_path, "a", False), {"prompts": [entry], "modality": "ct"})
    assert [row["where"] for row in result_rows(tmp_path, ["a"], False)] == [f"slices 3 to 5; {told}"]
    doubtful = entry | {"doubts": ["order", "size"], "repaired": True}
    write_json(manifest_file(tmp_path, "a", False), {"prompts": [doubtful], "modality": "ct"})
    assert [row["where"] for row in result_rows(tmp_path, ["a"], False)] == [
        f"slices 3 to 5; {told}; doubtful: order, size (repaired)"
    ]


def test_the_table_of_statistics(tmp_path: Path) -> None:
    write_manifests(tmp_path)
    file = write_statistics(tmp_path, ["lost", "a", "b"], combine=False)
    assert file == tmp_path / "statistics.csv"
    with file.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert list(rows[0]) == [
        "scan", "prompt", "class", "status", "seen", "confidence", "absent", "left_out", "voxels", "volume_ml",
        "mean_intensity", "covered_ml", "modality", "file", "label", "doubts", "repaired", "note",
    ]  # fmt: skip
    assert rows[0] == {
        "scan": "a", "prompt": "the liver", "class": "liver", "status": "exact", "seen": "True", "voxels": "12",
        "volume_ml": "1234.56", "mean_intensity": "3.5", "covered_ml": "0.25", "modality": "ct",
        "file": "the liver.nii.gz", "label": "1", "note": "as a whole", "confidence": "0.876",
        "absent": "", "left_out": "", "doubts": "", "repaired": "",
    }  # fmt: skip
    assert [(r["scan"], r["prompt"]) for r in rows] == [
        ("a", "the liver"), ("a", "spleen"), ("a", "'=cup"), ("a", "mug"), ("b", "the liver"),
    ]  # fmt: skip
    assert b"\r" not in file.read_bytes()


def test_whose_a_json_file_is(tmp_path: Path) -> None:
    file = tmp_path / "x.json"
    for content, foreign in (({"prompts": []}, False), ({"stamp": 1}, False), ({"EchoTime": 2}, True), ([], True)):
        write_json(file, content)
        assert is_foreign(file) is foreign
    file.write_text("{")
    assert is_foreign(file) is False
    assert files_of(file) == []
    write_json(file, {"files": {"a.nii.gz": {}, "../b.nii.gz": {}, "/c.nii.gz": {}}})
    assert files_of(file) == [tmp_path / "a.nii.gz"]
    write_json(file, {"prompts": []})
    assert files_of(file) == []


def boxed(*corners: tuple[int, int], shape: tuple[int, int, int] = (6, 5, 4)) -> BoxedMask:
    array = np.zeros(shape, bool)
    array[tuple(slice(*c) for c in corners)] = True
    return BoxedMask.of(array, (0, 0, 0), shape)


def test_parts_are_painted_over_their_wholes_whatever_the_order() -> None:
    liver, tumor = boxed((0, 6), (0, 5), (0, 4)), boxed((1, 3), (1, 3), (1, 3))
    wholes = {"liver tumor": frozenset({"liver"})}
    for classes, masks, own in (
        (["liver tumor", "liver"], [tumor, liver], 1),
        (["liver", "liver tumor"], [liver, tumor], 2),
    ):
        labels, counts = paint(classes, masks, wholes, (6, 5, 4))
        assert labels.dtype == np.uint8
        assert (labels[1:3, 1:3, 1:3] == own).all()
        assert counts == {own: 8, 3 - own: 112}
    # Two prompts of one class, and words that are none: the later lies over the earlier, parts over both.
    labels, counts = paint(["", "liver tumor", "liver", "liver"], [liver, tumor, liver, None], wholes, (6, 5, 4))
    assert counts == {2: 8, 3: 112}
    labels, counts = paint(["liver", ""], [liver, tumor], wholes, (6, 5, 4))
    assert counts == {1: 112, 2: 8}
    assert paint(["liver"], [None], {}, (6, 5, 4))[1] == {}


def test_more_labels_than_a_byte_holds() -> None:
    few, many = [None] * 254 + [boxed((0, 1), (0, 1), (0, 1))], [None] * 255 + [boxed((0, 1), (0, 1), (0, 1))]
    labels, counts = paint([""] * 255, few, {}, (6, 5, 4))
    assert (labels.dtype, labels[0, 0, 0], counts) == (np.uint8, 255, {255: 1})
    labels, counts = paint([""] * 256, many, {}, (6, 5, 4))
    assert (labels.dtype, labels[0, 0, 0], counts) == (np.uint16, 256, {256: 1})


def test_counts_of_a_map_of_several_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("satunet.prediction.results.painting._PIECE", 7)
    _, counts = paint(["", ""], [boxed((0, 5), (0, 5), (0, 4)), boxed((5, 6), (0, 1), (0, 4))], {}, (6, 5, 4))
    assert counts == {1: 100, 2: 4}


def scan(path: Path) -> Path:
    array = np.ones((18, 16, 20), np.float32)
    array[3:9, 4:8, 5:12] = 5
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, np.diag([-1.0, -1.0, 1.0, 1.0])), path)
    return path


@pytest.mark.parametrize("name", ["a.nii.gz", "a_segmentation.dcm", "a_structures.dcm", "a_preview.png", "a.json"])
def test_no_combined_result_replaces_an_input(tmp_path: Path, model: ModelFolder, name: str) -> None:
    file = scan(tmp_path / "in" / "a.nii.gz")
    precious = tmp_path / "out" / name
    precious.parent.mkdir()
    precious.write_bytes(b"precious")
    protected = Protected.of([precious, tmp_path / "not there"])
    with pytest.raises(UserError, match="would replace an input"):
        protected.check(precious)
    link = tmp_path / "link"
    link.hardlink_to(precious)
    with pytest.raises(UserError, match="would replace an input"):
        protected.check(link)
    protected.check(file)
    Protected().check(precious)
    predictor = Predictor(model, device="cpu", precision="float32").changed(outputs=Outputs(combine=True))
    summary = predict_folder([file], tmp_path / "out", predictor, ["bright"])
    assert summary.done_items == ["a"], "a file that is no input may be replaced"


def test_a_stale_result_is_made_again(tmp_path: Path, model: ModelFolder) -> None:
    """Each thing that a result depends on, changed alone."""
    file = scan(tmp_path / "in" / "a.nii.gz")
    predictor = Predictor(model, device="cpu", precision="float32")
    call: list[Any] = [[file], tmp_path / "out", predictor, ["bright", "left bright"]]
    assert predict_folder(*call).done_items == ["a"]
    manifest = tmp_path / "out" / "a" / "manifest.json"
    mask = tmp_path / "out" / "a" / "bright.nii.gz"
    assert predict_folder(*call).skipped_items == ["a"]
    content = read_json(manifest)
    changes: dict[str, Any] = {
        "version": content["version"] + 1,
        "stamp": content["stamp"] | {"combined": content["stamp"]["combined"] | {"new": 1}},
        "files": {k: v for k, v in content["files"].items() if k != mask.name},
        "prompts": None,
    }
    for key, value in changes.items():
        write_json(manifest, content | {key: value})
        assert predict_folder(*call).done_items == ["a"], key
        assert predict_folder(*call).skipped_items == ["a"], key
    mask.write_bytes(mask.read_bytes()[:-1])
    assert predict_folder(*call).done_items == ["a"]
    text = manifest.read_text("utf-8")
    manifest.write_text(
        text.replace('"modality": "', '"modality": "x', 1), "utf-8"
    )  # a flip in what no stamp speaks of
    assert manifest.read_text("utf-8") != text
    assert predict_folder(*call).done_items == ["a"]
    other = scan(tmp_path / "in" / "other.nii.gz")
    other.replace(file)
    nib.save(nib.Nifti1Image(np.ones((18, 16, 20), np.float32), np.diag([-1.0, -1.0, 1.0, 1.0])), file)
    assert predict_folder(*call).done_items == ["a"]
    assert predict_folder(*call[:3], ["bright"]).done_items == ["a"]


def test_what_is_not_seen_is_logged(tmp_path: Path, model: ModelFolder, caplog: pytest.LogCaptureFixture) -> None:
    space = model.space
    vectors = np.ones_like(model.bank.vectors) * 1e6  # a mask nowhere
    nowhere = replace(model, bank=replace(model.bank, vectors=vectors), space=space)
    with caplog.at_level("INFO"):
        predict_folder(
            [scan(tmp_path / "a.nii.gz")], tmp_path / "out", Predictor(nowhere, device="cpu", precision="float32"),
            ["bright", "left bright"],
        )  # fmt: skip
    assert "a: not seen: bright, left bright" in caplog.text
