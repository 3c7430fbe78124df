"""Inputs of a call: scans from files, folders and DICOM series, and the prompts for each scan.

:mod:`satunet.prediction.door.jobs` then decides what to do with each scan.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from satunet.datasets.raw import MODALITIES, modality_of_channel
from satunet.errors import PromptError, ScanError, UserError
from satunet.images.formats import image_files
from satunet.images.image import IMAGE_ENDINGS, Image, image_ending, list_images, read_image, strip_ending
from satunet.jobs.file_names import name_key, safe_name, unique_names
from satunet.jobs.files import parse_json

if TYPE_CHECKING:  # pydicom and SimpleITK are needed only for DICOM series
    from satunet.images.dicom import Series

OUR_FILES = ("prediction_summary", "prediction_summary.json", "statistics", "statistics.csv", "predict", "predict.log",
              *(f"prediction_summary_{rank}" for rank in range(64)))  # fmt: skip
"""Names that the results of a scan must not have, because satunet uses them for other files in the output folder."""


@dataclass(frozen=True, kw_only=True)
class Scan:
    """One scan of a call.

    Attributes:
        path: File of the scan, or folder of its DICOM series.
        name: Name of the results.
        prompts: Prompts for this scan alone; ``None`` if the prompts of the call apply.
        modality: Modality, if a DICOM header or a list of scans states it.
        series: DICOM series of the scan, if it is one.
    """

    path: Path
    name: str
    prompts: tuple[str, ...] | None = None
    modality: str | None = None
    series: Series | None = None

    @property
    def ending(self) -> str:
        """Ending of the results' files: the scan's own, or NIfTI for DICOM."""
        return ".nii.gz" if self.series is not None else image_ending(self.path) or ".nii.gz"

    @property
    def files(self) -> tuple[Path, ...]:
        """All files that the scan is read from, including separate voxel files; only ``path`` if it is not an image."""
        if self.series is not None:
            return self.series.files
        try:
            return image_files(self.path)
        except ScanError:
            return (self.path,)

    def read(self) -> Image:
        """Read the scan; raises the errors of :func:`~satunet.images.image.read_image`."""
        if self.series is None:
            return read_image(self.path)
        from satunet.images.dicom import read_series

        return read_series(self.series)


def collect_scans(inputs: Sequence[Path]) -> list[Scan]:
    """Scans in files and folders; a folder without images is searched for DICOM series, including its sub-folders.

    nnU-Net's channel suffix ``_0000`` is left out of the results' names if they stay unique without it. Scans whose files
    have the same name get the names of their folders in front; a file that is given twice is one scan.

    Raises:
        UserError: A folder has no images and no series, or cannot be listed.
    """
    jobs: list[Scan] = []
    for given in inputs:
        if not given.is_dir():
            jobs.append(_of_file(given))  # a missing or unreadable file fails as one scan, not the whole run
            continue
        try:
            images = [_of_file(path) for path in list_images(given)]
        except OSError as error:
            raise UserError(f"{given}: the folder cannot be listed ({error.strerror})") from error
        found = images or _series_in(given)
        if not found:
            raise UserError(
                f"{given}: there are no images in this folder; allowed endings are {', '.join(IMAGE_ENDINGS)}, or DICOM series"
            )
        jobs += found
    if not jobs:
        raise UserError("no input was given")
    return _named(jobs)


def read_pairs(file: Path) -> list[Scan]:
    """Scans with their own prompts, from a JSON list or JSON lines: ``{"image": …, "prompts": [...]}``.

    An entry may have a ``modality``, too. Paths are relative to the file. The key ``label``, as in SAT's JSON-lines
    files, is accepted in place of ``prompts``.

    Raises:
        UserError: The file is not such a list; the message names the line or entry.
    """
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: cannot be read as a list of images and prompts ({error})") from error
    jobs: list[Scan] = []
    for where, entry in _entries(text, file):
        prompts = entry.get("prompts", entry.get("label")) if isinstance(entry, dict) else None
        if not isinstance(prompts, list) or not prompts or not all(isinstance(p, str) and p.strip() for p in prompts):
            raise UserError(f"{file}, {where}: must be an object with 'image' and a list of 'prompts', got {entry!r}")
        image = entry.get("image")
        if not isinstance(image, str) or not image.strip() or "\0" in image:
            raise UserError(f"{file}, {where}: 'image' must be a path, got {image!r}")
        path = file.parent / image
        modality = _modality_of(entry, where, file)
        try:
            if path.resolve() == Path(path.resolve().anchor):  # the search for series would read every file there is
                raise UserError(
                    f"{file}, {where}: 'image' is {image!r}, the root of the file system; it must be the path of an image, or of "
                    "a folder of images or DICOM series"
                )
            scans = collect_scans([path]) if path.is_dir() else [_of_file(path)]
        except OSError as error:  # a name that no file system takes, a folder that may not be read
            raise UserError(f"{file}, {where}: {path!s:.200} cannot be read ({error.strerror or error})") from error
        own = tuple(dict.fromkeys(prompts))
        jobs += [replace(scan, prompts=own, modality=modality or scan.modality) for scan in scans]
    if not jobs:
        raise UserError(f"{file}: there are no images in it")
    return _named(jobs)


def as_prompts(prompts: str | Iterable[str]) -> tuple[str, ...]:
    """Prompts as a tuple: a single text is one prompt, and a generator is read once.

    Raises:
        PromptError: There is no prompt, or one is empty or not a text.
    """
    every = (prompts,) if isinstance(prompts, str) else tuple(prompts)
    if not every or not all(isinstance(p, str) and p.strip() for p in every):
        raise PromptError(f"prompts must be at least one text, and none may be empty; got {list(every)}")
    return every


def read_prompts(file: Path) -> tuple[str, ...]:
    """Prompts from a text file, one per line; empty lines and lines that start with ``#`` are skipped.

    Raises:
        PromptError: The file does not exist, or has no prompts.
    """
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise PromptError(f"{file}: cannot be read as a text file of prompts ({error})") from error
    prompts = tuple(dict.fromkeys(line for line in lines if line and not line.startswith("#")))
    if not prompts:
        raise PromptError(f"{file}: there are no prompts in it; write one per line")
    return prompts


def _of_file(path: Path) -> Scan:
    return Scan(path=path, name=strip_ending(path.name))


def _series_in(folder: Path) -> list[Scan]:
    from satunet.images.dicom import find_series

    return _told_apart([_of_series(series, folder) for series in find_series(folder)])


def _of_series(series: Series, root: Path) -> Scan:
    where = "_".join(series.folder.relative_to(root).parts) or series.patient or root.resolve().name
    name = "_".join(part for part in (where, series.number) if part)
    return Scan(path=series.folder, name=name, modality=series.modality, series=series)


def _told_apart(scans: list[Scan]) -> list[Scan]:
    """Add the UIDs to the names of series that would have the same name: series numbers may repeat or be missing."""
    names = [scan.name for scan in scans]
    return [
        replace(scan, name=f"{scan.name}_{scan.series.uid}") if scan.series and names.count(scan.name) > 1 else scan
        for scan in scans
    ]


def _named(scans: list[Scan]) -> list[Scan]:
    """The same scans, each once, with names for their results that differ on every file system."""
    scans = _each_once(scans)
    full = [scan.name for scan in scans]
    short = [n[:-5] if len(n) > 5 and n[-5] == "_" and n[-4:].isdigit() else n for n in full]
    alike = Counter(name_key(safe_name(name)) for name in short)
    names = [s if alike[name_key(safe_name(s))] == 1 else f for s, f in zip(short, full, strict=True)]
    names = _with_folders(scans, names)
    return [replace(scan, name=name) for scan, name in zip(scans, unique_names(names, taken=OUR_FILES), strict=True)]


def _each_once(scans: list[Scan]) -> list[Scan]:
    """Scans without repetitions: one that was given twice is predicted once, with all its prompts."""
    found: dict[tuple[Path, str], Scan] = {}
    for scan in scans:
        key = scan.path.resolve(), scan.series.uid if scan.series is not None else ""
        before = found.get(key)
        if before is None:
            found[key] = scan
        elif before.prompts is not None and scan.prompts is not None:
            found[key] = replace(before, prompts=tuple(dict.fromkeys((*before.prompts, *scan.prompts))))
    return list(found.values())


def _last(parts: list[tuple[str, ...]], count: int) -> list[tuple[str, ...]]:
    return [own[max(0, len(own) - count) :] for own in parts]


def _differ(parts: list[tuple[str, ...]]) -> bool:
    return len({name_key("_".join(own)) for own in parts}) == len(parts)


def _with_folders(scans: list[Scan], names: list[str]) -> list[str]:
    """Names with as many parent folders in front as it takes to tell files with the same name apart."""
    alike: dict[str, list[int]] = {}
    for i, name in enumerate(names):
        alike.setdefault(name_key(safe_name(name)), []).append(i)
    for same in alike.values():
        if len(same) == 1:
            continue
        above = [scans[i].path.resolve().parts[1:-1] for i in same]
        fronts = next((f for f in map(partial(_last, above), range(1, max(map(len, above)) + 1)) if _differ(f)), None)
        if fronts is None:
            continue
        for i, front in zip(same, fronts, strict=True):
            names[i] = "_".join((*front, names[i]))
    # Files of the same name in one folder differ only in format.
    twice = Counter(name_key(safe_name(name)) for name in names)
    return [
        name if twice[name_key(safe_name(name))] == 1 else f"{name}{scan.ending.replace('.', '_')}"
        for scan, name in zip(scans, names, strict=True)
    ]


def _modality_of(entry: dict[str, Any], where: str, file: Path) -> str | None:
    given = entry.get("modality")
    if given is None or given == "":
        return None
    found = modality_of_channel(str(given))
    if found == "other" and str(given).lower() != "other":
        raise UserError(f"{file}, {where}: modality {given!r}; allowed are {', '.join(MODALITIES)}")
    return found


def _entries(text: str, file: Path) -> list[tuple[str, Any]]:
    if text.lstrip().startswith("["):
        try:
            return [(f"entry {i}", entry) for i, entry in enumerate(parse_json(text, file), start=1)]
        except ValueError as error:
            raise UserError(str(error)) from error
    entries = []
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip():
            try:
                entries.append((f"line {number}", parse_json(line, f"{file}, line {number}")))
            except ValueError as error:
                raise UserError(str(error)) from error
    return entries
