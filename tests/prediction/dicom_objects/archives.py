"""Series as archives hold them, odd ones included; every attribute written here by pydicom, none by satunet."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from satunet.images.image import Image
from satunet.prediction.masks.boxed import BoxedMask

CLASSES = {"CT": "1.2.840.10008.5.1.4.1.1.2", "MR": "1.2.840.10008.5.1.4.1.1.4"}
ENHANCED_CT = "1.2.840.10008.5.1.4.1.1.2.1"
ROOT = "1.2.826.0.1.3680043.8.498.77"


def volume(shape: tuple[int, int, int] = (14, 12, 6)) -> np.ndarray:
    """(X, Y, Z) CT numbers + 1024: no two places alike."""
    return np.random.default_rng(3).integers(0, 2000, shape).astype(np.int16)


def write_ct(
    folder: Path, array: np.ndarray, *, edit: Callable[[Any, int], None] | None = None, modality: str = "CT"
) -> None:
    """A file for each slice, 1 × 1.5 × 2 mm; ``edit`` changes each header before it is written."""
    folder.mkdir(parents=True)
    for k in range(array.shape[2]):
        image = _common(CLASSES[modality], f"{ROOT}.3.{k + 1}", modality)
        image.InstanceNumber = k + 1
        image.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        image.ImagePositionPatient = [-5, 3, 7 + 2 * k]
        image.PixelSpacing, image.SliceThickness = [1.5, 1], 2
        image.RescaleIntercept, image.RescaleSlope, image.RescaleType = -1024, 1, "HU"
        _pixels(image, array[:, :, k : k + 1])
        if edit is not None:
            edit(image, k)
        image.save_as(folder / f"{(k * 7) % 11:03d}.dcm", enforce_file_format=True)


def write_enhanced(folder: Path, array: np.ndarray, order: Sequence[int]) -> None:
    """One multi-frame file; ``order`` says which slice each frame is."""
    from pydicom.dataset import Dataset

    folder.mkdir(parents=True)
    image = _common(ENHANCED_CT, f"{ROOT}.4", "CT")
    image.NumberOfFrames = array.shape[2]
    measures, axes, values = Dataset(), Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness = [1.5, 1], 2
    axes.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    values.RescaleIntercept, values.RescaleSlope, values.RescaleType = -1024, 1, "HU"
    shared = Dataset()
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [measures], [axes]
    shared.PixelValueTransformationSequence = [values]
    image.SharedFunctionalGroupsSequence = [shared]
    frames = []
    for k in order:
        place, frame = Dataset(), Dataset()
        place.ImagePositionPatient = [-5, 3, 7 + 2 * k]
        frame.PlanePositionSequence = [place]
        frames.append(frame)
    image.PerFrameFunctionalGroupsSequence = frames
    _pixels(image, array[:, :, list(order)])
    image.save_as(folder / "enhanced.dcm", enforce_file_format=True)


def _common(sop_class: str, instance: str, modality: str) -> Any:
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian

    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = sop_class, instance
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    image = FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)
    image.SOPClassUID, image.SOPInstanceUID = sop_class, instance
    image.PatientName, image.PatientID, image.PatientBirthDate, image.PatientSex = "Doe^Jane", "P1", "19700101", "F"
    image.StudyInstanceUID, image.SeriesInstanceUID = f"{ROOT}.1", f"{ROOT}.2"
    image.FrameOfReferenceUID, image.PositionReferenceIndicator = f"{ROOT}.9", ""
    image.StudyDate, image.StudyTime, image.StudyID, image.AccessionNumber = "20240101", "101010", "1", "A1"
    image.ReferringPhysicianName, image.Manufacturer, image.Modality, image.SeriesNumber = "", "X", modality, 3
    return image


def _pixels(image: Any, array: np.ndarray) -> None:
    image.Columns, image.Rows = array.shape[:2]
    image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
    image.BitsAllocated, image.BitsStored, image.HighBit, image.PixelRepresentation = 16, 16, 15, 1
    image.PixelData = np.ascontiguousarray(array.transpose(2, 1, 0).astype("<i2")).tobytes()


def boxed(mask: np.ndarray) -> BoxedMask:
    """In the smallest box, as the predictor gives it."""
    if not mask.any():
        return BoxedMask.empty(mask.shape)
    places = np.argwhere(mask)
    low, high = places.min(0), places.max(0) + 1
    inside = mask[tuple(slice(a, b) for a, b in zip(low, high, strict=True))]
    return BoxedMask.of(inside, tuple(int(v) for v in low), mask.shape)


def read_back(file: Path, image: Image) -> dict[str, np.ndarray]:
    """Label → mask on the image's grid, by positions alone."""
    highdicom = pytest.importorskip("highdicom")
    found = highdicom.seg.segread(str(file))
    names = {d.SegmentNumber: d.SegmentLabel for d in found.SegmentSequence if d.SegmentNumber}
    masks = {name: np.zeros(image.grid.shape, bool) for name in names.values()}
    for frame, pixels in zip(found.PerFrameFunctionalGroupsSequence, np.atleast_3d(found.pixel_array), strict=True):
        place = [*map(float, frame.PlanePositionSequence[0].ImagePositionPatient), 1.0] * np.array([-1, -1, 1, 1])
        k = round(np.linalg.solve(image.grid.affine, place)[2])
        if found.SegmentationType == "LABELMAP":
            for number, name in names.items():
                masks[name][:, :, k] = number == pixels.T
        else:
            number = frame.SegmentIdentificationSequence[0].ReferencedSegmentNumber
            masks[names[number]][:, :, k] = pixels.T > 0
    return masks
