"""Concepts: the tree as training and retrieval see it, with some concepts held out of training.

Terms that mean the same thing (``same_as``, or the same name in two sources) are one concept. The split is by the name
without its side, so that "left kidney" is not trained if "right kidney" is held out. The names of held-out concepts are
removed from all trained ones.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field

from satunet.knowledge.tree import HIERARCHY, SAME, KnowledgeTree, name_key

SAYINGS = {
    "is_a": "is a kind of", "part_of": "is part of", "within": "is part of", "lesion_of": "is a lesion of",
    "left_variant_of": "is the left one of", "right_variant_of": "is the right one of",
    "variant_of": "is a piece of", "supplied_by": "is supplied by", "next_to": "is next to",
    "above": "is above", "below": "is below",
}  # fmt: skip
"""Kind of relation → words that follow a name; other kinds are written with spaces for underscores."""


@dataclass(kw_only=True)
class Concept:
    """One structure with all its names.

    Attributes:
        name: Preferred name.
        names: All names, the preferred one first.
        definitions: Definitions from all sources.
        relations: Kind of relation → positions of the concepts that it leads to.
        near: Positions of concepts that are easily confused with it, the other side and neighbouring levels first.
        base: Name without its side.
        side: ``"left"``, ``"right"`` or ``None``.
        held_out: Whether it is held out of training.
    """

    name: str
    names: tuple[str, ...]
    definitions: tuple[str, ...]
    relations: dict[str, tuple[int, ...]] = field(default_factory=dict)
    near: tuple[int, ...] = ()
    base: str
    side: str | None
    held_out: bool


def relation_text(name: str, kind: str) -> str:
    """Head and relation as a text that the tail completes: "hippocampus is part of"."""
    return f"{name} {SAYINGS.get(kind, kind.replace('_', ' '))}"


def read_concepts(tree: KnowledgeTree, *, held_out: float = 0.1, seed: int = 0) -> list[Concept]:
    """Concepts of a tree.

    Args:
        tree: The tree.
        held_out: Share of base names to hold out of training, 0 to 1.
        seed: Seed of the split. Whether a name is held out depends only on the seed and the name.
    """
    groups = _same_things(tree)
    position = {term_id: i for i, group in enumerate(groups) for term_id in group}
    concepts = []
    for group in groups:
        terms = [tree.terms[i] for i in group]
        names = tuple({name_key(n): n for t in reversed(terms) for n in reversed(t.names)}.values())[::-1]
        side, base = split_side(terms[0].name)
        concepts.append(
            Concept(
                name=terms[0].name,
                names=tuple(dict.fromkeys((terms[0].name, *(n for n in names if n != terms[0].name)))),
                definitions=tuple(dict.fromkeys(t.definition for t in terms if t.definition)),
                base=base,
                side=side,
                held_out=_is_held_out(base, held_out, seed),
            )
        )
    for i, group in enumerate(groups):
        found: dict[str, dict[int, None]] = {}
        for relation in (r for term_id in group for r in tree.relations_of(term_id)):
            j = position[relation.tail]
            if relation.kind != SAME and j != i:
                found.setdefault(relation.kind, {})[j] = None
        concepts[i].relations = {kind: tuple(js) for kind, js in found.items()}
        near = dict.fromkeys(position[s] for term_id in group for s in _close_siblings(tree, term_id))
        concepts[i].near = tuple(j for j in near if j != i)
    _find_other_sides(concepts)
    _keep_names_apart(concepts)
    return concepts


def wholes_of(concept: Concept) -> tuple[int, ...]:
    """Positions of the concepts that a concept is part of."""
    return tuple(dict.fromkeys(j for kind in ("part_of", "within") for j in concept.relations.get(kind, ())))


def parents_of(concept: Concept) -> tuple[int, ...]:
    """Positions of the concepts that a concept is a kind of, is part of, or belongs to."""
    return tuple(dict.fromkeys(j for kind in HIERARCHY for j in concept.relations.get(kind, ())))


def split_side(name: str) -> tuple[str | None, str]:
    """Side, and name without it: "wall of left ureter" → ("left", "wall of ureter"); no side if both are named."""
    words = name_key(name).split()
    sides = {w for w in words if w in ("left", "right")}
    if len(sides) != 1 or len(words) == 1:
        return None, " ".join(words)
    return sides.pop(), " ".join(w for w in words if w not in ("left", "right"))


def _close_siblings(tree: KnowledgeTree, term_id: str, most: int = 16) -> list[str]:
    """The other side and neighbouring levels, then siblings, those under the most specific parent first."""
    found = dict.fromkeys(tree.tails(term_id, ("other_side", "above", "below", "next_to")))
    families = [tree.heads(parent, HIERARCHY) for parent in tree.tails(term_id, HIERARCHY)]
    for family in sorted(families, key=len):
        at = family.index(term_id)
        found |= dict.fromkeys(family[max(0, at - most // 2) : at + most // 2 + 1])
    return [i for i in found if i != term_id]


def _same_things(tree: KnowledgeTree) -> list[list[str]]:
    leader: dict[str, str] = {i: i for i in tree.terms}

    def root(i: str) -> str:
        while leader[i] != i:
            leader[i] = leader[leader[i]]
            i = leader[i]
        return i

    order = {i: n for n, i in enumerate(tree.terms)}
    named: dict[str, str] = {}
    pairs = [(r.head, r.tail) for r in tree.relations if r.kind == SAME]
    pairs += [(named.setdefault(name_key(t.name), t.id), t.id) for t in tree.terms.values()]
    for a, b in pairs:
        first, second = sorted((root(a), root(b)), key=order.__getitem__)
        leader[second] = first
    groups: dict[str, list[str]] = {}
    for i in tree.terms:
        groups.setdefault(root(i), []).append(i)
    return list(groups.values())


def _is_held_out(base: str, share: float, seed: int) -> bool:
    digest = hashlib.sha256(f"{seed}:{base}".encode()).digest()
    return int.from_bytes(digest[:8], "big") < share * 2**64


def _find_other_sides(concepts: list[Concept]) -> None:
    sided = {(c.base, c.side): i for i, c in enumerate(concepts) if c.side}
    for concept in concepts:
        if concept.side:
            other = sided.get((concept.base, "right" if concept.side == "left" else "left"))
            if other is not None:
                concept.near = tuple(dict.fromkeys((other, *concept.near)))


def _keep_names_apart(concepts: Iterable[Concept]) -> None:
    """Remove the names of held-out concepts from the trained ones."""
    held = {name_key(n) for c in concepts if c.held_out for n in c.names}
    for concept in concepts:
        if not concept.held_out:
            concept.names = tuple(n for n in concept.names if name_key(n) not in held)
            if not concept.names:
                concept.held_out, concept.names = True, (concept.name,)
