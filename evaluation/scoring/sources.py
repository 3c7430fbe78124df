"""Where the masks of a case come from: one label map, or a folder with a mask a class."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from satunet.errors import MissingFileError, ScanError, UnexpectedLabelError, UnreadableImageError
from satunet.evaluation.scoring.label_index import Box, LabelIndex, mask_box
from satunet.geometry import Grid
from satunet.images.image import IMAGE_ENDINGS, image_ending, read_label_map, strip_ending
from satunet.jobs.files import mask_file_name, read_json
from satunet.labels import normalize_name

MANIFEST = "manifest.json"
SUBFOLDER = "segmentations"
"""Where TotalSegmentator's cases keep their masks."""


@runtime_checkable
class Masks(Protocol):
    """Masks of classes on one grid."""

    def knows(self, name: str) -> bool:
        """Whether the class was annotated or predicted at all; one that is absent counts as known."""
        ...

    def box(self, name: str) -> Box | None:
        """Bounding box of a class; ``None`` if it is absent."""
        ...

    def mask(self, name: str, box: Box) -> NDArray[np.bool_]:
        """Its mask inside a box."""
        ...


class LabelMapMasks:
    """Masks of a label map.

    Args:
        labels: (X, Y, Z) ids, not negative.
        classes: Class → ids whose union it is.
    """

    def __init__(self, labels: NDArray[np.integer[Any]], classes: Mapping[str, tuple[int, ...]]) -> None:
        self.labels, self.classes = labels, classes
        self._index = LabelIndex(labels)

    def knows(self, name: str) -> bool:
        """Whether the class is listed."""
        return name in self.classes

    def box(self, name: str) -> Box | None:
        """Bounding box of a class; ``None`` if it is absent."""
        return self._index.box(self.classes[name])

    def mask(self, name: str, box: Box) -> NDArray[np.bool_]:
        """Its mask inside a box."""
        return self._index.mask(self.classes[name], box)


class FolderMasks:
    """Masks of a folder, each read when it is asked for.

    Args:
        folder: The folder; its manifest tells the files of the classes, else their names do, in any spelling that
            means the class (``kidney_left.nii.gz`` is the left kidney).
        grid: Grid of the reference; that of the first mask if not given.
        transposed: Whether to give masks with their axes in reverse.

    Raises:
        ScanError: A manifest that cannot be read, or no manifest and no mask.
    """

    def __init__(self, folder: Path, grid: Grid | None = None, *, transposed: bool = False) -> None:
        self.folder = folder if not (folder / SUBFOLDER).is_dir() else folder / SUBFOLDER
        self._files = _files_of(self.folder)
        self._held: tuple[str, NDArray[np.bool_]] | None = None
        self.grid = grid if grid is not None else self._first_grid()
        self._transposed = transposed

    def knows(self, name: str) -> bool:
        """Whether there is a mask of the class."""
        return self._file(name) is not None

    def box(self, name: str) -> Box | None:
        """Bounding box of a class; ``None`` if it is absent; raises as :meth:`whole`."""
        return mask_box(self.whole(name))

    def mask(self, name: str, box: Box) -> NDArray[np.bool_]:
        """Its mask inside a box; raises as :meth:`whole`."""
        return self.whole(name)[box]

    def whole(self, name: str) -> NDArray[np.bool_]:
        """(X, Y, Z) mask of a class, or its transpose; the last one is kept.

        Raises:
            ScanError: Missing, unreadable, or on another grid.
        """
        if self._held is not None and self._held[0] == name:
            return self._held[1]
        path = self._file(name)
        if path is None:
            missing = self.folder / f"{mask_file_name(name)}{IMAGE_ENDINGS[0]}"
            raise MissingFileError(missing, f"no mask of {name!r} was predicted")
        array = read_label_map(path, grid=self.grid).array
        mask: NDArray[np.bool_] = array > 0
        if self._transposed:
            mask = mask.T
        self._held = name, mask
        return mask

    def _first_grid(self) -> Grid:
        for name in self._files:
            path = self._file(name)
            if path is not None:
                return read_label_map(path).grid
        raise MissingFileError(self.folder, "the folder holds no mask")

    def _file(self, name: str) -> Path | None:
        file = self._files.get(name) or self._files.get(mask_file_name(name))
        if file is None:
            file = self._files.get(normalize_name(name).canonical)
        return None if file is None else self.folder / file


class PredictedLabels(LabelMapMasks):
    """A predicted label map on the reference's grid.

    Args:
        path: The file.
        grid: Grid of the reference.
        classes: Class → ids, in the prediction; a legend beside the file is asked first unless ``fixed``.
        allowed_ids: Ids that may occur; ``None``: those of the classes or the legend.
        fixed: Whether ``classes`` holds whatever the legend says.
        transposed: Whether to give masks with their axes in reverse.

    Raises:
        ScanError: Missing, unreadable, on another grid, or with ids that may not occur.
    """

    def __init__(
        self,
        path: Path,
        grid: Grid,
        classes: Mapping[str, tuple[int, ...]],
        *,
        allowed_ids: Collection[int] | None,
        fixed: bool,
        transposed: bool = False,
    ) -> None:
        legend = None if fixed else _legend(path)
        if legend is not None:
            classes, allowed_ids = legend, None
        if allowed_ids is None:
            allowed_ids = {i for ids in classes.values() for i in ids}
        try:
            labels = read_label_map(path, grid=grid, allowed_ids=allowed_ids).array
        except UnexpectedLabelError as error:
            raise UnexpectedLabelError(path, error.reason.replace("listed in dataset.json", "expected")) from error
        super().__init__(labels.T if transposed else labels, classes)


def class_names_in(folder: Path) -> list[str]:
    """Classes that a folder of masks has, by their canonical names.

    Raises:
        ScanError: As :class:`FolderMasks`.
    """
    inner = folder if not (folder / SUBFOLDER).is_dir() else folder / SUBFOLDER
    return sorted({normalize_name(strip_ending(Path(f).name)).canonical for f in _files_of(inner).values()} - {""})


def holds_masks(folder: Path) -> bool:
    """Whether a folder holds masks, or the manifest of a prediction."""
    if (folder / SUBFOLDER).is_dir():
        folder = folder / SUBFOLDER
    return (folder / MANIFEST).is_file() or any(image_ending(p) for p in folder.iterdir())


def _files_of(folder: Path) -> dict[str, str]:
    """Names that mean a mask → its file."""
    files: dict[str, str] = {}
    manifest = folder / MANIFEST
    if manifest.is_file():
        try:
            entries = read_json(manifest)["prompts"]
            # What was asked for by its own name goes before what a prompt turned out to mean.
            for key in ("class", "prompt"):
                files |= {e[key]: e["file"] for e in entries if e.get(key) and e.get("file")}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UnreadableImageError(manifest, f"not a manifest of a prediction ({error})") from error
    found = sorted(p.name for p in folder.iterdir() if image_ending(p) and not p.name.startswith("."))
    if not found and not manifest.is_file():
        raise MissingFileError(folder, "the folder holds neither masks nor a manifest")
    for name in found:
        files.setdefault(strip_ending(name), name)
    for stem, name in list(files.items()):
        canonical = normalize_name(stem).canonical
        if canonical:
            files.setdefault(canonical, name)
    return files


def _legend(path: Path) -> dict[str, tuple[int, ...]] | None:
    """Class → ids of the legend beside a label map, if there is one: its prompts, and the classes these mean."""
    file = path.with_name(f"{strip_ending(path.name)}.json")
    if not file.is_file():
        return None
    try:
        content: dict[str, Any] = read_json(file)
        legend: dict[str, tuple[int, ...]] = {str(name): (int(value),) for name, value in content["labels"].items()}
        for entry in content.get("prompts", []):
            if entry.get("class") and entry.get("label"):
                legend.setdefault(entry["class"], (int(entry["label"]),))
        for name, ids in list(legend.items()):
            canonical = normalize_name(name).canonical
            if canonical:
                legend.setdefault(canonical, ids)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ScanError(file, f"not a legend of a label map ({type(error).__name__}: {error})") from error
    return legend
