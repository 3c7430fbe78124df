"""Index of the class names of a label space, by the keys with which prompts are looked up."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property

from satunet.knowledge.names import load_names
from satunet.labels import ClassInfo, LabelSpace
from satunet.prompts.parsing import Clause, Key, clean_text, read_name, read_tokens
from satunet.prompts.spelling import common_words
from satunet.prompts.vocabulary import load_vocabulary

TYPES_LEFT_OUT = ("gland", "gyrus", "nucleus")
"""Words for types of structures that people often omit: "left parotid", "fusiform", "accumbens"."""


class ClassIndex:
    """Names and synonyms of the classes of a label space.

    A class's own name takes precedence over a synonym of another class; a name shared by two classes finds neither.

    Args:
        space: Label space with the classes.
    """

    def __init__(self, space: LabelSpace) -> None:
        self.space = space
        self._twins = _twins((read_name(info.name).key, info.name) for info in space.classes)
        self._own = _unique((read_name(info.name).key, info.name) for info in space.classes)
        self._others = _unique((read_name(name).key, info.name) for info in space.classes for name in other_names(info))

    def find(self, key: Key) -> str | None:
        """The class with this side and these words; ``None`` if there is none, or more than one."""
        return self._own.get(key) or self._others.get(key)

    def find_clause(self, clause: Clause) -> str | None:
        """The class that a clause names, with or without the word for its type ("scapula bone", "parotid")."""
        found = self.find(clause.key)
        if found is not None or clause.side in ("both", "mixed"):
            return found
        side, words = clause.key
        types = load_vocabulary().types
        for kind in types:
            if kind in words and len(words) > 1:
                name = self.find((side, words - {kind}))
                if name is not None and self._base(name) in types[kind]:
                    return name
        if len(words) == 1 and words & common_words():
            return None  # "straight" and "angular" have meanings other than gyri
        more = {self._own.get((side, words | {kind})) for kind in TYPES_LEFT_OUT} - {None}
        return more.pop() if len(more) == 1 else None

    def find_twin(self, clause: Clause, tokens: Sequence[str]) -> str | None:
        """The class spelled exactly so, among classes whose words mean the same ("lung tumor", "lung cancer")."""
        lemmas = {t.removesuffix("s") for t in tokens}
        spelled = [
            n for n in self._twins.get(clause.key, ()) if {t.removesuffix("s") for t in read_tokens(n)} <= lemmas
        ]
        return spelled[0] if len(spelled) == 1 else None

    def sides(self, clause: Clause) -> tuple[str, ...]:
        """The left and the right class with a clause's words; empty unless both exist."""
        words = clause.words
        found = [self.find_clause(Clause(side=side, words=words)) for side in ("left", "right")]
        pair = tuple(name for name in found if name is not None)
        return pair if len(set(pair)) == 2 else ()

    @cached_property
    def words(self) -> frozenset[str]:
        """Lemmas of all words in names and synonyms of classes."""
        return frozenset(word for table in (self._own, self._others) for _, words in table for word in words)

    def has_word(self, word: str) -> bool:
        """Whether a word occurs, in any form, in the name of a class."""
        return load_vocabulary().lemma(word) in self.words

    @cached_property
    def spellings(self) -> frozenset[str]:
        """All words of names and synonyms, in their original spelling."""
        names = (name for info in self.space.classes for name in (info.name, *other_names(info)))
        return frozenset(word for name in names for word in clean_text(name).split())

    def _base(self, name: str) -> str:
        return self.space.info(name).base


def other_names(info: ClassInfo) -> Iterator[str]:
    """Synonyms of a class: our own, those of the structure without its side, and the names in the datasets."""
    synonyms = load_names().synonyms
    yield from synonyms.get(info.name, ())
    if info.side is not None:
        for name in (info.base, *synonyms.get(info.base, ())):
            yield f"{info.side} {name}"
    yield from info.source_names


def _twins(pairs: Iterator[tuple[Key, str]]) -> dict[Key, list[str]]:
    found: dict[Key, list[str]] = {}
    for key, name in pairs:
        found.setdefault(key, []).append(name)
    return {key: names for key, names in found.items() if len(names) > 1}


def _unique(pairs: Iterator[tuple[Key, str]]) -> dict[Key, str]:
    found: dict[Key, set[str]] = {}
    for key, name in pairs:
        if key[1]:
            found.setdefault(key, set()).add(name)
    return {key: next(iter(names)) for key, names in found.items() if len(names) == 1}
