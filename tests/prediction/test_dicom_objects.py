"""DICOM objects, read back by others than those who wrote them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from matplotlib.path import Path as Polygon

from satunet.images.dicom import find_series, read_series
from satunet.prediction import dicom_objects
from satunet.prediction.dicom_objects import outlines, write_segmentations, write_structure_set
from satunet.prediction.masks import BoxedMask
from tests.images.test_dicom import write_series


def boxed(mask: np.ndarray) -> BoxedMask:
    """In the smallest box, as the predictor gives it."""
    if not mask.any():
        return BoxedMask.empty(mask.shape)
    places = np.argwhere(mask)
    low, high = places.min(0), places.max(0) + 1
    inside = mask[tuple(slice(a, b) for a, b in zip(low, high, strict=True))]
    return BoxedMask.of(inside, tuple(int(v) for v in low), mask.shape)


def test_masks_come_back_from_a_segmentation_object(tmp_path: Path) -> None:
    highdicom = pytest.importorskip("highdicom")
    write_series(tmp_path / "ct")
    (series,) = find_series(tmp_path)
    image = read_series(series)
    masks = [("liver", image.array > 0), ("nothing", image.array > 5000), ("left kidney", image.array < -500)]
    files = write_segmentations(tmp_path / "seg.dcm", series, [(name, boxed(mask)) for name, mask in masks])
    assert files == [tmp_path / "seg.dcm"]
    found = highdicom.seg.segread(str(tmp_path / "seg.dcm"))
    assert [d.SegmentLabel for d in found.SegmentSequence] == ["liver", "left kidney"]
    wanted = {1: masks[0][1], 2: masks[2][1]}
    written = {1: np.zeros_like(wanted[1]), 2: np.zeros_like(wanted[2])}
    for frame, pixels in zip(found.PerFrameFunctionalGroupsSequence, found.pixel_array, strict=True):
        place = [*map(float, frame.PlanePositionSequence[0].ImagePositionPatient), 1.0] * np.array([-1, -1, 1, 1])
        k = round(np.linalg.solve(image.grid.affine, place)[2])
        written[frame.SegmentIdentificationSequence[0].ReferencedSegmentNumber][:, :, k] = pixels.T > 0
    for number, mask in wanted.items():
        assert np.array_equal(written[number], mask)
    # The object itself is no image to segment.
    assert [s.uid for s in find_series(tmp_path)] == [series.uid]


def test_many_masks_go_to_several_segmentation_objects(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    highdicom = pytest.importorskip("highdicom")
    write_series(tmp_path / "ct")
    (series,) = find_series(tmp_path)
    mask = boxed(read_series(series).array > 0)
    monkeypatch.setattr(dicom_objects, "_FRAMES_BYTES", 2 * int(np.prod(mask.shape)))
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
