"""Persons behind cases: all cases of a person stay on the same side of every split, in all datasets.

Two cases belong to the same person if

- ``patients.json`` beside ``dataset.json`` (case → person) names the same person for both, in any dataset; or
- they share a scan, voxel by voxel, whatever its file's name, format and compression; or
- they have the same name, and their datasets have the same source: the same page in the catalogue, or the same
  repository, DOI, address or text as ``"reference"`` (or ``"source"``) in ``dataset.json``; or
- the catalogue knows which part of a case's name is the person, and that part is the same.

Names alone are not compared across sources, because many datasets have a ``case_001``.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from satunet.datasets.catalogue import load_catalogue
from satunet.datasets.raw import Dataset
from satunet.errors import DatasetError
from satunet.jobs.records import load_json

PATIENTS_FILE = "patients.json"

CaseName = tuple[str, str]
"""Dataset and case."""

_ADDRESS = re.compile(r"10\.\d{4,}/[^\s,;)]+|https?://[^\s,;)]+|\bgithub(?:\.com)?[ /:]+[\w.-]+/[\w.-]+", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class People:
    """Persons behind cases.

    Attributes:
        persons: Case → its person, for persons who have several cases.
        findings: Findings, one sentence each.
    """

    persons: Mapping[CaseName, CaseName] = field(default_factory=dict)
    findings: tuple[str, ...] = ()

    def of(self, dataset: str, case: str) -> CaseName:
        """The person of a case, identified by the person's first case."""
        return self.persons.get((dataset, case), (dataset, case))


def find_people(
    datasets: Iterable[Dataset],
    cases: Mapping[str, Iterable[str]],
    scans: Mapping[CaseName, Iterable[str]] | None = None,
) -> People:
    """Find the cases that belong to the same person.

    Args:
        datasets: The datasets.
        cases: Dataset → its cases.
        scans: Case → hashes of its scans' voxels, as far as they are known.

    Raises:
        DatasetError: A ``patients.json`` is malformed.
    """
    groups = _Groups()
    for dataset in sorted(datasets, key=lambda d: d.name):
        names = sorted(cases.get(dataset.name, ()))
        given = read_patients(dataset)
        source = source_of(dataset)
        record = load_catalogue().by_name(dataset.name)
        for case in names:
            here = (dataset.name, case)
            if case in given:
                groups.add("patients.json", ("patient", given[case]), here)
            if source:
                groups.add("name and source", ("name", f"{source} {case}"), here)
            if record is not None and (part := re.match(record.patient, case)):
                groups.add(
                    "the part of their names that the catalogue knows", ("part", f"{dataset.name} {part[0]}"), here
                )
            for digest in (scans or {}).get(here, ()):
                if digest:
                    groups.add("voxels", ("scan", digest), here)
    return People(persons=groups.persons(), findings=tuple(groups.findings()))


def read_patients(dataset: Dataset) -> dict[str, str]:
    """Case → person from a dataset's ``patients.json``; empty if it has none.

    Raises:
        DatasetError: The file is not a mapping from names to names.
    """
    file = dataset.folder / PATIENTS_FILE
    if not file.is_file():
        return {}
    content = load_json(file, what="a list of patients", error=DatasetError)
    if not isinstance(content, dict) or not all(isinstance(v, (str, int)) for v in content.values()):
        raise DatasetError(f'{file}: must map cases to persons, such as {{"case_01": "patient 7"}}')
    return {case: str(person) for case, person in content.items()}


def source_of(dataset: Dataset) -> str:
    """Identifier of a dataset's source, the same for all datasets of that source; empty if it is unknown."""
    record = load_catalogue().by_name(dataset.name)
    text = record.link if record is not None else dataset.source or ""
    found = _ADDRESS.search(text)
    return re.sub(r"[ /:]+", "/", (found[0] if found else text).lower()).rstrip("/.")


class _Groups:
    """Groups of cases, merged whenever two cases have something in common (union-find)."""

    def __init__(self) -> None:
        self._first: dict[tuple[str, str], CaseName] = {}
        self._above: dict[CaseName, CaseName] = {}
        self._pairs: dict[tuple[str, str, str], list[tuple[str, str]]] = defaultdict(list)

    def add(self, what: str, mark: tuple[str, str], case: CaseName) -> None:
        """Merge the group of a case with that of the first case with the same mark."""
        first = self._first.setdefault(mark, case)
        if first == case:
            return
        a, b = self._root(first), self._root(case)
        self._above[max(a, b)] = min(a, b)
        self._above.setdefault(min(a, b), min(a, b))
        self._pairs[what, first[0], case[0]].append((first[1], case[1]))

    def persons(self) -> dict[CaseName, CaseName]:
        """Case → the first case of its person, for all cases that were merged."""
        return {case: self._root(case) for case in self._above}

    def findings(self) -> Iterator[str]:
        """One sentence for each pair of datasets and each thing that their cases have in common."""
        for (what, first, second), pairs in sorted(self._pairs.items()):
            where = first if first == second else f"{first} and {second}"
            yield (
                f"{where}: {len(pairs)} {'pair of cases belongs' if len(pairs) == 1 else 'pairs of cases belong'} to one person, matched by {what}, "
                f"such as {pairs[0][0]} and {pairs[0][1]}"
            )

    def _root(self, case: CaseName) -> CaseName:
        while (above := self._above.get(case, case)) != case:
            case = above
        return case
