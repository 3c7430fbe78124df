"""Findings in a tree that are not errors, but deserve a review."""

from __future__ import annotations

from dataclasses import dataclass

from satunet.knowledge.sources.labelspace import PREFIX, SOURCE
from satunet.knowledge.tree import HIERARCHY, INVERSES, SAME, KnowledgeTree, name_key


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One kind of finding, with examples."""

    what: str
    count: int
    examples: tuple[str, ...]


def check_tree(tree: KnowledgeTree, examples: int = 5) -> list[Finding]:
    """Find preferred names shared within a source, terms without relations or a definition, classes without a link,
    kinds of relations that queries ignore, and one-way relations between sides.

    Cycles, dangling relations and duplicate ids need no check here: a tree that contains them cannot be loaded.

    Args:
        tree: The tree.
        examples: Largest number of examples per finding.
    """
    shared: dict[tuple[str, str], list[str]] = {}
    for term in tree.terms.values():
        shared.setdefault((term.source, name_key(term.name)), []).append(term.id)
    ambiguous = [
        f"{' and '.join(ids[:3])} ({source}: {name})" for (source, name), ids in shared.items() if len(ids) > 1
    ]
    related = {r.head for r in tree.relations} | {r.tail for r in tree.relations}
    alone = [f"{t.id} {t.name}" for t in tree.terms.values() if t.id not in related]
    others = any(s.name != SOURCE for s in tree.sources)
    linked = {r.head for r in tree.relations if r.head.startswith(PREFIX) and _other(tree, r.tail)}
    unlinked = [t.name for t in tree.terms.values() if t.id.startswith(PREFIX) and t.id not in linked and others]
    unknown = sorted(
        {r.kind for r in tree.relations} - set(HIERARCHY) - set(INVERSES) - set(INVERSES.values()) - {SAME}
    )
    pairs = {(r.head, r.tail) for r in tree.relations if r.kind == "other_side"}
    one_way = [f"{a} → {b}" for a, b in sorted(pairs) if (b, a) not in pairs]
    nameless = [t.id for t in tree.terms.values() if not t.definition]
    found = [
        ("preferred names shared by several terms of a source", ambiguous),
        ("terms without any relation", alone),
        ("classes without a link to another source", unlinked),
        ("kinds of relations that queries ignore", unknown),
        ("sides whose other side does not lead back", one_way),
        ("terms without a definition", nameless),
    ]
    return [Finding(what=w, count=len(f), examples=tuple(f[:examples])) for w, f in found if f]


def _other(tree: KnowledgeTree, term_id: str) -> bool:
    return tree.terms[term_id].source != SOURCE
