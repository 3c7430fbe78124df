"""The header of one DICOM file: whether it is an image, to which series it belongs, and where each frame lies."""

from __future__ import annotations

import contextlib
import functools
import logging
import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from satunet.errors import EnvironmentProblemError
from satunet.images.dicom.stack import Slice

_TAGS = (
    "SpecificCharacterSet", "ImageType", "SOPClassUID", "SOPInstanceUID", "Modality", "SeriesDescription",
    "PatientID", "StudyInstanceUID", "SeriesInstanceUID", "SeriesNumber", "InstanceNumber", "FrameOfReferenceUID",
    "ImagePositionPatient", "ImageOrientationPatient", "SliceThickness", "SpacingBetweenSlices", "PixelSpacing",
    "SamplesPerPixel", "PhotometricInterpretation", "NumberOfFrames", "Rows", "Columns", "BitsAllocated", "BitsStored",
    "HighBit", "PixelRepresentation", "RescaleSlope", "RescaleIntercept", "ModalityLUTSequence",
    "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence",
    "EchoTime", "EchoNumbers", "TemporalPositionIdentifier", "AcquisitionNumber", "DiffusionBValue", "TriggerTime",
    "AcquisitionTime", "ContentTime", "ComplexImageComponent",
)  # fmt: skip
_TELLING = (
    "EchoTime", "EchoNumbers", "TemporalPositionIdentifier", "DiffusionBValue", "TriggerTime", "AcquisitionNumber",
    "ComplexImageComponent", "ImageType", "AcquisitionTime", "ContentTime", "TemporalPositionIndex",
    "EffectiveEchoTime", "NominalCardiacTriggerDelayTime", "StackID", "FrameType",
)  # fmt: skip
"""Attributes that tell images at the same position apart, the most informative first."""
_NO_IMAGES = frozenset(("SEG", "RTSTRUCT", "RTDOSE", "RTPLAN", "RTIMAGE", "SR", "PR", "KO", "REG", "DOC", "ECG", "AU"))
_DICOMDIR = "1.2.840.10008.1.3.10"
_SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
_DEFLATED = "1.2.840.10008.1.2.1.99"


@dataclass(frozen=True, kw_only=True)
class Header:
    """Series and images of a DICOM file, from its header.

    Attributes:
        file: The file.
        patient, study, series: Identifiers; ``""`` where there is none.
        modality: DICOM's modality, such as ``CT``.
        number, description: Number and description of the series.
        instance: SOPInstanceUID.
        slices: One slice per frame; empty if the file has no image.
        secondary: Whether it is a screenshot or another picture of a picture (secondary capture).
        damage: Reason why its pixels cannot be complete; ``""`` if they can.
    """

    file: Path
    patient: str = ""
    study: str = ""
    series: str = ""
    modality: str = ""
    number: str = ""
    description: str = ""
    instance: str = ""
    slices: tuple[Slice, ...] = ()
    secondary: bool = False
    damage: str = ""


def read_header(file: Path) -> Header | None:
    """Read a file's header.

    Returns:
        The header; ``None`` for files that are not DICOM, and for objects that hold no images (plans, reports,
        segmentations). A DICOM file that cannot be read is returned with its :attr:`Header.damage`.

    Raises:
        EnvironmentProblemError: pydicom is not installed.
    """
    try:
        if file.name.upper() == "DICOMDIR" or not file.is_file() or not _looks_like_dicom(file):
            return None
        _require_pydicom(file)
        if _is_deflated(file):
            return Header(file=file, damage="it is deflated as a whole; write it uncompressed with another tool first")
        with quiet(), file.open("rb") as handle:
            return _read(file, handle)
    except EnvironmentProblemError:
        raise
    except Exception as error:  # pydicom passes on any error: EOFError, KeyError, struct.error, RecursionError, …
        return Header(file=file, damage=f"its header cannot be read ({_brief(error)})")


def group_value(groups: Sequence[Any], name: str, attribute: str) -> Any:
    """An attribute of a functional group: the frame's own, else the shared one; ``None`` if neither group has it."""
    for group in groups:
        sequence = group.get(name)
        if sequence:
            value = sequence[0].get(attribute)
            if value is not None:
                return value
    return None


@functools.cache
def _tags() -> list[int]:
    from pydicom.tag import Tag

    return [Tag(name) for name in _TAGS]


def _require_pydicom(file: Path) -> None:
    try:
        import pydicom  # noqa: F401
    except ImportError as error:
        raise EnvironmentProblemError(f"{file}: reading DICOM needs pydicom: pip install 'pydicom>=3'") from error


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence pydicom's warnings about values that violate the standard; our errors report what matters."""
    logger = logging.getLogger("pydicom")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)


def _looks_like_dicom(file: Path) -> bool:
    """Whether a file has ``DICM`` after the preamble or, without a preamble, begins with a plausible data element."""
    with file.open("rb") as handle:
        head = handle.read(132)
    if head[128:] == b"DICM":
        return True
    if len(head) < 132 or head[:2] not in (b"\x02\x00", b"\x08\x00") or head[3:4] != b"\x00":
        return False
    explicit = head[4:6].isalpha() and head[4:6].isupper()
    return explicit or int.from_bytes(head[4:8], "little") <= 256


def _is_deflated(file: Path) -> bool:
    """Whether a file's transfer syntax is deflate: to read its header, pydicom would inflate all of it, to any size."""
    with file.open("rb") as handle:
        return _DEFLATED.encode() in handle.read(2048)


def _read(file: Path, handle: Any) -> Header | None:
    from pydicom import dcmread
    from pydicom.uid import UID

    data = dcmread(handle, stop_before_pixels=True, force=True, specific_tags=_tags())
    meta = data.file_meta
    sop_class = _text(data.get("SOPClassUID")) or _text(meta.get("MediaStorageSOPClassUID"))
    modality = _text(data.get("Modality")).upper()
    if sop_class == _DICOMDIR or modality in _NO_IMAGES or _text(meta.get("MediaStorageSOPClassUID")) == _DICOMDIR:
        return None
    damage = _damage(file, handle, data)
    if damage and "Rows" not in data and "Image Storage" not in UID(sop_class).name:
        return None if sop_class else Header(file=file, damage=damage, series=_text(data.get("SeriesInstanceUID")))
    try:
        slices = () if "Rows" not in data else _slices(file, data)
    except (TypeError, ValueError, AttributeError, IndexError, OverflowError) as error:
        slices, damage = (), damage or f"its header contradicts itself ({_brief(error)})"
    return Header(
        file=file,
        patient=_text(data.get("PatientID")),
        study=_text(data.get("StudyInstanceUID")),
        series=_text(data.get("SeriesInstanceUID")),
        modality=modality,
        number=_text(data.get("SeriesNumber")),
        description=_text(data.get("SeriesDescription")),
        instance=_text(data.get("SOPInstanceUID")) or _text(meta.get("MediaStorageSOPInstanceUID")),
        slices=slices,
        secondary=sop_class.startswith(_SECONDARY_CAPTURE),
        damage=damage or ("it has no pixels" if not slices else ""),
    )


def _damage(file: Path, handle: Any, data: Any) -> str:
    """Why the pixels that the header declares cannot be in the file; ``""`` if they can."""
    there = file.stat().st_size - handle.tell()
    if there <= 0:
        return "it ends before its pixels: the file is truncated"
    if "Rows" not in data or _is_compressed(data):
        return ""
    wanted = math.prod(
        int(data.get(name) or default)
        for name, default in (("Rows", 1), ("Columns", 1), ("SamplesPerPixel", 1), ("NumberOfFrames", 1))
    )
    wanted = wanted * int(data.get("BitsAllocated") or 16) // 8
    if there < wanted:
        return f"its pixels take {wanted} bytes and {there} are left in the file: it is truncated"
    return ""


def _is_compressed(data: Any) -> bool:
    syntax = data.file_meta.get("TransferSyntaxUID")
    return bool(syntax is not None and not syntax.is_private and syntax.is_compressed)


def _slices(file: Path, data: Any) -> tuple[Slice, ...]:
    frames = int(data.get("NumberOfFrames") or 1)
    own = data.get("PerFrameFunctionalGroupsSequence") or ()
    shared = list(data.get("SharedFunctionalGroupsSequence") or ())
    if not 1 <= frames <= 1_000_000:
        raise ValueError(f"{frames} frames")
    if not own and (frames > 1 or shared):
        own = [_Nothing()] * frames
    if own and len(own) != frames:
        raise ValueError(f"{frames} frames and places for {len(own)}")
    if not own:
        return (_slice(file, data, 0, ()),)
    return tuple(_slice(file, data, number, (group, *shared)) for number, group in enumerate(own))


class _Nothing:
    """A frame without functional groups."""

    def get(self, name: str) -> None:
        return None


def _slice(file: Path, data: Any, frame: int, groups: tuple[Any, ...]) -> Slice:
    def value(sequence: str, name: str) -> Any:
        found = group_value(groups, sequence, name)
        # In a multi-frame file, an attribute outside of the functional groups belongs to no frame in particular.
        return found if found is not None or (groups and int(data.get("NumberOfFrames") or 1) > 1) else data.get(name)

    transformed = "PixelValueTransformationSequence"
    slope, intercept = value(transformed, "RescaleSlope"), value(transformed, "RescaleIntercept")
    frame_type = group_value(groups, "CTImageFrameTypeSequence", "FrameType") or group_value(
        groups, "MRImageFrameTypeSequence", "FrameType"
    )
    kinds = tuple(str(word).upper() for word in _values(frame_type or data.get("ImageType")))
    return Slice(
        file=file,
        frame=frame,
        rows=int(data.Rows),
        columns=int(data.Columns),
        position=_numbers(value("PlanePositionSequence", "ImagePositionPatient"), 3),
        axes=_numbers(value("PlaneOrientationSequence", "ImageOrientationPatient"), 6),
        spacing_mm=_numbers(value("PixelMeasuresSequence", "PixelSpacing"), 2),
        thickness_mm=_number(value("PixelMeasuresSequence", "SpacingBetweenSlices"))
        or _number(value("PixelMeasuresSequence", "SliceThickness")),
        slope=1.0 if slope is None else float(slope),
        intercept=0.0 if intercept is None else float(intercept),
        samples=int(data.get("SamplesPerPixel") or 1),
        photometric=_text(data.get("PhotometricInterpretation")).upper(),
        stored=(
            int(data.get("BitsAllocated") or 16),
            int(data.get("BitsStored") or data.get("BitsAllocated") or 16),
            int(data.get("HighBit") if data.get("HighBit") is not None else (data.get("BitsStored") or 16) - 1),
            int(data.get("PixelRepresentation") or 0),
        ),
        lookup=bool(data.get("ModalityLUTSequence")),
        localizer="LOCALIZER" in kinds,
        reference=_text(data.get("FrameOfReferenceUID")),
        telling=_telling(data, groups),
    )


def _telling(data: Any, groups: tuple[Any, ...]) -> tuple[tuple[str, str], ...]:
    found = {name: data.get(name) for name in _TELLING if name in data}
    for group in groups[:1]:
        for sequence in (
            "FrameContentSequence",
            "MREchoSequence",
            "MRDiffusionSequence",
            "CardiacSynchronizationSequence",
        ):
            found |= {n: v for n in _TELLING if (v := group_value((group,), sequence, n)) is not None}
    return tuple((name, _text(found[name])[:60]) for name in _TELLING if found.get(name) is not None)


def _values(value: Any) -> list[Any]:
    if value is None:
        return []
    return [value] if isinstance(value, str) or not hasattr(value, "__iter__") else list(value)


def _numbers(value: Any, count: int) -> tuple[float, ...] | None:
    """Exactly ``count`` finite numbers, or ``None``."""
    try:
        found = tuple(float(v) for v in _values(value))
    except (TypeError, ValueError):
        return None
    return found if len(found) == count and all(math.isfinite(v) and abs(v) < 1e7 for v in found) else None


def _number(value: Any) -> float | None:
    found = _numbers(value, 1)
    return found[0] if found and found[0] > 0 else None


def _text(value: Any) -> str:
    return "" if value is None else str(value).strip().strip("\0")


def _brief(error: BaseException) -> str:
    lines = str(error).splitlines()
    return (lines[0] if lines else type(error).__name__)[:120]
