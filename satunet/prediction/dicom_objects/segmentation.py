"""Masks as DICOM Segmentations with codes and colours, written by highdicom.

If no two masks overlap, one label map (``LABELMAP``) holds all of them in a fraction of the size of binary frames. If
masks overlap, or if older software has to read the file, each segment has frames of its own (``BINARY``).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from satunet.errors import EnvironmentProblemError
from satunet.images.colours import colours_of
from satunet.images.dicom import Series
from satunet.jobs.files import atomic_path
from satunet.prediction.dicom_objects.codes import Coding, SegmentCodes, segment_codes
from satunet.prediction.dicom_objects.source import SourceImages, read_source
from satunet.prediction.masks.boxed import BoxedMask

if TYPE_CHECKING:
    from satunet.knowledge.tree import KnowledgeTree

Kind: TypeAlias = Literal["auto", "binary"]
NamedMasks = Sequence[tuple[str, BoxedMask]]

_FRAMES_BYTES = 1 << 30
"""Largest number of bytes of unpacked binary frames in one object: highdicom needs all of them in memory at once."""
_NAME_BYTES = 64


def write_segmentations(
    path: Path,
    series: Series,
    masks: NamedMasks,
    *,
    classes: Sequence[str | None] | None = None,
    texts: Sequence[str] | None = None,
    kind: Kind = "auto",
    tree: KnowledgeTree | None = None,
) -> list[Path]:
    """Write masks as DICOM Segmentation objects that refer to the series' images.

    One object holds as many binary masks as a gigabyte of frames allows; further ones go to ``NAME_2.dcm`` and so on. A
    label map holds all of them.

    Args:
        path: The ``.dcm`` file to write.
        series: Series that was segmented.
        masks: (name, mask on the series' grid); empty masks are left out, because the standard has no segments without
            frames.
        classes: Class of each mask, which decides its codes and colour; ``None`` where the name decides.
        texts: Description of each segment; may be empty.
        kind: ``auto`` makes a label map if no two masks overlap; ``binary`` never does.
        tree: Knowledge tree, for the codes of names that are in no table.

    Returns:
        The files; none if all masks are empty.

    Raises:
        UnreadableImageError: The series cannot carry results; see :func:`.source.read_source`.
        EnvironmentProblemError: highdicom is not installed.
    """
    try:
        import highdicom  # noqa: F401
    except ImportError as error:
        raise EnvironmentProblemError("DICOM-SEG needs highdicom: pip install 'satunet[dicom]'") from error
    names = [name for name, _ in masks]
    kinds = [c or n for c, n in zip(classes or [None] * len(names), names, strict=True)]
    colours = dict(enumerate(colours_of(kinds)))
    shown = [i for i, (_, mask) in enumerate(masks) if mask.voxels]
    if not shown:
        return []
    source = read_source(series)
    described = [
        _description(number, names[i], segment_codes(kinds[i], tree), colours[i])
        for number, i in enumerate(shown, start=1)
    ]
    for description, i in zip(described, shown, strict=True):
        if texts and texts[i]:
            description.SegmentDescription = texts[i]
    found = [masks[i][1] for i in shown]
    labels = _label_map(found) if kind == "auto" else None
    if labels is not None:
        _write(path, series, source, labels, described, 1)
        return [path]
    at_once = max(1, _FRAMES_BYTES // int(np.prod(found[0].shape)))
    files = []
    for number, first in enumerate(range(0, len(found), at_once), start=1):
        files.append(path if number == 1 else path.with_name(f"{path.stem}_{number}{path.suffix}"))
        part = described[first : first + at_once]
        for position, description in enumerate(part, start=1):
            description.SegmentNumber = position
        _write(files[-1], series, source, _frames(found[first : first + at_once]), part, number)
    return files


def dicom_name(name: str) -> str:
    """A name as DICOM allows it: no backslash (it separates values), no control characters, at most 64 bytes.

    The standard allows 64 characters, but some readers count the bytes of UTF-8.
    """
    clean = "".join(" " if ord(c) < 32 or ord(c) == 127 else "/" if c == "\\" else c for c in name)
    short = " ".join(clean.split()).encode()[:_NAME_BYTES].decode("utf-8", "ignore")
    return short.strip() or "segment"


def _label_map(masks: Sequence[BoxedMask]) -> NDArray[np.uint16] | None:
    """(Z, Y, X) label map with numbers from 1 in the order of the masks; ``None`` if two masks share a voxel."""
    x, y, z = masks[0].shape
    labels = np.zeros((z, y, x), dtype=np.uint16)
    for number, mask in enumerate(masks, start=1):
        i, j, k = mask.box
        part, inside = labels[k, j, i], mask.inside.transpose(2, 1, 0)
        if part[inside].any():
            return None
        part[inside] = number
    return labels


def _frames(masks: Sequence[BoxedMask]) -> NDArray[np.uint8]:
    """(Z, Y, X, N) binary frames."""
    x, y, z = masks[0].shape
    frames = np.zeros((z, y, x, len(masks)), dtype=np.uint8)
    for number, mask in enumerate(masks):
        i, j, k = mask.box
        frames[k, j, i, number] = mask.inside.transpose(2, 1, 0)
    return frames


def _description(number: int, name: str, codes: SegmentCodes, colour: tuple[int, int, int]) -> Any:
    import highdicom as hd
    from highdicom.seg import SegmentAlgorithmTypeValues, SegmentDescription
    from pydicom.sr.codedict import codes as dictionary

    from satunet import __version__

    description = SegmentDescription(
        segment_number=number,
        segment_label=dicom_name(name),
        tracking_id=dicom_name(name),
        tracking_uid=hd.UID(),
        segmented_property_category=_code(codes.category),
        segmented_property_type=_code(codes.type),
        algorithm_type=SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=hd.AlgorithmIdentificationSequence(
            name="satunet", version=__version__, family=dictionary.cid7162.ArtificialIntelligence
        ),
        anatomic_regions=[_code(codes.region)] if codes.region else None,
        display_color=hd.color.CIELabColor.from_rgb(*colour),
    )
    if codes.side is not None:
        if codes.is_lesion and codes.region:
            description.AnatomicRegionSequence[0].AnatomicRegionModifierSequence = [_code(codes.side)]
        else:
            description.SegmentedPropertyTypeCodeSequence[0].SegmentedPropertyTypeModifierCodeSequence = [
                _code(codes.side)
            ]
    return description


def _code(coding: Coding) -> Any:
    from highdicom.sr import CodedConcept

    return CodedConcept(coding.value, coding.scheme, coding.meaning)


def _write(
    path: Path, series: Series, source: SourceImages, pixels: NDArray[Any], described: Sequence[Any], instance: int
) -> None:
    import highdicom as hd
    from highdicom.seg import Segmentation, SegmentationTypeValues

    from satunet import __version__

    kind = SegmentationTypeValues.LABELMAP if pixels.ndim == 3 else SegmentationTypeValues.BINARY
    segmentation = Segmentation(
        source_images=list(source.images),
        pixel_array=_in_order_of_frames(pixels, source),
        segmentation_type=kind,
        segment_descriptions=described,
        series_instance_uid=hd.UID(),
        series_number=1000 + series_number(series),
        sop_instance_uid=hd.UID(),
        instance_number=instance,
        manufacturer="satunet",
        manufacturer_model_name="satunet",
        software_versions=__version__,
        device_serial_number="0",
        content_label="SATUNET",
    )
    segmentation.SeriesDescription = "satunet segmentation"
    with atomic_path(path) as temporary:
        segmentation.save_as(temporary)


def _in_order_of_frames(pixels: NDArray[Any], source: SourceImages) -> NDArray[Any]:
    """Slices in the order of a multi-frame image's frames; slices of single-frame files are in the volume's order."""
    if source.planes[0].frame is None:
        return pixels
    stored = np.zeros((int(source.images[0].NumberOfFrames), *pixels.shape[1:]), dtype=pixels.dtype)
    for k, plane in enumerate(source.planes):
        assert plane.frame is not None
        stored[plane.frame - 1] = pixels[k]
    return stored


def series_number(series: Series) -> int:
    """Number of the series; 0 if it has none, or one with more digits than DICOM allows."""
    text = series.number.strip()
    return int(text) if text.isdigit() and len(text) < 9 else 0
