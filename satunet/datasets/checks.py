"""Checks of a raw dataset: the files of its cases, and its ``dataset.json`` against them."""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Callable
from typing import Any

from satunet.datasets.raw import Case, Dataset
from satunet.errors import MissingFileError, ScanError
from satunet.images.formats import image_files
from satunet.images.image import Image, read_image, read_label_map, require_grid, require_ids
from satunet.jobs.files import read_json


def check_case(dataset: Dataset, case: Case, seen: Callable[[Image], None] | None = None) -> list[ScanError]:
    """All faults of a case's files, which are read in full: missing files, unreadable images, grids, label ids.

    Args:
        dataset: Dataset of the case.
        case: The case.
        seen: Function that is called with every image that can be read.
    """
    faults: list[ScanError] = []

    def attempt(function: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return function(*arguments)
        except ScanError as error:
            faults.append(error)
            return None

    on_grid = functools.partial(require_grid, trust_shape=dataset.trust_shape)
    grid = None
    for path in case.images:
        image = attempt(read_image, path)
        if image is not None and seen is not None:
            seen(image)
        if image is not None and grid is not None:
            attempt(on_grid, image, grid)
        grid = grid or (image.grid if image is not None else None)
    if case.label is not None:
        labels = attempt(read_label_map, case.label)
        if labels is not None:
            attempt(require_ids, labels, dataset.label_ids)
            if grid is not None:
                attempt(on_grid, labels, grid)
    elif not case.images:
        faults.append(MissingFileError(dataset.folder, f"case {case.identifier} has no files"))
    return faults


def check_dataset(dataset: Dataset) -> list[str]:
    """Faults of a dataset other than those of its scans, such as a ``dataset.json`` that contradicts the files.

    Raises:
        DatasetError: There are no training cases.
    """
    faults: list[str] = []
    cases = dataset.training_cases()
    file = dataset.folder / "dataset.json"
    announced = read_json(file).get("numTraining")
    with_images = sum(any(path.is_file() for path in case.images) for case in cases)
    if announced is not None and announced != with_images:
        faults.append(f"{file}: numTraining is {announced!r}, imagesTr has {with_images} cases")
    ids = sorted(dataset.label_ids)
    if ids and len(ids) != ids[-1]:
        missing = list(itertools.islice((i for i in range(1, ids[-1]) if i not in dataset.label_ids), 10))
        faults.append(f"{file}: label ids are not 1 to {ids[-1]}, and nnU-Net allows no gaps; missing are {missing}")
    known = {path for case in cases for path in (*case.images, case.label)}
    for path in [path for path in known if path is not None and dataset.file_ending.lower() == ".mhd"]:
        with contextlib.suppress(ScanError):  # its faults are reported when it is read
            known |= set(image_files(path))
    for name in ("imagesTr", "labelsTr"):
        folder = dataset.folder / name
        strays = (
            [p.name for p in folder.iterdir() if p not in known and not p.name.startswith(".")]
            if folder.is_dir()
            else []
        )
        if strays:
            faults.append(f"{folder}: {len(strays)} files belong to no case, such as {sorted(strays)[0]}")
    return faults
