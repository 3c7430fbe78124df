"""UBERON and MONDO, as shipped in the PyPI package ``cellxgene-ontology-guide`` (extra: ``knowledge``).

The package has each term's label, definition, synonyms, and ancestors with their distances. Ancestors at distance 1 are
parents, but the package does not say whether a parent is a superclass (``is_a``) or a whole (``part_of``). Rules infer
it from name and definition; where they cannot, the relation is ``within``. MONDO's parents are always superclasses.
"""

from __future__ import annotations

import importlib.metadata
import importlib.resources
import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from satunet.errors import EnvironmentProblemError, KnowledgeError
from satunet.knowledge.build import Imported
from satunet.knowledge.tree import Source, Term

_PACKAGE = "cellxgene-ontology-guide"
_LICENCES = {
    "UBERON": ("CC-BY-3.0", "https://obophenotype.github.io/uberon"),
    "MONDO": ("CC-BY-4.0", "https://mondo.monarchinitiative.org"),
}
# The diseases in MONDO that a scan can show: neoplasms, cysts, haemorrhages, infarcts and the like.
_LESION_ROOTS = (
    "neoplasm", "cyst", "hemorrhage", "intracranial hemorrhage", "cerebral infarction", "stroke disorder",
    "pulmonary embolism", "brain edema", "pleural disorder", "pleural effusion disorder", "myocardial infarction",
    "pneumonia", "COVID-19", "leukoencephalopathy", "aneurysm", "abscess", "fracture", "infectious pneumonia",
)  # fmt: skip
_GENUS = re.compile(
    r"^(?:(?:an?|the|any|one of the|either of the)\s+)?(.{2,60}?)\s+(?:that|which|of|in|on|located|consisting|composed|"
    r"connecting|forming|lying|at|from|with|between|whose|where|covering|lining)\b",
    re.IGNORECASE,
)
_CITATION = re.compile(r"\s*\[[^\]]*\]")


def import_ontology(name: str) -> Imported:
    """Import ``"UBERON"`` or ``"MONDO"``.

    Raises:
        EnvironmentProblemError: The package is not installed.
        KnowledgeError: The package has no such ontology, or its file is damaged.
    """
    entries, version = _read(name)
    licence, url = _LICENCES[name]
    source = Source(name=name, version=f"{version} ({_PACKAGE} {importlib.metadata.version(_PACKAGE)})",
                    licence=licence, url=url)  # fmt: skip
    live = {key: entry for key, entry in entries.items() if not entry.get("deprecated") and entry.get("label")}
    if name == "MONDO":
        live = _lesions(live)
    imported = Imported(sources=[source])
    for key, entry in live.items():
        label = " ".join(entry["label"].split())
        synonyms = tuple(s for s in dict.fromkeys(" ".join(s.split()) for s in entry.get("synonyms", ())) if s != label)
        definition = " ".join(_CITATION.sub("", entry.get("description") or "").split())
        term = Term(id=key, name=label, source=name, synonyms=synonyms, definition=definition)
        imported.add(term, f"{name} {key}")
    names = {term.id: tuple(n.lower() for n in term.names) for term, _ in imported.terms}
    for term, where in imported.terms:
        for parent, distance in live[term.id]["ancestors"].items():
            if distance == 1 and parent in live and parent != term.id:
                kind = "is_a" if name == "MONDO" else relation_kind(term, names[parent])
                imported.relate(term.id, kind, parent, where)
    imported.notes.append(f"{name}: {len(entries) - len(live)} deprecated or unrelated terms left out")
    return imported


def relation_kind(term: Term, parent_names: Iterable[str]) -> str:
    """Infer from its name and definition whether a term's parent is a superclass or a whole.

    Args:
        term: The term.
        parent_names: Names of the parent, in lower case.

    Returns:
        ``is_a``, ``part_of``, or ``within`` if neither can be inferred.
    """
    name, definition = term.name.lower(), term.definition.lower()
    genus = _GENUS.match(definition)
    for parent in parent_names:
        if parent not in name and parent not in definition:
            continue
        phrase = re.escape(parent)
        if re.search(rf"\bpart of (?:an?|the|some)? ?{phrase}\b", definition):
            return "part_of"
        if genus and re.search(rf"\b{phrase}s?$", genus[1]):
            return "is_a"
        if re.search(rf"\b(?:of|in) (?:the )?{phrase}$", name) or name.startswith(f"{parent} "):
            return "part_of"  # "cortex of kidney", "kidney cortex"
        if name.endswith(f" {parent}"):
            return "is_a"  # "left kidney"
    return "within"


def _read(name: str) -> tuple[Mapping[str, dict[str, Any]], str]:
    try:
        import zstandard

        folder = importlib.resources.files("cellxgene_ontology_guide") / "data"
    except ImportError as error:
        raise EnvironmentProblemError(
            f"{name} comes with the package {_PACKAGE}, which is missing; install it with: pip install satunet[knowledge]"
        ) from error
    files = sorted(f.name for f in folder.iterdir() if f.name.startswith(f"{name}-ontology-"))
    if not files:
        raise KnowledgeError(f"{_PACKAGE} {importlib.metadata.version(_PACKAGE)} does not contain {name}")
    file = folder / files[-1]
    try:
        raw = zstandard.ZstdDecompressor().stream_reader(file.read_bytes()).read()
        return json.loads(raw), files[-1].removeprefix(f"{name}-ontology-").removesuffix(".json.zst")
    except (zstandard.ZstdError, ValueError) as error:
        raise KnowledgeError(f"{file}: cannot be read ({error})") from error


def _lesions(entries: Mapping[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Terms at or below the roots that scans can show, and the ancestors of these terms."""
    roots = {key for key, entry in entries.items() if entry["label"] in _LESION_ROOTS}
    kept = {key for key, entry in entries.items() if key in roots or roots & entry["ancestors"].keys()}
    above = {a for key in kept for a in entries[key]["ancestors"]}
    rare = re.compile(r"syndrome|familial|hereditary|congenital|susceptibility|type \d+|dystrophy|X-linked|deficiency")
    return {k: e for k, e in entries.items() if k in above or (k in kept and not rare.search(e["label"]))}
