"""DICOM objects, read back by others than those who wrote them."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from matplotlib.path import Path as Polygon

from satunet.images.colours import colour_of
from satunet.images.dicom import find_series, read_series
from satunet.prediction.dicom_objects import outlines, segmentation, write_segmentations, write_structure_set
from tests.images.test_dicom import write_series
from tests.prediction.dicom_objects.archives import boxed, read_back


@pytest.mark.parametrize(
    ("overlap", "kind", "expected"),
    [(False, "auto", "LABELMAP"), (True, "auto", "BINARY"), (False, "binary", "BINARY")],
)
def test_masks_come_back_from_a_segmentation_object(
    tmp_path: Path, overlap: bool, kind: Literal["auto", "binary"], expected: str
) -> None:
    pydicom = pytest.importorskip("pydicom")
    write_series(tmp_path / "ct")
    (series,) = find_series(tmp_path)
    image = read_series(series)
    masks = {
        "liver": image.array > 0,
        "nothing": image.array > 5000,
        "left kidney": image.array < (200 if overlap else -500),
    }
    named = [(name, boxed(mask)) for name, mask in masks.items()]
    assert write_segmentations(tmp_path / "seg.dcm", series, named, kind=kind) == [tmp_path / "seg.dcm"]
    assert pydicom.dcmread(tmp_path / "seg.dcm").SegmentationType == expected
    found = read_back(tmp_path / "seg.dcm", image)
    assert list(found) == ["liver", "left kidney"]
    for name, mask in found.items():
        assert np.array_equal(mask, masks[name])
    # The object itself is no image to segment.
    assert [s.uid for s in find_series(tmp_path)] == [series.uid]


def test_segments_say_what_they_are(tmp_path: Path) -> None:
    highdicom = pytest.importorskip("highdicom")
    write_series(tmp_path / "ct")
    (series,) = find_series(tmp_path)
    mask = boxed(read_series(series).array > 0)
    names = ["liver", "my right kidney cyst\\seen", "nephros " * 20, "left kidney"]
    classes = [None, "right kidney cyst", "left kidney", None]
    write_segmentations(tmp_path / "seg.dcm", series, [(n, mask) for n in names], classes=classes)
    first, second, third, fourth = highdicom.seg.segread(str(tmp_path / "seg.dcm")).SegmentSequence
    assert (first.segmented_property_category.meaning, first.segmented_property_type.meaning) == (
        "Anatomical Structure", "Liver",
    )  # fmt: skip
    assert second.SegmentLabel == "my right kidney cyst/seen"
    assert second.segmented_property_category.meaning == "Morphologically Abnormal Structure"
    (region,) = second.AnatomicRegionSequence
    assert region.CodeMeaning == "Kidney"
    assert region.AnatomicRegionModifierSequence[0].CodeMeaning == "Right"
    assert len(third.SegmentLabel) <= 64
    (kind,) = third.SegmentedPropertyTypeCodeSequence
    assert (kind.CodeMeaning, kind.SegmentedPropertyTypeModifierCodeSequence[0].CodeMeaning) == ("Kidney", "Left")
    colours = [
        highdicom.color.CIELabColor.from_dicom_value(d.RecommendedDisplayCIELabValue).to_rgb() for d in (first, fourth)
    ]
    for found, name in zip(colours, ("liver", "left kidney"), strict=True):
        assert np.abs(np.subtract(found, colour_of(name))).max() <= 2


def test_many_masks_go_to_several_segmentation_objects(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    highdicom = pytest.importorskip("highdicom")
    write_series(tmp_path / "ct")
    (series,) = find_series(tmp_path)
    mask = boxed(read_series(series).array > 0)
    monkeypatch.setattr(segmentation, "_FRAMES_BYTES", 2 * int(np.prod(mask.shape)))
    files = write_segmentations(tmp_path / "seg.dcm", series, [(str(k), mask) for k in range(5)])
    assert [file.name for file in files] == ["seg.dcm", "seg_2.dcm", "seg_3.dcm"]
    labels = [d.SegmentLabel for file in files for d in highdicom.seg.segread(str(file)).SegmentSequence]
    assert labels == ["0", "1", "2", "3", "4"]


def pixels_inside(outline: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """By matplotlib, which knows nothing of how the outline was made."""
    centres = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1).reshape(-1, 2)
    return Polygon(outline, closed=False).contains_points(centres).reshape(shape)


@settings(max_examples=60, deadline=None)
@given(arrays(bool, st.tuples(st.integers(1, 9), st.integers(1, 9))))
def test_a_pixel_is_inside_an_outline_if_it_is_in_the_mask(plane: np.ndarray) -> None:
    found = np.zeros(plane.shape, bool)
    for outline in outlines(plane):
        found ^= pixels_inside(outline, plane.shape)
    assert np.array_equal(found, plane)


def test_rings_in_rings_are_outlines_with_channels() -> None:
    distance = np.maximum(*np.abs(np.meshgrid(np.arange(21) - 10, np.arange(21) - 10)))
    plane = distance % 4 < 2
    found = outlines(plane)
    assert len(found) == 3  # the square in the middle and two rings
    assert np.array_equal(np.logical_or.reduce([pixels_inside(o, plane.shape) for o in found]), plane)


@pytest.mark.parametrize("angle", [0.0, 0.3])
def test_masks_come_back_from_a_structure_set(tmp_path: Path, angle: float) -> None:
    pydicom = pytest.importorskip("pydicom")
    write_series(tmp_path / "ct", angle=angle)
    (series,) = find_series(tmp_path)
    image = read_series(series)
    masks = {"liver": image.array > 0, "nothing": image.array > 5000, "left kidney": image.array < -500}
    write_structure_set(tmp_path / "rt.dcm", series, [(name, boxed(mask)) for name, mask in masks.items()])
    read = pydicom.dcmread(tmp_path / "rt.dcm")
    assert (read.Modality, str(read.PatientName), read.StudyInstanceUID) == ("RTSTRUCT", "Doe^J", "1.2.9")
    numbers = {roi.ROINumber: roi.ROIName for roi in read.StructureSetROISequence}
    assert list(numbers.values()) == list(masks)
    to_voxels = np.linalg.inv(image.grid.affine)
    for region in read.ROIContourSequence:
        found = np.zeros(image.grid.shape, bool)
        for contour in region.get("ContourSequence", ()):
            places = np.array(contour.ContourData, float).reshape(-1, 3) * [-1, -1, 1]
            voxels = places @ to_voxels[:3, :3].T + to_voxels[:3, 3]
            k = np.rint(voxels[:, 2]).astype(int)
            assert np.allclose(voxels[:, 2], k[0], atol=1e-3)
            found[:, :, k[0]] ^= pixels_inside(voxels[:, :2], found.shape[:2])
            source = pydicom.dcmread(series.files[k[0]], stop_before_pixels=True)
            assert contour.ContourImageSequence[0].ReferencedSOPInstanceUID == source.SOPInstanceUID
        assert np.array_equal(found, masks[numbers[region.ReferencedROINumber]])
    # The object itself is no image to segment.
    assert [s.uid for s in find_series(tmp_path)] == [series.uid]
