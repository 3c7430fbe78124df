"""Folders of the Medical Segmentation Decathlon and of nnU-Net v1: ``TaskNN_Name`` with a ``dataset.json`` that lists
files.

Scans with several channels are four-dimensional files in the Decathlon; nnU-Net needs one file per channel. A task of
nnU-Net v1 already has these, named as in its ``dataset.json`` with ``_0000`` appended.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

from satunet.conversion.classes import plain_table
from satunet.conversion.sources import ImageSource, MaskSource, NumberNeededError, SourceCase, SourceDataset, open_nifti
from satunet.datasets.raw import modality_of_channel
from satunet.errors import ScanError, UserError
from satunet.images.image import strip_ending
from satunet.jobs.files import mask_file_name, read_json


def is_msd(folder: Path) -> bool:
    """Whether a folder holds a dataset in the Decathlon's format."""
    try:
        content = read_json(folder / "dataset.json")
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and isinstance(content.get("training"), list)


def read_msd(folder: Path, *, dataset_id: int | None = None, name: str | None = None) -> SourceDataset:
    """Read a folder as a dataset to convert; scans without a reference go to ``imagesTs``.

    Args:
        folder: Folder with ``dataset.json``.
        dataset_id: Number of the dataset; that of the task if not given.
        name: Name of the dataset; that of the task if not given.

    Raises:
        UserError: The folder is not such a dataset, there is no number, or the labels cannot be used.
    """
    file = folder / "dataset.json"
    try:
        content = read_json(file)
        channels = tuple(str(content["modality"][key]) for key in sorted(content["modality"], key=int))
        labels = {str(text): int(key) for key, text in content["labels"].items() if int(key) != 0}
        training: list[Any] = list(content["training"])
        test: list[Any] = list(content.get("test", ()))
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise UserError(f"{file}: not a dataset in the Decathlon's format ({type(error).__name__}: {error})") from error
    task = re.match(r"^Task(\d+)_(.+)$", folder.resolve().name)
    if dataset_id is None and task is None:
        raise NumberNeededError(f"{folder}: not named TaskNN_Name; give a number with --id")
    number = dataset_id if dataset_id is not None else int(task[1]) if task else 0
    own = mask_file_name(name or (task[2] if task else folder.resolve().name))
    table = plain_table(sorted(labels, key=labels.__getitem__))
    if sorted(labels.values()) != list(range(1, len(labels) + 1)):
        raise UserError(f"{file}: label ids are {sorted(labels.values())}; expected 1 to {len(labels)}")
    cases, faults = [], {}
    for entry, is_test in [(e, False) for e in training] + [(e, True) for e in test]:
        try:
            cases.append(_case(folder, entry, len(channels), is_test))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:  # also names that are not paths
            faults[str(entry)] = f"not the entry of a scan ({type(error).__name__}: {error})"
    hint = f"{own} {content.get('description', '')}"
    return SourceDataset(
        name=f"Dataset{number:03d}_{own}",
        channel_names=channels,
        modalities=tuple(modality_of_channel(channel, hint=hint) for channel in channels),
        table=table,
        cases=tuple(cases),
        description=str(content.get("description", own)),
        extra={key: str(content[key]) for key in ("reference", "licence", "release") if key in content},
        faults=faults,
    )


def _case(folder: Path, entry: Any, channels: int, test: bool) -> SourceCase:
    image = folder / str(entry["image"] if isinstance(entry, dict) else entry)
    label = entry.get("label") if isinstance(entry, dict) else None
    if "\0" in f"{image}{label}":  # is_file returns False for it, and whatever opens it first raises
        raise ValueError("a null byte in the name of a file")
    identifier = mask_file_name(strip_ending(image.name))
    mask = MaskSource(paths=(folder / str(label),)) if label else None
    ending = image.name[len(strip_ending(image.name)) :]
    of_channels = [image.with_name(f"{strip_ending(image.name)}_{c:04d}{ending}") for c in range(channels)]
    if not image.is_file() and any(path.is_file() for path in of_channels):  # nnU-Net v1
        sources = tuple(ImageSource(path=path) for path in of_channels)
        return SourceCase(identifier=identifier, images=sources, mask=mask, patient=identifier, test=test)
    volumes = range(channels) if channels > 1 or _is_stack(image) else (None,)
    return SourceCase(
        identifier=identifier,
        images=tuple(ImageSource(path=image, volume=volume) for volume in volumes),
        mask=mask,
        patient=identifier,
        test=test,
    )


def _is_stack(image: Path) -> bool:
    try:
        shape = open_nifti(image).shape
    except ScanError:  # reported when the case is converted
        return False
    return len(shape) > 3 and math.prod(shape[3:]) > 1
