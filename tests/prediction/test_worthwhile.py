"""What is looked for where every class is asked for: counts of windows by hand, and the same rule for every caller."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from satunet.demo.look import FirstLook
from satunet.geometry import Grid
from satunet.images.image import Image, read_image, write_volume
from satunet.labels import LabelSpace
from satunet.models.folder import ModelDescription, ModelFolder
from satunet.plan import UnifiedPlan
from satunet.prediction import Predictor
from satunet.prediction.door.inputs import Scan
from satunet.prediction.door.jobs import Vocabulary, resolve
from satunet.prediction.door.worthwhile import Known, windows_of, worth_looking_for
from satunet.prediction.folder import predict_folder
from satunet.prediction.options import PredictOptions
from tests.prediction.conftest import make_model

CLASSES = ["bright", "left bright", "right bright"]


def plan_of(**changes: object) -> UnifiedPlan:
    """Windows of 64 × 80 × 64 voxels at 2 mm; the left side is known from crops at 1 mm."""
    values: dict[str, object] = {
        "patch_size": (64, 80, 64),
        "spacing_mm": (2.0, 2.0, 2.0),
        "class_spacings_mm": {"mri": {"left bright": (1.0,)}},
        "orientation": "RAS",
    }
    return replace(make_model().plan, **(values | changes))  # type: ignore[arg-type]


def kept(shape: tuple[int, int, int], *plans: UnifiedPlan, affine: np.ndarray | None = None) -> frozenset[str]:
    grid = Grid(shape=shape, affine=np.eye(4) if affine is None else affine)
    models = [Known(space=make_model().space, plan=plan) for plan in plans or (plan_of(),)]
    return worth_looking_for(CLASSES, "mri", grid, models)


def test_a_class_of_crops_is_left_out_of_large_scans_alone() -> None:
    # 200 × 240 × 200 mm are 2 × 2 × 2 windows at 2 mm and 4 × 3 × 4 = 48 at 1 mm: more than 12, and than 4 × 8.
    assert kept((200, 240, 200)) == {"bright", "right bright"}
    assert kept((128, 160, 192)) == {*CLASSES}  # 1 × 1 × 2, and 2 × 2 × 3 = 12
    assert kept((128, 160, 193)) == {"bright", "right bright"}  # 2 × 2 × 4 = 16
    # The plan's axes count, not the file's: 800 mm from back to front are ten windows, and would be 13 from left to right.
    turned = np.array([[0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])
    assert kept((800, 64, 64), affine=turned) == {*CLASSES}


def test_however_large_a_scan_is_what_costs_the_same_is_looked_for() -> None:
    assert kept((5000, 4000, 3000), plan_of(class_spacings_mm={})) == {*CLASSES}
    every = dict.fromkeys(CLASSES, (1.0,))
    assert kept((2000, 80, 64), plan_of(class_spacings_mm={"mri": every})) == {*CLASSES}
    # 3 times as many windows are worth it: organs at 2 mm in a scan of a whole body, of which others are known at 3 mm.
    three = {"left bright": (3.0,), "right bright": (3.0,)}
    assert kept((500, 400, 1800), plan_of(class_spacings_mm={"mri": three})) == {*CLASSES}


def test_several_models_take_the_windows_of_all_that_know_a_class() -> None:
    one = Known(space=make_model().space, plan=plan_of())
    space = LabelSpace(classes=tuple(c for c in one.space.classes if c.name == "bright"))
    other = Known(space=space, plan=plan_of())
    grid = Grid(shape=(128, 160, 128), affine=np.eye(4))
    assert windows_of(["bright", "left bright"], "mri", grid, [one, other]) == {"bright": 2, "left bright": 8}


def test_the_starter_does_not_look_for_parts_of_the_hippocampus_in_a_trunk() -> None:
    model = ModelDescription.read("starter")
    vocabulary = Vocabulary.of([model])
    (job,) = resolve([Scan(path=Path("x.nii.gz"), name="x")], None, vocabulary, PredictOptions(modality="mri"))

    def asked(extent_mm: tuple[int, int, int]) -> tuple[set[str], set[str]]:
        grid = Grid(shape=(10, 10, 10), affine=np.diag([*(e / 10 for e in extent_mm), 1.0]))
        settled = job.settled(vocabulary, Image(array=np.zeros(grid.shape, np.float32), grid=grid))
        return {m.prompt for m in settled.matches or ()}, set(settled.not_looked_for)

    parts = {"anterior hippocampus", "posterior hippocampus"}
    names, left_out = asked((300, 220, 310))
    assert parts <= left_out and "left lung" in names
    assert names | left_out == {c.name for c in model.space.classes if "mri" in c.modalities}
    names, left_out = asked((36, 50, 36))
    assert parts <= names and not left_out


@pytest.fixture
def crops() -> ModelFolder:
    """A model that knows one class from crops of 4 mm."""
    model = make_model()
    return replace(model, plan=replace(model.plan, class_spacings_mm={"mri": {"left bright": (0.25,)}}))


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    image = np.random.default_rng(0).normal(0, 0.01, (24, 20, 18)).astype(np.float32)
    image[6:14, 5:12, 4:10] += 5
    write_volume(tmp_path / "scan.nii.gz", image, like=Grid(shape=image.shape, affine=np.eye(4)))
    return tmp_path / "scan.nii.gz"


def test_what_is_left_out_is_said_and_asked_for_by_name(
    crops: ModelFolder, scan: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    predictor = Predictor(crops, device="cpu", modality="mri")
    with caplog.at_level("INFO"):
        predict_folder([scan], tmp_path / "every", predictor, None)
    lines = [r.message for r in caplog.records if "not looked for" in r.message]
    assert len(lines) == 1 and "left bright" in lines[0] and '-p "left bright"' in lines[0]
    manifest = json.loads((tmp_path / "every" / "scan" / "manifest.json").read_text("utf-8"))
    assert manifest["not_looked_for"] == ["left bright"]
    assert [p["prompt"] for p in manifest["prompts"]] == ["bright", "right bright"]
    predict_folder([scan], tmp_path / "named", predictor, ["left bright"])
    manifest = json.loads((tmp_path / "named" / "scan" / "manifest.json").read_text("utf-8"))
    assert manifest["not_looked_for"] == [] and manifest["prompts"][0]["voxels"] >= 8 * 7 * 6


def test_a_first_look_follows_the_same_rule(crops: ModelFolder, scan: Path) -> None:
    vocabulary, options = Vocabulary.of([crops]), PredictOptions(modality="mri")
    one = FirstLook.of(Scan(path=scan, name="scan"), read_image(scan), vocabulary, options)
    assert one.job.not_looked_for == ("left bright",)
    assert {m.class_name for m in one.job.matches or ()} == {"bright", "right bright"}
