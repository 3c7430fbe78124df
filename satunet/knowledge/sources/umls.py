"""UMLS, from the RRF files that the NLM distributes to licence holders: MRCONSO (names) and, if present, MRREL
(relations), MRDEF (definitions) and MRSTY (semantic types).

Nothing from UMLS is shipped with satunet, and the UMLS licence governs a tree that is made from it. Each term keeps its
vocabularies in the name of its source (``UMLS/FMA``), because vocabularies have licences of their own.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from satunet.errors import KnowledgeError
from satunet.knowledge.build import Imported
from satunet.knowledge.tree import Source, Term

LICENCE = "UMLS Metathesaurus License"
URL = "https://www.nlm.nih.gov/research/umls"
# Semantic types that scans can show: body parts and spaces, tissues, neoplasms, injuries, localised findings.
ANATOMY = ("T017", "T021", "T022", "T023", "T024", "T029", "T030", "T190", "T191", "T037", "T019", "T020", "T046")

# Columns as in the UMLS reference manual, chapter "Metathesaurus Rich Release Format".
_COLUMNS = {"MRCONSO.RRF": 18, "MRREL.RRF": 16, "MRDEF.RRF": 8, "MRSTY.RRF": 6}
_KINDS = {
    "isa": "is_a", "inverse_isa": None, "part_of": "part_of", "has_part": None, "regional_part_of": "part_of",
    "constitutional_part_of": "part_of", "systemic_part_of": "part_of", "branch_of": "part_of",
    "tributary_of": "part_of", "member_of": "part_of", "adjacent_to": "next_to", "continuous_with": "next_to",
    "arterial_supply_of": "supplies", "has_arterial_supply": "supplied_by", "nerve_supply_of": "supplies",
    "has_nerve_supply": "supplied_by", "venous_drainage_of": "drains", "finding_site_of": "has_lesion",
    "has_finding_site": "lesion_of", "has_location": "lesion_of", "disease_has_primary_anatomic_site": "lesion_of",
}  # fmt: skip
"""RELA → our kind of relation; ``None`` for inverses of kinds that are kept. A row of MRREL reads "CUI2 RELA CUI1"."""


@dataclass
class _Concept:
    line: int
    preferred: tuple[int, str] = (9, "")
    names: dict[str, None] = field(default_factory=dict)
    vocabularies: set[str] = field(default_factory=set)
    definition: str = ""


def import_umls(
    folder: Path, *, languages: Collection[str] = ("ENG",), types: Collection[str] | None = ANATOMY
) -> Imported:
    """Read RRF files.

    Args:
        folder: Folder with MRCONSO.RRF and, optionally, MRREL.RRF, MRDEF.RRF and MRSTY.RRF.
        languages: Languages of names, as in the column LAT.
        types: Semantic types (TUI) to keep if there is an MRSTY.RRF; ``None`` keeps all.

    Raises:
        KnowledgeError: MRCONSO.RRF is missing, a row lacks columns, or a file is not UTF-8; the message names the line.
    """
    if not (folder / "MRCONSO.RRF").is_file():
        raise KnowledgeError(f"{folder}: no MRCONSO.RRF here; expected the META folder of a UMLS release")
    wanted = _of_types(folder, types)
    concepts = _concepts(folder, set(languages), wanted)
    if not concepts:
        raise KnowledgeError(f"{folder}: no concept in languages {sorted(languages)} has the requested semantic types")
    for row, _ in _rows(folder / "MRDEF.RRF"):
        concept = concepts.get(row[0])
        if concept is not None and row[6] not in ("O", "Y") and len(row[5]) > len(concept.definition):
            concept.definition = " ".join(row[5].split())
    imported = Imported(sources=[])
    names: dict[str, Source] = {}
    for cui, concept in concepts.items():
        source = "UMLS/" + "+".join(sorted(concept.vocabularies))
        names.setdefault(source, Source(name=source, version="RRF", licence=LICENCE, url=URL))
        preferred = concept.preferred[1]
        synonyms = tuple(n for n in concept.names if n != preferred)
        term = Term(
            id=f"UMLS:{cui}",
            name=preferred,
            source=source,
            synonyms=synonyms,
            definition=concept.definition,
            ids=(cui,),
        )
        imported.add(term, f"{folder / 'MRCONSO.RRF'}, line {concept.line}")
    imported.sources = list(names.values())
    left_out = 0
    for row, number in _rows(folder / "MRREL.RRF"):
        # "CUI2 RELA CUI1"; rows of CHD and PAR may have no RELA.
        head, tail = row[4], row[0]
        kind = _KINDS.get(row[7]) if row[7] else {"PAR": None, "CHD": "is_a", "RN": "is_a"}.get(row[3])
        if kind is None or head == tail or row[14] in ("O", "Y"):
            continue
        if head in concepts and tail in concepts:
            imported.relate(f"UMLS:{head}", kind, f"UMLS:{tail}", f"{folder / 'MRREL.RRF'}, line {number}")
        else:
            left_out += 1
    if left_out:
        imported.notes.append(f"UMLS: {left_out} relations to concepts of other types or languages left out")
    return imported


def _of_types(folder: Path, types: Collection[str] | None) -> set[str] | None:
    if types is None or not (folder / "MRSTY.RRF").is_file():
        return None
    return {row[0] for row, _ in _rows(folder / "MRSTY.RRF") if row[1] in types}


def _concepts(folder: Path, languages: set[str], wanted: set[str] | None) -> dict[str, _Concept]:
    concepts: dict[str, _Concept] = {}
    for row, number in _rows(folder / "MRCONSO.RRF"):
        cui, language, status, kind, preferred, vocabulary, name, suppressed = (
            row[0], row[1], row[2], row[4], row[6], row[11], row[14], row[16],
        )  # fmt: skip
        if language not in languages or suppressed in ("O", "E", "Y") or (wanted is not None and cui not in wanted):
            continue
        concept = concepts.setdefault(cui, _Concept(line=number))
        name = " ".join(name.split())
        concept.names[name] = None
        concept.vocabularies.add(vocabulary)
        # The order of preference documented by UMLS: term status (TS), string type (STT), preferred atom (ISPREF).
        rank = (status != "P") * 4 + (kind != "PF") * 2 + (preferred != "Y")
        if rank < concept.preferred[0]:
            concept.preferred = (rank, name)
    return concepts


def _rows(path: Path) -> Iterator[tuple[list[str], int]]:
    """Rows of an RRF file with their line numbers; none if there is no such file."""
    if not path.is_file():
        return
    columns = _COLUMNS[path.name]
    number = 0
    try:
        with path.open(encoding="utf-8", newline="\n") as file:
            for number, line in enumerate(file, start=1):
                row = line.rstrip("\n").split("|")
                if not row[-1]:
                    row.pop()  # RRF ends every row with a separator
                if len(row) != columns:
                    raise KnowledgeError(
                        f"{path}, line {number}: {len(row)} columns; {path.name} has {columns}, each ended by '|'"
                    )
                yield row, number
    except UnicodeDecodeError as error:
        raise KnowledgeError(f"{path}, line {number + 1} or later: not UTF-8 ({error.reason})") from error
