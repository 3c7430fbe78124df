"""The label map of one case, from any way of storing its masks."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from satunet.conversion.classes import (
    ClassTable,
    Combination,
    Combiner,
    approximated,
    masks_of_stack,
    other_ids,
    renumbered,
    used,
)
from satunet.conversion.sources import MaskSource, load_array, open_nifti
from satunet.errors import GridMismatchError, MissingFileError, UnexpectedLabelError, UnreadableImageError
from satunet.geometry import Grid, reorient, same_grid
from satunet.images.image import Image, image_ending, not_whole, read_image, read_label_map, require_grid, unique_ids
from satunet.images.nifti import nifti_affine


@dataclass(frozen=True, kw_only=True, eq=False)
class LabelMap:
    """Result of reading a mask source.

    Attributes:
        array: (X, Y, Z) ids on the grid of the scan; ``None`` if combinations of classes have no id yet.
        missing: Combinations that are missing.
        unchanged: Whether the file itself is that label map.
        approximated: Number of voxels whose combination of classes has no published id.
    """

    array: NDArray[np.unsignedinteger[Any]] | None
    missing: tuple[Combination, ...] = ()
    unchanged: bool = False
    approximated: int = 0


def read_classes(mask: MaskSource, table: ClassTable, grid: Grid, *, trust_shape: bool = False) -> LabelMap:
    """Make the label map of a case.

    Args:
        mask: File or files with the masks of its classes.
        table: Classes and ids.
        grid: The grid of its scan.
        trust_shape: Whether a mask with the scan's shape is on the scan's grid, whatever its own header says.

    Raises:
        ScanError: A file is missing, unreadable or on another grid, or has values that are not ids of the table.
    """
    if mask.names or not mask.paths:
        return _from_files(mask, table, grid, trust_shape)
    path = mask.paths[0]
    if image_ending(path) in (".nii", ".nii.gz"):
        loaded = open_nifti(path)
        if any(n != 1 for n in loaded.shape[3:]):
            return _from_stack(path, loaded, mask.order or table.names, table, grid, trust_shape)
    return _from_label_map(path, mask.order, table, grid, trust_shape)


def fit(labels: Image, grid: Grid, *, trust_shape: bool = False) -> NDArray[Any]:
    """A mask's voxels along its scan's axes; the mask may have other axes, but not another position.

    Raises:
        GridMismatchError: The mask is on another grid.
    """
    if same_grid(labels.grid, grid):
        return labels.array
    turned, turned_grid = reorient(labels.array, labels.grid, grid.orientation)
    if same_grid(turned_grid, grid):
        return turned
    return require_grid(labels, grid, trust_shape=trust_shape).array


def _from_label_map(path: Path, order: tuple[str, ...], table: ClassTable, grid: Grid, trust_shape: bool) -> LabelMap:
    if order and not table.fixed:
        table = _own_ids(order, table)
    if path.suffix == ".npy":
        array = load_array(path)
        array = array[0] if array.ndim == 4 and array.shape[0] == 1 else array
        if array.shape != grid.shape:
            raise GridMismatchError(path, f"its shape is {array.shape}, the image's {grid.shape}")
        image = Image(array=_as_ids(array, path, table), grid=grid, path=path)
        as_stored = False
    else:
        as_stored = True
        try:
            image = read_label_map(path)
        except UnexpectedLabelError:
            if len(table.labels) != 1:
                raise
            read = read_image(path)
            image = Image(array=_as_ids(read.array, path, table), grid=read.grid, path=path)
            as_stored = False
    fitted = fit(image, grid, trust_shape=trust_shape)
    ids = _with_ids_of_table(fitted, path, table)
    unchanged = as_stored and ids is image.array and same_grid(image.grid, grid)
    return LabelMap(array=np.ascontiguousarray(ids) if not unchanged else ids, unchanged=unchanged)


def _own_ids(order: tuple[str, ...], table: ClassTable) -> ClassTable:
    """The table for a case with a class list of its own: its ids 1, 2, 3 … follow the order of that list."""
    stored = {place: table.labels[name] for place, name in enumerate(order, start=1)}
    if all(before == after for before, after in stored.items()) and len(stored) == len(table.labels):
        return table
    labels = {name: table.labels[name] for name in order}
    return replace(table, labels=labels, stored_ids=stored)


def _with_ids_of_table(array: NDArray[Any], path: Path, table: ClassTable) -> NDArray[np.unsignedinteger[Any]]:
    present = set(unique_ids(array)) - {0}
    allowed = set(table.stored_ids) if table.stored_ids else set(table.labels.values())
    if len(table.labels) == 1 and len(present) == 1 and not present & allowed:
        # One class and one value, which may be 255 or anything else that a tool writes.
        return _one_class(array != 0, table)
    if present - allowed:
        raise UnexpectedLabelError(
            path, f"label ids {sorted(present - allowed)[:10]} belong to no class; allowed are {sorted(allowed)}"
        )
    return other_ids(array, table.stored_ids) if table.stored_ids else array


def _as_ids(array: NDArray[Any], path: Path, table: ClassTable) -> NDArray[np.unsignedinteger[Any]]:
    """Ids from an array of any type; the mask of a single class may be soft or scaled, and is cut at half its range."""
    if len(table.labels) == 1:
        low, high = float(array.min()), float(array.max())
        inside = array > (low + high) / 2 if high > low else np.full(array.shape, high > 0)
        return _one_class(inside, table)
    rounded = np.rint(array)
    if not_whole(rounded if array.dtype.kind in "iub" else array) is not None or rounded.min() < 0:
        raise UnexpectedLabelError(path, "the label map holds values that are not integers ≥ 0")
    ids: NDArray[np.unsignedinteger[Any]] = rounded.astype(np.min_scalar_type(int(rounded.max())))
    return ids


def _one_class(inside: NDArray[np.bool_], table: ClassTable) -> NDArray[np.unsignedinteger[Any]]:
    ids: NDArray[np.unsignedinteger[Any]] = inside.astype(np.uint8) * np.uint8(next(iter(table.labels.values())))
    return ids


def _from_stack(
    path: Path, loaded: Any, names: tuple[str, ...], table: ClassTable, grid: Grid, trust_shape: bool
) -> LabelMap:
    """Read a four-dimensional file, with the masks along the first axis (SAT-DS) or the last (all others)."""
    shape = tuple(loaded.shape)
    if len(shape) != 4:
        raise GridMismatchError(path, f"a stack of masks has four axes, got the shape {shape}")
    sides = [first for first in (True, False) if sorted(shape[1:] if first else shape[:3]) == sorted(grid.shape)]
    fitting = [first for first in sides if (shape[0] if first else shape[3]) <= len(names)]
    if not fitting:
        raise GridMismatchError(
            path,
            f"the stack has the shape {shape}; expected {grid.shape}, with an axis of at most {len(names)} masks before "
            "or after it",
        )
    first = fitting[0]
    x, y, z = shape[1:] if first else shape[:3]
    own = Grid(shape=(x, y, z), affine=nifti_affine(loaded))
    combiner = Combiner()
    numbers = combiner.start(own.shape)
    try:
        for slab, name, inside in masks_of_stack(loaded.dataobj, names, first):
            combiner.add(numbers[:, :, slab], name, inside)
    except (OSError, EOFError, ValueError) as error:
        raise UnreadableImageError(path, f"the voxels cannot be read ({error})") from error
    return _combined(Image(array=numbers, grid=own, path=path), combiner, table, grid, trust_shape)


def _from_files(mask: MaskSource, table: ClassTable, grid: Grid, trust_shape: bool) -> LabelMap:
    """Read one file per class; arrays may be cropped to their boxes."""
    combiner = Combiner()
    numbers = combiner.start(grid.shape)
    for number, (name, path) in enumerate(zip(mask.names, mask.paths, strict=True)):
        if path.suffix == ".npy":
            inside = np.asarray(load_array(path)) > 0.5
            part = numbers[mask.boxes[number]] if mask.boxes else numbers
            if inside.shape != part.shape:
                raise GridMismatchError(path, f"its shape is {inside.shape}, its box in the image {part.shape}")
            combiner.add(part, name, inside)
        else:
            if not path.is_file():
                raise MissingFileError(path, "no such file")
            image = read_image(path)
            combiner.add(numbers, name, np.asarray(fit(image, grid, trust_shape=trust_shape) > 0.5))
    image = Image(array=numbers, grid=grid, path=mask.paths[0].parent if mask.paths else None)
    return _combined(image, combiner, table, grid, trust_shape)


def _combined(image: Image, combiner: Combiner, table: ClassTable, grid: Grid, trust_shape: bool) -> LabelMap:
    missing = tuple(c for c in used(image.array, combiner) if table.id_of(c) is None)
    if missing:
        return LabelMap(array=None, missing=missing)
    fitted = fit(image, grid, trust_shape=trust_shape)
    ids = renumbered(np.ascontiguousarray(fitted), combiner, table)
    wrong = approximated(image.array, combiner, table) if table.fixed else 0
    return LabelMap(array=ids, approximated=wrong)
