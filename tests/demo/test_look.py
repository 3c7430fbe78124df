"""``satunet try``: as a person calls it, on the scan that a package ships and on others."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from satunet.cli import run
from satunet.demo.look import FirstLook, regions_of, without_wholes
from satunet.demo.packaged import ICBM152
from satunet.geometry import Grid
from satunet.images.image import Image
from satunet.labels import LabelSpace
from satunet.labels.space import ClassInfo
from satunet.models.folder import ModelDescription
from satunet.prediction.door.inputs import Scan
from satunet.prediction.door.jobs import Vocabulary
from satunet.prediction.options import PredictOptions

ROOT = Path(__file__).resolve().parents[2]


def space_of(*classes: ClassInfo) -> LabelSpace:
    return LabelSpace(classes=tuple(sorted(classes, key=lambda c: c.name)))


def info(
    name: str, side: str | None = None, regions: tuple[str, ...] = (), datasets: tuple[str, ...] = ()
) -> ClassInfo:
    base = name.removeprefix(f"{side} ")
    return ClassInfo(
        name=name, base=base, side=side, modalities=("mri",), datasets=datasets, source_names=(), regions=regions
    )


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_without_a_scan_it_shows_a_brain(tmp_path: Path) -> None:
    """As installed, in a process of its own. Where things are in MNI space is known without satunet."""
    pytest.importorskip("nilearn")
    done = subprocess.run(
        [sys.executable, "-m", "satunet", "try"], cwd=tmp_path, capture_output=True, encoding="utf-8",
        env=os.environ | {"PYTHONPATH": str(ROOT)}, timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for said in (ICBM152.licence, "modality  mri", "1 × 1 × 1 mm", "197 × 233 × 189", "region    brain"):
        assert said in done.stdout, said
    out = tmp_path / "satunet_try"
    assert (out / "icbm152" / "preview.png").read_bytes().startswith(b"\x89PNG")
    page = (out / "icbm152.html").read_text("utf-8")
    entries = json.loads((out / "icbm152" / "manifest.json").read_text("utf-8"))["prompts"]
    template = nib.load(ICBM152.path)
    inside = np.asanyarray(template.dataobj) > 0
    sided = 0
    for entry in entries:
        if entry["file"] is None:  # judged to be absent, or not seen
            continue
        mask = nib.load(out / "icbm152" / entry["file"])
        assert np.allclose(mask.affine, template.affine)
        voxels = np.asanyarray(mask.dataobj) > 0
        assert f'"name": {json.dumps(entry["prompt"])}' in page
        if voxels.sum() < 1000:
            continue
        assert (voxels & inside).sum() / voxels.sum() > 0.9, entry["prompt"]
        x = (template.affine @ [*np.argwhere(voxels).mean(axis=0), 1])[0]
        if entry["class"].startswith(("left ", "right ")):
            sided += 1
            assert (x < 0) == entry["class"].startswith("left "), entry["class"]  # x grows to the right
    assert sided >= 4


def test_a_whole_is_left_out_where_both_sides_are_asked() -> None:
    sides = (info("left lung", "left"), info("right lung", "right"), info("left kidney", "left"))
    space = space_of(info("lung"), info("kidney"), *sides)
    assert without_wholes(space.class_names, space) == ["kidney", "left kidney", "left lung", "right lung"]


def test_regions_of_names_that_no_catalogue_knows() -> None:
    space = space_of(
        info("brainstem", regions=("brain",), datasets=("A",)),
        info("something", datasets=("A",)),
        info("lung", regions=("thorax",), datasets=("B",)),
        info("left lung", "left"),
        info("other"),
    )
    found = {c.name: regions_of(c.name, space) for c in space.classes}
    assert found == {
        "brainstem": ("brain",), "something": ("brain",), "lung": ("thorax",), "left lung": ("thorax",), "other": (),
    }  # fmt: skip


def test_what_is_in_a_scan_is_said(tmp_path: Path) -> None:
    model = ModelDescription.read("starter")
    grid = Grid(shape=(40, 50, 20), affine=np.diag([-0.5, 0.5, 3.0, 1.0]))
    array = np.full(grid.shape, -1000, np.int16)
    one = FirstLook.of(
        Scan(path=tmp_path / "x.nii.gz", name="x"), Image(array=array, grid=grid), Vocabulary.of([model]), PredictOptions(),
    )  # fmt: skip
    assert one.facts["modality"] == "ct (intensities)"
    assert one.facts["voxels"] == "40 × 50 × 20, LAS"
    assert one.facts["spacing"] == "0.5 × 0.5 × 3 mm"
    assert one.facts["size"] == "20 × 25 × 60 mm"
    known = {c.name for c in model.space.classes if "ct" in c.modalities}
    assert {m.class_name for m in one.job.matches or ()} <= known


def test_a_look_for_words(tmp_path: Path) -> None:
    """A stranger has a scan and a word; wholes and unknown words stay, since they were asked for."""
    grid = Grid(shape=(40, 50, 20), affine=np.eye(4))
    image = Image(array=np.full(grid.shape, -1000, np.int16), grid=grid)
    scan, vocabulary = Scan(path=tmp_path / "x.nii.gz", name="x"), Vocabulary.of([ModelDescription.read("starter")])
    one = FirstLook.of(scan, image, vocabulary, PredictOptions(), ["lung", "left lung", "right lung", "coffee cup"])
    assert [m.class_name for m in one.job.matches or ()] == ["lung", "left lung", "right lung", None]
    assert one.job.requested == ("lung", "left lung", "right lung", "coffee cup")


def test_a_scan_that_is_not_there_or_damaged(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "out")
    assert run(["try", str(tmp_path / "none.nii.gz"), "-o", out]) == 1
    assert "none.nii.gz: there is no such scan" in capfd.readouterr().err
    (tmp_path / "bad.nii.gz").write_bytes(b"not an image")
    assert run(["try", str(tmp_path / "bad.nii.gz"), "-o", out]) == 1
    said = capfd.readouterr().err
    assert "bad.nii.gz" in said
    assert "Traceback" not in said
