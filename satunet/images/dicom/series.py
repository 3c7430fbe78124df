"""The DICOM series below a folder: which files belong together, and which are passed over."""

from __future__ import annotations

import logging
import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from satunet.geometry import Grid
from satunet.images.dicom.headers import Header, read_header
from satunet.images.dicom.stack import NoVolumeError, Slice, Stack, stack

logger = logging.getLogger(__name__)

_MODALITY = {"CT": "ct", "MR": "mri", "PT": "pet", "US": "us"}


@dataclass(frozen=True, kw_only=True)
class Series:
    """One DICOM series.

    Attributes:
        uid: SeriesInstanceUID.
        files: Files in the order of their positions.
        modality: One of :data:`satunet.datasets.raw.MODALITIES`.
        number: Series number, or ``""``.
        description: Series description, or ``""``.
        patient: Patient id, or ``""``.
        slices: Slices (of a multi-frame file, its frames) in the order of the volume's third axis.
        grid: Grid of the volume; its axes are (columns, rows, slices).
        fault: Reason why the series is not a volume; reading it raises an error with this text.
        remarks: Repairs and assumptions, one sentence each.
    """

    uid: str
    files: tuple[Path, ...]
    modality: str
    number: str = ""
    description: str = ""
    patient: str = ""
    slices: tuple[Slice, ...] = ()
    grid: Grid | None = None
    fault: str = ""
    remarks: tuple[str, ...] = ()

    @property
    def folder(self) -> Path:
        """Folder of its files; if they lie in several, their common parent."""
        folders = {file.parent for file in self.files}
        return folders.pop() if len(folders) == 1 else Path(os.path.commonpath([str(folder) for folder in folders]))


@dataclass(frozen=True, kw_only=True)
class Found:
    """Series below a folder.

    Attributes:
        series: Series that are volumes, or should be, ordered by folder and number.
        passed_over: Series of other pictures → their kind: localizer, screenshot, projection.
    """

    series: tuple[Series, ...] = ()
    passed_over: dict[str, str] = field(default_factory=dict)


def modality_of(word: str) -> str:
    """DICOM's modality as one of :data:`satunet.datasets.raw.MODALITIES`."""
    return _MODALITY.get(word, "other")


def find_series(folder: Path) -> list[Series]:
    """All series below a folder that are volumes or should be; see :func:`search`.

    Series that are passed over, and repairs, are logged.
    """
    found = search(folder)
    for what, reason in found.passed_over.items():
        logger.warning("%s: passed over: %s", what, reason)
    for series in found.series:
        for remark in series.remarks:
            logger.warning("%s: series %s: %s", series.folder, series.number or series.uid, remark)
    return list(found.series)


def search(folder: Path) -> Found:
    """Read the headers of all DICOM files below a folder and group them into series.

    A series spread over several folders is one if its slices fit together, and several if each folder holds a volume of
    its own. Files that are not DICOM, and objects without images, are ignored. A file that cannot be read is reported
    as the fault of its series, or of every series in its folder if its own is unknown, since a slice may be missing.
    """
    return found_in(Path(where) / name for where, _, names in sorted(os.walk(folder)) for name in sorted(names))


def found_in(files: Iterable[Path]) -> Found:
    """Like :func:`search`, for a given list of files."""
    groups: dict[tuple[str, str, str], list[Header]] = defaultdict(list)
    damaged: dict[Path, list[Header]] = defaultdict(list)
    for file in files:
        header = read_header(file)
        if header is None:
            continue
        if header.series or header.slices:
            groups[header.patient, header.study, header.series or str(file.parent)].append(header)
        else:
            damaged[file.parent].append(header)
    series: list[Series] = []
    passed_over: dict[str, str] = {}
    for headers in groups.values():
        reason = _no_volume_at_all(headers)
        if reason:
            passed_over[_called(headers[0], headers)] = reason
        else:
            series += _series(headers)
    for folder, headers in damaged.items():
        series = _blamed(series, folder, headers)
    series.sort(key=lambda s: (str(s.folder), int(s.number) if s.number.lstrip("-").isdecimal() else 0, s.uid))
    return Found(series=tuple(series), passed_over=passed_over)


def _no_volume_at_all(headers: Sequence[Header]) -> str:
    """The kind of picture of a series that was never meant to be a volume; ``""`` if it was."""
    slices = [s for header in headers for s in header.slices]
    if not slices or any(header.damage for header in headers):
        return ""
    if all(s.samples != 1 or s.photometric == "PALETTE COLOR" for s in slices):
        return "pictures in colour"
    nowhere = all(s.position is None or s.axes is None for s in slices)
    if nowhere and all(header.secondary for header in headers):
        return "secondary captures, which do not say where they lie"
    if nowhere and len(slices) == 1:
        return f"one picture of modality {headers[0].modality or 'unknown'}, which does not say where it lies"
    if all(s.localizer for s in slices):
        return "localizers"
    return ""


def _series(headers: Sequence[Header]) -> list[Series]:
    slices, remarks = _without_copies(headers)
    try:
        return [_of(headers, stack(slices), remarks)]
    except NoVolumeError as error:
        apart = _by_folder(headers)
        if len(apart) > 1:
            try:
                return [_of(part, stack(_without_copies(part)[0]), ()) for part in apart]
            except NoVolumeError:
                pass
        return [_of(headers, None, (), str(error))]


def _of(headers: Sequence[Header], made: Stack | None, remarks: Sequence[str], fault: str = "") -> Series:
    first = headers[0]
    broken = next((header for header in headers if header.damage), None)
    if broken is not None:
        fault = f"{broken.file.name}: {broken.damage}"
    slices = made.slices if made else ()
    inverted = any(s.photometric == "MONOCHROME1" for s in slices)
    told = [*remarks, *(made.remarks if made else ())]
    if len({header.file.parent for header in headers}) > 1:
        told.append(f"its slices are in {len({header.file.parent for header in headers})} folders")
    if inverted:
        told.append(
            "its lowest value is meant to be shown white (MONOCHROME1); "
            + (
                "values are as stored"
                if first.modality in ("CT", "PT")
                else "values are inverted, as they are meant to be shown"
            )
        )
    return Series(
        uid=first.series,
        files=tuple(dict.fromkeys(s.file for s in slices)) or tuple(header.file for header in headers),
        modality=modality_of(first.modality),
        number=first.number,
        description=first.description,
        patient=first.patient,
        slices=slices,
        grid=made.grid if made else None,
        fault=fault,
        remarks=tuple(told),
    )


def _without_copies(headers: Sequence[Header]) -> tuple[list[Slice], list[str]]:
    """Each slice once, since a folder may hold the same instance twice; and remarks about that."""
    kept: dict[object, Slice] = {}
    copies: list[Slice] = []
    for number, header in enumerate(headers):
        for one in header.slices:
            known = kept.setdefault((header.instance or number, one.frame, one.position), one)
            if known is not one:
                copies.append(one)
    remarks = [f"{len(copies)} copies of slices are left out, such as {copies[0].name}"] if copies else []
    return list(kept.values()), remarks


def _by_folder(headers: Sequence[Header]) -> list[list[Header]]:
    parts: dict[Path, list[Header]] = defaultdict(list)
    for header in headers:
        parts[header.file.parent].append(header)
    return list(parts.values())


def _blamed(series: list[Series], folder: Path, damaged: Sequence[Header]) -> list[Series]:
    """The series with their fault, if a file in their folder cannot be read: it may be a slice of any of them."""
    reason = f"{damaged[0].file.name} beside it: {damaged[0].damage}"
    beside = [s for s in series if folder in {file.parent for file in s.files}]
    if not beside:
        files = tuple(header.file for header in damaged)
        fault = f"{damaged[0].file.name}: {damaged[0].damage}"
        return [*series, Series(uid="", files=files, modality="other", fault=fault)]
    return [replace(s, fault=reason) if any(s is b for b in beside) else s for s in series]


def _called(first: Header, headers: Sequence[Header]) -> str:
    return f"{first.file.parent}: series {first.number or first.series} ({len(headers)} files)"
