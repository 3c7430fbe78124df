"""The knowledge tree: terms, their names, and the relations between them.

Relations are directed. Those in :data:`HIERARCHY` lead upwards, from a thing to its superclass or to a whole that it
belongs to. :mod:`satunet.knowledge.file` reads and writes trees.
"""

from __future__ import annotations

import re
import unicodedata
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

from satunet.errors import KnowledgeError

HIERARCHY = ("is_a", "part_of", "within", "left_variant_of", "right_variant_of", "variant_of", "lesion_of")
"""``within``: a kind or a part, if the source does not say which. ``variant_of``: a level, piece or segment."""
WHOLES = ("part_of", "within")
SAME = "same_as"
INVERSES = {
    "is_a": "has_kind", "part_of": "has_part", "within": "contains", "left_variant_of": "has_left_variant",
    "right_variant_of": "has_right_variant", "variant_of": "has_variant", "lesion_of": "has_lesion",
    "other_side": "other_side", "next_to": "next_to", "above": "below", "below": "above", SAME: SAME,
    "supplied_by": "supplies", "supplies": "supplied_by",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Source:
    """A source of terms.

    Attributes:
        name: Short name, by which terms refer to it.
        version: Version of the source.
        licence: SPDX identifier, or the source's own words about its use.
        url: Address of a description.
    """

    name: str
    version: str
    licence: str
    url: str = ""


@dataclass(frozen=True, kw_only=True)
class Term:
    """One structure or one finding.

    Attributes:
        id: Identifier, unique in the tree.
        name: Preferred name.
        source: Name of its :class:`Source`.
        synonyms: Other names.
        definition: Definition in one or more sentences; empty if the source has none.
        ids: Identifiers in other sources.
        datasets: Datasets that annotate it, if it is a class of the label space.
        scans: Preprocessed scans that show it, if it is a class of the label space.
    """

    id: str
    name: str
    source: str
    synonyms: tuple[str, ...] = ()
    definition: str = ""
    ids: tuple[str, ...] = ()
    datasets: tuple[str, ...] = ()
    scans: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """Preferred name and synonyms, each once."""
        return tuple(dict.fromkeys((self.name, *self.synonyms)))


@dataclass(frozen=True, kw_only=True)
class Relation:
    """A directed relation between two terms: ``head`` is ``kind`` of ``tail``."""

    head: str
    kind: str
    tail: str


@dataclass(frozen=True, kw_only=True, eq=False)
class KnowledgeTree:
    """Terms and relations; build one with :func:`satunet.knowledge.build.assemble`, which checks them.

    Attributes:
        sources: Sources of the terms.
        terms: Id → term.
        relations: All relations, each once.
    """

    sources: tuple[Source, ...]
    terms: Mapping[str, Term]
    relations: tuple[Relation, ...] = field(default=())

    # ---- queries ------------------------------------------------------------------------------------------------

    def term(self, term_id: str) -> Term:
        """A term by id.

        Raises:
            KnowledgeError: No such term.
        """
        try:
            return self.terms[term_id]
        except KeyError:
            raise KnowledgeError(f"no term {term_id!r} among the {len(self.terms)} of the tree") from None

    def find(self, text: str) -> tuple[Term, ...]:
        """Terms with that id or name; matches by preferred name come before matches by synonym."""
        if text in self.terms:
            return (self.terms[text],)
        found = [self.terms[i] for i in self._by_name.get(name_key(text), ())]
        return tuple(sorted(found, key=lambda t: name_key(t.name) != name_key(text)))

    def tails(self, term_id: str, kinds: Iterable[str] | None = None) -> tuple[str, ...]:
        """Ids of the tails of a term's relations, of the given kinds or of any."""
        wanted = None if kinds is None else set(kinds)
        return tuple(r.tail for r in self.relations_of(term_id) if wanted is None or r.kind in wanted)

    def heads(self, term_id: str, kinds: Iterable[str] | None = None) -> tuple[str, ...]:
        """Ids of the heads of relations to a term, of the given kinds or of any."""
        wanted = None if kinds is None else set(kinds)
        return tuple(r.head for r in self._incoming.get(term_id, ()) if wanted is None or r.kind in wanted)

    def relations_of(self, term_id: str) -> tuple[Relation, ...]:
        """Relations whose head is the term."""
        return tuple(self._outgoing.get(term_id, ()))

    def ancestors(self, term_id: str, kinds: Iterable[str] = HIERARCHY) -> dict[str, int]:
        """Id of each ancestor of a term → number of relations in between, nearest first."""
        return self._reach(term_id, lambda i: self.tails(i, kinds))

    def same(self, term_id: str) -> tuple[str, ...]:
        """Ids of all terms that are the same thing, the term's own first."""
        found = [term_id]
        for current in found:
            near = (*self.tails(current, (SAME,)), *self.heads(current, (SAME,)))
            found += [i for i in dict.fromkeys(near) if i not in found]
        return tuple(found)

    def parts(self, term_id: str, kinds: Iterable[str] = WHOLES) -> dict[str, int]:
        """Id of each descendant of a term by these kinds → number of relations in between, nearest first."""
        return self._reach(term_id, lambda i: self.heads(i, kinds))

    def synonyms(self, term_id: str) -> tuple[str, ...]:
        """All names of a term and of the terms that are the same thing, its preferred name first."""
        self.term(term_id)
        return tuple(dict.fromkeys(n for i in self.same(term_id) for n in self.terms[i].names))

    def siblings(self, term_id: str) -> tuple[str, ...]:
        """Ids of terms with the same parent, other side and neighbouring levels first."""
        near = self.tails(term_id, ("other_side", "above", "below", "next_to"))
        parents = self.tails(term_id, HIERARCHY)
        under = (h for p in parents for h in self.heads(p, HIERARCHY))
        return tuple(i for i in dict.fromkeys((*near, *under)) if i != term_id)

    def nearest(self, text: str, count: int = 5) -> tuple[tuple[Term, float], ...]:
        """Terms whose names are most similar to a text in spelling, with a similarity from 0 to 1, best first."""
        from rapidfuzz import fuzz, process

        found = process.extract(name_key(text), list(self._by_name), scorer=fuzz.token_sort_ratio, limit=4 * count)
        best: dict[str, float] = {}
        for name, score, _ in found:
            for term_id in self._by_name[name]:
                best.setdefault(term_id, round(score / 100, 4))
        return tuple((self.terms[i], s) for i, s in list(best.items())[:count])

    def by_source(self) -> dict[str, int]:
        """Source → number of its terms."""
        counts = dict.fromkeys((s.name for s in self.sources), 0)
        for term in self.terms.values():
            counts[term.source] = counts.get(term.source, 0) + 1
        return counts

    def _reach(self, start: str, step: Callable[[str], Iterable[str]]) -> dict[str, int]:
        """Id that repeated steps lead to → number of steps; a move to a term that is the same thing does not count."""
        self.term(start)
        itself = self.same(start)
        found = dict.fromkeys(itself, 0)
        queue = deque(itself)
        while queue:
            current = queue.popleft()
            for other in (i for next_id in step(current) for i in self.same(next_id)):
                if other not in found:
                    found[other] = found[current] + 1
                    queue.append(other)
        return {i: n for i, n in found.items() if i not in itself}

    @cached_property
    def _by_name(self) -> dict[str, tuple[str, ...]]:
        found: dict[str, dict[str, None]] = {}
        for term in self.terms.values():
            for name in term.names:
                found.setdefault(name_key(name), {})[term.id] = None
        return {name: tuple(ids) for name, ids in found.items()}

    @cached_property
    def _outgoing(self) -> dict[str, list[Relation]]:
        found: dict[str, list[Relation]] = {}
        for relation in self.relations:
            found.setdefault(relation.head, []).append(relation)
        return found

    @cached_property
    def _incoming(self) -> dict[str, list[Relation]]:
        found: dict[str, list[Relation]] = {}
        for relation in self.relations:
            found.setdefault(relation.tail, []).append(relation)
        return found


def name_key(name: str) -> str:
    """Key of a name: the same for names that differ only in case, accents, hyphens, brackets or apostrophes."""
    plain = unicodedata.normalize("NFKD", name.lower())
    plain = "".join(c for c in plain if not unicodedata.combining(c)).replace("'s ", " ").replace("’s ", " ")
    return " ".join(re.sub(r"[\W_]+", " ", plain).split())
