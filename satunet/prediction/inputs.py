"""What to predict: scans of files, folders and DICOM series, and the prompts of each."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from satunet.errors import PromptError, UserError
from satunet.images.dicom import Series, find_series, read_series
from satunet.images.image import IMAGE_ENDINGS, Image, image_ending, list_images, read_image, strip_ending


@dataclass(frozen=True, kw_only=True)
class ScanJob:
    """One scan to predict.

    Attributes:
        path: Its file, or the folder of its DICOM series.
        name: Name of its results.
        prompts: Its own prompts, where every scan has others.
        modality: Its modality, where a DICOM header or a list says so.
        series: The DICOM series, if it is one.
    """

    path: Path
    name: str
    prompts: tuple[str, ...] | None = None
    modality: str | None = None
    series: Series | None = None

    @property
    def ending(self) -> str:
        """Ending of the results' files: the scan's own, NIfTI for DICOM."""
        return ".nii.gz" if self.series is not None else image_ending(self.path) or ".nii.gz"

    def read(self) -> Image:
        """The scan; raises as :func:`~satunet.images.image.read_image`."""
        return read_image(self.path) if self.series is None else read_series(self.series)


def collect_scans(inputs: Sequence[Path]) -> list[ScanJob]:
    """Scans of files and folders; a folder without images is searched for DICOM series, also in the folders in it.

    nnU-Net's channel suffix ``_0000`` is left out of a result's name where that keeps the names apart.

    Raises:
        UserError: A folder without images and series, or two scans of one name.
    """
    jobs: list[ScanJob] = []
    for given in inputs:
        if not given.is_dir():
            jobs.append(_of_file(given))  # a file that is missing or no image is that scan's failure, not the job's
            continue
        images = [_of_file(path) for path in list_images(given)]
        found = images or _told_apart([_of_series(series, given) for series in find_series(given)])
        if not found:
            raise UserError(
                f"{given}: no images in this folder; allowed endings are {', '.join(IMAGE_ENDINGS)}, or DICOM series"
            )
        jobs += found
    if not jobs:
        raise UserError("no input was given")
    return _named(jobs)


def read_pairs(file: Path) -> list[ScanJob]:
    """Scans with prompts of their own, of a JSON list or of JSON lines: ``{"image": …, "prompts": [...]}``.

    ``modality`` may be given too. Paths are relative to the file. The keys of SAT's jsonl files (``label``) are
    understood.

    Raises:
        UserError: Not such a file; the message names the line or entry.
    """
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: cannot be read as a list of images and prompts ({error})") from error
    jobs: list[ScanJob] = []
    for where, entry in _entries(text, file):
        prompts = entry.get("prompts", entry.get("label")) if isinstance(entry, dict) else None
        if not isinstance(prompts, list) or not prompts or not all(isinstance(p, str) and p.strip() for p in prompts):
            raise UserError(
                f"{file}, {where}: expected is an object with 'image' and a list of 'prompts', got {entry!r}"
            )
        if not isinstance(entry.get("image"), str):
            raise UserError(f"{file}, {where}: 'image' must be a path, got {entry.get('image')!r}")
        path = file.parent / entry["image"]
        modality = str(entry["modality"]).lower() if entry.get("modality") else None
        scans = collect_scans([path]) if path.is_dir() else [_of_file(path)]
        own = tuple(dict.fromkeys(prompts))
        jobs += [replace(scan, prompts=own, modality=modality or scan.modality) for scan in scans]
    if not jobs:
        raise UserError(f"{file}: no images in it")
    return _named(jobs)


def read_prompts(file: Path) -> tuple[str, ...]:
    """Prompts of a text file: one a line, empty lines and those that start with ``#`` are left out.

    Raises:
        PromptError: No such file, or nothing in it.
    """
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise PromptError(f"{file}: cannot be read as a text file of prompts ({error})") from error
    prompts = tuple(dict.fromkeys(line for line in lines if line and not line.startswith("#")))
    if not prompts:
        raise PromptError(f"{file}: no prompts in it; expected is one a line")
    return prompts


def _of_file(path: Path) -> ScanJob:
    return ScanJob(path=path, name=strip_ending(path.name))


def _of_series(series: Series, root: Path) -> ScanJob:
    where = "_".join(series.folder.relative_to(root).parts) or series.patient or root.name
    name = "_".join(part for part in (where, series.number) if part)
    safe = "".join(c if c.isalnum() or c in "-_." else "_" for c in name)
    return ScanJob(path=series.folder, name=safe, modality=series.modality, series=series)


def _told_apart(jobs: list[ScanJob]) -> list[ScanJob]:
    """Series of one folder may have one number, or none: their UIDs tell them apart."""
    names = [job.name for job in jobs]
    return [
        replace(job, name=f"{job.name}_{job.series.uid}") if job.series and names.count(job.name) > 1 else job
        for job in jobs
    ]


def _named(jobs: list[ScanJob]) -> list[ScanJob]:
    full = [job.name for job in jobs]
    short = [n[:-5] if len(n) > 5 and n[-5] == "_" and n[-4:].isdigit() else n for n in full]
    names = [s if short.count(s) == 1 else f for s, f in zip(short, full, strict=True)]
    twice = sorted({n for n in names if names.count(n) > 1})
    if twice:
        raise UserError(f"several inputs would give results of the same name: {', '.join(twice[:5])}")
    return [replace(job, name=name) for job, name in zip(jobs, names, strict=True)]


def _entries(text: str, file: Path) -> list[tuple[str, Any]]:
    if text.lstrip().startswith("["):
        try:
            return [(f"entry {i}", entry) for i, entry in enumerate(json.loads(text), start=1)]
        except json.JSONDecodeError as error:
            raise UserError(f"{file}: not a JSON list ({error})") from error
    entries = []
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip():
            try:
                entries.append((f"line {number}", json.loads(line)))
            except json.JSONDecodeError as error:
                raise UserError(f"{file}, line {number}: not a JSON object ({error})") from error
    return entries
