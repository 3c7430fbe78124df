"""Importer of OBO files, by ``obonet`` (extra: ``knowledge``)."""

from __future__ import annotations

import gzip
import io
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from satunet.errors import EnvironmentProblemError, KnowledgeError
from satunet.knowledge.build import Imported
from satunet.knowledge.tree import Source, Term

_QUOTED = re.compile(r'^"((?:[^"\\]|\\.)*)"')
# Ids of the Relation Ontology, for OBO files that give relations by id instead of name.
_RELATIONS = {
    "BFO:0000050": "part_of", "BFO:0000051": "has_part", "RO:0002220": "next_to", "RO:0002178": "supplied_by",
    "RO:0002176": "connects", "RO:0002179": "drained_by", "adjacent_to": "next_to", "has_blood_supply": "supplied_by",
}  # fmt: skip


def import_obo(path: Path, *, licence: str = "as the file says", relations: Iterable[str] | None = None) -> Imported:
    """Read an OBO file.

    Args:
        path: The file, possibly compressed with gzip.
        licence: Licence of its terms.
        relations: Kinds of relations to keep besides ``is_a``; all if not given.

    Raises:
        EnvironmentProblemError: ``obonet`` is missing.
        KnowledgeError: The file is not an OBO file, is not UTF-8, or has a duplicate id or a term without a name; the
            message names the line.
    """
    try:
        import obonet
    except ImportError as error:
        raise EnvironmentProblemError(
            "OBO files are read by obonet, which is missing; install it with: pip install satunet[knowledge]"
        ) from error
    lines = _lines(path)
    places = _places(path, lines)
    try:
        graph = obonet.read_obo(io.StringIO("".join(lines)), ignore_obsolete=True)
    except Exception as error:  # its parser raises errors of any type
        raise KnowledgeError(f"{path}: not an OBO file ({type(error).__name__}: {error})") from error
    name = str(graph.graph.get("ontology") or path.stem)
    version = str(graph.graph.get("data-version") or "no version given")
    imported = Imported(sources=[Source(name=name, version=version, licence=licence, url=path.name)])
    wanted = None if relations is None else set(relations)
    own = {key for key, tag in places if tag == "id"}
    for key, data in graph.nodes(data=True):
        if key not in own:
            continue  # mentioned only in a relation, which is later reported as dangling
        where = f"{path}, line {places[key, 'id']}"
        if "name" not in data:
            raise KnowledgeError(f"{where}: term {key} has no name")
        imported.add(_term(key, data, name), where)
        for tail in data.get("is_a", ()):
            imported.relate(key, "is_a", tail, f"{path}, line {places.get((key, f'is_a {tail}'), '?')}")
        for relation in data.get("relationship", ()):
            kind, tail = relation.split()[:2]
            kind = _RELATIONS.get(kind, kind)
            if wanted is None or kind in wanted:
                place = places.get((key, f"relationship {relation.split()[0]} {tail}"), "?")
                imported.relate(key, kind, tail, f"{path}, line {place}")
    if not imported.terms:
        raise KnowledgeError(f"{path}: no [Term] in this file")
    return imported


def _term(key: str, data: dict[str, Any], source: str) -> Term:
    definition = _QUOTED.match(data.get("def", ""))
    synonyms = [m[1] for m in map(_QUOTED.match, data.get("synonym", ())) if m]
    return Term(
        id=key,
        name=data["name"],
        source=source,
        synonyms=tuple(dict.fromkeys(_plain(s) for s in synonyms if s != data["name"])),
        definition=_plain(definition[1]) if definition else "",
        ids=tuple(x.split()[0] for x in data.get("xref", ()) if x.split()),
    )


def _plain(text: str) -> str:
    return text.replace('\\"', '"').replace("\\n", " ").replace("\\,", ",")


def _lines(path: Path) -> list[str]:
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError) as error:
        raise KnowledgeError(f"{path}: cannot be read ({error})") from error
    try:
        return raw.decode("utf-8-sig").splitlines(keepends=True)
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise KnowledgeError(f"{path}, line {line}: not UTF-8 ({error.reason})") from error


def _places(path: Path, lines: list[str]) -> dict[tuple[str, str], int]:
    """(term, "tag value") → line number; obonet keeps no line numbers, and merges terms with the same id."""
    places: dict[tuple[str, str], int] = {}
    current: str | None = None
    in_term = False
    for number, line in enumerate(lines, start=1):
        text = line.split(" ! ")[0].strip()
        if text.startswith("["):
            in_term, current = text == "[Term]", None
        elif in_term and text.startswith("id:"):
            current = text[3:].strip()
            if (current, "id") in places:
                first = places[current, "id"]
                raise KnowledgeError(f"{path}, line {number}: duplicate id {current!r}, first in line {first}")
            places[current, "id"] = number
        elif in_term and current and text.startswith(("is_a:", "relationship:")):
            tag, _, value = text.partition(":")
            value = " ".join(value.split("{")[0].split())
            places[current, f"{tag} {value}"] = number
    return places
