"""DICOM: series of a folder as images. Reading is GDCM's, by SimpleITK."""

from __future__ import annotations

import contextlib
import locale
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from satunet.errors import UnreadableImageError
from satunet.images.image import Image, as_image

if TYPE_CHECKING:
    import SimpleITK as sitk

_MODALITY = {"CT": "ct", "MR": "mri", "PT": "pet", "US": "us"}
_TAGS = {"modality": "0008|0060", "number": "0020|0011", "description": "0008|103e", "patient": "0010|0020"}
_POSITION = "0020|0032"
_MAX_UNEVEN = 0.05
"""Difference of the gaps between slices, as a share of the gap, from which on slices must be missing."""


@contextlib.contextmanager
def _same_locale() -> Iterator[None]:
    """GDCM leaves the process in the C locale, in which Python opens files as ASCII."""
    before = locale.setlocale(locale.LC_ALL)
    try:
        yield
    finally:
        locale.setlocale(locale.LC_ALL, before)


@dataclass(frozen=True, kw_only=True)
class Series:
    """One DICOM series.

    Attributes:
        uid: Its SeriesInstanceUID.
        files: Its files, in the order of their positions.
        modality: One of :data:`satunet.datasets.raw.MODALITIES`.
        number: Series number, or ``""``.
        description: Series description, or ``""``.
        patient: Patient id, or ``""``.
    """

    uid: str
    files: tuple[Path, ...]
    modality: str
    number: str = ""
    description: str = ""
    patient: str = ""

    @property
    def folder(self) -> Path:
        """Where its files are."""
        return self.files[0].parent


@_same_locale()
def find_series(folder: Path) -> list[Series]:
    """All image series in a folder and the folders in it, by path; files that are not DICOM are passed over."""
    import SimpleITK as sitk

    found: list[Series] = []
    quiet = sitk.ProcessObject.GetGlobalWarningDisplay()
    sitk.ProcessObject.SetGlobalWarningDisplay(False)  # GDCM complains about every other file
    try:
        for where, _, names in sorted(os.walk(folder)):
            if not any(_is_dicom(Path(where) / name) for name in sorted(names)):
                continue
            for uid in sitk.ImageSeriesReader.GetGDCMSeriesIDs(where):
                files = tuple(Path(f) for f in sitk.ImageSeriesReader.GetGDCMSeriesFileNames(where, uid))
                tags = _tags(files[0])
                if tags is not None:
                    found.append(Series(uid=uid, files=files, **tags))
    finally:
        sitk.ProcessObject.SetGlobalWarningDisplay(quiet)
    return found


@_same_locale()
def read_series(series: Series) -> Image:
    """Read a series as one volume.

    Returns:
        (X, Y, Z) in the file's columns, rows and slices; Hounsfield units for CT.

    Raises:
        UnreadableImageError: A file cannot be read, the images are in colour, or slices are missing: gaps differ.
    """
    import SimpleITK as sitk

    reader = sitk.ImageSeriesReader()
    reader.SetFileNames([str(file) for file in series.files])
    reader.MetaDataDictionaryArrayUpdateOn()
    try:
        image = reader.Execute()
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        raise UnreadableImageError(series.folder, f"series {series.uid} cannot be read ({reason})") from error
    _check_gaps(reader, series)
    if image.GetNumberOfComponentsPerPixel() != 1:
        raise UnreadableImageError(series.folder, f"series {series.uid} is in colour; allowed is one value a voxel")
    loaded = as_image(image)
    return Image(array=loaded.array, grid=loaded.grid, path=series.folder)


def _is_dicom(file: Path) -> bool:
    """By the mark behind the preamble; GDCM would look at every file in full."""
    try:
        with file.open("rb") as handle:
            return handle.read(132)[128:] == b"DICM"
    except OSError:
        return False


def _tags(file: Path) -> dict[str, Any] | None:
    """What a series says of itself; ``None`` for what holds no image (a plan, a report, a segmentation)."""
    import SimpleITK as sitk

    reader = sitk.ImageFileReader()
    reader.SetFileName(str(file))
    try:
        reader.ReadImageInformation()
    except RuntimeError:
        return None
    values = {
        name: reader.GetMetaData(tag).strip() if reader.HasMetaDataKey(tag) else "" for name, tag in _TAGS.items()
    }
    kind = values["modality"].upper()
    if kind in ("SEG", "RTSTRUCT", "RTDOSE", "RTPLAN", "SR", "PR"):
        return None
    return values | {"modality": _MODALITY.get(kind, "other")}


def _check_gaps(reader: sitk.ImageSeriesReader, series: Series) -> None:
    if len(series.files) < 3:
        return
    places = []
    for number in range(len(series.files)):
        if not reader.HasMetaDataKey(number, _POSITION):
            return
        places.append([float(v) for v in reader.GetMetaData(number, _POSITION).split("\\")])
    gaps = np.linalg.norm(np.diff(np.array(places), axis=0), axis=1)
    if gaps.max() - gaps.min() > max(_MAX_UNEVEN * float(np.median(gaps)), 1e-3):
        worst = int(np.argmax(np.abs(gaps - np.median(gaps))))
        raise UnreadableImageError(
            series.folder,
            f"series {series.uid}: its slices are {gaps.min():.3g} to {gaps.max():.3g} mm apart; slices are missing "
            f"or doubled beside {series.files[worst].name}",
        )
