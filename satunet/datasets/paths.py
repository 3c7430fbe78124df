"""nnU-Net's three folders and the datasets in them.

The environment variables are read when they are needed, not when a module is imported, so that they can be set later;
nnunetv2 does the same since version 2.8.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from satunet.errors import DatasetNotFoundError, PathsNotSetError

UNIFIED_DATASET = "Dataset900_Unified"

_PURPOSE = {
    "nnUNet_raw": "the folder that holds the raw datasets (DatasetNNN_Name)",
    "nnUNet_preprocessed": "the folder for plans and preprocessed scans",
    "nnUNet_results": "the folder for trained models",
}
_DATASET_NAME = re.compile(r"^Dataset(\d{3,})_.+$")


def raw_dir() -> Path:
    """Folder ``nnUNet_raw``; it must exist.

    Raises:
        PathsNotSetError: The variable is not set or names no folder.
    """
    folder = _from_environment("nnUNet_raw")
    if not folder.is_dir():
        raise PathsNotSetError(f"nnUNet_raw is set to {folder}, which is not a folder")
    return folder


def preprocessed_dir() -> Path:
    """Folder ``nnUNet_preprocessed``; made if needed.

    Raises:
        PathsNotSetError: The variable is not set, or the folder cannot be made.
    """
    return _made("nnUNet_preprocessed")


def results_dir() -> Path:
    """Folder ``nnUNet_results``; made if needed.

    Raises:
        PathsNotSetError: The variable is not set, or the folder cannot be made.
    """
    return _made("nnUNet_results")


def all_dataset_names() -> tuple[str, ...]:
    """Names of all raw datasets, in the order of their ids; the unified dataset has no raw folder and is left out."""
    return tuple(sorted(_datasets_in(raw_dir()), key=lambda name: (dataset_number(name), name)))


def _datasets_in(place: Path) -> list[str]:
    """Names of the folders that are named like a dataset; only links cost another access to the disk."""
    with os.scandir(place) as entries:
        named = [entry for entry in entries if _DATASET_NAME.match(entry.name)]
        return [e.name for e in named if (Path(e.path).is_dir() if e.is_symlink() else e.is_dir())]


def other_folders() -> tuple[str, ...]:
    """Folders of ``nnUNet_raw`` with a ``dataset.json`` that are ignored because they are not named like a dataset."""
    folders = [p for p in raw_dir().iterdir() if not p.name.startswith(".") and (p / "dataset.json").is_file()]
    return tuple(sorted(p.name for p in folders if not _DATASET_NAME.match(p.name)))


def dataset_number(name: str) -> int:
    """Number of a dataset's folder: 3 of ``Dataset003_AMOS22CT``.

    Raises:
        DatasetNotFoundError: The name is not a dataset's.
    """
    match = _DATASET_NAME.match(name)
    if match is None:
        raise DatasetNotFoundError(f"{name!r}: a dataset's folder is named DatasetNNN_Name, with three digits or more")
    return int(match[1])


def dataset_name_of(dataset: int | str) -> str:
    """Name of a dataset given by id (``3``, ``"003"``) or by name (``"Dataset003_AMOS22CT"``).

    Datasets are looked for in ``nnUNet_raw``, then in ``nnUNet_preprocessed``, where unified datasets live.

    Raises:
        DatasetNotFoundError: No dataset, or more than one, has that id or name.
    """
    names = set(_datasets_in(raw_dir()))
    if os.environ.get("nnUNet_preprocessed"):
        names |= set(_datasets_in(preprocessed_dir()))
    text = str(dataset).strip()
    if text in names:
        return text
    known = ", ".join(sorted(names)) or "none"
    if not text.isdigit():
        raise DatasetNotFoundError(f"no dataset {text!r} in nnUNet_raw ({raw_dir()}); present: {known}")
    found = sorted(name for name in names if dataset_number(name) == int(text))
    if not found:
        raise DatasetNotFoundError(f"no dataset with id {int(text)} in nnUNet_raw ({raw_dir()}); present: {known}")
    if len(found) > 1:
        raise DatasetNotFoundError(f"dataset id {int(text)} is not unique: {', '.join(found)}; give the full name")
    return found[0]


def _from_environment(variable: str) -> Path:
    value = os.environ.get(variable)
    if not value:
        raise PathsNotSetError(
            f"the environment variable {variable} is not set; it names {_PURPOSE[variable]}. "
            f"For example: export {variable}=/path/to/{variable}"
        )
    return Path(value).expanduser()


def _made(variable: str) -> Path:
    folder = _from_environment(variable)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PathsNotSetError(f"{variable} is set to {folder}, which cannot be made: {error}") from error
    return folder
