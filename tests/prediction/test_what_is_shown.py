"""What a person sees of a prediction: the picture of each scan, and the table at the end."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image as Picture

from satunet.cli import run
from satunet.images.colours import colour_of
from satunet.jobs.files import read_json
from satunet.prediction import ModelFolder, Predictor
from satunet.prediction.door.jobs import report_prompts
from satunet.prediction.folder import predict_folder
from satunet.prediction.options import Outputs
from satunet.prediction.results.manifests import result_rows
from satunet.prompts.matching import PromptMatch
from tests.prediction.conftest import write_model


@pytest.fixture
def predictor(model: ModelFolder) -> Predictor:
    return Predictor(model, device="cpu", precision="float32")


def save(path: Path, bright: slice = slice(5, 12)) -> Path:
    array = np.ones((18, 16, 20), np.float32)
    array[3:9, 4:8, bright] = 5
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, np.diag([-1.0, -1.0, 1.0, 1.0])), path)
    return path


@pytest.mark.parametrize(("combine", "name"), [(False, "a/preview.png"), (True, "a_preview.png")])
def test_a_picture_of_each_scan(tmp_path: Path, predictor: Predictor, combine: bool, name: str) -> None:
    save(tmp_path / "in" / "a.nii.gz")
    outputs = Outputs(combine=combine, preview=True)
    arguments = ([tmp_path / "in"], tmp_path / "out", predictor.changed(outputs=outputs), ["bright", "coffee cup"])
    assert predict_folder(*arguments).failures == {}
    sheet = np.asarray(Picture.open(tmp_path / "out" / name).convert("RGB")).astype(int)
    axial = sheet[30:450, 8:428]
    near = np.linalg.norm(axial - np.array(colour_of("bright")), axis=2) < 30
    rows, columns = np.nonzero(near)
    assert len(rows) > 100
    # x is 3 to 8 of 18 on an axis to the left, y 4 to 7 of 16 on an axis to the back: right of the patient, front.
    assert columns.mean() < 210
    assert rows.mean() < 210
    assert predict_folder(*arguments).skipped_items == ["a"]
    (tmp_path / "out" / name).unlink()
    assert predict_folder(*arguments).done_items == ["a"]
    assert predict_folder(*arguments[:2], predictor.changed(outputs=Outputs(combine=combine)), ["bright"]).done_items


def test_a_picture_that_cannot_be_drawn_costs_no_mask(
    tmp_path: Path, predictor: Predictor, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ValueError("no font")

    monkeypatch.setattr("satunet.viewing.preview.write_preview", broken)
    save(tmp_path / "a.nii.gz")
    drawing = predictor.changed(outputs=Outputs(preview=True))
    with caplog.at_level("WARNING"):
        assert predict_folder([tmp_path / "a.nii.gz"], tmp_path / "out", drawing, ["bright"]).done_items == ["a"]
    assert "a: the picture could not be drawn (no font)" in caplog.text
    assert (tmp_path / "out" / "a" / "bright.nii.gz").is_file()
    assert "preview.png" not in read_json(tmp_path / "out" / "a" / "manifest.json")["files"]


def test_rows_say_what_was_found_and_where(tmp_path: Path, predictor: Predictor) -> None:
    save(tmp_path / "in" / "a.nii.gz")
    save(tmp_path / "in" / "b.nii.gz", slice(12, 19))
    predict_folder([tmp_path / "in"], tmp_path / "out", predictor, ["bright (left)", "coffee cup"])
    first, second, third, _ = result_rows(tmp_path / "out", ["a", "b"], combine=False)
    assert first == {
        "scan": "a", "prompt": "bright (left)", "class": "left bright", "ml": "0.2", "where": "slices 6 to 12",
    }  # fmt: skip
    assert (second["prompt"], second["ml"]) == ("coffee cup", "")
    assert str(second["where"]).startswith("no mask: ")
    assert third["where"] == "slices 13 to 19"
    (alone, _) = result_rows(tmp_path / "out", ["a"], combine=False)
    assert "scan" not in alone


def test_a_mask_that_another_covers_is_told(tmp_path: Path, predictor: Predictor) -> None:
    save(tmp_path / "a.nii.gz")
    combined = predictor.changed(outputs=Outputs(combine=True))
    predict_folder([tmp_path / "a.nii.gz"], tmp_path / "out", combined, ["left bright", "right bright"])
    where = [row["where"] for row in result_rows(tmp_path / "out", ["a"], combine=True)]
    assert where == ["covered by others", "slices 6 to 12"]


def test_the_terminal_ends_with_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = write_model(tmp_path / "model")
    save(tmp_path / "a.nii.gz")
    call = ["predict", "-i", str(tmp_path / "a.nii.gz"), "-o", str(tmp_path / "o"), "-m", str(model), "-p", "bright"]
    assert run([*call, "--preview"]) == 0
    said = capsys.readouterr()
    table = said.out[said.out.index("What was found") :]
    assert "bright" in table and "slices" in table
    assert (tmp_path / "o" / "a" / "preview.png").is_file()


def test_an_unknown_prompt_is_told_the_nearest_classes(caplog: pytest.LogCaptureFixture) -> None:
    near = (("soft tissue sarcoma", 0.59),)
    why = PromptMatch(prompt="a", class_name=None, status="unknown", note="no class has all of its words", nearest=near)
    report_prompts(
        {"a": (why,), "b": (PromptMatch(prompt="b", class_name=None, status="unknown", note="not asked for"),)}
    )
    assert [r.getMessage() for r in caplog.records] == [
        "prompt 'a': no class has all of its words; nearest: soft tissue sarcoma (0.59); no mask is written",
        "prompt 'b': not asked for; no mask is written",
    ]
