"""What headers leave open is said by every command that looks at a dataset."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from satunet.cli import run
from satunet.geometry import Grid
from satunet.images.image import write_volume

GRID = Grid(shape=(20, 18, 16), affine=np.diag([1.5, 1.5, 2, 1]))
LABELS = np.zeros((20, 18, 16), np.uint8)
LABELS[5:9, 4:10, 3:9] = 1
LABELS[11:15, 4:10, 3:9] = 2


def unit_sform(path: Path, array: np.ndarray) -> None:
    """As the published ACDC files: pixdim and qform are right, the sform has voxels of 1 mm."""
    image = nib.Nifti1Image(array, None)
    image.header.set_zooms((1.37, 1.37, 10))
    image.set_qform(np.diag([-1.37, -1.37, 10, 1]), 1)
    image.set_sform(np.diag([-1.0, -1, 1, 1]), 2)
    image.header["pixdim"][1:4] = (1.37, 1.37, 10)
    nib.save(image, path)


def neither(path: Path, array: np.ndarray) -> None:
    nib.save(nib.Nifti1Image(array, np.diag([1.5, 1.5, 2, 1])), path)
    content = bytearray(path.read_bytes())
    content[252:256] = struct.pack("<2h", 0, 0)
    path.write_bytes(content)


def make(root: Path, write, labels: dict[str, int], cases: int = 2) -> None:
    folder = root / "raw" / "Dataset001_A"
    for part in ("imagesTr", "labelsTr"):
        (folder / part).mkdir(parents=True)
    for number in range(cases):
        image = np.random.default_rng(number).normal(50, 40, LABELS.shape).astype(np.float32)
        write(folder / "imagesTr" / f"c{number}_0000.nii", image)
        write(folder / "labelsTr" / f"c{number}.nii", LABELS)
    content = {"channel_names": {"0": "MRI"}, "labels": {"background": 0, **labels}, "numTraining": cases,
               "file_ending": ".nii"}  # fmt: skip
    (folder / "dataset.json").write_text(json.dumps(content))


COMMANDS = (
    ["datasets", "--present"],
    ["fingerprint", "-d", "1", "-np", "0"],
    ["fingerprint", "-d", "1", "-np", "0", "--verify_dataset_integrity"],
)


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
@pytest.mark.parametrize(
    ("write", "labels", "said"),
    [
        (unit_sform, {"myocardium": 1, "liver": 2}, "4 of 4 files, such as c0_0000.nii: its sform gives voxels"),
        (neither, {"left kidney": 1, "right kidney": 2}, "nothing says where left is"),
        (neither, {"liver": 1, "spleen": 2}, ""),
    ],
)
def test_it_is_said(nnunet_env: Path, capsys, monkeypatch, command, write, labels, said: str) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    make(nnunet_env, write, labels)
    assert run(command) == 0
    told = "".join(capsys.readouterr())
    told = " ".join(told.replace("│", " ").split())
    if said:
        assert said in told
    else:
        assert "sform" not in told


def test_a_hostile_header_harms_its_case_alone(nnunet_env: Path, capsys) -> None:
    """With SimpleITK, the first of these ended every command by a segmentation fault, the second never returned."""
    make(nnunet_env, neither, {"liver": 1, "spleen": 2}, cases=3)
    folder = nnunet_env / "raw" / "Dataset001_A"
    for part in ("imagesTr", "labelsTr"):
        for file in (folder / part).iterdir():
            write_volume(file.with_suffix(".mha"), np.asarray(nib.load(file).dataobj), like=GRID)
            file.unlink()
    content = json.loads((folder / "dataset.json").read_text())
    (folder / "dataset.json").write_text(json.dumps(content | {"file_ending": ".mha"}))
    for number, (good, bad) in enumerate(
        ((b"NDims = 3", b"NDims = -1"), (b"TransformMatrix = ", b"TransformMatrix = 1 0 0 0 1 0 1e308 0 1\nX = "))
    ):
        file = folder / "imagesTr" / f"c{number}_0000.mha"
        assert good in file.read_bytes()
        file.write_bytes(file.read_bytes().replace(good, bad, 1))
    assert run(["fingerprint", "-d", "1", "-np", "0"]) == 1
    told = " ".join(capsys.readouterr().err.split())
    assert "NDims is -1" in told and "c1_0000.mha" in told
    found = json.loads((nnunet_env / "preprocessed" / "Dataset001_A" / "dataset_fingerprint.json").read_text())
    assert len(found["spacings"]) == 1
