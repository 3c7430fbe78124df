"""What masks are worth, as a user meets it: in manifest, table and CSV, and masks that are left out for it."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from satunet.confidence.calibration import Calibration, Rule
from satunet.confidence.evidence import Evidence
from satunet.errors import UserError
from satunet.images.image import as_image
from satunet.jobs.files import read_json
from satunet.models.folder import ModelFolder
from satunet.network.model import ImageFeatures
from satunet.prediction import Outputs, PredictOptions, Predictor
from satunet.prediction.folder import predict_folder
from satunet.prediction.results.manifests import result_rows, write_statistics
from tests.prediction.conftest import make_model

FLAT = dict.fromkeys(("peak", "agreement", "inside", "overlap", "whole", "free", "size", "place", "company"), 0.5)


def says(present: float, dice: float) -> Calibration:
    """A calibration that says the same of every mask; the left side is absent."""

    def rule(p: float, offsets: dict[str, float] | None = None) -> Rule:
        return Rule(bias=float(np.log(p / (1 - p))), offsets=offsets or {})

    return Calibration(
        weights_hash="abc",
        present=rule(present, {"left bright": -8.0}),
        missed=rule(0.1),
        dice=rule(dice),
        present_alone=rule(present, {"left bright": -8.0}),
        dice_alone=rule(dice),
        usual=FLAT,
    )


@pytest.fixture
def model() -> ModelFolder:
    return replace(make_model(), calibration=says(0.99, 0.8))


def scan(file: Path) -> Path:
    volume = np.ones((20, 20, 20), np.float32)
    volume[5:12, 5:12, 5:12] = 100
    nib.save(nib.Nifti1Image(volume, np.eye(4)), file)
    return file


def test_a_mask_says_what_it_is_worth(tmp_path: Path, model: ModelFolder) -> None:
    scan(tmp_path / "a.nii.gz")
    predictor = Predictor(model, PredictOptions(device="cpu", outputs=Outputs(probabilities=True)))
    predict_folder([tmp_path / "a.nii.gz"], tmp_path / "out", predictor, ["bright", "left bright"])
    there, gone = read_json(tmp_path / "out" / "a" / "manifest.json")["prompts"]
    assert (there["confidence"], there["absent"], there["seen"]) == (0.792, 0.01, True)
    assert "left_out" not in there
    assert (gone["seen"], gone["file"], gone["voxels"]) == (False, None, 0)
    assert gone["left_out"].startswith("absent with a probability of 0.9")
    assert {f.name for f in (tmp_path / "out" / "a").iterdir()} == {
        "bright.nii.gz", "bright_probability.nii.gz", "manifest.json",
    }  # fmt: skip
    rows = result_rows(tmp_path / "out", ["a"], combine=False)
    assert [row["confidence"] for row in rows] == ["0.79", "0.03"]
    assert str(rows[1]["where"]).startswith("left out: absent")
    with write_statistics(tmp_path / "out", ["a"], combine=False).open() as file:
        first, second = csv.DictReader(file)
    assert (first["confidence"], first["absent"], first["left_out"]) == ("0.792", "0.01", "")
    assert second["left_out"] == gone["left_out"]


def test_a_threshold_of_one_leaves_nothing_out_and_min_confidence_more(tmp_path: Path, model: ModelFolder) -> None:
    file = scan(tmp_path / "a.nii.gz")
    every = Predictor(model, device="cpu", max_absent=1.0).predict(file, ["bright", "left bright"])
    assert [m.left_out for m in every.masks] == ["", ""]
    strict = Predictor(model, device="cpu", min_confidence=0.8).predict(file, ["bright", "right bright"])
    assert [m.left_out for m in strict.masks] == ["confidence 0.79 is below 0.8"] * 2
    assert all(m.boxed is not None and not m.boxed.voxels for m in strict.masks)
    with pytest.raises(UserError, match=r"min_confidence must lie in \[0, 1\], got 1.5"):
        PredictOptions(min_confidence=1.5)


def test_other_thresholds_are_another_result(tmp_path: Path, model: ModelFolder) -> None:
    file, out = scan(tmp_path / "a.nii.gz"), tmp_path / "out"
    predictor = Predictor(model, device="cpu")
    assert predict_folder([file], out, predictor, ["bright"]).done_items == ["a"]
    assert predict_folder([file], out, predictor, ["bright"]).done_items == []
    assert predict_folder([file], out, predictor.changed(min_confidence=0.9), ["bright"]).done_items == ["a"]
    again = Predictor(replace(model, calibration=says(0.9, 0.95)), device="cpu", min_confidence=0.9)
    assert predict_folder([file], out, again, ["bright"]).done_items == ["a"]


def test_a_combined_map_has_no_label_of_what_is_left_out(tmp_path: Path, model: ModelFolder) -> None:
    scan(tmp_path / "a.nii.gz")
    predictor = Predictor(model, device="cpu", outputs=Outputs(combine=True))
    predict_folder([tmp_path / "a.nii.gz"], tmp_path / "out", predictor, ["left bright", "right bright"])
    content = read_json(tmp_path / "out" / "a.json")
    assert content["labels"] == {"right bright": 2}
    assert set(np.unique(nib.load(tmp_path / "out" / "a.nii.gz").dataobj)) == {0, 2}


def test_without_a_calibration_nothing_is_said_or_left_out(tmp_path: Path) -> None:
    predictor = Predictor(make_model(), device="cpu", min_confidence=0.9)
    (mask,) = predictor.predict(scan(tmp_path / "a.nii.gz"), ["left bright"]).masks
    assert (mask.worth, mask.left_out) == (None, "")
    assert mask.boxed is not None and mask.boxed.voxels


def test_evidence_is_of_the_file_and_not_of_the_grid_it_was_found_in(tmp_path: Path) -> None:
    """A cube of 7 mm at (5 … 12) mm, found at 1 mm and at 2 mm, in a file whose axes are turned."""
    volume = np.ones((20, 20, 20), np.float32)
    volume[5:12, 5:12, 5:12] = 100
    turned = nib.as_closest_canonical(nib.Nifti1Image(volume, np.diag([1.0, 1, 1, 1])))
    turned = turned.as_reoriented(np.array([[2, 1], [0, -1], [1, 1]]))
    for spacing, near in (((1.0,) * 3, 0.01), ((2.0,) * 3, 0.5)):
        predictor = Predictor(make_model(spacing_mm=spacing), device="cpu")
        matches = predictor.match(["bright"])
        scan_ = predictor.prepare(as_image(turned), "mri", matches)
        ((_, found),) = predictor.find(scan_, matches)
        evidence: Evidence = predictor.weigh(found, scan_).evidence
        assert evidence.volume_ml == pytest.approx(0.343, rel=near)
        assert evidence.centre_mm == pytest.approx((8, 8, 8), abs=0.6)
        assert (evidence.whole, evidence.free) == (1, 1)
        assert evidence.peak > 0.99


class _Halves(nn.Module):
    """``left bright`` is where the image is bright, ``right bright`` where it is dark: swapped sides."""

    def encode_image(self, image: Tensor) -> ImageFeatures:
        return ImageFeatures(memory=image.new_zeros(1, 1, 1), grid=(1, 1, 1), maps=(image,))

    def decode(self, features: ImageFeatures, queries: Tensor, modality: Tensor | None = None) -> tuple[Tensor, ...]:
        return (torch.stack([60 * queries[..., 0], torch.full_like(queries[..., 0], -60.0)], dim=-1),)


def test_contradictions_are_told_and_repaired_when_asked(tmp_path: Path) -> None:
    made = make_model(patch=(20, 20, 20))
    vectors = np.zeros_like(made.bank.vectors)
    vectors[:, 0] = [{"left bright": 1.0, "right bright": -1.0}.get(name, 0.5) for name in made.bank.texts]
    halves = replace(made, network=_Halves(), bank=replace(made.bank, vectors=vectors))
    volume = np.full((20, 20, 20), 10.0, np.float32)
    volume[14:18, 5:12, 5:12] = 100  # to the right
    volume[2:6, 5:12, 5:12] = -80  # to the left
    nib.save(nib.Nifti1Image(volume, np.eye(4)), tmp_path / "a.nii.gz")
    asked = ["left bright", "right bright"]
    predictor = Predictor(halves, device="cpu")
    predict_folder([tmp_path / "a.nii.gz"], tmp_path / "out", predictor, asked)
    left, right = read_json(tmp_path / "out" / "a" / "manifest.json")["prompts"]
    assert left["doubts"] == ["lies to the right of 'right bright'"]
    assert (right["doubts"], right["repaired"]) == (["lies to the left of 'left bright'"], False)
    assert "doubtful: lies to the right of" in str(result_rows(tmp_path / "out", ["a"], combine=False)[0]["where"])
    assert "lies to the right of 'right bright'" in write_statistics(tmp_path / "out", ["a"], combine=False).read_text()
    predict_folder([tmp_path / "a.nii.gz"], tmp_path / "out", predictor.changed(repair=True), asked)
    content = read_json(tmp_path / "out" / "a" / "manifest.json")
    assert [e["repaired"] for e in content["prompts"]] == [True, True]
    assert content["prompts"][0]["box"][0] == [2, 6]
    found = np.asarray(nib.load(tmp_path / "out" / "a" / content["prompts"][0]["file"]).dataobj)
    assert np.argwhere(found).min(0).tolist() == [2, 5, 5]
    # the state of the files is that of the repaired ones: nothing is to be done again
    assert (
        predict_folder([tmp_path / "a.nii.gz"], tmp_path / "out", predictor.changed(repair=True), asked).done_items
        == []
    )
