"""Links from the classes of a label space to the terms of other sources, each made by a readable rule.

The rules are tried in this order, and the first that finds a term decides:

==========  ===========================================================  ============================================
rule        meaning                                                      example
==========  ===========================================================  ============================================
name        the class has the term's preferred name                      spleen → spleen
synonym     the class has one of the term's synonyms as its name         pancreas tumor → pancreatic neoplasm
also called one of our own names for the class is a name of the term     bronchie → bronchus
word order  the names have the same words in another order               lung lower lobe → lower lobe of lung
side        the class is the left or right one of the term               left rib → rib
level       the class is the term's level of the spine, or a level in    lumbar vertebrae 3 (l3) → lumbar vertebra 3
            the term's series
lesion      the class is a lesion of the term                            lung nodule → lung
rest        the class is the term without a part                         brainstem excluding substantia nigra → brainstem
piece       the class is a piece of the term, which is named by the      left insula anterior long gyrus → insula
            longest possible run of words in the class name
==========  ===========================================================  ============================================

The first four rules, and ``level`` if that very level is a term, state that class and term are the same thing
(``same_as``); the others state how the class relates to the term.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from satunet.jobs.files import write_text
from satunet.knowledge.build import Imported
from satunet.knowledge.concepts import split_side
from satunet.knowledge.names import load_names
from satunet.knowledge.sources.labelspace import PREFIX, SOURCE
from satunet.knowledge.tree import SAME, KnowledgeTree, Term, name_key
from satunet.labels.names import normalize_name

_LESIONS = re.compile(
    r"\b(?:tumor|tumour|cyst|cancer|lesion|nodule|edema|scar|effusion|infection|embolism|hemorrhage|stroke|core"
    r"|hyperintensities|metastasis|abscess|infarct)\b"
)
_LEVEL = re.compile(r"^(cervical|thoracic|lumbar|sacral) vertebrae (\d+)$")
_TOO_GENERAL = {
    "lobe", "part", "segment", "cortex", "gyrus", "region", "organ", "tissue", "wall", "horn", "canal", "node", "head",
    "zone", "core", "area", "external", "internal", "middle", "body", "anatomical entity", "tube", "cavity", "nerve",
    "artery", "vein", "vessel", "gland", "muscle organ", "left", "right", "vestibule", "side",
}  # fmt: skip
_FILLERS = {"of", "the", "and", "in"}


@dataclass(frozen=True, kw_only=True)
class Link:
    """The term of another source that a class is linked to.

    Attributes:
        class_name: Name of the class.
        term: Id of the term; ``None`` if no rule found one.
        kind: Relation from the class to the term.
        rule: Name of the rule.
        others: Ids of further terms that the rule found, for review.
    """

    class_name: str
    term: str | None = None
    kind: str = ""
    rule: str = ""
    others: tuple[str, ...] = ()


Find = Callable[[str], tuple[Term, ...]]


def link_classes(tree: KnowledgeTree) -> list[Link]:
    """Links from all classes in a tree to its terms from other sources, sorted by class."""
    index: dict[str, list[Term]] = {}
    bags: dict[frozenset[str], list[Term]] = {}
    for term in tree.terms.values():
        if term.source == SOURCE:
            continue
        for name in term.names:
            index.setdefault(name_key(name), []).append(term)
            bags.setdefault(_bag(name), []).append(term)
    classes = [t for t in tree.terms.values() if t.id.startswith(PREFIX)]
    return [_link(term, index, bags) for term in sorted(classes, key=lambda t: t.name)]


def add_links(imports: list[Imported], links: list[Link]) -> None:
    """Add links as relations to the import that holds the classes."""
    classes = next(i for i in imports if any(s.name == SOURCE for s in i.sources))
    for link in links:
        if link.term is not None:
            classes.relate(f"{PREFIX}{link.class_name}", link.kind, link.term, f"link by {link.rule!r}")


def write_review(links: list[Link], tree: KnowledgeTree, path: Path) -> None:
    """Write a table for review with one line per link, classes without a term first."""
    rows = ["class\tterm\tname of the term\trelation\trule\tother candidates"]
    for link in sorted(links, key=lambda k: (k.term is not None, k.kind == SAME, k.class_name)):
        name = tree.terms[link.term].name if link.term else ""
        others = "; ".join(f"{i} {tree.terms[i].name}" for i in link.others)
        rows.append("\t".join((link.class_name, link.term or "", name, link.kind, link.rule, others)))
    write_text(path, "\n".join(rows) + "\n")


def _link(term: Term, index: dict[str, list[Term]], bags: dict[frozenset[str], list[Term]]) -> Link:
    lesion = bool(_LESIONS.search(term.name))
    for rule, kind, found in _candidates(term, index, bags):
        if found:
            best = sorted(dict.fromkeys(found, None), key=lambda t: (t.source == "UBERON") == lesion)
            return Link(
                class_name=term.name, term=best[0].id, kind=kind, rule=rule, others=tuple(t.id for t in best[1:4])
            )
    return Link(class_name=term.name)


def _candidates(
    term: Term, index: dict[str, list[Term]], bags: dict[frozenset[str], list[Term]]
) -> Iterator[tuple[str, str, list[Term]]]:
    """(rule, relation, terms) of every rule in order."""
    ours = load_names().synonyms

    def named(name: str) -> list[Term]:
        """Terms with that name, those with it as their preferred name first."""
        found = index.get(name_key(name), [])
        return sorted(found, key=lambda t: name_key(t.name) != name_key(name))

    def by_name(name: str) -> list[Term]:
        return named(name) or [t for n in (*ours.get(name, ()), normalize_name(name).canonical) for t in named(n)]

    def all_ways(name: str) -> list[Term]:
        return by_name(name) or bags.get(_bag(name), [])

    name = term.name
    exact = named(name)
    yield "name", SAME, [t for t in exact if name_key(t.name) == name_key(name)]
    yield "synonym", SAME, exact
    yield "also called", SAME, [t for n in ours.get(name, ()) for t in named(n)]
    side, base = split_side(name)
    if side is None:
        base = name
    else:
        # The sided name before the unsided one: "left caudate nucleus" is a term of its own.
        sided = [t for n in ours.get(base, ()) for t in named(f"{side} {n}")]
        yield "also called", SAME, sided
    yield "word order", SAME, bags.get(_bag(name), [])
    if side:
        yield "side", f"{side}_variant_of", all_ways(base)
    yield "level", SAME, _level(base, named)
    yield "level", "variant_of", _series(base, named)
    if _LESIONS.search(name):
        organ = " ".join(_LESIONS.sub("", base).split())
        yield "lesion", "is_a", [t for t in all_ways(f"{organ} neoplasm") if "tumor" in name]
        yield "lesion", "lesion_of", all_ways(organ)
        yield "lesion", "lesion_of", _longest_run(organ, by_name)
    if " excluding " in base:
        yield "rest", "variant_of", all_ways(base.split(" excluding ")[0])
    yield "piece", "variant_of", _longest_run(base, by_name)


def _level(base: str, named: Callable[[str], list[Term]]) -> list[Term]:
    """Terms for exactly this level of the spine."""
    level = _LEVEL.match(re.sub(r" [(]?[ctls]\d+[)]?$", "", base))
    if not level:
        return []
    region, number = level.groups()
    special = {"cervical 1": ("atlas",), "cervical 2": ("axis",)}.get(f"{region} {number}", ())
    if region == "cervical":
        special = (*special, f"vertebral bone {number}")
    ways = (f"{region} vertebra {number}", f"mammalian {region} vertebra {number}", *special)
    return [t for way in ways for t in named(way)]


def _series(base: str, named: Callable[[str], list[Term]]) -> list[Term]:
    """Terms for the series that a level belongs to."""
    level = _LEVEL.match(re.sub(r" [(]?[ctls]\d+[)]?$", "", base))
    if level:
        return named(f"{level[1]} vertebra")
    if base.startswith("intervertebral disc between "):
        region = re.search(r"between (\w+) vertebrae", base)
        return named(f"intervertebral disk of {region[1]} vertebra") if region else named("intervertebral disk")
    return []


def _longest_run(name: str, find: Callable[[str], list[Term]]) -> list[Term]:
    """Terms named by the longest run of words in a name, if the run is specific enough."""
    words = [w for w in name_key(name).split() if w not in ("left", "right")]
    for length in range(len(words) - 1, 0, -1):
        for start in range(len(words) - length, -1, -1):
            run = " ".join(words[start : start + length])
            if run in _TOO_GENERAL or len(run) < 4:
                continue
            found = find(run)
            if found:
                return found
    return []


def _bag(name: str) -> frozenset[str]:
    return frozenset(w for w in name_key(name).split() if w not in _FILLERS)
