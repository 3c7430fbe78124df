"""Masks as DICOM objects beside the series they were found in: Segmentation and RT Structure Set (extra ``dicom``).

Segmentations are highdicom's. Contours come from scikit-image at the border of voxels, so that the voxels whose centres
lie inside a contour are those of the mask, and pydicom writes them. Rejected: rt-utils, whose contours run through the
centres of the outermost voxels, half a voxel inside the mask.
"""

from __future__ import annotations

import colorsys
import datetime
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from satunet.errors import EnvironmentProblemError
from satunet.images.dicom import Series
from satunet.jobs.files import atomic_path
from satunet.prediction.masks import BoxedMask

NamedMasks = Sequence[tuple[str, BoxedMask]]

_FRAMES_BYTES = 1 << 30
"""Bytes of unpacked frames that one Segmentation object is made of: highdicom wants them all at once."""
_STRUCTURE_SET = "1.2.840.10008.5.1.4.1.1.481.3"
_STUDY_COMPONENT = "1.2.840.10008.3.1.2.3.1"


def write_segmentations(path: Path, series: Series, masks: NamedMasks) -> list[Path]:
    """Write masks as DICOM Segmentation objects that refer to the series' images.

    One object holds as many masks as a gigabyte of frames allows; further ones go to ``NAME_2.dcm`` and so on.

    Args:
        path: The ``.dcm`` file; appears whole.
        series: What was segmented.
        masks: (name, mask on the series' grid); those without a voxel are left out, as the standard has no segments
            without frames.

    Returns:
        The files; none if no mask has a voxel.

    Raises:
        EnvironmentProblemError: highdicom is not installed.
    """
    masks = [(name, mask) for name, mask in masks if mask.voxels]
    if not masks:
        return []
    at_once = max(1, _FRAMES_BYTES // int(np.prod(masks[0][1].shape)))
    files = []
    for number, first in enumerate(range(0, len(masks), at_once), start=1):
        files.append(path if number == 1 else path.with_name(f"{path.stem}_{number}{path.suffix}"))
        _write_segmentation(files[-1], series, masks[first : first + at_once], number)
    return files


def _write_segmentation(path: Path, series: Series, masks: NamedMasks, instance: int) -> None:
    try:
        import highdicom as hd
        import pydicom
        from highdicom.seg import (
            SegmentAlgorithmTypeValues,
            Segmentation,
            SegmentationTypeValues,
            SegmentDescription,
        )
        from pydicom.sr.codedict import codes
    except ImportError as error:
        raise EnvironmentProblemError("DICOM-SEG needs highdicom: pip install 'satunet[dicom]'") from error
    from satunet import __version__

    algorithm = hd.AlgorithmIdentificationSequence(
        name="satunet", version=__version__, family=codes.cid7162.ArtificialIntelligence
    )
    descriptions = [
        SegmentDescription(
            segment_number=number,
            segment_label=name[:64],
            segmented_property_category=codes.SCT.AnatomicalStructure,
            segmented_property_type=codes.SCT.AnatomicalStructure,
            algorithm_type=SegmentAlgorithmTypeValues.AUTOMATIC,
            algorithm_identification=algorithm,
        )
        for number, (name, _) in enumerate(masks, start=1)
    ]
    x, y, z = masks[0][1].shape
    frames = np.zeros((z, y, x, len(masks)), dtype=np.uint8)
    for number, (_, mask) in enumerate(masks):
        i, j, k = mask.box
        frames[k, j, i, number] = mask.inside.transpose(2, 1, 0)
    segmentation = Segmentation(
        source_images=[pydicom.dcmread(file) for file in series.files],
        pixel_array=frames,
        segmentation_type=SegmentationTypeValues.BINARY,
        segment_descriptions=descriptions,
        series_instance_uid=hd.UID(),
        series_number=1000 + int(series.number or 0),
        sop_instance_uid=hd.UID(),
        instance_number=instance,
        manufacturer="satunet",
        manufacturer_model_name="satunet",
        software_versions=__version__,
        device_serial_number="0",
    )
    with atomic_path(path) as temporary:
        segmentation.save_as(temporary)


def write_structure_set(path: Path, series: Series, masks: NamedMasks) -> None:
    """Write masks as contours of one DICOM RT Structure Set that refers to the series' images.

    A voxel belongs to a structure if its centre lies inside a contour. Holes are joined to the contour around them by
    a channel without width, as the standard asks for closed planar contours.

    Args:
        path: The ``.dcm`` file; appears whole.
        series: What was segmented.
        masks: (name, mask on the series' grid); those without a voxel are regions without contours.

    Raises:
        EnvironmentProblemError: pydicom is not installed.
    """
    try:
        import pydicom
        from pydicom.dataset import FileMetaDataset
        from pydicom.uid import ExplicitVRLittleEndian, generate_uid
    except ImportError as error:
        raise EnvironmentProblemError("RTSTRUCT needs pydicom: pip install 'satunet[dicom]'") from error
    slices = [pydicom.dcmread(file, stop_before_pixels=True) for file in series.files]
    result = _header(slices[0], series)
    result.SOPClassUID, result.SOPInstanceUID = _STRUCTURE_SET, generate_uid()
    result.ReferencedFrameOfReferenceSequence = [_reference(slices)]
    result.StructureSetROISequence, result.ROIContourSequence, result.RTROIObservationsSequence = [], [], []
    for number, (name, mask) in enumerate(masks, start=1):
        result.StructureSetROISequence.append(
            _item(
                ROINumber=number,
                ReferencedFrameOfReferenceUID=slices[0].FrameOfReferenceUID,
                ROIName=name[:64],
                ROIGenerationAlgorithm="AUTOMATIC",
            )
        )
        colour = [round(255 * v) for v in colorsys.hsv_to_rgb(number * 0.61803398875 % 1, 0.65, 0.95)]
        contours = _contours(mask, slices)
        region = _item(ROIDisplayColor=colour, ReferencedROINumber=number)
        if contours:
            region.ContourSequence = contours
        result.ROIContourSequence.append(region)
        result.RTROIObservationsSequence.append(
            _item(ObservationNumber=number, ReferencedROINumber=number, RTROIInterpretedType="ORGAN", ROIInterpreter="")
        )
    result.file_meta = FileMetaDataset()
    result.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    with atomic_path(path) as temporary:
        result.save_as(temporary, enforce_file_format=True)


def outlines(plane: NDArray[np.bool_]) -> list[NDArray[np.float64]]:
    """Closed outlines of a plane's true pixels, along the borders of pixels.

    Args:
        plane: (I, J).

    Returns:
        (n, 2) points (i, j) of each outline, the last not repeating the first; a hole is part of the outline around
        it, joined by a channel that is passed once in each direction.
    """
    from skimage.measure import approximate_polygon, find_contours, points_in_poly

    # Inside a pixel of the padded plane, connectivity as of pixels that share an edge: outlines never cross.
    found = [approximate_polygon(c, 1e-6)[:-1] - 1 for c in find_contours(np.pad(plane, 1).astype(np.float32), 0.5)]
    outer = [points for points in found if _area(points) > 0]
    for hole in (points for points in found if _area(points) < 0):
        around = [k for k, points in enumerate(outer) if points_in_poly(hole[:1], points)[0]]
        k = min(around, key=lambda k: abs(_area(outer[k])))
        a, b = _channel(outer[k], hole)
        outer[k] = np.concatenate((outer[k][: a + 1], hole[b:], hole[: b + 1], outer[k][a:]))
    return outer


def _channel(outer: NDArray[np.float64], hole: NDArray[np.float64]) -> tuple[int, int]:
    """The nearest points of two outlines with no centre of a pixel on the line between them: it would be on the border."""
    distance = ((outer[:, None] - hole[None]) ** 2).sum(2)
    order = distance.argsort(axis=None, kind="stable")
    for nearest in order:
        a, b = (int(i) for i in np.unravel_index(nearest, distance.shape))
        share = np.linspace(0, 1, 2 + int(20 * np.sqrt(distance[a, b])))[:, None]
        line = outer[a] * (1 - share) + hole[b] * share
        if np.linalg.norm(line - np.rint(line), axis=1).min() > 0.1:
            return a, b
    a, b = (int(i) for i in np.unravel_index(order[0], distance.shape))
    return a, b


def _area(points: NDArray[np.float64]) -> float:
    """Signed area, positive where the inside is on the side of an outer outline."""
    i, j = points.T
    return float((np.roll(i, -1) * j - i * np.roll(j, -1)).sum() / 2)


def _contours(mask: BoxedMask, slices: Sequence[Any]) -> list[Any]:
    inside = mask.inside
    contours = []
    for number, k in enumerate(range(mask.box[2].start, mask.box[2].stop)):
        if not inside[:, :, number].any():
            continue
        image = slices[k]
        origin, axes = np.array(image.ImagePositionPatient, float), np.array(image.ImageOrientationPatient, float)
        rows, columns = (float(v) for v in image.PixelSpacing)
        steps = np.stack((axes[:3] * columns, axes[3:] * rows))  # along i, along j
        for points in outlines(inside[:, :, number]):
            places = origin + (points + np.array([mask.box[0].start, mask.box[1].start])) @ steps
            contours.append(
                _item(
                    ContourImageSequence=[
                        _item(ReferencedSOPClassUID=image.SOPClassUID, ReferencedSOPInstanceUID=image.SOPInstanceUID)
                    ],
                    ContourGeometricType="CLOSED_PLANAR",
                    NumberOfContourPoints=len(places),
                    ContourData=[f"{v:.4f}" for v in places.ravel()],
                )
            )
    return contours


def _header(image: Any, series: Series) -> Any:
    """What says whose structures these are, and who made them."""
    from pydicom.uid import generate_uid

    from satunet import __version__

    result = _item()
    for name in (
        "PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyInstanceUID", "StudyDate", "StudyTime",
        "StudyID", "AccessionNumber", "ReferringPhysicianName", "SpecificCharacterSet",
    ):  # fmt: skip
        setattr(result, name, image.get(name, "" if name != "SpecificCharacterSet" else "ISO_IR 192"))
    now = datetime.datetime.now()
    result.Modality = "RTSTRUCT"
    result.SeriesInstanceUID = generate_uid()
    result.SeriesNumber = 2000 + int(series.number or 0)
    result.SeriesDescription = "satunet"
    result.OperatorsName = ""
    result.FrameOfReferenceUID = image.FrameOfReferenceUID
    result.PositionReferenceIndicator = ""
    result.Manufacturer = result.ManufacturerModelName = "satunet"
    result.SoftwareVersions = __version__
    result.InstanceNumber = 1
    result.StructureSetLabel = "satunet"
    result.StructureSetDate = result.InstanceCreationDate = result.SeriesDate = now.strftime("%Y%m%d")
    result.StructureSetTime = result.InstanceCreationTime = result.SeriesTime = now.strftime("%H%M%S")
    result.ApprovalStatus = "UNAPPROVED"
    return result


def _reference(slices: Sequence[Any]) -> Any:
    images = [_item(ReferencedSOPClassUID=s.SOPClassUID, ReferencedSOPInstanceUID=s.SOPInstanceUID) for s in slices]
    series = _item(SeriesInstanceUID=slices[0].SeriesInstanceUID, ContourImageSequence=images)
    study = _item(
        ReferencedSOPClassUID=_STUDY_COMPONENT,
        ReferencedSOPInstanceUID=slices[0].StudyInstanceUID,
        RTReferencedSeriesSequence=[series],
    )
    return _item(FrameOfReferenceUID=slices[0].FrameOfReferenceUID, RTReferencedStudySequence=[study])


def _item(**values: Any) -> Any:
    from pydicom.dataset import Dataset

    item = Dataset()
    for name, value in values.items():
        setattr(item, name, value)
    return item
