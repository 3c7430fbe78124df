"""Which series can carry DICOM results: repaired, or refused in a sentence before any work."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from satunet.errors import UnreadableImageError
from satunet.images.dicom import find_series, read_series
from satunet.prediction import ModelFolder, Predictor
from satunet.prediction.dicom_objects import read_source, write_segmentations, write_structure_set
from satunet.prediction.door.inputs import Scan
from satunet.prediction.folder import predict_folder
from satunet.prediction.options import Outputs
from tests.prediction.dicom_objects.archives import ROOT, boxed, read_back, volume, write_ct, write_enhanced

pydicom = pytest.importorskip("pydicom")
pytest.importorskip("highdicom")


def japanese(image: Any, _: int) -> None:
    image.SpecificCharacterSet = ["", "ISO 2022 IR 87"]
    image.PatientName = "Yamada^Tarou=山田^太郎=やまだ^たろう"


def half_width(image: Any, _: int) -> None:
    image.SpecificCharacterSet, image.PatientName = "ISO_IR 13", "ﾔﾏﾀﾞ^ﾀﾛｳ"


def latin(image: Any, _: int) -> None:
    image.SpecificCharacterSet, image.PatientName = "ISO_IR 100", "Müller^Jörg"


@pytest.mark.parametrize(
    ("edit", "name"),
    [(japanese, "Yamada^Tarou=山田^太郎=やまだ^たろう"), (half_width, "ﾔﾏﾀﾞ^ﾀﾛｳ"), (latin, "Müller^Jörg")],
)
def test_names_of_any_alphabet_reach_the_results(tmp_path: Path, edit: Callable[[Any, int], None], name: str) -> None:
    write_ct(tmp_path / "ct", volume(), edit=edit)
    for result in results(tmp_path, "肝臓"):
        assert str(result.PatientName) == name
        assert result.SpecificCharacterSet == "ISO_IR 192"
        label = result.SegmentSequence[-1].SegmentLabel if "SegmentSequence" in result else None
        assert (label or result.StructureSetROISequence[0].ROIName) == "肝臓"


def results(folder: Path, name: str = "liver") -> list[Any]:
    (series,) = find_series(folder)
    mask = boxed(read_series(series).array > 0)
    write_segmentations(folder / "seg.dcm", series, [(name, mask)])
    write_structure_set(folder / "rt.dcm", series, [(name, mask)])
    return [pydicom.dcmread(folder / "seg.dcm"), pydicom.dcmread(folder / "rt.dcm")]


def test_what_the_file_header_says_again_is_taken_from_there(tmp_path: Path) -> None:
    def blank(image: Any, _: int) -> None:
        image.SOPClassUID, image.SOPInstanceUID = "", ""

    write_ct(tmp_path / "ct", volume(), edit=blank)
    seg, rt = results(tmp_path)
    (series,) = seg.ReferencedSeriesSequence
    named = {(r.ReferencedSOPClassUID, r.ReferencedSOPInstanceUID) for r in series.ReferencedInstanceSequence}
    assert named == {("1.2.840.10008.5.1.4.1.1.2", f"{ROOT}.3.{k}") for k in range(1, 7)}
    frame = rt.ReferencedFrameOfReferenceSequence[0].RTReferencedStudySequence[0]
    images = frame.RTReferencedSeriesSequence[0].ContourImageSequence
    assert {(r.ReferencedSOPClassUID, r.ReferencedSOPInstanceUID) for r in images} == named


def test_values_that_no_object_may_have_are_left_empty(tmp_path: Path) -> None:
    def broken(image: Any, _: int) -> None:
        image.PatientBirthDate, image.StudyDate, image.StudyTime = "unknown", "2024-01-01", "10:10"
        image.StudyID, image.SeriesNumber = "a very long study identification", None
        del image.PatientID

    with pytest.warns(UserWarning, match="Invalid value"):
        write_ct(tmp_path / "ct", volume(), edit=broken)
    for result in results(tmp_path):
        for name in ("PatientBirthDate", "StudyDate", "StudyTime", "StudyID", "PatientID"):
            assert not result[name].value
        assert str(result.PatientName) == "Doe^Jane"


def no_frame(image: Any, _: int) -> None:
    del image.FrameOfReferenceUID


def many_frames(image: Any, k: int) -> None:
    image.FrameOfReferenceUID = f"{ROOT}.9.{k}"


def no_study(image: Any, _: int) -> None:
    image.StudyInstanceUID = ""


def one_instance(image: Any, _: int) -> None:
    image.SOPInstanceUID = f"{ROOT}.3.1"


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        (no_frame, "no image has a FrameOfReferenceUID and results cannot be placed without it"),
        (no_study, "no image has a StudyInstanceUID"),
        (one_instance, "several of its images have the same SOPInstanceUID"),
    ],
)
def test_a_series_that_cannot_carry_results_is_refused(
    tmp_path: Path, edit: Callable[[Any, int], None], reason: str
) -> None:
    write_ct(tmp_path / "ct", volume(), edit=edit)
    (series,) = find_series(tmp_path)
    with pytest.raises(UnreadableImageError, match=reason) as refused:
        read_source(series)
    message = str(refused.value)
    assert message.startswith(f"{tmp_path / 'ct'}: ")
    assert message.endswith("leave out --dicom_seg, --rtstruct and --dicom_sr to get its masks as NIfTI")
    assert "\n" not in message


def test_slices_of_several_frames_of_reference_are_refused(tmp_path: Path) -> None:
    write_ct(tmp_path / "ct", volume(), edit=many_frames)
    (series,) = find_series(tmp_path)
    with pytest.raises(UnreadableImageError, match="6 frames of reference; allowed is one"):
        read_source(series)


@pytest.mark.parametrize("order", [(0, 1, 2, 3, 4, 5), (5, 4, 3, 2, 1, 0), (0, 3, 1, 2, 5, 4)])
def test_frames_of_one_image_carry_results(tmp_path: Path, order: tuple[int, ...]) -> None:
    array = volume()
    write_enhanced(tmp_path / "ct", array, order)
    (series,) = find_series(tmp_path)
    image = read_series(series)
    for k, plane in enumerate(read_source(series).planes):
        assert np.allclose((image.grid.affine @ [0, 0, k, 1])[:3], plane.origin * [-1, -1, 1])
        assert plane.frame is not None
        assert np.array_equal(image.array[:, :, k], array[:, :, order[plane.frame - 1]] - 1024)
    _, rt = results(tmp_path)
    contours = rt.ROIContourSequence[0].ContourSequence
    heights = {c.ContourImageSequence[0].ReferencedFrameNumber: c.ContourData[2] for c in contours}
    assert heights == {number: 7 + 2 * order[number - 1] for number in range(1, 7)}
    mask = image.array > 0
    assert np.array_equal(read_back(tmp_path / "seg.dcm", image)["liver"], mask)


def test_a_damaged_header_is_that_series_error(tmp_path: Path) -> None:
    write_ct(tmp_path / "ct", volume())
    (series,) = find_series(tmp_path)
    series.files[2].write_bytes(b"no DICOM")
    with pytest.raises(UnreadableImageError, match="header cannot be read"):
        read_source(series)


def test_a_series_that_cannot_carry_results_is_refused_before_it_is_read(
    tmp_path: Path, model: ModelFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    predictor = Predictor(model, device="cpu", precision="float32", outputs=Outputs(rtstruct=True))
    write_ct(tmp_path / "in" / "bad", volume(), edit=no_frame, modality="MR")
    monkeypatch.setattr(Scan, "read", lambda self: pytest.fail(f"{self.name} was read"))
    summary = predict_folder([tmp_path / "in"], tmp_path / "out", predictor, ["bright"])
    (reason,) = summary.failures.values()
    assert "no image has a FrameOfReferenceUID" in reason
