"""Finding and reading what was predicted for a case.

A prediction of the case ``C`` is one of

- a label map ``C.nii.gz`` (or any other image ending), as nnU-Net writes it, with the ids of the reference or those
  of a legend ``C.json`` beside it;
- a folder ``C/`` with one mask a class, as ``satunet predict`` writes it.

Instead of ``C`` the name may carry a channel, ``C_0000``, a dataset, ``Dataset003_X__C``, or both, as a scan's name
does: ``Dataset003_X__C__0000``. A name that is a case's own is never read as another case's with a suffix. Several
channels of a case are several scans, each scored; two predictions for one scan are an error, not a choice.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from satunet.errors import MissingFileError, ScanError, UnexpectedLabelError, UnreadableImageError
from satunet.files import mask_file_name, read_json
from satunet.geometry import Grid
from satunet.imageio import IMAGE_ENDINGS, image_ending, read_label_map, strip_ending

MANIFEST = "manifest.json"
_DATASET = re.compile(r"^Dataset\d{3}_.+?__(?P<rest>.+)$")
_CHANNEL = re.compile(r"^(?P<case>.+?)__?(?P<channel>\d{4})$")


@dataclass(frozen=True, kw_only=True)
class Found:
    """What was found for one scan.

    Attributes:
        case: The case it belongs to.
        scan: Its own name.
        channel: The channel that its name tells, if it does.
        path: Label map or folder of masks.
    """

    case: str
    scan: str
    channel: int | None
    path: Path


def find_predictions(folder: Path, cases: Collection[str]) -> tuple[dict[str, list[Found]], list[Path]]:
    """Predictions of cases.

    Args:
        folder: Where they are; it may be missing, which is no prediction at all.
        cases: Names of the cases.

    Returns:
        Case → its predictions, by channel; and images and folders that belong to no case.
    """
    found: dict[str, list[Found]] = {case: [] for case in cases}
    others = []
    entries = sorted(p for p in folder.iterdir() if not p.name.startswith(".")) if folder.is_dir() else []
    for path in entries:
        if not path.is_dir() and image_ending(path) is None:
            continue  # legends, summaries, logs
        name = path.name if path.is_dir() else strip_ending(path.name)
        case, channel = _belongs_to(name, cases)
        if case is None:
            if not path.is_dir() or _holds_masks(path):  # a folder of results, say, is nothing to wonder about
                others.append(path)
        else:
            found[case].append(Found(case=case, scan=name, channel=channel, path=path))
    for scans in found.values():
        scans.sort(key=lambda s: (s.channel is not None, s.channel or 0, s.scan))
    return found, others


def ambiguous(scans: Iterable[Found]) -> str | None:
    """Why a case's predictions contradict each other, or ``None`` if each is of a scan of its own."""
    scans = list(scans)
    channels = [s.channel for s in scans]
    if len(scans) > 1 and (None in channels or len(set(channels)) < len(channels)):
        return f"several predictions of one scan: {', '.join(s.path.name for s in scans)}; allowed is one"
    return None


class PredictedLabels:
    """A label map on the reference's grid.

    Args:
        path: The file.
        grid: Grid of the reference.
        classes: Class → ids, in the prediction; a legend beside the file is asked first unless ``fixed``.
        allowed_ids: Ids that may occur; ``None``: those of the classes or the legend.
        fixed: Whether ``classes`` holds whatever the legend says.

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
    ) -> None:
        legend = None if fixed else _legend(path)
        self.classes = classes if legend is None else legend
        if legend is not None or allowed_ids is None:
            allowed_ids = {i for ids in self.classes.values() for i in ids}
        try:
            self.array = read_label_map(path, grid=grid, allowed_ids=allowed_ids).array
        except UnexpectedLabelError as error:
            raise UnexpectedLabelError(path, error.reason.replace("listed in dataset.json", "expected")) from error


class PredictedMasks:
    """A folder of masks, one a class, each read when it is asked for.

    Args:
        folder: The folder; its manifest tells the files of the classes, else their names do.
        grid: Grid of the reference.

    Raises:
        ScanError: A manifest that cannot be read, or no manifest and no mask.
    """

    def __init__(self, folder: Path, grid: Grid) -> None:
        self.folder, self.grid = folder, grid
        self._files: dict[str, str] = {}
        manifest = folder / MANIFEST
        if manifest.is_file():
            try:
                entries = read_json(manifest)["prompts"]
                # What was asked for by its own name goes before what a prompt turned out to mean.
                for key in ("class", "prompt"):
                    self._files |= {e[key]: e["file"] for e in entries if e.get(key) and e.get("file")}
            except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
                raise UnreadableImageError(manifest, f"not a manifest of a prediction ({error})") from error
        elif not _holds_masks(folder):
            raise MissingFileError(folder, "the folder holds neither masks nor a manifest")

    def mask(self, name: str) -> NDArray[np.bool_]:
        """(X, Y, Z) mask of a class.

        Raises:
            ScanError: Missing, unreadable, or on another grid.
        """
        return np.asarray(read_label_map(self._path(name), grid=self.grid).array > 0, dtype=bool)

    def _path(self, name: str) -> Path:
        if name in self._files:
            return self.folder / self._files[name]
        stem = mask_file_name(name)
        for ending in IMAGE_ENDINGS:
            if (path := self.folder / f"{stem}{ending}").is_file():
                return path
        raise MissingFileError(self.folder / f"{stem}{IMAGE_ENDINGS[0]}", f"no mask of {name!r} was predicted")


def _belongs_to(name: str, cases: Collection[str]) -> tuple[str | None, int | None]:
    if name in cases:
        return name, None
    names = [name]
    if match := _DATASET.match(name):
        names.append(match["rest"])
    for candidate in names:
        if candidate in cases:
            return candidate, None
        if (match := _CHANNEL.match(candidate)) and match["case"] in cases:
            return match["case"], int(match["channel"])
    return None, None


def _holds_masks(folder: Path) -> bool:
    return (folder / MANIFEST).is_file() or any(image_ending(p) for p in folder.iterdir())


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
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ScanError(file, f"not a legend of a label map ({type(error).__name__}: {error})") from error
    return legend
