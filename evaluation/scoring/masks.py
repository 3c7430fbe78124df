"""Sources of the masks of a case: a label map, or a folder with a mask for each class."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from satunet.errors import MissingFileError, ScanError, UnexpectedLabelError, UnreadableImageError
from satunet.evaluation.scoring.label_index import LabelIndex
from satunet.geometry import Grid, box_of
from satunet.images.image import IMAGE_ENDINGS, image_ending, read_label_map, strip_ending
from satunet.jobs.files import mask_file_name, read_json
from satunet.jobs.records import MALFORMED
from satunet.labels import normalize_name
from satunet.labels.scored import ScoredClasses
from satunet.types import Box

MANIFEST = "manifest.json"
SUBFOLDER = "segmentations"
"""Sub-folder in which TotalSegmentator writes masks."""


@runtime_checkable
class Masks(Protocol):
    """Masks of classes on one grid."""

    def knows(self, name: str) -> bool:
        """Whether the class was annotated or predicted; it may be known and absent."""
        ...

    def box(self, name: str) -> Box | None:
        """Bounding box of a class; ``None`` if it is absent."""
        ...

    def mask(self, name: str, box: Box) -> NDArray[np.bool_]:
        """Mask of a class inside a box."""
        ...


class LabelMapMasks:
    """Masks of a label map.

    Args:
        labels: (X, Y, Z) ids, not negative.
        classes: Class → ids that together make it up.
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
        """Mask of a class inside a box."""
        return self._index.mask(self.classes[name], box)


class FolderMasks:
    """Masks of a folder, each read when it is needed.

    A class without a mask of its own is the union of the masks that make it up, such as the lobes of a lung; structures
    that do not count as part of an organ are removed from its mask.

    Args:
        folder: The folder; its manifest lists the files of the classes; without one, files are found by their names,
            in any spelling that means the class (``kidney_left.nii.gz`` is the left kidney).
        classes: Classes to score; by default every mask is the class of its name.
        grid: Grid of the reference; by default that of the first mask.
        transposed: Whether to return masks with their axes in reverse order.
        references: Folder of the references; a mask that is a link into it is refused.
        trust_shape: Whether masks of the grid's shape lie on it, whatever their own headers say.

    Raises:
        ScanError: The manifest cannot be read or names files elsewhere, or there is neither a manifest nor a mask.
    """

    def __init__(
        self,
        folder: Path,
        grid: Grid | None = None,
        *,
        classes: ScoredClasses | None = None,
        transposed: bool = False,
        references: Path | None = None,
        trust_shape: bool = False,
    ) -> None:
        self._trust_shape = trust_shape
        self.folder = mask_folder(folder)
        self._references = references
        self._files, self._absent = _files_of(self.folder), _not_seen_in(self.folder)
        self._classes = classes
        self._held: tuple[str, NDArray[np.bool_]] | None = None
        self.grid = grid if grid is not None else self._first_grid()
        self._transposed = transposed

    def knows(self, name: str) -> bool:
        """Whether there is a mask of the class or of all its parts, or the prediction says that it was not seen."""
        return self._has(name) or bool(self._parts(name))

    def box(self, name: str) -> Box | None:
        """Bounding box of a class; ``None`` if it is absent; raises as :meth:`whole`."""
        return box_of(self.whole(name))

    def mask(self, name: str, box: Box) -> NDArray[np.bool_]:
        """Mask of a class inside a box; raises as :meth:`whole`."""
        return self.whole(name)[box]

    def whole(self, name: str) -> NDArray[np.bool_]:
        """(X, Y, Z) mask of a class, or its transpose; the last one is cached.

        Raises:
            ScanError: The mask is missing, unreadable, or on another grid.
        """
        if self._held is not None and self._held[0] == name:
            return self._held[1]
        parts = (name,) if self._has(name) else self._parts(name) or (name,)
        mask = self._read(parts[0])
        for part in parts[1:]:
            mask |= self._read(part)
        known = self._classes.by_name.get(name) if self._classes is not None else None
        for inside in known.excludes if known is not None else ():
            if self._has(inside):
                mask &= ~self._read(inside)
        self._held = name, mask
        return mask

    def _parts(self, name: str) -> tuple[str, ...]:
        if self._classes is None or name not in self._classes.by_name:
            return ()
        return self._classes.parts_of(name, self._has)

    def _read(self, name: str) -> NDArray[np.bool_]:
        path = self._file(name)
        if path is None and self._has(name):
            nothing: NDArray[np.bool_] = np.zeros(self.grid.shape, dtype=bool)
            return nothing.T if self._transposed else nothing
        if path is None:
            missing = self.folder / f"{mask_file_name(name)}{IMAGE_ENDINGS[0]}"
            raise MissingFileError(missing, f"no mask of {name!r} was predicted")
        require_own(path, self._references)
        array = read_label_map(path, grid=self.grid, trust_shape=self._trust_shape).array
        mask: NDArray[np.bool_] = array > 0
        return mask.T if self._transposed else mask

    def _has(self, name: str) -> bool:
        return self._file(name) is not None or bool({name, normalize_name(name).canonical} & self._absent)

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
        classes: Classes to score, with the reference's ids; a legend beside the file takes precedence.
        predicted: Ids of the prediction, if it is known to have its own; they take precedence over a legend.
        transposed: Whether to return masks with their axes in reverse order.
        trust_shape: Whether a map of the grid's shape lies on it, whatever its own header says.

    Raises:
        ScanError: The file is missing, unreadable, on another grid, or holds ids that may not occur.
    """

    def __init__(
        self,
        path: Path,
        grid: Grid,
        classes: ScoredClasses,
        *,
        predicted: ScoredClasses | None = None,
        transposed: bool = False,
        trust_shape: bool = False,
    ) -> None:
        legend = None if predicted is not None else _legend(path)
        if predicted is not None:
            ids, allowed = predicted.ids, predicted.allowed_ids
        elif legend is not None:
            ids, allowed = _by_legend(legend, classes), frozenset(i for values in legend.values() for i in values)
        else:
            ids, allowed = classes.ids, classes.allowed_ids
        try:
            labels = read_label_map(path, grid=grid, allowed_ids=allowed, trust_shape=trust_shape).array
        except UnexpectedLabelError as error:
            raise UnexpectedLabelError(path, error.reason.replace("listed in dataset.json", "expected")) from error
        super().__init__(labels.T if transposed else labels, ids)


def _by_legend(legend: Mapping[str, tuple[int, ...]], classes: ScoredClasses) -> dict[str, tuple[int, ...]]:
    """Class → ids by a legend. Small masks lie on top of large ones, so a class also has the ids of the structures
    inside it.
    """
    found = dict(legend)
    for scored in classes.classes:
        own = scored.name in legend
        parts = (
            tuple(p for p in scored.includes if p in legend)
            if own
            else classes.parts_of(scored.name, legend.__contains__)
        )
        if own or parts:
            found[scored.name] = tuple(
                dict.fromkeys((*legend.get(scored.name, ()), *(i for part in parts for i in legend[part])))
            )
    return found


def require_own(path: Path, references: Path | None) -> None:
    """Refuse a prediction that is a link to a file among the references.

    Raises:
        ScanError: The prediction is such a link.
    """
    if references is not None and path.is_symlink() and path.resolve().parent == references.resolve():
        raise ScanError(path, f"it is a link to the reference {path.resolve()}, not a prediction")


def class_names_in(folder: Path) -> list[str]:
    """Classes that a folder of masks has, by their canonical names.

    Raises:
        ScanError: As :class:`FolderMasks`.
    """
    files = _files_of(mask_folder(folder)).values()
    return sorted({normalize_name(strip_ending(Path(f).name)).canonical for f in files} - {""})


def mask_folder(folder: Path) -> Path:
    """Folder of a case's masks: the case's own, or the sub-folder in which TotalSegmentator writes them."""
    return folder / SUBFOLDER if (folder / SUBFOLDER).is_dir() else folder


def holds_masks(folder: Path) -> bool:
    """Whether a folder holds masks, or the manifest of a prediction."""
    folder = mask_folder(folder)
    return (folder / MANIFEST).is_file() or any(image_ending(p) for p in folder.iterdir())


def _files_of(folder: Path) -> dict[str, str]:
    """Names that mean a mask → its file."""
    files: dict[str, str] = {}
    manifest = folder / MANIFEST
    if manifest.is_file():
        try:
            entries = read_json(manifest)["prompts"]
            # A class that was asked for by name takes precedence over one that a prompt turned out to mean.
            for key in ("class", "prompt"):
                files |= {str(e[key]): str(e["file"]) for e in entries if e.get(key) and e.get("file")}
            # With a manifest that points elsewhere, at the references for instance, foreign files would be scored.
            outside = [f for f in files.values() if Path(f).name != f or f in ("", ".", "..")]
        except (OSError, *MALFORMED) as error:
            raise UnreadableImageError(manifest, f"not a manifest of a prediction ({error})") from error
        if outside:
            raise UnreadableImageError(
                manifest, f"it names {outside[0]!r}; allowed are names of files that lie beside the manifest"
            )
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


def _not_seen_in(folder: Path) -> set[str]:
    """Classes, in any spelling, that a prediction looked for and did not find: they have no file."""
    manifest = folder / MANIFEST
    if not manifest.is_file():
        return set()
    try:
        absent = [e for e in read_json(manifest)["prompts"] if e.get("seen") is False]
        names = {str(e[key]) for e in absent for key in ("class", "prompt") if e.get(key)}
    except (OSError, *MALFORMED) as error:
        raise UnreadableImageError(manifest, f"not a manifest of a prediction ({error})") from error
    return names | ({normalize_name(name).canonical for name in names} - {""})


def _legend(path: Path) -> dict[str, tuple[int, ...]] | None:
    """Class → ids from the legend beside a label map, if any: its prompts, and the classes that they mean."""
    file = path.with_name(f"{strip_ending(path.name)}.json")
    if not file.is_file():
        return None
    try:
        content: dict[str, Any] = read_json(file)
        legend: dict[str, tuple[int, ...]] = {str(name): (int(value),) for name, value in content["labels"].items()}
        for entry in content.get("prompts", []):
            # A structure with parts drawn over it is the union of several labels; a class that is not seen has none.
            for key in ("class", "prompt"):
                if entry.get(key) and "labels" in entry:
                    legend[str(entry[key])] = tuple(int(label) for label in entry["labels"])
                elif entry.get(key) and entry.get("label"):
                    legend.setdefault(str(entry[key]), (int(entry["label"]),))
        for name, ids in list(legend.items()):
            canonical = normalize_name(name).canonical
            if canonical:
                legend.setdefault(canonical, ids)
    except (OSError, *MALFORMED) as error:
        raise ScanError(file, f"not a legend of a label map ({type(error).__name__}: {error})") from error
    return legend
