"""Where the voxels of DICOM series lie, by hand and by SimpleITK, and what is no volume."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import imagecodecs
import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from pydicom import dcmread, dcmwrite

from satunet.conversion import convert, read_dicom
from satunet.errors import UnreadableImageError, UserError
from satunet.images.dicom import Series, find_series, read_series, search
from satunet.images.formats import sitk_grid
from satunet.images.image import Image, read_image
from satunet.prediction.door.inputs import collect_scans
from tests.images.dicom_files import (
    AXIAL,
    CORONAL,
    SAGITTAL,
    SPACING,
    STEP,
    numbers,
    positions,
    write_enhanced,
    write_slices,
)


def only(folder: Path) -> Series:
    (series,) = find_series(folder)
    return series


def fault(folder: Path) -> str:
    with pytest.raises(UnreadableImageError) as caught:
        read_series(only(folder))
    assert str(folder) in str(caught.value)
    return caught.value.reason


def place(image: Image, index: tuple[int, int, int]) -> np.ndarray:
    """Of a voxel, in DICOM's LPS millimetres."""
    return (image.grid.affine @ (*index, 1))[:3] * (-1, -1, 1)


def by_simpleitk(folder: Path) -> sitk.Image:
    names = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder))
    return sitk.ReadImage(list(names))


@pytest.mark.parametrize("axes", [AXIAL, CORONAL, SAGITTAL, (0.8, 0.6, 0, -0.36, 0.48, 0.8)])
@pytest.mark.parametrize("modality", ["CT", "MR", "PT"])
def test_upright_stacks_are_read_as_simpleitk_reads_them(tmp_path: Path, axes, modality: str) -> None:
    write_slices(tmp_path, modality=modality, axes=axes)
    image, theirs = read_series(only(tmp_path)), by_simpleitk(tmp_path)
    np.testing.assert_array_equal(image.array, sitk.GetArrayFromImage(theirs).transpose())
    np.testing.assert_allclose(image.grid.affine, sitk_grid(theirs, tmp_path).affine, atol=1e-4)
    assert image.array.dtype.itemsize == 2


def test_a_tilted_gantry_is_a_sheared_grid(tmp_path: Path, nnunet_env: Path) -> None:
    """Table moves along z, planes are tilted by 20 degrees: every slice's corner is where its header says."""
    angle = np.radians(20)
    axes = (1, 0, 0, 0, np.cos(angle), -np.sin(angle))
    places = [np.array([10.0, 20.0, 30.0 + 5 * k]) for k in range(8)]
    volume = numbers((7, 6, 8))
    write_slices(tmp_path / "ct", volume, axes=axes, places=places)
    series = only(tmp_path / "ct")
    image = read_series(series)
    for k in range(8):  # column 6, row 5 of slice k: 6 · 2 mm along x, 5 · 0.5 mm down the tilted plane
        wanted = places[k] + (12, 2.5 * np.cos(angle), -2.5 * np.sin(angle))
        np.testing.assert_allclose(place(image, (6, 5, k)), wanted, atol=1e-4)
        np.testing.assert_array_equal(image.array[:, :, k], volume[:, :, k].astype(int) - 1024)
    assert "tilted by 20.0°" in series.remarks[0]
    # Converted, every reader of sheared files finds the same place; nnU-Net's is chosen so that it can.
    assert convert(read_dicom(tmp_path / "ct", dataset_id=7)).failures == {}
    folder = nnunet_env / "raw" / "Dataset007_ct"
    (file,) = (folder / "imagesTs").iterdir()
    np.testing.assert_allclose(nib.load(file).affine, image.grid.affine, atol=1e-4)
    from nnunetv2.imageio.reader_writer_registry import determine_reader_writer_from_dataset_json

    from satunet.jobs.files import read_json

    reader = determine_reader_writer_from_dataset_json(read_json(folder / "dataset.json"), verbose=False)()
    voxels, properties = reader.read_images([str(file)])
    np.testing.assert_array_equal(voxels[0].transpose(2, 1, 0), image.array)
    np.testing.assert_allclose(properties["spacing"][::-1], image.grid.spacing_mm, atol=1e-3)


def test_rounded_positions_are_no_tilt_and_no_gap(tmp_path: Path) -> None:
    """0.625 mm slices whose positions are given to a tenth of a millimetre."""
    places = [np.array([10.0, 20.0, round(30 + 0.625 * k, 1)]) for k in range(40)]
    write_slices(tmp_path, numbers((4, 3, 40)), places=places)
    series = only(tmp_path)
    assert series.remarks == ()
    assert read_series(series).grid.spacing_mm[2] == pytest.approx(0.625, abs=0.003)


def test_frames_of_an_enhanced_file_are_sorted_by_place(tmp_path: Path) -> None:
    volume = numbers((7, 6, 12))
    order = np.random.default_rng(1).permutation(12)
    slopes = [0.5 + k for k in range(12)]
    write_enhanced(tmp_path / "a.dcm", volume, order, axes=CORONAL, slopes=slopes)
    series = only(tmp_path)
    image = read_series(series)
    assert image.grid.shape == (7, 6, 12)
    normal = np.cross(CORONAL[:3], CORONAL[3:])
    for k in range(12):
        np.testing.assert_allclose(image.array[:, :, k], volume[:, :, k] * slopes[k], rtol=1e-6)
        wanted = np.array([10, 20, 30]) + k * STEP * normal + np.array([12.0, 0, -2.5])
        np.testing.assert_allclose(place(image, (6, 5, k)), wanted, atol=1e-4)
        assert series.slices[k].frame == list(order).index(k)
    assert series.files == (tmp_path / "a.dcm",)


def test_an_enhanced_file_in_order_is_what_simpleitk_reads(tmp_path: Path) -> None:
    write_enhanced(tmp_path / "a.dcm", numbers((7, 6, 12)), range(12))
    image, theirs = read_series(only(tmp_path)), sitk.ReadImage(str(tmp_path / "a.dcm"))
    np.testing.assert_array_equal(image.array, sitk.GetArrayFromImage(theirs).transpose())


def test_several_volumes_in_an_enhanced_file_are_named(tmp_path: Path) -> None:
    def two_times(data) -> None:
        from pydicom.dataset import Dataset

        for number, group in enumerate(data.PerFrameFunctionalGroupsSequence):
            content = Dataset()
            content.TemporalPositionIndex = number % 2 + 1
            group.FrameContentSequence = [content]

    write_enhanced(tmp_path / "a.dcm", numbers((7, 6, 6)), [0, 0, 1, 1, 2, 2], edit=two_times)
    assert "2 volumes of 3 slices, told apart by TemporalPositionIndex (1, 2)" in fault(tmp_path)


def test_echoes_of_one_series_are_named(tmp_path: Path) -> None:
    def echoes(data, k: int) -> None:
        data.EchoTime = 10 + 20 * (k % 2)

    places = [np.array([0, 0, 3.0 * (k // 2)]) for k in range(8)]
    write_slices(tmp_path, numbers((7, 6, 8)), modality="MR", places=places, edit=echoes)
    assert "2 volumes of 4 slices, told apart by EchoTime (10.0, 30.0)" in fault(tmp_path)


def test_slices_at_one_position_are_no_volume(tmp_path: Path) -> None:
    write_slices(tmp_path / "a", places=[(0, 0, 0)] * 5)
    assert "all its 5 slices are at the same position" in fault(tmp_path / "a")
    write_slices(tmp_path / "b", places=[(0, 0, 0), (0, 0, 3), (0, 0, 3), (0, 0, 6), (0, 0, 9)])
    assert "007.dcm and 014.dcm are at the same position" in fault(tmp_path / "b")


def test_missing_and_uneven_slices(tmp_path: Path) -> None:
    write_slices(tmp_path / "a", numbers((4, 3, 30)), places=[(0, 0, 2.0 * k + 2 * (k > 13)) for k in range(30)])
    assert "2 to 4 mm apart; slices are missing" in fault(tmp_path / "a")
    heights = [*np.arange(0, 15, 2.5), *np.arange(15, 45, 5.0)]
    write_slices(tmp_path / "b", numbers((4, 3, 12)), places=[(0, 0, z) for z in heights])
    assert "2.5 to 5 mm apart" in fault(tmp_path / "b")


@pytest.mark.parametrize("odd", [0, 2, 4])
def test_a_slice_of_another_orientation(tmp_path: Path, odd: int) -> None:
    axes = [CORONAL if k == odd else AXIAL for k in range(5)]
    write_slices(tmp_path, axes=axes, places=positions(5))
    assert f"2 orientations (4, 1 slices), such as that of {(odd * 7) % 101:03d}.dcm" in fault(tmp_path)


def test_radial_slices_are_no_volume(tmp_path: Path) -> None:
    axes = [(np.cos(a), np.sin(a), 0, 0, 0, -1) for a in np.pi * np.arange(12) / 12]
    write_slices(tmp_path, numbers((7, 6, 12)), modality="MR", axes=axes, places=[(0, 0, 0)] * 12)
    assert "12 orientations" in fault(tmp_path)


def test_parallel_slices_that_wander_are_no_volume(tmp_path: Path) -> None:
    write_slices(tmp_path, places=[(8 * (k == 2), 0, 3 * k) for k in range(5)])
    assert "014.dcm is 8 mm away from the others" in fault(tmp_path)


def test_a_localizer_among_slices_is_left_out(tmp_path: Path) -> None:
    def scout(data, k: int) -> None:
        data.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]

    write_slices(tmp_path)
    write_slices(tmp_path, numbers((9, 9, 1)), axes=CORONAL, edit=scout, names="scout{}.dcm")
    series = only(tmp_path)
    assert series.remarks == ("a localizer is left out (scout0.dcm)",)
    np.testing.assert_array_equal(read_series(series).array, numbers().astype(int) - 1024)


def test_what_is_no_volume_of_a_study_is_passed_over_and_said(tmp_path: Path) -> None:
    def scout(data, k: int) -> None:
        data.ImageType, data.SeriesInstanceUID = ["ORIGINAL", "PRIMARY", "LOCALIZER"], "1.2.31"

    def capture(data, k: int) -> None:
        data.SOPClassUID, data.SeriesInstanceUID = "1.2.840.10008.5.1.4.1.1.7", "1.2.32"
        del data.ImagePositionPatient, data.ImageOrientationPatient

    def colour(data, k: int) -> None:
        data.SeriesInstanceUID, data.SamplesPerPixel, data.PhotometricInterpretation = "1.2.33", 3, "RGB"
        data.PlanarConfiguration, data.BitsAllocated, data.BitsStored, data.HighBit = 0, 8, 8, 7
        data.PixelData = bytes(3 * 42)

    def chest(data, k: int) -> None:
        data.SeriesInstanceUID, data.Modality = "1.2.34", "DX"
        del data.ImagePositionPatient, data.ImageOrientationPatient

    axes = [AXIAL, CORONAL, SAGITTAL]
    write_slices(tmp_path / "scout", numbers((7, 6, 3)), axes=axes, places=[(0, 0, 0)] * 3, edit=scout)
    write_slices(tmp_path / "sc", numbers((7, 6, 2)), edit=capture)
    write_slices(tmp_path / "rgb", numbers((7, 6, 2)), edit=colour)
    write_slices(tmp_path / "dx", numbers((7, 6, 1)), edit=chest)
    with pytest.raises(UserError, match="localizers"):
        read_dicom(tmp_path, dataset_id=7)
    write_slices(tmp_path / "ct")
    found = search(tmp_path)
    assert [s.folder.name for s in found.series] == ["ct"]
    assert sorted(found.passed_over.values()) == [
        "localizers",
        "one picture of modality DX, which does not say where it lies",
        "pictures in colour",
        "secondary captures, which do not say where they lie",
    ]
    assert len(read_dicom(tmp_path, dataset_id=7).notes) == 5  # and that there are no labels
    assert [job.path.name for job in collect_scans([tmp_path])] == ["ct"]


def test_captures_that_say_where_they_lie_are_slices(tmp_path: Path) -> None:
    def capture(data, k: int) -> None:
        data.SOPClassUID = "1.2.840.10008.5.1.4.1.1.7"

    write_slices(tmp_path, edit=capture)
    assert read_series(only(tmp_path)).grid.shape == (7, 6, 5)


@pytest.mark.parametrize("spacing", [[0, 0], [0, 1], [-1, 1], [1e300, 1], None, ["", ""], [1]])
def test_pixel_spacing_that_is_none(tmp_path: Path, spacing) -> None:
    def edit(data, k: int) -> None:
        if spacing is None:
            del data.PixelSpacing
        else:
            data.PixelSpacing = spacing

    write_slices(tmp_path, edit=edit)
    assert "gives the PixelSpacing" in fault(tmp_path)


def test_pixel_spacing_and_sizes_that_change(tmp_path: Path) -> None:
    def edit(data, k: int) -> None:
        data.PixelSpacing = [0.5, 2] if k < 3 else [0.25, 1]

    write_slices(tmp_path / "a", edit=edit)
    assert "pixel spacing changes from 0.5 × 2 to 0.25 × 1 mm in 021.dcm" in fault(tmp_path / "a")
    write_slices(tmp_path / "b")
    write_slices(tmp_path / "b", numbers((9, 9, 1)), places=[(10, 20, 45)], names="x{}.dcm")
    assert "several sizes: 7 × 6 (5), 9 × 9 (1) pixels, such as x0.dcm" in fault(tmp_path / "b")


def test_one_series_in_two_folders(tmp_path: Path) -> None:
    files = write_slices(tmp_path / "half" / "a")
    (tmp_path / "half" / "b").mkdir()
    for file in files[3:]:
        shutil.move(file, tmp_path / "half" / "b")
    series = only(tmp_path / "half")
    assert series.folder == tmp_path / "half"
    assert "2 folders" in series.remarks[0]
    np.testing.assert_array_equal(read_series(series).array, numbers().astype(int) - 1024)
    # The same files twice are one series; two volumes under one UID are two.
    write_slices(tmp_path / "twice" / "a")
    shutil.copytree(tmp_path / "twice" / "a", tmp_path / "twice" / "b")
    assert only(tmp_path / "twice").remarks[0].startswith("5 copies of slices are left out")
    write_slices(tmp_path / "two" / "a")
    write_slices(tmp_path / "two" / "b", numbers(seed=1))
    both = find_series(tmp_path / "two")
    assert [s.folder.name for s in both] == ["a", "b"]
    np.testing.assert_array_equal(read_series(both[1]).array, numbers(seed=1).astype(int) - 1024)


def test_series_of_two_patients_with_one_uid_are_two(tmp_path: Path) -> None:
    def other(data, k: int) -> None:
        data.PatientID = "P2"
        data.ImagePositionPatient = [10, 20, 30 + 3 * (k + 5)]  # where the first one ends

    write_slices(tmp_path, names="a{}.dcm")
    write_slices(tmp_path, edit=other, names="b{}.dcm")
    assert sorted(s.patient for s in find_series(tmp_path)) == ["P1", "P2"]


@pytest.mark.parametrize("which", [0, 2, 4])
@pytest.mark.parametrize("left", [140, 400, 900, -1])
def test_a_truncated_slice_is_never_dropped(tmp_path: Path, which: int, left: int) -> None:
    file = write_slices(tmp_path)[which]
    content = file.read_bytes()
    file.write_bytes(content[: left if left < len(content) else -1])
    reason = fault(tmp_path)
    assert file.name in reason


def test_pet_with_a_slope_for_each_slice(tmp_path: Path) -> None:
    slopes = [1.0, 4e-5, 0.3, 1e-3, 2.5]

    def edit(data, k: int) -> None:
        data.RescaleSlope = slopes[k]

    write_slices(tmp_path, modality="PT", edit=edit)
    image = read_series(only(tmp_path))
    assert image.array.dtype == np.float32
    np.testing.assert_allclose(image.array, numbers() * np.array(slopes), rtol=1e-6)


@pytest.mark.parametrize(("modality", "wanted"), [("CT", "as stored"), ("PT", "as stored"), ("MR", "inverted")])
def test_what_is_to_be_shown_inverted(tmp_path: Path, modality: str, wanted: str) -> None:
    """Hounsfield units and activities are what they are; other values mean what is shown."""

    def edit(data, k: int) -> None:
        data.PhotometricInterpretation = "MONOCHROME1"

    write_slices(tmp_path, modality=modality, edit=edit)
    series = only(tmp_path)
    values = numbers().astype(int) - (1024 if modality == "CT" else 0)
    np.testing.assert_array_equal(
        read_series(series).array, values if wanted == "as stored" else values.min() + values.max() - values
    )
    assert wanted in series.remarks[0]


def test_files_without_a_preamble(tmp_path: Path) -> None:
    for file in write_slices(tmp_path):
        file.write_bytes(file.read_bytes()[132:])
    np.testing.assert_array_equal(read_series(only(tmp_path)).array, numbers().astype(int) - 1024)
    # Not even the group of the file's own header: implicit little endian, as old archives keep it.
    shutil.rmtree(tmp_path)
    for file in write_slices(tmp_path):
        data = dcmread(file)
        data.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2"
        data.save_as(file, implicit_vr=True, little_endian=True)
        content = file.read_bytes()
        file.write_bytes(content[132 + 12 + int.from_bytes(content[140:144], "little") :])
        assert file.read_bytes()[:2] == b"\x08\x00"
    np.testing.assert_array_equal(read_series(only(tmp_path)).array, numbers().astype(int) - 1024)


@pytest.mark.parametrize(
    ("charset", "text"),
    [(["", "ISO 2022 IR 87"], "腹部 造影"), ("ISO_IR 13", "ﾔﾏﾀﾞ"), ("ISO_IR 100", "Müller"), ("ISO_IR 192", "肝臓"),
     (["", "ISO 2022 IR 149"], "김희중"), ("GB18030", "王小东")],
)  # fmt: skip
def test_character_sets(tmp_path: Path, charset, text: str) -> None:
    def edit(data, k: int) -> None:
        data.SpecificCharacterSet, data.SeriesDescription, data.PatientID = charset, text, text

    write_slices(tmp_path / "Пациент 1", edit=edit)
    series = only(tmp_path)
    assert (series.description, series.patient) == (text, text)
    assert read_series(series).grid.shape == (7, 6, 5)


@pytest.mark.parametrize(
    ("syntax", "pack"),
    [
        ("1.2.840.10008.1.2.4.70", lambda a: imagecodecs.ljpeg_encode(a, bitspersample=16)),
        ("1.2.840.10008.1.2.4.80", imagecodecs.jpegls_encode),
        ("1.2.840.10008.1.2.4.90", lambda a: imagecodecs.jpeg2k_encode(a, codecformat="j2k", reversible=True)),
    ],
)
def test_compressed_slices_are_read_as_simpleitk_reads_them(tmp_path: Path, syntax: str, pack) -> None:
    volume = numbers((37, 26, 5))
    write_slices(tmp_path, volume, pack=pack, syntax=syntax)
    image = read_series(only(tmp_path))
    np.testing.assert_array_equal(image.array, volume.astype(int) - 1024)
    np.testing.assert_array_equal(image.array, sitk.GetArrayFromImage(by_simpleitk(tmp_path)).transpose())


@pytest.mark.parametrize(("syntax", "bits"), [("1.2.840.10008.1.2.4.50", 8), ("1.2.840.10008.1.2.4.51", 12)])
def test_lossy_slices_are_read_as_simpleitk_reads_them(tmp_path: Path, syntax: str, bits: int) -> None:
    smooth = np.add.outer(np.add.outer(np.arange(37) * 2, np.arange(26) * 3), np.arange(5))
    volume = (smooth * 2 ** (bits - 8)).astype(np.uint8 if bits == 8 else np.uint16)

    def edit(data, k: int) -> None:
        data.BitsStored, data.HighBit = bits, bits - 1

    def pack(plane: np.ndarray) -> bytes:
        return imagecodecs.jpeg8_encode(plane, level=95, bitspersample=bits)

    write_slices(tmp_path, volume, pack=pack, syntax=syntax, edit=edit)
    array = read_series(only(tmp_path)).array
    theirs = sitk.GetArrayFromImage(by_simpleitk(tmp_path)).transpose()
    assert np.abs(array.astype(int) - theirs).max() <= 1  # decoders may round
    assert np.abs(array + 1024 - volume.astype(int)).max() < 4 * 2 ** (bits - 8)


def test_run_length_encoded_slices(tmp_path: Path) -> None:
    for file in write_slices(tmp_path):
        data = dcmread(file)
        data.compress("1.2.840.10008.1.2.5")
        data.save_as(file)
    np.testing.assert_array_equal(read_series(only(tmp_path)).array, numbers().astype(int) - 1024)


def test_a_codec_that_fails_is_that_series_error(tmp_path: Path) -> None:
    write_slices(tmp_path, pack=lambda a: b"\xff\xd8 no picture", syntax="1.2.840.10008.1.2.4.90")
    assert "the pixels of 000.dcm cannot be read" in fault(tmp_path)
    shutil.rmtree(tmp_path)
    write_slices(tmp_path, pack=lambda a: b"x", syntax="1.2.840.10008.1.2.4.102")
    assert "is not known" in fault(tmp_path)


@pytest.mark.parametrize(("bits", "high"), [(60000, 15), (12, 60000), (12, 3), (17, 16)])
def test_bits_that_cannot_be(tmp_path: Path, bits: int, high: int) -> None:
    write_slices(tmp_path, edit=lambda d, k: (setattr(d, "BitsStored", bits), setattr(d, "HighBit", high)))
    assert "which is impossible" in fault(tmp_path)


@pytest.mark.parametrize("value", ["1e308", "-1e30", "nan", "0"])
def test_slopes_that_cannot_be(tmp_path: Path, value: str) -> None:
    write_slices(tmp_path, edit=lambda d, k: setattr(d, "RescaleSlope", value))
    assert "RescaleSlope" in fault(tmp_path)


def test_a_deflated_file_is_refused_before_it_is_inflated(tmp_path: Path) -> None:
    file = write_slices(tmp_path)[2]
    data = dcmread(file)
    data.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.1.99"
    data.save_as(file)
    assert "014.dcm beside it: it is deflated as a whole" in fault(tmp_path)


def test_bits_that_are_stored(tmp_path: Path) -> None:
    """12 signed bits, with an overlay in the bits above them, as old scanners stored it."""
    values = np.random.default_rng(0).integers(-2048, 2048, (7, 6, 5)).astype(np.int16)
    stored = ((values.astype(np.uint16) & 0xFFF) | 0xA000).astype(np.uint16)

    def edit(data, k: int) -> None:
        data.BitsStored, data.HighBit, data.PixelRepresentation = 12, 11, 1

    write_slices(tmp_path, stored, edit=edit)
    np.testing.assert_array_equal(read_series(only(tmp_path)).array, values - 1024)


def test_big_endian(tmp_path: Path) -> None:
    for file in write_slices(tmp_path):
        data = dcmread(file)
        data.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.2"
        data.PixelData = np.frombuffer(data.PixelData, "<u2").astype(">u2").tobytes()
        dcmwrite(file, data, implicit_vr=False, little_endian=False)
    np.testing.assert_array_equal(read_series(only(tmp_path)).array, numbers().astype(int) - 1024)


def test_one_slice_needs_its_thickness(tmp_path: Path) -> None:
    write_slices(tmp_path / "a", numbers((7, 6, 1)))
    assert read_series(only(tmp_path / "a")).grid.spacing_mm == (SPACING[1], SPACING[0], STEP)
    write_slices(tmp_path / "b", numbers((7, 6, 1)), edit=lambda d, k: setattr(d, "SliceThickness", None))
    assert "does not say how thick it is" in fault(tmp_path / "b")


def test_convert_and_predict_read_alike(tmp_path: Path, nnunet_env: Path) -> None:
    write_slices(tmp_path / "good")
    write_slices(tmp_path / "bad", places=[(0, 0, 0)] * 5, edit=lambda d, k: setattr(d, "SeriesInstanceUID", "1.2.4"))
    summary = convert(read_dicom(tmp_path, dataset_id=7))
    assert set(summary.failures) == {"bad"} and "same position" in summary.failures["bad"]
    made = read_image(next((nnunet_env / "raw").glob("*/imagesTs/good_0000.nii.gz")))
    jobs = {job.path.name: job for job in collect_scans([tmp_path])}
    np.testing.assert_array_equal(jobs["good"].read().array, made.array)
    np.testing.assert_allclose(jobs["good"].read().grid.affine, made.grid.affine, atol=1e-4)
    with pytest.raises(UnreadableImageError, match="same position"):
        jobs["bad"].read()


def test_other_files_are_left_alone(tmp_path: Path) -> None:
    write_slices(tmp_path)
    (tmp_path / "DICOMDIR").write_bytes(bytes(128) + b"DICMjunk")
    (tmp_path / "notes.txt").write_text("x" * 200)
    (tmp_path / "empty.dcm").write_bytes(b"")
    import os

    os.mkfifo(tmp_path / "pipe")
    assert read_series(only(tmp_path)).grid.shape == (7, 6, 5)


def test_reading_nifti_imports_no_dicom() -> None:
    # nibabel itself imports pydicom where it is installed.
    code = (
        "import sys\nsys.modules['pydicom'] = None\n"
        "import satunet.images.image, satunet.images.dicom, satunet.prediction.door.inputs, satunet.conversion\n"
        "print({'SimpleITK', 'imagecodecs'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
