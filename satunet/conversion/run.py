"""Writing nnU-Net raw datasets: suitable files are linked, the others are converted."""

from __future__ import annotations

import contextlib
import math
import os
import re
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from satunet.conversion.classes import ClassTable, Combination
from satunet.conversion.masks import LabelMap, read_classes
from satunet.conversion.sources import (
    SINGLE_FILE_ENDINGS,
    ImageSource,
    SourceCase,
    SourceDataset,
    can_be_linked,
    read_source,
)
from satunet.datasets.memory import WORKER_BYTES
from satunet.datasets.paths import raw_dir
from satunet.datasets.people import PATIENTS_FILE
from satunet.datasets.raw import files_behind
from satunet.errors import GridMismatchError, MissingFileError, SatunetError, UserError
from satunet.geometry import Grid, same_grid
from satunet.images.image import read_grid, write_label_map, write_volume
from satunet.jobs.files import atomic_path, only_writer, read_json, write_json
from satunet.jobs.fresh import Stamp
from satunet.jobs.progress import JobSummary, run_parallel
from satunet.jobs.records import load_record, save_record
from satunet.jobs.workers import Workers

LINKS = ("auto", "hard", "symbolic", "copy")
"""Ways to put unchanged files into the dataset; ``auto`` takes the first one that works."""

RECORDS = ".conversion"
"""Folder of a converted dataset with a record of each case's sources; nnU-Net ignores it."""

_VERSION = 1


def convert(
    source: SourceDataset, *, link: str = "auto", trust_shape: bool = False, processes: int | Workers = 1
) -> JobSummary:
    """Make a dataset in ``nnUNet_raw``; cases that exist and are up to date are not converted again.

    A case that cannot be used is counted with its reason, and the others are converted. Cases of an earlier conversion
    that the source no longer has are removed, so that no test patient stays among the training cases when a split
    changes; files that no conversion made are left alone.

    Args:
        source: Dataset to convert.
        link: Kind of links, one of :data:`LINKS`.
        trust_shape: Whether masks with a scan's shape are on its grid, whatever their own headers say.
        processes: Number of worker processes, or workers of another kind.

    Returns:
        Summary of the cases done, already done and failed.

    Raises:
        UserError: The folder holds another dataset, another job writes to it, or two cases have the same name.
    """
    folder = raw_dir() / source.name
    summary = JobSummary(f"conversion to {source.name}")
    for item, reason in source.faults.items():
        summary.failed(item, reason)
    twice = [name for name, count in Counter(case.identifier for case in source.cases).items() if count > 1]
    if twice:
        raise UserError(f"{source.name}: {len(twice)} names belong to several cases, such as {twice[0]!r}")
    if (folder / "dataset.json").is_file() and not (folder / RECORDS).is_dir():
        raise UserError(f"{folder}: holds a dataset that was not converted; choose another --id or --name")
    with only_writer(folder / RECORDS):
        table = _known_table(folder, source.table)
        made: dict[str, _Made] = {}
        jobs = [
            _Job(
                case=case,
                folder=folder,
                ending=source.file_ending,
                table=table,
                link=link,
                trust_shape=trust_shape,
                channels=len(source.channel_names),
            )
            for case in source.cases
        ]
        _remove_others(folder, jobs, summary)
        jobs = _without_fresh(jobs, made, summary)
        if jobs:  # so that a killed conversion leaves no dataset that could be used
            (folder / "dataset.json").unlink(missing_ok=True)
        known = folder / RECORDS / "classes.json"
        if not jobs and not known.is_file():  # an earlier conversion was killed after its last case
            write_json(known, _combinations(table))
        # New combinations of classes get their ids after all cases were read, in the order of the cases; cases with
        # new combinations are then read once more.
        while jobs:
            again, combinations = _convert(jobs, made, summary, processes)
            table = table.extended(c for case in source.cases for c in combinations.get(case.identifier, ()))
            write_json(known, _combinations(table))
            jobs = [replace(job, table=table) for job in jobs if job.case.identifier in again]
        _write_dataset(folder, source, table, made)
    _tell(source, made, summary)
    return summary


@dataclass(frozen=True, kw_only=True)
class _Made:
    """Outcome of a case."""

    written: int = 0
    linked: int = 0
    approximated: int = 0
    missing: tuple[Combination, ...] = ()


@dataclass(frozen=True, kw_only=True)
class _Job:
    case: SourceCase
    folder: Path
    ending: str
    table: ClassTable
    link: str
    trust_shape: bool
    channels: int

    @property
    def record(self) -> Path:
        """File with the record of the case's sources."""
        return self.folder / RECORDS / f"{self.case.identifier}.json"

    @property
    def outputs(self) -> list[Path]:
        """The case's images, and its label map if it has one."""
        part = "Ts" if self.case.test or self.case.mask is None else "Tr"
        name = self.case.identifier
        images = [self.folder / f"images{part}" / f"{name}_{c:04d}{self.ending}" for c in range(self.channels)]
        labels = [self.folder / f"labels{part}" / f"{name}{self.ending}"] if self.case.mask is not None else []
        return images + labels

    @property
    def made_of(self) -> tuple[list[Path], dict[str, Any]]:
        """Inputs of the case for a stamp: existing files, and settings."""
        case, table = self.case, self.table
        sources = [file for image in case.images for file in image.files]
        sources += [file for path in (case.mask.paths if case.mask else ()) for file in files_behind(path)]
        files = [file for file in sources if file.is_file()]
        return files, {
            "version": _VERSION,
            "case": repr(case),
            "missing": sorted(str(file) for file in {*sources} - {*files}),
            "ending": self.ending,
            "link": self.link,
            "trust_shape": self.trust_shape,
            "channels": self.channels,
            "table": repr((table.names, sorted(table.labels.items()), table.fixed, table.stored_ids)),
        }


@dataclass(frozen=True, kw_only=True)
class _ConvertedCase:
    """Record of a converted case.

    Attributes:
        made_of: Stamp of sources and settings. Scans are linked without being read, and are not read for the stamp.
        sizes: Size in bytes of each file that was made.
        counts: Counts of what happened.
    """

    RECORD_VERSION: ClassVar[int] = 2

    made_of: Stamp
    sizes: tuple[int | None, ...]
    counts: _Made


def _without_fresh(jobs: list[_Job], made: dict[str, _Made], summary: JobSummary) -> list[_Job]:
    todo = []
    for job in jobs:
        try:
            known = load_record(job.record, _ConvertedCase)
            fresh = known.made_of.why_stale(*job.made_of) is None
            fresh = fresh and known.sizes == tuple(_size(p) for p in job.outputs)
        except SatunetError:  # missing, damaged or of another version: the case is converted
            fresh = False
        if fresh:
            made[job.case.identifier] = known.counts
            summary.skipped(job.case.identifier)
        else:
            todo.append(job)
    return todo


def _convert(
    jobs: list[_Job], made: dict[str, _Made], summary: JobSummary, processes: int | Workers
) -> tuple[set[str], dict[str, tuple[Combination, ...]]]:
    combinations: dict[str, tuple[Combination, ...]] = {}
    for outcome in run_parallel(
        _convert_case,
        jobs,
        description="Converting",
        processes=processes,
        key=lambda job: job.case.identifier,
        needs=_bytes,
    ):
        name = outcome.item.case.identifier
        if outcome.result is None:
            summary.failed(name, outcome.error or "no result")
            for file in (*outcome.item.outputs, outcome.item.record):
                file.unlink(missing_ok=True)
        elif outcome.result.missing:
            combinations[name] = outcome.result.missing
        else:
            made[name] = outcome.result
            summary.done(name)
    return set(combinations), combinations


def _bytes(job: _Job) -> int:
    """Memory of a case in bytes: its masks as numbers of combinations and as ids, and one mask as it is read."""
    return WORKER_BYTES + 16 * math.prod(read_grid(job.case.images[0].path).shape)


def _convert_case(job: _Job) -> _Made:
    case, outputs = job.case, job.outputs
    made_of = Stamp.of(*job.made_of, read=False)
    if len(case.images) != job.channels:
        raise MissingFileError(job.folder, f"{case.identifier} has {len(case.images)} channels, not {job.channels}")
    job.record.unlink(missing_ok=True)  # from here until the end, the case does not exist
    linked = written = 0
    grid: Grid | None = None
    for source, output in zip(case.images, outputs, strict=False):
        own, copied = _put_image(source, output, job)
        if grid is not None and not same_grid(own, grid):
            raise GridMismatchError(source.path, "it is on another grid than the first channel of its case")
        grid = grid or own
        written += copied
        linked += copied == 0
    assert grid is not None  # there is at least one channel
    approximated = 0
    if case.mask is not None:
        found = read_classes(case.mask, job.table, grid, trust_shape=job.trust_shape)
        if found.array is None:
            return _Made(missing=found.missing)
        copied = _put_labels(found, case.mask.paths, outputs[-1], grid, job)
        written += copied
        linked += copied == 0
        approximated = found.approximated
    made = _Made(written=written, linked=linked, approximated=approximated)
    sizes = tuple(_size(p) for p in outputs)
    save_record(job.record, _ConvertedCase(made_of=made_of, sizes=sizes, counts=made))
    return made


def _put_image(source: ImageSource, output: Path, job: _Job) -> tuple[Grid, int]:
    """Link or write a scan; returns its grid and the bytes written."""
    if source.volume is None and can_be_linked(source.path, job.ending):
        grid = read_grid(source.path)
        return grid, _link(source.path, output, job.link)
    image = read_source(source)
    write_volume(output, image.array, like=image.grid if image.header is None else image)
    return image.grid, output.stat().st_size


def _put_labels(found: LabelMap, paths: tuple[Path, ...], output: Path, grid: Grid, job: _Job) -> int:
    if found.unchanged and can_be_linked(paths[0], job.ending):
        return _link(paths[0], output, job.link)
    assert found.array is not None
    write_label_map(output, found.array, like=grid)
    return output.stat().st_size


def _link(path: Path, output: Path, link: str) -> int:
    """Put a file into the dataset; returns the bytes that it takes there."""
    path = path.resolve()
    ways: dict[str, Callable[[Path, Path], Any]] = {"hard": os.link, "symbolic": os.symlink, "copy": shutil.copyfile}
    with atomic_path(output) as temporary:
        for way in ways if link == "auto" else (link,):
            try:
                ways[way](path, temporary)
                return temporary.stat().st_size if way == "copy" else 0
            except OSError:  # another file system, one without links, or another user's files
                temporary.unlink(missing_ok=True)
                if way in (link, "copy"):
                    raise
    raise AssertionError("a copy either is made or raises")


def _remove_others(folder: Path, jobs: list[_Job], summary: JobSummary) -> None:
    """Remove cases that are no longer in the source, and files of a case in another part or of another ending."""
    wanted = {job.case.identifier: {*job.outputs} for job in jobs}
    for left_over in folder.glob("*T[rs]/.tmp-*"):  # left by a killed conversion
        left_over.unlink(missing_ok=True)
    known = {p.stem for p in (folder / RECORDS).glob("*.json") if p.name != "classes.json"}
    files = _files_of_cases(folder)
    for name in known:
        for file in files.get(name, set()) - wanted.get(name, set()):
            file.unlink(missing_ok=True)
    gone = sorted(known - set(wanted))
    for name in gone:
        (folder / RECORDS / f"{name}.json").unlink(missing_ok=True)
    if gone:
        summary.note("removed", f"{len(gone)} cases that are no longer in the source, such as {gone[0]}")


def _files_of_cases(folder: Path) -> dict[str, set[Path]]:
    """Case → its files in all parts of a dataset, with any ending."""
    found: dict[str, set[Path]] = {}
    for part, channel in (("imagesTr", r"_\d{4}"), ("labelsTr", ""), ("imagesTs", r"_\d{4}"), ("labelsTs", "")):
        pattern = re.compile(rf"^(.+){channel}({'|'.join(map(re.escape, SINGLE_FILE_ENDINGS))})$")
        for file in (folder / part).iterdir() if (folder / part).is_dir() else ():
            if match := pattern.match(file.name):
                found.setdefault(match[1], set()).add(file)
    return found


def _known_table(folder: Path, table: ClassTable) -> ClassTable:
    """The table with the combinations that have ids from an earlier conversion: label maps on disk use them."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        known = read_json(folder / RECORDS / "classes.json")
        if known["names"] == list(table.names):
            return table.extended(frozenset(c) for c in known["combinations"])
    return table


def _combinations(table: ClassTable) -> dict[str, Any]:
    members = [sorted(table.members[i]) for i in sorted(table.members)]
    return {"names": list(table.names), "combinations": members}


def _write_dataset(folder: Path, source: SourceDataset, table: ClassTable, made: dict[str, _Made]) -> None:
    training = [c for c in source.cases if c.identifier in made and not c.test and c.mask is not None]
    labels = table.dataset_labels()
    content: dict[str, Any] = {
        "name": source.name.partition("_")[2],
        "description": source.description,
        "channel_names": {str(i): name for i, name in enumerate(source.channel_names)},
        "modalities": {str(i): modality for i, modality in enumerate(source.modalities)},
        "labels": labels,
        "numTraining": len(training),
        "file_ending": source.file_ending,
        **source.extra,
    }
    if any(isinstance(ids, list) for ids in labels.values()):
        # nnU-Net then trains on regions, and needs the order in which to paint them: large ones first.
        own = [ids if isinstance(ids, list) else [ids] for name, ids in labels.items() if name != "background"]
        content["regions_class_order"] = [ids[0] for ids in own]
    write_json(folder / "dataset.json", content)
    cases = [case for case in source.cases if case.identifier in made]
    if any(case.patient != case.identifier for case in cases):
        prefix = f"{source.origin}: " if source.origin else ""
        write_json(folder / PATIENTS_FILE, {case.identifier: f"{prefix}{case.patient}" for case in cases})
    splits = _splits(training, source.validation)
    if splits is None:
        (folder / "splits_final.json").unlink(missing_ok=True)
    else:
        write_json(folder / "splits_final.json", splits)


def _splits(training: list[SourceCase], validation: frozenset[str]) -> list[dict[str, list[str]]] | None:
    """Folds that keep patients together; ``None`` if nnU-Net's own folds, made case by case, do so as well."""
    by_patient: dict[str, list[str]] = {}
    for case in training:
        by_patient.setdefault(case.patient, []).append(case.identifier)
    held_out = sorted(patient for patient in by_patient if patient in validation)
    if held_out:
        return [_fold(by_patient, held_out)]
    patients = sorted(by_patient)
    if len(patients) == len(training) or len(patients) < 2:
        return None
    # The same folds as nnU-Net's.
    order = np.arange(len(patients))
    np.random.RandomState(12345).shuffle(order)
    return [_fold(by_patient, [patients[i] for i in held]) for held in np.array_split(order, min(5, len(patients)))]


def _fold(by_patient: dict[str, list[str]], held_out: list[str]) -> dict[str, list[str]]:
    val = [case for patient in held_out for case in by_patient[patient]]
    train = [case for patient, cases in sorted(by_patient.items()) if patient not in held_out for case in cases]
    return {"train": sorted(train), "val": sorted(val)}


def _tell(source: SourceDataset, made: dict[str, _Made], summary: JobSummary) -> None:
    cases = [case for case in source.cases if case.identifier in made]
    test = sum(case.test or case.mask is None for case in cases)
    for key, value in source.notes.items():
        summary.note(key, value)
    summary.note("cases", f"{len(cases) - test} to train on, {test} for tests")
    summary.note("files", f"{sum(m.linked for m in made.values())} linked")
    summary.note("written", f"{sum(m.written for m in made.values()) / 1e6:.1f} MB")
    merged = [name for name, m in made.items() if m.approximated]
    if merged:
        voxels = sum(made[name].approximated for name in merged)
        summary.note(
            "overlaps",
            f"{voxels} voxels of {len(merged)} cases belong to several classes at once, which the published ids cannot express; "
            "they get the nearest id",
        )
    summary.note("dataset", str(raw_dir() / source.name))


def _stat(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except OSError:
        return None


def _size(path: Path) -> int | None:
    stat = _stat(path)
    return None if stat is None else stat.st_size
