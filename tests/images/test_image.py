from __future__ import annotations

import struct
from pathlib import Path
from xml.etree import ElementTree

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from satunet.errors import (
    GridMismatchError,
    MissingFileError,
    NonFiniteImageError,
    NotThreeDimensionalError,
    ScanError,
    UnexpectedLabelError,
    UnreadableImageError,
)
from satunet.geometry import Grid, same_grid
from satunet.images.image import (
    IMAGE_ENDINGS,
    as_image,
    list_images,
    read_grid,
    read_image,
    read_label_map,
    strip_ending,
    write_label_map,
    write_volume,
)

AFFINE = np.array([[0, -1.5, 0, 10], [2, 0, 0, -20], [0, 0, 3, 30], [0, 0, 0, 1]], dtype=float)
GRID = Grid(shape=(4, 5, 6), affine=AFFINE)


def save(path: Path, array: np.ndarray, affine: np.ndarray = AFFINE) -> Path:
    nib.save(nib.Nifti1Image(array, affine), path)
    return path


@pytest.mark.parametrize("ending", IMAGE_ENDINGS)
def test_label_maps_round_trip_in_every_format(tmp_path: Path, ending: str) -> None:
    labels = np.random.default_rng(0).integers(0, 300, GRID.shape)
    write_label_map(tmp_path / f"a{ending}", labels, like=GRID)
    assert [p.name for p in tmp_path.iterdir()] == [f"a{ending}"]
    read = read_label_map(tmp_path / f"a{ending}", grid=GRID)
    assert read.array.dtype == np.uint16
    assert np.array_equal(read.array, labels)
    assert same_grid(read_grid(tmp_path / f"a{ending}"), GRID, tolerance=1e-4)


def test_formats_agree_with_simpleitk_on_where_a_voxel_is(tmp_path: Path) -> None:
    labels = np.arange(120).reshape(GRID.shape)
    write_label_map(tmp_path / "a.mha", labels, like=GRID)
    image = sitk.ReadImage(str(tmp_path / "a.mha"))
    x, y, z = image.TransformIndexToPhysicalPoint((1, 2, 3))
    assert np.allclose((-x, -y, z), (AFFINE @ (1, 2, 3, 1))[:3])
    assert image[1, 2, 3] == labels[1, 2, 3]


def test_nifti_results_keep_the_scans_header(tmp_path: Path) -> None:
    source = nib.Nifti1Image(np.zeros(GRID.shape, np.int16), AFFINE)
    source.header.set_xyzt_units("mm", "sec")
    source.set_sform(AFFINE, code=4)
    source.header["descrip"] = b"scanner"
    source.header.set_slope_inter(2.5, 7)
    nib.save(source, tmp_path / "scan.nii.gz")
    scan = read_image(tmp_path / "scan.nii.gz")
    write_label_map(tmp_path / "mask.nii.gz", np.ones(GRID.shape, bool), like=scan)
    mask = nib.load(tmp_path / "mask.nii.gz")
    assert np.array_equal(mask.affine, source.affine)
    assert int(mask.header["sform_code"]) == 4
    assert np.asarray(mask.dataobj).max() == 1


def test_scaled_and_big_endian_files_are_read(tmp_path: Path) -> None:
    header = nib.Nifti1Header(endianness=">")
    image = nib.Nifti1Image(np.arange(120, dtype=">i2").reshape(GRID.shape), AFFINE, header)
    image.header.set_slope_inter(0.5, -10)
    nib.save(image, tmp_path / "a.nii")
    array = read_image(tmp_path / "a.nii").array
    assert array.dtype.isnative
    assert array.max() == pytest.approx(nib.load(tmp_path / "a.nii").get_fdata().max())


def bad_text(path: Path) -> None:
    path.write_text("this is no image")


def bad_truncated(path: Path) -> None:
    save(path, np.random.default_rng(0).random(GRID.shape))
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def bad_4d(path: Path) -> None:
    save(path, np.zeros((4, 5, 6, 2)))


def bad_2d(path: Path) -> None:
    save(path, np.zeros((4, 5)))


def bad_nan(path: Path) -> None:
    array = np.zeros(GRID.shape, np.float32)
    array[1, 2, 3] = np.nan
    save(path, array)


def bad_affine(path: Path) -> None:
    image = nib.Nifti1Image(np.zeros(GRID.shape), None)
    image.header.set_sform(np.zeros((4, 4)), code=1)
    image.header["sform_code"] = 1
    image.to_filename(path)


@pytest.mark.parametrize(
    ("spoil", "error"),
    [
        (bad_text, UnreadableImageError),
        (bad_truncated, UnreadableImageError),
        (bad_4d, NotThreeDimensionalError),
        (bad_2d, NotThreeDimensionalError),
        (bad_nan, NonFiniteImageError),
        (bad_affine, UnreadableImageError),
    ],
)
def test_bad_images_are_named_with_the_reason(tmp_path: Path, spoil, error: type[ScanError]) -> None:
    path = tmp_path / "scan.nii.gz"
    spoil(path)
    with pytest.raises(error) as caught:
        read_image(path)
    assert "scan.nii.gz" in str(caught.value)
    assert caught.value.reason


def test_a_missing_file_and_an_unknown_ending(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match="no such file"):
        read_image(tmp_path / "none.nii.gz")
    (tmp_path / "scan.jpg").write_bytes(b"")
    with pytest.raises(UnreadableImageError, match=r"allowed are \.nii\.gz"):
        read_image(tmp_path / "scan.jpg")


def test_labels_that_are_not_listed(tmp_path: Path) -> None:
    array = np.zeros(GRID.shape, np.uint8)
    array[0, 0, 0] = 7
    with pytest.raises(UnexpectedLabelError, match=r"\[7\] are not listed.*0-2, 5"):
        read_label_map(save(tmp_path / "a.nii.gz", array), allowed_ids=[0, 1, 2, 5])


@pytest.mark.parametrize(("value", "reason"), [(0.5, "not integers"), (-1, "negative id -1"), (np.nan, "not integers")])
def test_labels_that_are_no_ids(tmp_path: Path, value: float, reason: str) -> None:
    array = np.zeros(GRID.shape, np.float32)
    array[0, 0, 0] = value
    with pytest.raises(UnexpectedLabelError, match=reason):
        read_label_map(save(tmp_path / "a.nii.gz", array))


def test_float_labels_that_are_integers_are_fine(tmp_path: Path) -> None:
    array = np.full(GRID.shape, 3.0)
    assert read_label_map(save(tmp_path / "a.nii.gz", array)).array.dtype == np.uint8


def test_label_map_on_another_grid(tmp_path: Path) -> None:
    moved = AFFINE.copy()
    moved[0, 3] += 1
    path = save(tmp_path / "a.nii.gz", np.zeros(GRID.shape, np.uint8), moved)
    with pytest.raises(GridMismatchError, match="origin"):
        read_label_map(path, grid=GRID)


def test_names_and_listing(tmp_path: Path) -> None:
    for name in ("b.nii.gz", "a.mha", ".tmp-x.nii.gz", "notes.txt"):
        (tmp_path / name).write_bytes(b"")
    assert [p.name for p in list_images(tmp_path)] == ["a.mha", "b.nii.gz"]
    assert strip_ending("liver.v2_0000.nii.gz") == "liver.v2_0000"


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_a_legend_is_written_for_viewers_and_a_slope_kept(tmp_path: Path, ending: str) -> None:
    grid = Grid(shape=(3, 4, 5), affine=np.diag([1.0, 2.0, 3.0, 1.0]))
    labels = np.zeros(grid.shape, np.uint16)
    labels[1, 2, 3] = 300
    file = tmp_path / f"a{ending}"
    write_label_map(file, labels, like=grid, legend={300: "left <kidney> & more", 1: "liver"})
    loaded = nib.load(file)
    assert loaded.get_data_dtype() == np.uint16
    assert np.array_equal(np.asarray(loaded.dataobj), labels)
    (extension,) = loaded.header.extensions
    assert extension.get_code() == 30
    table = ElementTree.fromstring(extension.content.rstrip(b"\0")).iter("Label")
    assert {int(e.get("Key")): e.text for e in table} == {0: "background", 1: "liver", 300: "left <kidney> & more"}
    # The legend of one file is not handed on to the next.
    write_label_map(file, labels, like=read_image(file))
    assert not nib.load(file).header.extensions
    write_volume(file, labels, like=grid, slope=0.5)
    assert np.asarray(nib.load(file).dataobj)[1, 2, 3] == 150


def test_images_are_taken_in_any_form(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    array = rng.integers(0, 99, (4, 5, 6)).astype(np.int16)
    affine = np.array([[0, -2, 0, 5], [1, 0, 0, -3], [0, 0, 3, 7], [0, 0, 0, 1]], float)
    nib.save(nib.Nifti1Image(array, affine), tmp_path / "a.nii.gz")
    forms = [
        (array, affine),
        nib.Nifti1Image(array, affine),
        nib.load(tmp_path / "a.nii.gz"),
        sitk.ReadImage(str(tmp_path / "a.nii.gz")),
        tmp_path / "a.nii.gz",
        str(tmp_path / "a.nii.gz"),
        read_image(tmp_path / "a.nii.gz"),
    ]
    for form in forms:
        image = as_image(form)
        assert np.array_equal(image.array, array), type(form)
        assert np.allclose(image.grid.affine, affine, atol=1e-6), type(form)
    with pytest.raises(TypeError, match=r"got list"):
        as_image([1, 2])
    with pytest.raises(NotThreeDimensionalError):
        as_image((np.zeros((3, 3)), affine))
    with pytest.raises(NonFiniteImageError):
        as_image((np.full((3, 3, 3), np.nan), affine))


def _scaled(path: Path, labels: np.ndarray, factor: int, slope: float) -> None:
    image = nib.Nifti1Image((labels * factor).astype(np.int16), np.eye(4))
    image.header.set_slope_inter(slope, 0)
    nib.save(image, path)


@pytest.mark.parametrize(("factor", "slope"), [(10, 0.1), (255, 1 / 255), (3, 1 / 3), (1, 1.0), (1, 2.0)])
def test_a_label_map_with_a_scale_has_the_ids_that_it_stands_for(tmp_path: Path, factor: int, slope: float) -> None:
    labels = np.random.default_rng(0).integers(0, 60, (6, 7, 8))
    path = tmp_path / "labels.nii"
    _scaled(path, labels, factor, 1.0)
    raw = bytearray(path.read_bytes())
    struct.pack_into("<2f", raw, 112, slope, 0)  # scl_slope, scl_inter: as other programs leave them
    path.write_bytes(raw)
    found = read_label_map(path)
    np.testing.assert_array_equal(found.array, np.rint(labels * factor * slope))
    assert found.array.dtype == np.uint8


@pytest.mark.parametrize("noise", [1e-7, 1e-12])
def test_rounding_is_no_other_label_and_a_half_is(tmp_path: Path, noise: float) -> None:
    labels = np.random.default_rng(0).integers(0, 200, (6, 7, 8)) * (1 + noise)
    nib.save(nib.Nifti1Image(labels.astype(np.float32 if noise > 1e-9 else np.float64), np.eye(4)), tmp_path / "a.nii")
    np.testing.assert_array_equal(read_label_map(tmp_path / "a.nii").array, np.rint(labels))
    labels[3, 3, 3] = 1.001
    nib.save(nib.Nifti1Image(labels, np.eye(4)), tmp_path / "b.nii")
    with pytest.raises(UnexpectedLabelError, match=r"not integers, such as 1\.001"):
        read_label_map(tmp_path / "b.nii")
