"""What is read as structures from results, folders and label maps."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from satunet.errors import GridMismatchError, MissingFileError, UserError
from satunet.geometry import Grid
from satunet.images.image import Image, write_label_map
from satunet.viewing.structures import Structure, read_structures

GRID = Grid(shape=(8, 9, 10), affine=np.diag([-1.0, 2.0, 3.0, 1.0]))
SCAN = Image(array=np.zeros(GRID.shape, np.float32), grid=GRID)
LIVER, SPLEEN = (slice(1, 4), slice(2, 5), slice(3, 9)), (slice(5, 8), slice(0, 2), slice(1, 2))


def labels(ids: tuple[int, int] = (1, 2)) -> np.ndarray:
    array = np.zeros(GRID.shape, np.uint16)
    array[LIVER], array[SPLEEN] = ids
    return array


def save(path: Path, array: np.ndarray, legend: dict[int, str] | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_label_map(path, array, like=SCAN, legend=legend)
    return path


def seen(structures: list[Structure]) -> dict[str, np.ndarray]:
    """Name → whole mask."""
    found = {}
    for s in structures:
        mask = np.zeros(GRID.shape, bool)
        mask[s.box] = s.inside
        found[s.name] = mask
    return found


def check(structures: list[Structure], names: tuple[str, str] = ("liver", "spleen")) -> None:
    found = seen(structures)
    assert tuple(found) == names
    assert np.array_equal(found[names[0]], labels() == 1)
    assert np.array_equal(found[names[1]], labels() == 2)


def write_result(folder: Path, scan: str) -> None:
    """A result of separate masks."""
    entries = []
    for value, name in ((1, "Leber"), (2, "spleen")):
        save(folder / scan / f"{name}.nii.gz", (labels() == value).astype(np.uint8))
        kind = {"Leber": "liver"}.get(name, name)
        entries.append({"prompt": name, "class": kind, "status": "known", "file": f"{name}.nii.gz"})
    entries.append({"prompt": "nothing", "class": None, "status": "unknown", "file": None})
    (folder / scan / "manifest.json").write_text(json.dumps({"version": 3, "scan": scan, "prompts": entries}))


@pytest.mark.parametrize("where", ["", "a"])
def test_results_of_separate_masks(tmp_path: Path, where: str) -> None:
    write_result(tmp_path, "a")
    write_result(tmp_path, "b")
    found = read_structures([tmp_path / where], ["a", "a_0000"], GRID)
    check(found, ("Leber", "spleen"))
    assert [s.kind for s in found] == ["liver", "spleen"]


def test_the_one_result_of_a_folder_needs_no_name(tmp_path: Path) -> None:
    write_result(tmp_path, "patient_x_4")
    check(read_structures([tmp_path], ["else"], GRID), ("Leber", "spleen"))
    write_result(tmp_path, "b")
    with pytest.raises(UserError, match=r"neither masks nor results of 'else'.*it has results of b, patient_x_4"):
        read_structures([tmp_path], ["else"], GRID)


@pytest.mark.parametrize("where", ["", "a.nii.gz"])
def test_combined_results(tmp_path: Path, where: str) -> None:
    save(tmp_path / "a.nii.gz", labels())
    entries = [
        {"prompt": "liver", "class": "liver", "status": "known", "label": 1},
        {"prompt": "spleen", "class": "spleen", "status": "similar", "similarity": 0.91, "label": 2},
    ]
    (tmp_path / "a.json").write_text(json.dumps({"prompts": entries}))
    found = read_structures([tmp_path / where], ["a"], GRID)
    check(found)
    assert [s.note for s in found] == ["", "similar, 0.91"]


def test_a_label_map_of_a_dataset(tmp_path: Path) -> None:
    save(tmp_path / "labelsTr" / "a.nii.gz", labels())
    save(tmp_path / "labelsTr" / "b.nii.gz", labels()[::-1])
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": {"background": 0, "liver": 1, "spleen": 2}}))
    check(read_structures([tmp_path / "labelsTr"], ["a"], GRID))
    check(read_structures([tmp_path / "labelsTr" / "a.nii.gz"], ["a"], GRID))


def test_a_label_table_names_ids(tmp_path: Path) -> None:
    save(tmp_path / "x.nii.gz", labels((7, 300)), {7: "liver", 300: "spleen"})
    check(read_structures([tmp_path / "x.nii.gz"], ["a"], GRID))


def test_ids_without_names_are_numbered(tmp_path: Path) -> None:
    save(tmp_path / "x.nrrd", labels((7, 300)))
    check(read_structures([tmp_path / "x.nrrd"], ["a"], GRID), ("label 7", "label 300"))


def test_a_folder_of_masks_and_a_single_mask(tmp_path: Path) -> None:
    save(tmp_path / "m" / "liver.nii.gz", (labels() == 1).astype(np.uint8))
    save(tmp_path / "m" / "spleen.mha", (labels() == 2).astype(np.uint8))
    check(read_structures([tmp_path / "m"], ["a"], GRID))
    both = read_structures([tmp_path / "m" / "liver.nii.gz", tmp_path / "m" / "spleen.mha"], ["a"], GRID)
    check(both)
    assert [s.group for s in both] == ["liver", "spleen"]


def test_sources_of_one_name_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    for competitor in ("satunet", "nnunet"):
        save(tmp_path / competitor / "fold_0" / "a.nii.gz", labels())
    found = read_structures([tmp_path / c / "fold_0" for c in ("satunet", "nnunet")], ["a"], GRID)
    assert list(dict.fromkeys(s.group for s in found)) == ["satunet/fold_0", "nnunet/fold_0"]
    again = read_structures([tmp_path / "nnunet" / "fold_0"] * 2, ["a"], GRID)
    assert len({s.group for s in again}) == 2


def test_an_empty_mask_is_a_structure_without_voxels(tmp_path: Path) -> None:
    save(tmp_path / "liver.nii.gz", np.zeros(GRID.shape, np.uint8))
    (found,) = read_structures([tmp_path / "liver.nii.gz"], ["a"], GRID)
    assert (found.name, found.voxels) == ("liver", 0)


def test_what_cannot_be_looked_at(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match="no such file or folder"):
        read_structures([tmp_path / "none"], ["a"], GRID)
    with pytest.raises(UserError, match="neither masks nor results of 'a'"):
        read_structures([tmp_path], ["a"], GRID)
    nib.save(nib.Nifti1Image(np.ones((4, 4, 4), np.uint8), np.eye(4)), tmp_path / "other.nii.gz")
    with pytest.raises(GridMismatchError):
        read_structures([tmp_path / "other.nii.gz"], ["a"], GRID)
    many = np.arange(8 * 9 * 10, dtype=np.uint16).reshape(GRID.shape)
    save(tmp_path / "many.nii.gz", np.tile(many, 1))
    assert len(read_structures([tmp_path / "many.nii.gz"], ["a"], GRID)) == 719


def test_a_manifest_cannot_lead_elsewhere(tmp_path: Path) -> None:
    save(tmp_path / "secret.nii.gz", labels())
    (tmp_path / "a").mkdir()
    entries = [{"prompt": "x", "status": "known", "file": "../secret.nii.gz"}]
    (tmp_path / "a" / "manifest.json").write_text(json.dumps({"prompts": entries}))
    with pytest.raises(MissingFileError):
        read_structures([tmp_path / "a"], ["a"], GRID)
