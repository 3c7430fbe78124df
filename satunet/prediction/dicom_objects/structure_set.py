"""Masks as contours of one DICOM RT Structure Set, written by pydicom."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from satunet.errors import EnvironmentProblemError
from satunet.images.colours import colours_of
from satunet.images.dicom import Series
from satunet.jobs.files import atomic_path
from satunet.prediction.dicom_objects.codes import Coding, SegmentCodes, segment_codes
from satunet.prediction.dicom_objects.outlines import outlines
from satunet.prediction.dicom_objects.segmentation import NamedMasks, dicom_name, series_number
from satunet.prediction.dicom_objects.source import Plane, SourceImages, read_source
from satunet.prediction.masks.boxed import BoxedMask

if TYPE_CHECKING:
    from satunet.knowledge.tree import KnowledgeTree

_STRUCTURE_SET = "1.2.840.10008.5.1.4.1.1.481.3"
_STUDY_COMPONENT = "1.2.840.10008.3.1.2.3.1"


def write_structure_set(
    path: Path,
    series: Series,
    masks: NamedMasks,
    *,
    classes: Sequence[str | None] | None = None,
    texts: Sequence[str] | None = None,
    tree: KnowledgeTree | None = None,
) -> None:
    """Write masks as contours of one DICOM RT Structure Set that refers to the series' images.

    A voxel belongs to a structure if its centre lies inside a contour. A hole is joined to the contour around it by a
    channel of zero width, as the standard requires for closed planar contours.

    Args:
        path: The ``.dcm`` file to write.
        series: Series that was segmented.
        masks: (name, mask on the series' grid); empty masks become regions without contours.
        classes: Class of each mask, which decides its codes and colour; ``None`` where the name decides.
        texts: Description of each region; may be empty.
        tree: Knowledge tree, for the codes of names that are in no table.

    Raises:
        UnreadableImageError: The series cannot carry results; see :func:`.source.read_source`.
        EnvironmentProblemError: pydicom is not installed.
    """
    try:
        from pydicom.dataset import FileMetaDataset
        from pydicom.uid import ExplicitVRLittleEndian, generate_uid
    except ImportError as error:
        raise EnvironmentProblemError("RTSTRUCT needs pydicom: pip install 'satunet[dicom]'") from error
    source = read_source(series)
    frame_of_reference = source.images[0].FrameOfReferenceUID
    result = _header(source.images[0], series)
    result.SOPClassUID, result.SOPInstanceUID = _STRUCTURE_SET, generate_uid()
    result.ReferencedFrameOfReferenceSequence = [_reference(source)]
    result.StructureSetROISequence, result.ROIContourSequence, result.RTROIObservationsSequence = [], [], []
    kinds = [c or n for c, (n, _) in zip(classes or [None] * len(masks), masks, strict=True)]
    colours = colours_of(kinds)
    told = texts or [""] * len(masks)
    for number, ((name, mask), kind, colour, text) in enumerate(zip(masks, kinds, colours, told, strict=True), start=1):
        result.StructureSetROISequence.append(
            _item(
                ROINumber=number,
                ReferencedFrameOfReferenceUID=frame_of_reference,
                ROIName=dicom_name(name),
                ROIGenerationAlgorithm="AUTOMATIC",
                **({"ROIDescription": text} if text else {}),
            )
        )
        region = _item(ROIDisplayColor=list(colour), ReferencedROINumber=number)
        contours = _contours(mask, source.planes)
        if contours:
            region.ContourSequence = contours
        result.ROIContourSequence.append(region)
        result.RTROIObservationsSequence.append(_observation(number, segment_codes(kind, tree)))
    result.file_meta = FileMetaDataset()
    result.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    with atomic_path(path) as temporary:
        result.save_as(temporary, enforce_file_format=True)


def _observation(number: int, codes: SegmentCodes) -> Any:
    """Observation of a region. A lesion's type is empty: whether it is a target of treatment is not ours to decide."""
    return _item(
        ObservationNumber=number,
        ReferencedROINumber=number,
        RTROIIdentificationCodeSequence=[_code(codes.type)],
        RTROIInterpretedType="" if codes.is_lesion else "ORGAN",
        ROIInterpreter="",
    )


def _code(coding: Coding) -> Any:
    return _item(CodeValue=coding.value, CodingSchemeDesignator=coding.scheme, CodeMeaning=coding.meaning)


def _contours(mask: BoxedMask, planes: Sequence[Plane]) -> list[Any]:
    inside = mask.inside
    contours = []
    for number, k in enumerate(range(mask.box[2].start, mask.box[2].stop)):
        if not inside[:, :, number].any():
            continue
        plane = planes[k]
        reference = _item(
            ReferencedSOPClassUID=plane.image.SOPClassUID, ReferencedSOPInstanceUID=plane.image.SOPInstanceUID
        )
        if plane.frame is not None:
            reference.ReferencedFrameNumber = plane.frame
        for points in outlines(inside[:, :, number]):
            places = plane.origin + (points + np.array([mask.box[0].start, mask.box[1].start])) @ plane.steps
            contours.append(
                _item(
                    ContourImageSequence=[reference],
                    ContourGeometricType="CLOSED_PLANAR",
                    NumberOfContourPoints=len(places),
                    ContourData=[f"{v:.4f}" for v in places.ravel()],
                )
            )
    return contours


def _header(image: Any, series: Series) -> Any:
    """Header with the patient and study of the structures, and the software that made them."""
    from pydicom.uid import generate_uid

    from satunet import __version__

    result = _item()
    for name in (
        "PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyInstanceUID", "StudyDate", "StudyTime",
        "StudyID", "AccessionNumber", "ReferringPhysicianName", "SpecificCharacterSet",
    ):  # fmt: skip
        setattr(result, name, image.get(name))
    now = datetime.datetime.now()
    result.Modality = "RTSTRUCT"
    result.SeriesInstanceUID = generate_uid()
    result.SeriesNumber = 2000 + series_number(series)
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


def _reference(source: SourceImages) -> Any:
    first = source.images[0]
    images = [
        _item(ReferencedSOPClassUID=s.SOPClassUID, ReferencedSOPInstanceUID=s.SOPInstanceUID) for s in source.images
    ]
    series = _item(SeriesInstanceUID=first.SeriesInstanceUID, ContourImageSequence=images)
    study = _item(
        ReferencedSOPClassUID=_STUDY_COMPONENT,
        ReferencedSOPInstanceUID=first.StudyInstanceUID,
        RTReferencedSeriesSequence=[series],
    )
    return _item(FrameOfReferenceUID=first.FrameOfReferenceUID, RTReferencedStudySequence=[study])


def _item(**values: Any) -> Any:
    from pydicom.dataset import Dataset

    item = Dataset()
    for name, value in values.items():
        setattr(item, name, value)
    return item
