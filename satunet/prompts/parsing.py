"""Parsing of prompts into side, level, words that name a structure, and words of other kinds.

Prompts and class names go through the same function, so that they match regardless of the order and form of their
words. They are compared by a key: a side and a set of words.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from satunet.prompts.levels import mark_levels, region_of
from satunet.prompts.vocabulary import load_vocabulary

Key = tuple[str | None, frozenset[str]]

SEPARATORS = (",", ";", "/")
_LESIONS = {"tumor", "lesion", "metastasis", "cyst", "nodule", "edema", "hemorrhage", "infarct", "glioma"}
_LETTER_SIDES = {"l": "left", "r": "right"}
_ENDS_ALONE = {"li", "re", "lh", "rh"}  # German "re" and "li", and "lh" and "rh", mean a side only at either end
_VERTEBRA_WORDS = {"vertebra", "spine"}
_DISC_WORDS = {"intervertebral", "disc", "between", "ivd", "interspace", "space", "and", "vertebra"}
_LATIN_LETTERS = {"a": "arteria", "v": "vena", "m": "musculus", "n": "nervus", "gl": "glandula"}
_LATIN = re.compile(r"^\s*(a|v|m|n|gl)\.\s*(?=[a-z]{3})", re.IGNORECASE)
_SIZE = re.compile(r"(?<![\w:])\d+(?:[.,]\d+)?(?: ?(?:x|by|×) ?\d+(?:[.,]\d+)?)* ?(?:mm|cm|ml|cc)\b")
_BOTH = re.compile(
    r"\b(?:left|lt|l) ?(?:and|&|\+|/|,) ?(?:right|rt|r)\b|\b(?:right|rt|r) ?(?:and|&|\+|/|,) ?(?:left|lt|l)\b"
)


@dataclass(frozen=True, kw_only=True)
class Clause:
    """One structure that a prompt asks for.

    Attributes:
        side: ``"left"``, ``"right"``, ``"both"`` or ``None``; ``"mixed"`` if left and right contradict each other.
        words: Lemmas in order, without sides and fillers.
        kinds: Kind of word → words of that kind, for words that do not name a structure.
        sized: Whether a size is given.
        last_is_side: Whether the last word is the side.
        plural: Whether a word is in the plural.
        joined_by_of: Whether there is an "of" or "in" between words, so that the next part of a list may belong to it.
    """

    side: str | None
    words: tuple[str, ...]
    kinds: dict[str, tuple[str, ...]] = field(default_factory=dict)
    sized: bool = False
    last_is_side: bool = False
    plural: bool = False
    joined_by_of: bool = False

    @property
    def key(self) -> Key:
        """Key by which clauses are compared."""
        return self.side, frozenset(self.words)


def read_tokens(text: str) -> tuple[str, ...]:
    """Words and separators of a text, in lower case, without accents, with levels marked."""
    return mark_tokens(clean_text(text))


@lru_cache(maxsize=65536)
def clean_text(text: str) -> str:
    """A text in lower case, without accents, brackets and hyphens; words keep their spelling."""
    plain = unicodedata.normalize("NFKD", text.replace("ß", "ss"))
    plain = "".join(c for c in plain if not unicodedata.combining(c))
    plain = re.sub(r"[‐-―−]", "-", plain)
    plain = re.sub(r"(?<=[a-z])(?=[A-Z][a-z])", " ", plain)
    plain = re.sub(r"(?<=[a-z]{3})(?=[A-Z]\b)", " ", plain)
    plain = _LATIN.sub(lambda m: f"{_LATIN_LETTERS[m[1].lower()]} ", plain)
    plain = plain.lower().replace("'s ", " ").replace("’s ", " ").replace("_", " ")
    plain = re.sub(r"-(?=\()|(?<=\))-", " ", plain)
    # Hyphens join words ("of-the") or levels ("l4-l5", "l-4"); only those between words are removed.
    plain = re.sub(
        r"(?<=[a-z]{2})-(?=[a-z])|(?<=[a-z])-(?=[a-z]{2})|(?<=[a-z]{3})-(?=\d)|(?<=\d)-(?=[a-z]{3})", " ", plain
    )
    plain = re.sub(r"\b(?:s/p|w/o|r/o|b/l|n/a)(?!\w)", lambda m: m[0].replace("/", "‰"), plain)
    plain = plain.replace("|", " , ").replace("&", " and ").replace("+", " and ")
    plain = re.sub(r"[^\w\s,;/.#‰-]", " ", plain).replace("#", " ")
    plain = re.sub(r"\.(?!\d)", " ", plain)
    plain = re.sub(r"\b(?:and|und|plus|as well as)\b", "and", plain)
    plain = _SIZE.sub(" size‰ ", plain)
    return " ".join(plain.split())


@lru_cache(maxsize=65536)
def mark_tokens(text: str) -> tuple[str, ...]:
    """Tokens of a cleaned text; a level is one token, and so is "left and right"."""
    plain = _BOTH.sub(" both ", text)
    plain = mark_levels(" ".join(plain.split()))
    plain = re.sub(r"(?<![\d:])([,;/])|([,;/])(?![\d:])", r" \1\2 ", plain)
    plain = re.sub(r"(?<!\w)-|-(?!\w)|(?<=[a-z])-(?=\w)|(?<=\w)-(?=[a-z])", " ", plain)
    plain = re.sub(r"\b(covid) ?(19)\b", r"\1 \2", plain)
    return tuple(plain.replace("‰", "/").split())


def read_clause(tokens: Sequence[str]) -> Clause:
    """Parse words without separators."""
    vocabulary = load_vocabulary()
    sized = "size/" in tokens
    words = [t for t in tokens if t not in SEPARATORS and t != "size/"]
    asked = _without_request(words)
    words, side, last = _take_side(asked)
    words = _joined(words)
    kinds = _kinds(words)
    lemmas = [vocabulary.lemma(w) for w in words]
    plural = any(w != lemma and w.endswith(("s", "i", "ae")) for w, lemma in zip(words, lemmas, strict=True))
    idle = vocabulary.fillers | (frozenset() if _LESIONS & set(lemmas) else vocabulary.whole)
    kept = [lemma for word, lemma in zip(words, lemmas, strict=True) if word not in idle] or lemmas
    return Clause(
        side=side,
        words=tuple(_without_levels_words(kept)),
        kinds=kinds,
        sized=sized,
        last_is_side=last,
        plural=plural,
        joined_by_of=bool({"of", "in"} & set(asked[1:])),
    )


@lru_cache(maxsize=65536)
def read_name(name: str) -> Clause:
    """Parse a name or synonym of a class."""
    return read_clause(read_tokens(name))


def split_clauses(tokens: Sequence[str], at: Iterable[str]) -> list[list[str]]:
    """Non-empty runs of tokens between separators."""
    found: list[list[str]] = [[]]
    separators = set(at)
    for token in tokens:
        if token in separators:
            found.append([])
        else:
            found[-1].append(token)
    return [part for part in found if part]


def _without_request(words: list[str]) -> list[str]:
    """Words without a leading request such as "please segment the"; in "segment of", the word is not a request."""
    fillers = load_vocabulary().fillers
    first = 0
    while first < len(words) - 1:
        verb = words[first] == "segment" and words[first + 1] not in ("of", "in")
        if not verb and words[first] not in fillers:
            break
        first += 1
    return words[first:]


def _take_side(words: list[str]) -> tuple[list[str], str | None, bool]:
    side_of = load_vocabulary().side_of
    ends = {0, len(words) - 1}
    found: dict[int, str] = {}
    for i, word in enumerate(words):
        numbered = any(w.startswith("rib:") for w in words)
        if word in _LETTER_SIDES:
            if len(words) > 1 and (i in ends or numbered):
                found[i] = _LETTER_SIDES[word]
        elif word in side_of and (word not in _ENDS_ALONE or (i in ends and len(words) > 1)):
            found[i] = side_of[word]
    sides = set(found.values())
    if not sides or len(found) == len(words):
        return words, None, False
    last = max(found) == len(words) - 1
    rest = [w for i, w in enumerate(words) if i not in found and w not in ("side", "sided", "sides")]
    if "side" in words or "sided" in words:
        rest = [w for w in rest if w != "hand"]
    return rest, sides.pop() if len(sides) == 1 else "mixed", last


def _joined(words: list[str]) -> list[str]:
    adjoining = load_vocabulary().adjoining
    found: list[str] = []
    for word in words:
        if found and f"{found[-1]} {word}" in adjoining:
            found[-1] = adjoining[f"{found[-1]} {word}"]
        else:
            found.append(word)
    return found


def _kinds(words: Sequence[str]) -> dict[str, tuple[str, ...]]:
    vocabulary = load_vocabulary()
    found: dict[str, list[str]] = {}
    for phrase, kind in vocabulary.phrases:
        if any(tuple(words[i : i + len(phrase)]) == phrase for i in range(len(words))):
            found.setdefault(kind, []).append(" ".join(phrase))
    for word in words:
        known = vocabulary.kind(word)
        if known is not None:
            found.setdefault(known, []).append(word)
    return {kind: tuple(dict.fromkeys(values)) for kind, values in found.items()}


def _without_levels_words(words: list[str]) -> list[str]:
    """Words without those implied by a level: "lumbar vertebra" beside L3, "intervertebral disc" beside L4/L5."""
    levels = [
        w.split(":")[-1] for w in words if w.startswith(("vertebra:", "range:")) and not w.startswith("range:rib")
    ]
    if levels:
        said = _VERTEBRA_WORDS - {"spine"} | {region_of(level) for level in levels}
        return [w for w in words if w not in said]
    if any(w.startswith("disc:") for w in words):
        return [w for w in words if w not in _DISC_WORDS]
    if any(w.startswith("segment:") for w in words):
        return [w for w in words if w not in ("couinaud",)]
    return words
