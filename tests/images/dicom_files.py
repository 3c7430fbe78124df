"""DICOM files with any geometry and any tags, made with pydicom."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

CLASSES = {
    "CT": "1.2.840.10008.5.1.4.1.1.2",
    "MR": "1.2.840.10008.5.1.4.1.1.4",
    "PT": "1.2.840.10008.5.1.4.1.1.128",
    "SC": "1.2.840.10008.5.1.4.1.1.7",
    "enhanced CT": "1.2.840.10008.5.1.4.1.1.2.1",
    "enhanced MR": "1.2.840.10008.5.1.4.1.1.4.1",
}
AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
SAGITTAL = (0.0, 1.0, 0.0, 0.0, 0.0, -1.0)
CORONAL = (1.0, 0.0, 0.0, 0.0, 0.0, -1.0)
SPACING = (0.5, 2.0)  # between rows, between columns
STEP = 3.0


def numbers(shape: tuple[int, int, int] = (7, 6, 5), seed: int = 0) -> np.ndarray:
    """(X, Y, Z) stored numbers of 12 bits, no two slices alike."""
    return np.random.default_rng(seed).integers(0, 4096, shape).astype(np.uint16)


def positions(count: int, axes: Sequence[float] = AXIAL, step: float = STEP) -> list[np.ndarray]:
    """Places along the normal, from (10, 20, 30) LPS."""
    normal = np.cross(axes[:3], axes[3:])
    return [np.array([10.0, 20.0, 30.0]) + k * step * normal for k in range(count)]


def _base(kind: str, modality: str, pixels: np.ndarray, syntax: str) -> FileDataset:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = CLASSES[kind]
    # By the content: the same files in every run.
    meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=[kind, pixels.tobytes().hex()])
    meta.TransferSyntaxUID = syntax
    data = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    data.SOPClassUID, data.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    data.PatientName, data.PatientID, data.PatientBirthDate, data.PatientSex = "Doe^J", "P1", "19700101", "O"
    data.StudyInstanceUID, data.SeriesInstanceUID, data.FrameOfReferenceUID = "1.2.9", "1.2.3", "1.2.8"
    data.StudyDate, data.StudyTime, data.StudyID, data.AccessionNumber = "20240101", "101010", "1", "1"
    data.ReferringPhysicianName = ""
    data.Modality, data.SeriesNumber = modality, 4
    data.Rows, data.Columns = pixels.shape[-2:]
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated = 8 * pixels.dtype.itemsize
    data.BitsStored, data.HighBit = data.BitsAllocated, data.BitsAllocated - 1
    data.PixelRepresentation = int(pixels.dtype.kind == "i")
    return data


def write_slices(
    folder: Path,
    volume: np.ndarray | None = None,
    *,
    modality: str = "CT",
    places: Sequence[Any] | None = None,
    axes: Sequence[float] | Sequence[Sequence[float]] = AXIAL,
    edit: Callable[[FileDataset, int], None] | None = None,
    pack: Callable[[np.ndarray], bytes] | None = None,
    syntax: str = ExplicitVRLittleEndian,
    names: str = "{:03d}.dcm",
) -> list[Path]:
    """A file a slice, in files whose names are in another order; CT has the intercept -1024.

    Args:
        folder: Made if needed.
        volume: (X, Y, Z) stored numbers.
        modality: Of DICOM.
        places: ImagePositionPatient of each slice.
        axes: ImageOrientationPatient, or one of each slice.
        edit: Changes a dataset before it is written.
        pack: Compresses a slice (rows, columns), for ``syntax``.
        syntax: Transfer syntax.
        names: Of the files, for a number.
    """
    volume = numbers() if volume is None else volume
    folder.mkdir(parents=True, exist_ok=True)
    each = list(axes) if np.ndim(axes[0]) else [axes] * volume.shape[2]
    places = positions(volume.shape[2], each[0]) if places is None else places
    files = []
    for k in range(volume.shape[2]):
        pixels = np.ascontiguousarray(volume[:, :, k].T)
        data = _base(modality if modality in CLASSES else "SC", modality, pixels, syntax)
        data.InstanceNumber = k + 1
        data.ImagePositionPatient = [round(float(v), 6) for v in places[k]]
        data.ImageOrientationPatient = [round(float(v), 6) for v in each[k]]
        data.PixelSpacing, data.SliceThickness = list(SPACING), STEP
        if modality != "MR":
            data.RescaleSlope, data.RescaleIntercept = 1, -1024 if modality == "CT" else 0
        if pack is None:
            data.PixelData = pixels.tobytes()
        else:
            data.PixelData = encapsulate([pack(pixels)])
            data["PixelData"].is_undefined_length = True
        if edit is not None:
            edit(data, k)
        files.append(folder / names.format((k * 7) % 101))
        data.save_as(files[-1], enforce_file_format=True)
    return files


def write_enhanced(
    file: Path,
    volume: np.ndarray,
    order: Sequence[int],
    *,
    modality: str = "CT",
    axes: Sequence[float] = AXIAL,
    slopes: Sequence[float] | None = None,
    edit: Callable[[FileDataset], None] | None = None,
) -> None:
    """An enhanced multi-frame file whose frames are stored in any order; what all share is in the shared groups."""
    pixels = np.ascontiguousarray(volume.transpose(2, 1, 0)[list(order)])
    data = _base(f"enhanced {modality}", modality, pixels, ExplicitVRLittleEndian)
    data.InstanceNumber, data.NumberOfFrames = 1, len(order)
    measures = Dataset()
    measures.PixelSpacing, measures.SliceThickness = list(SPACING), STEP
    orientation = Dataset()
    orientation.ImageOrientationPatient = list(axes)
    shared = Dataset()
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [measures], [orientation]
    data.SharedFunctionalGroupsSequence = [shared]
    places = positions(volume.shape[2], axes)
    groups = []
    for k in order:
        group, place, value = Dataset(), Dataset(), Dataset()
        place.ImagePositionPatient = [float(v) for v in places[k]]
        group.PlanePositionSequence = [place]
        value.RescaleSlope, value.RescaleIntercept = 1.0 if slopes is None else slopes[k], 0.0
        value.RescaleType = "US"
        group.PixelValueTransformationSequence = [value]
        groups.append(group)
    data.PerFrameFunctionalGroupsSequence = groups
    data.PixelData = pixels.tobytes()
    if edit is not None:
        edit(data)
    file.parent.mkdir(parents=True, exist_ok=True)
    data.save_as(file, enforce_file_format=True)
