"""Sources of a conversion: cases with images and masks in any of the field's layouts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from satunet.conversion.classes import ClassTable
from satunet.datasets.raw import files_behind
from satunet.errors import MissingFileError, NotThreeDimensionalError, UnreadableImageError, UserError
from satunet.geometry import Grid
from satunet.images import nifti
from satunet.images.dicom import Series, read_series
from satunet.images.image import Image, image_ending, read_grid, read_image
from satunet.types import Box

SINGLE_FILE_ENDINGS = (".nii.gz", ".nii", ".nrrd", ".mha")
"""Endings of self-contained files that nnU-Net reads; an ``.mhd`` refers to another file, which a link would lose."""


class NumberNeededError(UserError):
    """A dataset has no number of its own, and none was given."""


@dataclass(frozen=True, kw_only=True)
class ImageSource:
    """Source of a scan's voxels.

    Attributes:
        path: An image file, a ``.npy`` array, or a folder with DICOM files.
        volume: Number of the volume in a four-dimensional file.
        dicom: DICOM series, if it is one.
        orientation: Orientation of a ``.npy`` array, whose file does not store it.
        spacing_mm: Spacing of a ``.npy`` array.
    """

    path: Path
    volume: int | None = None
    dicom: Series | None = None
    orientation: str = "RAS"
    spacing_mm: tuple[float, float, float] = (1.0, 1.0, 1.0)

    @property
    def files(self) -> tuple[Path, ...]:
        """All files of the scan, including files of voxels that a header refers to."""
        return self.dicom.files if self.dicom is not None else files_behind(self.path)


@dataclass(frozen=True, kw_only=True)
class MaskSource:
    """Source of a case's classes.

    Attributes:
        paths: A label map or a stack of masks; or one mask per class, named by ``names``.
        names: Class of each mask, if there is one mask per class.
        order: Classes of a stack's masks, or of the ids 1, 2, 3 … of a label map, as the case lists them; if it does
            not, those of the whole dataset.
        boxes: Boxes to which masks are cropped (``.npy``), one per mask.
    """

    paths: tuple[Path, ...]
    names: tuple[str, ...] = ()
    order: tuple[str, ...] = ()
    boxes: tuple[Box, ...] = ()


@dataclass(frozen=True, kw_only=True)
class SourceCase:
    """A case to convert.

    Attributes:
        identifier: Name of the case in the nnU-Net dataset.
        images: Images, one per channel.
        mask: Reference, if there is one.
        patient: Patient; all cases of a patient are in the same fold.
        test: Whether it goes to ``imagesTs`` and ``labelsTs``.
    """

    identifier: str
    images: tuple[ImageSource, ...]
    mask: MaskSource | None
    patient: str
    test: bool = False


@dataclass(frozen=True, kw_only=True)
class SourceDataset:
    """A dataset to convert.

    Attributes:
        name: Name of the nnU-Net folder.
        channel_names: Names of the channels, in order.
        modalities: Modality of each channel, one of :data:`satunet.datasets.raw.MODALITIES`.
        table: Table of the classes and their ids.
        cases: Cases, in order.
        validation: Patients of the validation part of a split, if it has one.
        origin: Source within which patients' names are unique; the same name elsewhere is another person. Empty if
            names are unique everywhere, such as a hospital's.
        description: Free text.
        extra: More entries of its ``dataset.json``.
        notes: Notes for the user, such as rows that a split leaves out.
        faults: Row that does not make a case → reason.
    """

    name: str
    channel_names: tuple[str, ...]
    modalities: tuple[str, ...]
    table: ClassTable
    cases: tuple[SourceCase, ...]
    validation: frozenset[str] = frozenset()
    origin: str = ""
    description: str = ""
    extra: Mapping[str, object] = field(default_factory=dict)
    notes: Mapping[str, str] = field(default_factory=dict)
    faults: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def file_ending(self) -> str:
        """The common ending of all files, if they can be linked; else ``.nii.gz``."""
        files = [image.path for case in self.cases for image in case.images]
        files += [path for case in self.cases if case.mask is not None for path in case.mask.paths]
        endings = {image_ending(path) for path in files}
        ending = endings.pop() if len(endings) == 1 else None
        return ending if ending in SINGLE_FILE_ENDINGS else ".nii.gz"


def can_be_linked(path: Path, ending: str) -> bool:
    """Whether nnU-Net can use a file unchanged: it has the dataset's ending and exactly three axes."""
    if image_ending(path) != ending or not path.name.endswith(ending) or not path.is_file():
        return False
    if ending not in (".nii", ".nii.gz"):
        read_grid(path)
        return True
    return len(open_nifti(path).shape) == 3


def open_nifti(path: Path) -> Any:
    """A NIfTI file's header and a proxy of its voxels.

    Raises:
        MissingFileError: There is no such file.
        UnreadableImageError: The file is not a NIfTI image.
    """
    if not path.is_file():
        raise MissingFileError(path, "no such file")
    return nifti.open_nifti(path, keep_open=True)


def read_source(source: ImageSource) -> Image:
    """Read a scan from its source.

    Raises:
        MissingFileError: There is no such file or folder.
        UnreadableImageError: The file is not an image, or the folder has no DICOM series or several.
        NotThreeDimensionalError: The file is not a single volume, or does not have that volume.
        NonFiniteImageError: Voxels are NaN or infinite.
    """
    path = source.path
    if not path.exists():
        raise MissingFileError(path, "no such file or folder")
    if source.dicom is not None:
        return read_series(source.dicom)
    if path.suffix == ".npy":
        return _read_array(source)
    if source.volume is None:
        return read_image(path)
    if image_ending(path) not in (".nii", ".nii.gz"):
        raise NotThreeDimensionalError(path, "only NIfTI files can have several volumes, and one of them was requested")
    loaded = open_nifti(path)
    if len(loaded.shape) != 4 or not 0 <= source.volume < loaded.shape[3]:
        raise NotThreeDimensionalError(path, f"volume {source.volume} was requested, but the shape is {loaded.shape}")
    try:
        array = np.asanyarray(loaded.dataobj[..., source.volume])
    except Exception as error:  # a truncated file may raise zlib.error, gzip's errors, OSError, EOFError
        raise UnreadableImageError(path, f"the voxels cannot be read ({error})") from error
    x, y, z = array.shape
    grid = Grid(shape=(x, y, z), affine=nifti.nifti_affine(loaded))
    return Image(array=array, grid=grid, path=path)


def array_grid(shape: tuple[int, ...], orientation: str, spacing_mm: tuple[float, float, float]) -> Grid:
    """A grid for an array without one: with the axes of ``orientation``, and the first voxel at the origin."""
    affine = np.eye(4)
    affine[:3, :3] = 0
    for axis, (letter, spacing) in enumerate(zip(orientation, spacing_mm, strict=True)):
        row = next(i for i, pair in enumerate(("RL", "AP", "SI")) if letter in pair)
        affine[row, axis] = spacing if letter in "RAS" else -spacing
    x, y, z = shape
    return Grid(shape=(x, y, z), affine=affine)


def load_array(path: Path) -> NDArray[np.generic]:
    """An array of a ``.npy`` file.

    Raises:
        MissingFileError: There is no such file.
        UnreadableImageError: The file is not an array, or is one of Python objects.
    """
    if not path.is_file():
        raise MissingFileError(path, "no such file")
    try:
        array: NDArray[np.generic] = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UnreadableImageError(path, f"not a readable array ({error})") from error
    return array


def _read_array(source: ImageSource) -> Image:
    array = load_array(source.path)
    if array.ndim == 4 and array.shape[0] == 1:
        array = array[0]
    if array.ndim != 3:
        raise NotThreeDimensionalError(source.path, f"the array has the shape {array.shape}; allowed are three axes")
    grid = array_grid(array.shape, source.orientation, source.spacing_mm)
    return Image(array=array, grid=grid, path=source.path)
