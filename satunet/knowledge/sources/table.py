"""Terms from a plain table: CSV, TSV, JSON or JSON lines.

CSV and TSV have a header. The columns are ``id`` (the name if missing), ``name``, ``synonyms`` (separated by ``|``),
``definition``, ``ids`` (identifiers in other sources, separated by ``|``), and one column per kind of relation
(``is_a``, ``part_of``, …) with ids or names separated by ``|``. A file with the columns ``head``, ``relation`` and
``tail`` is a table of triples. JSON is a list of objects with the same keys, and with lists in place of separated
values.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from satunet.errors import KnowledgeError
from satunet.jobs.files import parse_json
from satunet.knowledge.build import Imported
from satunet.knowledge.tree import Source, Term

_TERM_KEYS = ("id", "name", "synonyms", "definition", "ids")
_TRIPLE = ("head", "relation", "tail")


def import_table(path: Path, *, name: str | None = None, licence: str = "as its owner says") -> Imported:
    """Read a table.

    Args:
        path: File to read, ``.csv``, ``.tsv``, ``.json`` or ``.jsonl``.
        name: Name of the source; the file's name without its ending if not given.
        licence: Licence of the terms.

    Raises:
        KnowledgeError: The file is of another kind, is not UTF-8, or has a row that is neither a term nor a triple; the
            message names the line.
    """
    source = name or path.stem
    imported = Imported(sources=[Source(name=source, version=path.name, licence=licence)])
    pending: list[tuple[str, str, str, str]] = []
    for row, where in _rows(path):
        if set(_TRIPLE) <= row.keys():
            pending.append((*(str(row[k] or "").strip() for k in _TRIPLE), where))  # type: ignore[arg-type]
            if not all(pending[-1]):
                raise KnowledgeError(f"{where}: a triple needs head, relation and tail, got {pending[-1][:3]}")
            continue
        if not str(row.get("name") or "").strip():
            raise KnowledgeError(f"{where}: no name; columns are {', '.join(map(str, row))}")
        key = str(row.get("id") or row["name"]).strip()
        term = Term(
            id=key,
            name=str(row["name"]).strip(),
            source=source,
            synonyms=_several(row.get("synonyms")),
            definition=str(row.get("definition") or "").strip(),
            ids=_several(row.get("ids")),
        )
        imported.add(term, where)
        pending += [(key, kind, t, where) for kind, v in row.items() if kind not in _TERM_KEYS for t in _several(v)]
    # A relation may give a name instead of an id, even that of a term further down in the file.
    by_name = {term.name: term.id for term, _ in imported.terms}
    for head, kind, tail, where in pending:
        imported.relate(by_name.get(head, head), kind, by_name.get(tail, tail), where)
    return imported


def _several(value: Any) -> tuple[str, ...]:
    values = value.split("|") if isinstance(value, str) else value or ()
    if not isinstance(values, (list, tuple)):
        values = [values]
    return tuple(dict.fromkeys(str(v).strip() for v in values if str(v).strip()))


def _rows(path: Path) -> Iterator[tuple[dict[str, Any], str]]:
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise KnowledgeError(f"{path}: cannot be read ({error})") from error
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise KnowledgeError(f"{path}, line {line}: not UTF-8 ({error.reason}); save the file as UTF-8") from error
    kind = path.suffix.lower()
    if kind in (".csv", ".tsv"):
        yield from _csv_rows(path, text, "\t" if kind == ".tsv" else ",")
    elif kind == ".jsonl":
        for number, row in enumerate(text.splitlines(), start=1):
            if row.strip():
                yield _object(_json(row, f"{path}, line {number}"), f"{path}, line {number}")
    elif kind == ".json":
        content = _json(text, str(path))
        if not isinstance(content, list):
            raise KnowledgeError(f"{path}: expected a list of objects, got a {type(content).__name__}")
        for number, entry in enumerate(content, start=1):
            yield _object(entry, f"{path}, entry {number}")
    else:
        raise KnowledgeError(f"{path}: a table must be .csv, .tsv, .json or .jsonl, got {kind or 'no ending'!r}")


def _csv_rows(path: Path, text: str, delimiter: str) -> Iterator[tuple[dict[str, Any], str]]:
    reader = csv.DictReader(io.StringIO(text), delimiter=delimiter, strict=True)
    try:
        columns = reader.fieldnames or []
        if "name" not in columns and not set(_TRIPLE) <= set(columns):
            raise KnowledgeError(
                f"{path}, line 1: needs the column 'name', or all of {', '.join(_TRIPLE)}; the columns are "
                f"{', '.join(columns) or 'none'}"
            )
        for row in reader:
            where = f"{path}, line {reader.line_num}"
            if None in row or None in row.values():
                raise KnowledgeError(f"{where}: the row does not have the {len(columns)} columns of the header")
            yield dict(row), where
    except csv.Error as error:
        raise KnowledgeError(f"{path}, line {reader.line_num}: {error}") from error


def _json(text: str, where: str) -> Any:
    try:
        return parse_json(text, where)
    except ValueError as error:
        raise KnowledgeError(str(error)) from error


def _object(entry: Any, where: str) -> tuple[dict[str, Any], str]:
    if not isinstance(entry, dict):
        raise KnowledgeError(f"{where}: expected an object, got a {type(entry).__name__}")
    return entry, where
