"""Folds for training and validation, by person and over all datasets.

A dataset's own ``splits_final.json`` is used if there is one (in ``nnUNet_raw``, where conversions put published
splits, else in ``nnUNet_preprocessed``, where nnunetv2 keeps its own). Otherwise, five or more persons are split as
nnU-Net splits cases; two to four, by leaving one out in turn; a single person is used for training and validation. A
person's role in one dataset holds in all: a person who validates in a fold is not trained on in it, in any dataset. The
specialists get the same folds.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from satunet.datasets.paths import preprocessed_dir, raw_dir
from satunet.datasets.people import CaseName, People, find_people
from satunet.datasets.raw import Dataset, split_scan_id
from satunet.errors import DatasetError
from satunet.images.image import strip_ending
from satunet.jobs.files import read_json, write_json
from satunet.jobs.fresh import content_hash
from satunet.jobs.records import load_json
from satunet.planners.run import known_fingerprints, scans_of

logger = logging.getLogger(__name__)

FOLDS = 5
_CHANNEL = re.compile(r"_\d{4}$")
_OURS = "splits_made_for_specialist.json"
"""File beside a ``splits_final.json`` in ``nnUNet_preprocessed`` with the hash of the split that satunet made."""

Fold = dict[str, list[str]]
"""Names of cases or scans under ``"train"`` and ``"val"``."""


@dataclass(frozen=True, kw_only=True)
class Folds:
    """Folds of the cases of several datasets.

    Attributes:
        by_dataset: Dataset → its folds; every dataset has the same number.
        alone: Datasets with a single person, whose specialists train and validate on that person.
        notes: Notes for the user, one sentence each.
    """

    by_dataset: Mapping[str, Sequence[Fold]]
    alone: frozenset[str] = frozenset()
    notes: tuple[str, ...] = ()


def folds_of(datasets: Sequence[Dataset]) -> tuple[Folds, People]:
    """Folds of raw datasets, and persons with several cases, as far as names and fingerprints tell.

    Raises:
        DatasetError: A ``splits_final.json`` or ``patients.json`` cannot be used, or a dataset has no case.
    """
    cases = {dataset.name: [case.identifier for case in dataset.training_cases()] for dataset in datasets}
    people = find_people(datasets, cases, scans_of(known_fingerprints(list(cases))))
    return case_folds(cases, people), people


def case_folds(cases: Mapping[str, Sequence[str]], people: People | None = None) -> Folds:
    """Split the cases of datasets.

    Args:
        cases: Dataset → all of its cases, including unusable ones, which must not move others to other folds.
        people: Persons of the cases; if not given, every case is another person.

    Raises:
        DatasetError: A dataset's ``splits_final.json`` is malformed, or names no case of the dataset.
    """
    people = People() if people is None else people
    persons = {d: _by_person(d, names, people) for d, names in cases.items() if names}
    notes: list[str] = []
    given = {d: found for d in sorted(persons) if (found := _given(d, sorted(cases[d]), notes)) is not None}
    count = max([FOLDS, *(len(folds) for folds in given.values())])
    validating = _Validating(count)
    for dataset, folds in given.items():
        if len(persons[dataset]) == 1:
            continue  # used for training and validation, which decides nothing for other datasets
        for fold in range(count):
            chosen = set(folds[fold % len(folds)]["val"])
            validating.add(fold, {p for p, members in persons[dataset].items() if chosen & set(members)})
        validating.known |= set(persons[dataset])
    # Datasets with many persons first; persons who are also in a small dataset then validate in the same fold there.
    others = sorted(set(persons) - set(given), key=lambda d: (-len(persons[d]), d))
    for dataset in others:
        _validate_in_turn(list(persons[dataset]), validating)
    result = {}
    for dataset, members in sorted(persons.items()):
        if dataset in given:
            result[dataset] = _without_validating(dataset, given[dataset], members, validating, notes)
        else:
            result[dataset] = [_fold_of(members, validating.in_fold[fold]) for fold in range(count)]
    alone = frozenset(d for d, members in persons.items() if len(members) == 1)
    return Folds(by_dataset=result, alone=alone, notes=tuple(notes))


def unified_splits(scans: Sequence[str], folds: Folds) -> list[Fold]:
    """Folds over preprocessed scans, with all channels of a case in the same fold.

    Args:
        scans: Names of the scans.
        folds: Folds of the cases of their datasets.
    """
    present: dict[CaseName, list[str]] = {}
    for scan in sorted(scans):
        dataset, case, _ = split_scan_id(scan)
        present.setdefault((dataset, case), []).append(scan)
    count = max((len(own) for own in folds.by_dataset.values()), default=FOLDS)
    result: list[Fold] = [{"train": [], "val": []} for _ in range(count)]
    for dataset, own in sorted(folds.by_dataset.items()):
        for fold, split in zip(result, own, strict=True):
            for part in ("train", "val"):
                fold[part] += [scan for case in split[part] for scan in present.get((dataset, case), ())]
    return result


def share_folds(dataset: str, folds: Folds, *, unusable: Collection[str] = ()) -> None:
    """Give a dataset's specialist the folds of the unified network, so that neither is scored on its training cases.

    nnunetv2 reads them from ``splits_final.json`` in ``nnUNet_preprocessed``. It fails without validation cases, so
    that the specialist of a single person validates on that person.

    Args:
        dataset: Name of the dataset.
        folds: Folds of the unified network.
        unusable: Cases that the unified network cannot use, although nnunetv2 may (such as a label map on another
            grid); they are left out, so that both are trained and scored on the same cases.
    """
    own = preprocessed_dir() / dataset / "splits_final.json"
    content = []
    for fold in folds.by_dataset[dataset]:
        usable = {part: [case for case in cases if case not in unusable] for part, cases in fold.items()}
        content.append(usable if usable["val"] else {"train": usable["train"], "val": list(fold["val"])})
    if dataset in folds.alone:
        every = sorted({case for fold in content for part in fold.values() for case in part})
        content = [{"train": every, "val": every}] * len(content)
    try:
        if read_json(own) == content:
            return
    except (OSError, ValueError):
        pass
    write_json(own, content)
    if not (raw_dir() / dataset / own.name).is_file():  # a published split is never replaced
        write_json(own.with_name(_OURS), {"sha256": content_hash(own)})


def _is_ours(file: Path) -> bool:
    """Whether satunet made a split for a specialist and nobody changed it since; it is then made again from the current
    cases.
    """
    try:
        return bool(read_json(file.with_name(_OURS)) == {"sha256": content_hash(file)})
    except (OSError, ValueError):
        return False


@dataclass
class _Validating:
    """Persons who validate in each fold."""

    count: int
    known: set[CaseName] = field(default_factory=set)
    """Persons whose fold another dataset has already decided."""

    def __post_init__(self) -> None:
        self.in_fold: list[set[CaseName]] = [set() for _ in range(self.count)]

    def add(self, fold: int, persons: set[CaseName]) -> None:
        self.in_fold[fold] |= persons


def _by_person(dataset: str, cases: Sequence[str], people: People) -> dict[CaseName, list[str]]:
    found: dict[CaseName, list[str]] = {}
    for case in sorted(cases):
        found.setdefault(people.of(dataset, case), []).append(case)
    return found


def _validate_in_turn(persons: list[CaseName], validating: _Validating) -> None:
    """Assign validation folds to the persons of a dataset without a split: each person once, and no empty fold."""
    if len(persons) == 1:
        return  # a single person cannot be held out, unless another dataset has already decided the fold
    new = [person for person in persons if person not in validating.known]
    here = [len(in_fold.intersection(persons)) for in_fold in validating.in_fold]
    if len(new) == len(persons) >= FOLDS:
        # nnunetv2 shuffles positions, so that persons with one case each get the same folds as their cases would.
        parts = _parts_as_nnunet(len(persons))
        for fold in range(validating.count):
            validating.add(fold, {persons[place] for place in parts[fold % FOLDS]})
    else:
        for person in new:
            fold = here.index(min(here))
            validating.add(fold, {person})
            here[fold] += 1
        for fold, number in enumerate(here):
            if not number:
                validating.add(fold, {persons[fold % len(persons)]})
    validating.known |= set(persons)


def _parts_as_nnunet(count: int) -> list[list[int]]:
    """Positions that validate in each fold, as nnunetv2 splits ``count`` cases, whose import takes seconds."""
    order = np.arange(count)
    np.random.RandomState(12345).shuffle(order)
    return [part.tolist() for part in np.array_split(order, FOLDS)]


def _fold_of(members: Mapping[CaseName, Sequence[str]], validating: set[CaseName]) -> Fold:
    if len(members) == 1 and not set(members) & validating:
        (cases,) = members.values()
        return {"train": list(cases), "val": list(cases)}
    return {
        "train": sorted(case for person, cases in members.items() if person not in validating for case in cases),
        "val": sorted(case for person, cases in members.items() if person in validating for case in cases),
    }


def _without_validating(
    dataset: str,
    given: Sequence[Fold],
    members: Mapping[CaseName, Sequence[str]],
    validating: _Validating,
    notes: list[str],
) -> list[Fold]:
    """A dataset's own folds, without the training cases of persons who validate."""
    person_of = {case: person for person, cases in members.items() for case in cases}
    result: list[Fold] = []
    left_out: set[str] = set()
    for fold in range(validating.count):
        own = given[fold % len(given)]
        if len(members) == 1:
            result.append({part: list(own[part]) for part in ("train", "val")})
            continue
        train = [case for case in own["train"] if person_of[case] not in validating.in_fold[fold]]
        left_out |= set(own["train"]) - set(train)
        result.append({"train": train, "val": list(own["val"])})
    if left_out:
        notes.append(
            f"{dataset}: {len(left_out)} cases, such as {min(left_out)}, belong to people who are validated in a fold in which "
            "its splits_final.json trains on them; they are left out of the training of that fold"
        )
    return result


def _given(dataset: str, cases: list[str], notes: list[str]) -> list[Fold] | None:
    """The folds of a dataset's own ``splits_final.json``, if it has one."""
    for folder in (raw_dir(), preprocessed_dir()):
        file = folder / dataset / "splits_final.json"
        if file.is_file() and not _is_ours(file):
            return _read(file, dataset, cases, notes)
    return None


def _read(file: Path, dataset: str, cases: list[str], notes: list[str]) -> list[Fold]:
    content: Any = load_json(file, what="a list of folds", error=DatasetError)
    if not isinstance(content, list) or not content or not all(map(_is_fold, content)):
        raise DatasetError(f"{file}: must be a list of folds, each with lists of cases under 'train' and 'val'")
    known, unknown = set(cases), set()
    folds: list[Fold] = []
    unnamed: set[str] = set()
    for number, fold in enumerate(content):
        split: Fold = {}
        for part in ("train", "val"):
            names = dict.fromkeys(_case_of(str(name), known) for name in fold[part])
            unknown |= set(names) - known
            split[part] = [name for name in names if name in known]
            if names and not split[part]:
                raise DatasetError(
                    f"{file}: none of the {len(names)} cases that fold {number} lists under {part!r} is in {dataset}, "
                    f"such as {next(iter(names))!r}; it has {', '.join(cases[:3])}{' …' if len(cases) > 3 else ''}"
                )
        both = sorted(set(split["train"]) & set(split["val"]))
        if both and len(cases) > 1:
            raise DatasetError(
                f"{file}: fold {number} lists {len(both)} cases under both 'train' and 'val', such as {both[0]!r}; "
                "a case can be in only one of them"
            )
        named = {*split["train"], *split["val"]}
        more = [case for case in cases if case not in named]
        unnamed |= set(more)
        folds.append({"train": split["train"] + more, "val": split["val"]})
    if unknown:
        notes.append(f"{file} names {len(unknown)} cases that {dataset} does not have, such as {min(unknown)}")
    if unnamed:
        notes.append(f"{file} does not name {len(unnamed)} cases, such as {min(unnamed)}; they are trained on")
    if any(not fold["val"] for fold in folds):
        notes.append(f"{file}: a fold has no validation case")
    if len(folds) not in (1, FOLDS):
        notes.append(f"{file} has {len(folds)} folds; if other datasets have more, they are repeated in turn")
    return folds


def _is_fold(fold: Any) -> bool:
    return isinstance(fold, dict) and all(isinstance(fold.get(part), list) for part in ("train", "val"))


def _case_of(name: str, known: set[str]) -> str:
    """A case by its name, or by the name of one of its files."""
    if name in known:
        return name
    bare = strip_ending(name)
    return bare if bare in known else _CHANNEL.sub("", bare)
