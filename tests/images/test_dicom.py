"""DICOM, written by SimpleITK and read back."""

from __future__ import annotations

import locale
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from satunet.errors import UnreadableImageError
from satunet.geometry import reorient
from satunet.images.dicom import find_series, read_series

ARRAY = np.random.default_rng(0).integers(-1000, 1000, (7, 6, 5)).astype(np.int16)  # X, Y, Z
SPACING = (0.8, 0.9, 2.5)


def write_series(
    folder: Path, *, uid: str = "1.2.3", modality: str = "CT", angle: float = 0.0, skip: int | None = None
) -> sitk.Image:
    """A series as a scanner writes it: a file a slice, file names in no order."""
    folder.mkdir(parents=True, exist_ok=True)
    volume = sitk.GetImageFromArray(ARRAY.transpose(2, 1, 0))
    volume.SetSpacing(SPACING)
    volume.SetOrigin((-30.0, 12.0, 7.0))
    cos, sin = np.cos(angle), np.sin(angle)
    direction = np.array([[1, 0, 0], [0, cos, -sin], [0, sin, cos]])
    volume.SetDirection(direction.ravel().tolist())
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    for k in range(volume.GetDepth()):
        if k == skip:
            continue
        image = volume[:, :, k]
        place = volume.TransformIndexToPhysicalPoint((0, 0, k))
        tags = {
            "0008|0060": modality,
            "0020|000e": uid,
            "0020|000d": "1.2.9",
            "0008|0018": f"{uid}.{k + 1}",
            "0020|0013": str(k + 1),
            "0020|0011": "4",
            "0010|0020": "P1",
            "0010|0010": "Doe^J",
            "0008|0016": "1.2.840.10008.5.1.4.1.1.2",
            "0020|0052": f"{uid}.99",
            "0020|0032": "\\".join(map(str, place)),
            "0020|0037": "\\".join(map(str, [*direction[:, 0], *direction[:, 1]])),
            "0018|0050": str(SPACING[2]),
            "0008|0020": "20240101",
            "0008|0030": "101010",
            "0010|0030": "19700101",
            "0010|0040": "O",
            "0008|0050": "1",
            "0020|0010": "1",
            "0008|0090": "",
        }
        for tag, value in tags.items():
            image.SetMetaData(tag, value)
        writer.SetFileName(str(folder / f"{(k * 7) % 11:03d}.dcm"))
        writer.Execute(image)
    return volume


@pytest.mark.parametrize("angle", [0.0, 0.3])
def test_a_series_is_read_on_its_grid(tmp_path: Path, angle: float) -> None:
    volume = write_series(tmp_path / "deep" / "er", angle=angle)
    (tmp_path / "deep" / "readme.txt").write_text("no image")
    (series,) = find_series(tmp_path)
    assert (series.modality, series.number, series.patient, len(series.files)) == ("ct", "4", "P1", 5)
    image = read_series(series)
    # The slices' normal decides their order, so the axes may come out turned; places in space do not.
    for index in ((0, 0, 0), (6, 5, 4), (3, 2, 1)):
        point = np.array([*volume.TransformIndexToPhysicalPoint(index), 1.0]) * [-1, -1, 1, 1]
        found = np.linalg.solve(image.grid.affine, point)[:3]
        assert np.allclose(found, np.rint(found), atol=1e-3)
        assert image.array[tuple(np.rint(found).astype(int))] == ARRAY[index]


def test_several_series_of_one_folder(tmp_path: Path) -> None:
    write_series(tmp_path / "a", uid="1.2.3")
    write_series(tmp_path / "b", uid="1.2.4", modality="MR")
    assert sorted(s.modality for s in find_series(tmp_path)) == ["ct", "mri"]
    assert find_series(tmp_path / "none") == []


def test_missing_slices_are_found(tmp_path: Path) -> None:
    write_series(tmp_path, skip=2)
    (series,) = find_series(tmp_path)
    with pytest.raises(UnreadableImageError, match=r"2\.5 to 5 mm apart; slices are missing"):
        read_series(series)


def test_a_damaged_file_is_that_series_error(tmp_path: Path) -> None:
    write_series(tmp_path)
    (series,) = find_series(tmp_path)
    series.files[2].write_bytes(series.files[2].read_bytes()[:400])
    with pytest.raises(UnreadableImageError, match=r"1\.2\.3 cannot be read"):
        read_series(series)


def test_orientation_survives(tmp_path: Path) -> None:
    write_series(tmp_path)
    image = read_series(find_series(tmp_path)[0])
    turned, grid = reorient(image.array, image.grid, "RAS")
    assert grid.orientation == "RAS"
    assert turned.shape == ARRAY.shape


def test_the_locale_stays_as_it_was(tmp_path: Path) -> None:
    write_series(tmp_path)
    before = locale.setlocale(locale.LC_ALL, "C.UTF-8")
    read_series(find_series(tmp_path)[0])
    assert locale.setlocale(locale.LC_ALL) == before
