"""How nnunetv2 reads a dataset's files: its choice of reader, and the reader's axes and spacing."""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Sequence
from pathlib import Path

from satunet.datasets.raw import Case, Dataset
from satunet.errors import ScanError
from satunet.geometry import Grid
from satunet.images.image import image_ending, read_grid
from satunet.jobs.progress import prints_to_log

logger = logging.getLogger(__name__)

Triple = tuple[float, float, float]

REORIENTING = "NibabelIOWithReorient"
"""nnunetv2's reader that turns a file to RAS; the others keep its axes."""


def nnunet_reader(dataset: Dataset, cases: Sequence[Case]) -> str | None:
    """Class of nnunetv2's reader for a dataset, as nnunetv2 chooses it; ``None`` if it has none for these files."""
    from nnunetv2.imageio.reader_writer_registry import determine_reader_writer_from_dataset_json

    # nnunetv2 reads the example with SimpleITK, which crashes on some false headers.
    example = next((str(case.images[0]) for case in cases if _is_sound(case.images[0])), None)
    content = {"file_ending": dataset.file_ending}
    if dataset.reader is not None:
        content["overwrite_image_reader_writer"] = dataset.reader
    # It prints a traceback for each reader that cannot read the example.
    with prints_to_log(logger, "nnunetv2"), contextlib.redirect_stderr(io.StringIO()):
        try:
            return str(determine_reader_writer_from_dataset_json(content, example, verbose=False).__name__)
        except Exception as error:  # nnunetv2 may raise anything; None.__name__ is an AttributeError
            logger.debug("%s: nnunetv2 has no reader (%s)", dataset.name, error)
            return None


def _is_sound(path: Path) -> bool:
    try:
        read_grid(path)
    except ScanError:
        return False
    return True


def nnunet_axes(path: Path, grid: Grid, reader: str | None) -> tuple[Triple, tuple[int, int, int]]:
    """Spacing as nnunetv2's reader gives it, and which of the file's axes (i, j, k) are nnU-Net's (z, y, x).

    Args:
        path: An image.
        grid: Grid.
        reader: Name of the reader's class.
    """
    if reader == REORIENTING:
        # in the order right, anterior, superior, then reversed as in every reader of nnunetv2
        letters = ["RLAPSI".index(letter) // 2 for letter in grid.orientation]
        axes = (letters.index(2), letters.index(1), letters.index(0))
    else:
        axes = (2, 1, 0)
    stored = _stored_spacing(path, grid, reader) or grid.spacing_mm
    z, y, x = (float(stored[axis]) for axis in axes)
    return (z, y, x), axes


def _stored_spacing(path: Path, grid: Grid, reader: str | None) -> Sequence[float] | None:
    """Spacing along the file's axes for nnunetv2's reader, if different from the affine's."""
    if image_ending(path) not in (".nii", ".nii.gz") or reader is None:
        return None
    if reader == "SimpleITKIO":
        import SimpleITK as sitk

        header = sitk.ImageFileReader()
        header.SetFileName(str(path))
        try:
            header.ReadImageInformation()
        except RuntimeError:
            return None
        spacing: tuple[float, ...] = header.GetSpacing()
        return spacing[:3]
    if reader == REORIENTING and grid.orientation != "RAS":
        return None  # when nibabel reorients, it writes the affine's spacing into the header
    import nibabel as nib

    zooms = nib.load(path).header.get_zooms()  # type: ignore[attr-defined]
    return [float(z) for z in zooms[:3]]
