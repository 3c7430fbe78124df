"""A knowledge tree as a file of JSON lines, compressed if its name ends in ``.gz``.

The first line is the header::

    {"satunet_knowledge": 1, "sources": [{"name": …, "version": …, "licence": …, "url": …}]}

and every other line is a term::

    {"id": "UBERON:0002113", "name": "kidney", "synonyms": […], "definition": "…", "source": "UBERON",
     "ids": […], "datasets": […], "scans": […], "relations": {"part_of": ["UBERON:0000916"]}}

Classes of the label space have ``datasets`` and ``scans``: those that show the class.
"""

from __future__ import annotations

import gzip
import json
import logging
import zlib
from collections.abc import Iterator
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any

from satunet.errors import KnowledgeError
from satunet.jobs.cache import cache_dir
from satunet.jobs.files import atomic_path, parse_json
from satunet.knowledge.build import Imported, assemble
from satunet.knowledge.tree import KnowledgeTree, Source, Term

logger = logging.getLogger(__name__)

TREE_VERSION = 1


def save_tree(tree: KnowledgeTree, path: Path) -> None:
    """Write the file atomically, compressed if its name ends in ``.gz``; equal trees give equal bytes."""
    with atomic_path(path) as temporary, temporary.open("wb") as raw:
        packed = gzip.GzipFile(fileobj=raw, mode="wb", filename="", mtime=0) if path.suffix == ".gz" else raw
        for line in _lines(tree):
            packed.write((json.dumps(line, ensure_ascii=False) + "\n").encode())
        if packed is not raw:
            packed.close()


def load_tree(path: Path) -> KnowledgeTree:
    """Read the file and check it.

    Raises:
        KnowledgeError: There is no such file, it is not a knowledge tree, or it contradicts itself; the message names
            the line.
    """
    imported = Imported(sources=[])
    for number, line in _read_lines(path):
        where = f"{path}, line {number}"
        if not isinstance(line, dict):
            raise KnowledgeError(f"{where}: expected a JSON object, got a {type(line).__name__}")
        if not imported.sources:
            imported.sources = _read_header(line, where)
            continue
        relations = line.pop("relations", {})
        try:
            values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in line.items()}
            term = Term(**values)
            pairs = [(kind, tail) for kind, tails in relations.items() for tail in tails]
        except (TypeError, AttributeError) as error:
            raise KnowledgeError(f"{where}: not a term ({error})") from error
        imported.add(term, where)
        for kind, tail in pairs:
            imported.relate(term.id, kind, tail, where)
    if not imported.sources:
        raise KnowledgeError(f"{path}: empty; expected a knowledge tree")
    return assemble([imported]).tree


def _lines(tree: KnowledgeTree) -> Iterator[dict[str, Any]]:
    yield {"satunet_knowledge": TREE_VERSION, "sources": [asdict(s) for s in tree.sources]}
    for term in tree.terms.values():
        line = {k: v for k, v in asdict(term).items() if v}
        relations: dict[str, list[str]] = {}
        for relation in tree.relations_of(term.id):
            relations.setdefault(relation.kind, []).append(relation.tail)
        yield {**line, "relations": relations} if relations else line


def _read_lines(path: Path) -> Iterator[tuple[int, Any]]:
    number = 0
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
            for number, raw in enumerate(file, start=1):
                if raw.strip():
                    yield number, parse_json(raw, f"{path}, line {number}")
    except ValueError as error:
        raise KnowledgeError(str(error)) from error
    except (OSError, EOFError, zlib.error) as error:
        raise KnowledgeError(f"{path}: cannot be read as a knowledge tree ({error})") from error


def _read_header(line: dict[str, Any], where: str) -> list[Source]:
    version = line.get("satunet_knowledge")
    if version != TREE_VERSION:
        raise KnowledgeError(f"{where}: knowledge tree version {version!r}; this satunet reads version {TREE_VERSION}")
    try:
        return [Source(**s) for s in line["sources"]]
    except (KeyError, TypeError) as error:
        raise KnowledgeError(f"{where}: not the header of a knowledge tree ({error})") from error


def default_tree_path() -> Path:
    """Default path: ``satunet knowledge build`` writes the tree there, and other commands read it."""
    return cache_dir() / "knowledge.jsonl.gz"


def default_tree() -> KnowledgeTree | None:
    """The tree at the default path; ``None`` if there is none or, with a warning, if it cannot be read."""
    path = default_tree_path()
    return _load(path, path.stat().st_mtime_ns) if path.is_file() else None


@lru_cache(maxsize=2)
def _load(path: Path, changed: int) -> KnowledgeTree | None:
    try:
        return load_tree(path)
    except KnowledgeError as error:
        logger.warning("%s; prompts are read without it", error)
        return None
