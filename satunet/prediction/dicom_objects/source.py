"""The images that DICOM results refer to: read, repaired where that is safe, and otherwise refused with a reason.

Segmentations and structure sets refer to each image by its class and instance UIDs and place masks in its frame of
reference. A series that lacks them cannot carry results; this is checked before anything is predicted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from satunet.errors import EnvironmentProblemError, UnreadableImageError
from satunet.images.dicom import Series, Slice
from satunet.images.dicom.headers import quiet

_EMPTY_ALLOWED = (
    "PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID",
    "AccessionNumber", "ReferringPhysicianName",
)  # fmt: skip
"""Attributes that every DICOM object of a study must have; their values may be empty."""
_DATES, _TIMES = ("PatientBirthDate", "StudyDate"), ("StudyTime",)
_NAMED = {"SOPClassUID": "MediaStorageSOPClassUID", "SOPInstanceUID": "MediaStorageSOPInstanceUID"}
"""Attribute of an image → attribute of the file's meta header with the same value."""
_INSTEAD = "leave out --dicom_seg, --rtstruct and --dicom_sr to get its masks as NIfTI"


@dataclass(frozen=True, kw_only=True)
class Plane:
    """One slice of the volume.

    Attributes:
        image: Dataset with the slice, without pixels.
        frame: Number of the frame in a multi-frame image, from 1; ``None`` if the slice is an image of its own.
        origin: (3,) centre of the first pixel, in the patient's LPS millimetres.
        steps: (2, 3) steps from one column to the next, and from one row to the next, in millimetres.
    """

    image: Any
    frame: int | None
    origin: NDArray[np.float64]
    steps: NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class SourceImages:
    """Images that the results of a series refer to.

    Attributes:
        images: Datasets without pixels, in the order of the series' files; text in UTF-8.
        planes: One plane per slice of the volume that :func:`~satunet.images.dicom.read_series` returns.
    """

    images: tuple[Any, ...]
    planes: tuple[Plane, ...]


def read_source(series: Series) -> SourceImages:
    """Read the headers of a series' images.

    Repairs: a blank class or instance UID is taken from the file's meta header, missing or malformed texts and dates
    about patient and study are left empty, and texts are converted to UTF-8.

    Raises:
        UnreadableImageError: The series cannot carry DICOM results; the message says why, and what to do.
        EnvironmentProblemError: pydicom is not installed.
    """
    try:
        import pydicom
    except ImportError as error:
        raise EnvironmentProblemError("DICOM results need pydicom: pip install 'satunet[dicom]'") from error
    if not series.slices:
        reason = series.fault or "its images do not give their positions"
        raise UnreadableImageError(series.folder, f"series {series.uid}: {reason}")
    images = []
    for file in series.files:
        try:
            with quiet():
                image = pydicom.dcmread(file, stop_before_pixels=True, force=True)
                _repair(image)
        except Exception as error:  # a damaged header makes pydicom raise errors of any type
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise UnreadableImageError(file, f"its DICOM header cannot be read ({reason}); {_INSTEAD}") from error
        images.append(image)
    _check(images, series)
    by_file = dict(zip(series.files, images, strict=True))
    return SourceImages(images=tuple(images), planes=tuple(_plane(s, by_file[s.file]) for s in series.slices))


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
    """Whether an attribute exists and can be written again unchanged."""
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
    # A patient's identifier that is too long still identifies the patient; any other text is emptied rather than cut.
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
            raise _refused(series, f"its images have {len(values)} values of {name}, but only one is allowed")
    if len({i.SOPInstanceUID for i in images}) < len(images):
        raise _refused(series, "several of its images have the same SOPInstanceUID")
    frames = [int(i.get("NumberOfFrames") or 1) for i in images]
    if len(images) > 1 and max(frames) > 1:
        raise _refused(
            series,
            "it consists of several multi-frame images; allowed are one multi-frame image or several single-frame images",
        )


def _plane(one: Slice, image: Any) -> Plane:
    assert one.position is not None and one.axes is not None and one.spacing_mm is not None  # true of every volume
    axes, (rows, columns) = np.array(one.axes), one.spacing_mm  # between rows, between columns
    multi_frame = int(image.get("NumberOfFrames") or 1) > 1
    return Plane(
        image=image,
        frame=one.frame + 1 if multi_frame else None,
        origin=np.array(one.position),
        steps=np.stack((axes[:3] * columns, axes[3:] * rows)),
    )
