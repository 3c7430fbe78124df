"""Assembling imports into a checked tree."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from satunet.errors import KnowledgeError
from satunet.knowledge.tree import HIERARCHY, KnowledgeTree, Relation, Source, Term

logger = logging.getLogger(__name__)

_SHOWN = 5


@dataclass
class Imported:
    """Terms and relations read by one importer, each with its place (file and line) for messages.

    Attributes:
        sources: Sources of the terms.
        terms: Terms with their places in the files.
        relations: Relations with their places in the files.
        notes: Notes on what was left out, one sentence each.
    """

    sources: list[Source]
    terms: list[tuple[Term, str]] = field(default_factory=list)
    relations: list[tuple[Relation, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, term: Term, where: str) -> None:
        """Add a term.

        Raises:
            KnowledgeError: The term has no id or no name.
        """
        texts = (term.id, term.name, term.source, term.definition, *term.synonyms)
        if not all(isinstance(text, str) for text in texts):
            raise KnowledgeError(f"{where}: id, name, synonyms and definition must be texts, got {texts[:4]}")
        if not term.id.strip() or not term.name.strip():
            raise KnowledgeError(f"{where}: a term needs an id and a name, got {term.id!r}, {term.name!r}")
        self.terms.append((term, where))

    def relate(self, head: str, kind: str, tail: str, where: str) -> None:
        """Add a relation."""
        self.relations.append((Relation(head=head, kind=kind, tail=tail), where))


@dataclass(frozen=True, kw_only=True, eq=False)
class Assembled:
    """A tree, and one note per part that was left out because of ``lenient``."""

    tree: KnowledgeTree
    dropped: tuple[str, ...] = ()


def assemble(imports: Iterable[Imported], *, lenient: bool = False) -> Assembled:
    """Merge imports into one tree.

    Args:
        imports: Imports, in the order that they will have in the tree.
        lenient: Whether to leave out contradictory parts with a note instead of raising.

    Raises:
        KnowledgeError: Two terms have the same id, a relation leads to a missing term, or a term is its own ancestor;
            the message names the places.
    """
    imports = list(imports)
    dropped: list[str] = []

    def fault(message: str) -> None:
        if not lenient:
            raise KnowledgeError(message)
        dropped.append(message)

    terms: dict[str, Term] = {}
    places: dict[str, str] = {}
    for term, where in (pair for imported in imports for pair in imported.terms):
        if term.id in terms:
            fault(f"{where}: duplicate id {term.id!r}, first in {places[term.id]}")
        else:
            terms[term.id] = term
            places[term.id] = where
    relations: dict[Relation, str] = {}
    dangling: list[str] = []
    for relation, where in (pair for imported in imports for pair in imported.relations):
        missing = [i for i in (relation.head, relation.tail) if i not in terms]
        if missing:
            dangling.append(f"{where}: {relation.head} {relation.kind} {relation.tail}: no term {missing[0]!r}")
        elif relation.head == relation.tail and relation.kind in HIERARCHY:
            fault(f"{where}: {relation.head} is {relation.kind} itself")
        else:
            relations.setdefault(relation, where)
    if dangling:
        more = f" (and {len(dangling) - _SHOWN} more)" if len(dangling) > _SHOWN else ""
        fault("dangling relations: " + "; ".join(dangling[:_SHOWN]) + more)
    for circle in _break_circles(terms, relations):
        fault("a term is its own ancestor: " + "; ".join(circle))
    for message in dropped:
        logger.warning("left out: %s", message)
    sources = tuple(dict.fromkeys(s for imported in imports for s in imported.sources))
    unknown = sorted({t.source for t in terms.values()} - {s.name for s in sources})
    if unknown:
        raise KnowledgeError(f"terms of sources that the tree does not list: {unknown}")
    tree = KnowledgeTree(sources=sources, terms=terms, relations=tuple(relations))
    return Assembled(tree=tree, dropped=tuple(dropped))


def _break_circles(terms: dict[str, Term], relations: dict[Relation, str]) -> list[list[str]]:
    """Cycles of hierarchical relations, in words; the relation that closes a cycle is removed from ``relations``."""
    up: dict[str, list[Relation]] = {}
    for relation in relations:
        if relation.kind in HIERARCHY:
            up.setdefault(relation.head, []).append(relation)
    circles = []
    done: set[str] = set()
    for start in terms:
        if start in done or start not in up:
            continue
        path: list[Relation] = []
        on_path = {start: 0}
        stack = [iter(up[start])]
        while stack:
            step = next(stack[-1], None)
            if step is None:
                stack.pop()
                ended = path.pop().tail if path else start
                on_path.pop(ended, None)
                done.add(ended)
            elif step.tail in on_path:
                circle = [*path[on_path[step.tail] :], step]
                circles.append([f"{r.head} {r.kind} {r.tail} ({relations[r]})" for r in circle])
                del relations[step]
            elif step.tail not in done:
                path.append(step)
                on_path[step.tail] = len(path)
                stack.append(iter(up.get(step.tail, ())))
    return circles


def summarise(tree: KnowledgeTree) -> Sequence[tuple[str, int]]:
    """Kinds of relations with their counts, the most frequent first."""
    counts: dict[str, int] = {}
    for relation in tree.relations:
        counts[relation.kind] = counts.get(relation.kind, 0) + 1
    return sorted(counts.items(), key=lambda item: -item[1])
