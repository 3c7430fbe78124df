"""The images that DICOM results refer to: read, repaired where that is safe, refused in a sentence where not.

Segmentations and structure sets name each image by class and instance and place masks in its frame of reference. A
series that lacks these cannot carry them, and that is known before anything is predicted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from satunet.errors import EnvironmentProblemError, UnreadableImageError
from satunet.images.dicom import Series

_EMPTY_ALLOWED = (
    "PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID",
    "AccessionNumber", "ReferringPhysicianName",
)  # fmt: skip
"""What every DICOM object of a study has to say, if only that it is unknown."""
_DATES, _TIMES = ("PatientBirthDate", "StudyDate"), ("StudyTime",)
_NAMED = {"SOPClassUID": "MediaStorageSOPClassUID", "SOPInstanceUID": "MediaStorageSOPInstanceUID"}
"""Attribute of an image → where the file's own header says it again."""
_INSTEAD = "leave out --dicom_seg and --rtstruct to get its masks as NIfTI"


@dataclass(frozen=True, kw_only=True)
class Plane:
    """One slice of the volume.

    Attributes:
        image: The dataset it is in, without pixels.
        frame: Its number from 1, in a multi-frame image; ``None`` in an image of its own.
        origin: (3,) centre of its first pixel, in the patient's LPS millimetres.
        steps: (2, 3) from a column to the next, and from a row to the next, in millimetres.
    """

    image: Any
    frame: int | None
    origin: NDArray[np.float64]
    steps: NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class SourceImages:
    """What results of a series refer to.

    Attributes:
        images: Datasets without pixels, in the order of the series' files; text in UTF-8.
        planes: One for each slice of the volume that :func:`~satunet.images.dicom.read_series` gives.
    """

    images: tuple[Any, ...]
    planes: tuple[Plane, ...]


def read_source(series: Series) -> SourceImages:
    """Read the headers of a series' images.

    Repaired are: a blank class or instance that the file's own header names, missing or malformed texts and dates
    about patient and study (left empty), and every character set (UTF-8).

    Raises:
        UnreadableImageError: The series cannot carry DICOM results; the message says why, and what to do.
        EnvironmentProblemError: pydicom is not installed.
    """
    try:
        import pydicom
        from pydicom.errors import InvalidDicomError
    except ImportError as error:
        raise EnvironmentProblemError("DICOM results need pydicom: pip install 'satunet[dicom]'") from error
    images = []
    for file in series.files:
        try:
            image = pydicom.dcmread(file, stop_before_pixels=True)
            _repair(image)
        except (InvalidDicomError, OSError, ValueError, TypeError, AttributeError, KeyError, LookupError) as error:
            raise UnreadableImageError(file, f"its DICOM header cannot be read ({error}); {_INSTEAD}") from error
        images.append(image)
    _check(images, series)
    try:
        planes = _planes(images)
    except (AttributeError, IndexError, TypeError, ValueError) as error:
        raise _refused(series, f"its images do not say where their slices lie ({error})") from error
    return SourceImages(images=tuple(images), planes=tuple(planes))


def _refused(series: Series, reason: str) -> UnreadableImageError:
    return UnreadableImageError(series.folder, f"series {series.uid} cannot carry DICOM results: {reason}; {_INSTEAD}")


def _repair(image: Any) -> None:
    image.decode()  # texts in the file's character set become Unicode, and are written as UTF-8
    image.SpecificCharacterSet = "ISO_IR 192"
    for name, again in _NAMED.items():
        if not str(image.get(name) or "").strip():
            value = str(image.file_meta.get(again) or "").strip()
            if value:
                setattr(image, name, value)
    for name in _EMPTY_ALLOWED:
        if not _is_sound(image, name):
            setattr(image, name, "")


def _is_sound(image: Any, name: str) -> bool:
    """Whether an attribute is there, and can be written again as it is."""
    from pydicom.valuerep import DA, TM

    if name not in image:
        return False
    value = image.get(name)
    try:
        if value and name in _DATES:
            DA(value)
        if value and name in _TIMES:
            TM(value)
    except (ValueError, TypeError):
        return False
    # An identifier that is too long still says who it is; everything else is left empty rather than cut.
    limit = {"SH": 16, "LO": 64, "CS": 16}.get(image[name].VR) if name != "PatientID" else None
    one = value is None or isinstance(value, str) or name in ("PatientName", "ReferringPhysicianName")
    return (one or name in _DATES + _TIMES) and (limit is None or len(str(value or "")) <= limit)


def _check(images: Sequence[Any], series: Series) -> None:
    for name in ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID"):
        without = [f for f, i in zip(series.files, images, strict=True) if not str(i.get(name) or "").strip()]
        if without:
            which = "no image has" if len(without) == len(images) else f"{without[0].name} has no"
            why = " and results cannot be placed without it" if name == "FrameOfReferenceUID" else ""
            raise _refused(series, f"{which} {'a ' if len(without) == len(images) else ''}{name}{why}")
    for name in ("StudyInstanceUID", "FrameOfReferenceUID", "Rows", "Columns"):
        values = {str(i.get(name)) for i in images}
        if len(values) > 1:
            raise _refused(series, f"its images have {len(values)} values of {name}; allowed is one")
    if len({i.SOPInstanceUID for i in images}) < len(images):
        raise _refused(series, "several of its images have the same SOPInstanceUID")
    frames = [int(i.get("NumberOfFrames") or 1) for i in images]
    if len(images) > 1 and max(frames) > 1:
        raise _refused(series, "it is made of several multi-frame images; allowed are one, or single-frame images")


def _planes(images: Sequence[Any]) -> list[Plane]:
    if len(images) > 1 or "PerFrameFunctionalGroupsSequence" not in images[0]:
        if int(images[0].get("NumberOfFrames") or 1) > 1:
            raise ValueError("a multi-frame image without functional groups")
        return [_plane(i, None, i.ImagePositionPatient, i.ImageOrientationPatient, i.PixelSpacing) for i in images]
    (image,) = images
    planes = []
    for number, own in enumerate(image.PerFrameFunctionalGroupsSequence, start=1):
        groups = (own, image.SharedFunctionalGroupsSequence[0])
        position = _macro(groups, "PlanePositionSequence").ImagePositionPatient
        orientation = _macro(groups, "PlaneOrientationSequence").ImageOrientationPatient
        spacing = _macro(groups, "PixelMeasuresSequence").PixelSpacing
        planes.append(_plane(image, number, position, orientation, spacing))
    _check_stack(planes)
    return planes


def _check_stack(planes: Sequence[Plane]) -> None:
    """Frames are read in the order they are stored: they have to lie one upon the other in that order."""
    if len(planes) < 2:
        return
    steps = np.diff([p.origin for p in planes], axis=0)
    normal = np.cross(*planes[0].steps)
    along = steps @ normal / np.linalg.norm(normal)
    same_axes = all(np.allclose(p.steps, planes[0].steps, atol=1e-4) for p in planes)
    gap = float(abs(along[0]))
    straight = np.linalg.norm(steps - steps[0], axis=1).max() <= max(0.05 * gap, 1e-3)
    if gap == 0 or not same_axes or not straight:
        raise ValueError("its frames are not stored in the order of one even stack")


def _macro(groups: Sequence[Any], name: str) -> Any:
    """The first item of a functional group: the frame's own, else the one that all frames share."""
    for group in groups:
        if group.get(name):
            return group[name].value[0]
    raise ValueError(f"no {name}")


def _plane(image: Any, frame: int | None, position: Any, orientation: Any, spacing: Any) -> Plane:
    axes = np.array(orientation, dtype=np.float64)
    origin = np.array(position, dtype=np.float64)
    rows, columns = (float(v) for v in spacing)  # between rows, between columns
    if axes.shape != (6,) or origin.shape != (3,) or not np.isfinite([*axes, *origin, rows, columns]).all():
        raise ValueError("position, orientation and spacing have to be 3, 6 and 2 finite numbers")
    return Plane(image=image, frame=frame, origin=origin, steps=np.stack((axes[:3] * columns, axes[3:] * rows)))
