"""Misspelled words of a prompt, read as words that are known.

A word is corrected if it is no word itself, and exactly one known word is an edit or two away: a letter more, less,
another, or two letters swapped. The first letter stays, as it does where people misspell. Short words, numbers and
whatever is a word of English or of anatomy are left alone: "ileum" is not "ilium", a "chord" is no cord.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path

from rapidfuzz.distance import OSA

from satunet.prompts.vocabulary import load_vocabulary

_TOKENIZER = Path(__file__).parents[1] / "text" / "anatomy" / "tokenizer.json"
_ANATOMY = Path(__file__).parent / "anatomy_words.txt"
_WORD = re.compile(r"^[a-z]+$")
_SHORTEST = 4
_SIDES = ("left", "right")


class Speller:
    """Corrects words towards those that are known.

    Args:
        words: Known words, besides those of :mod:`satunet.prompts.vocabulary`.
    """

    def __init__(self, words: Iterable[str]) -> None:
        known = {w for w in (*words, *load_vocabulary().words) if _WORD.match(w)}
        self._known = frozenset(known)
        self._by_start: dict[tuple[str, int], list[str]] = {}
        for word in sorted(known):
            self._by_start.setdefault((word[0], len(word)), []).append(word)
        self._corrected: dict[tuple[str, bool], tuple[str, ...]] = {}

    def correct(self, tokens: Sequence[str], *, boldly: bool = False) -> tuple[str, ...]:
        """Tokens with misspelled words corrected, run-together words parted, and torn words joined.

        Args:
            tokens: Words.
            boldly: Words of English may be misspelled as well ("lumber vertebrae"), and four letters are enough.
                For prompts that then name a class, with another word that was right.
        """
        found: list[str] = []
        for token in self._join(tokens):
            if (token, boldly) not in self._corrected:
                self._corrected[token, boldly] = self._correct(token, boldly)
            found += self._corrected[token, boldly]
        return tuple(found)

    def known(self, word: str) -> bool:
        """Whether a word is one that classes are called by, or of the vocabulary."""
        return word in self._known or load_vocabulary().lemma(word) in self._known

    def _correct(self, word: str, boldly: bool) -> tuple[str, ...]:
        if not _WORD.match(word) or len(word) < _SHORTEST or self.known(word):
            return (word,)
        if len(word) >= 7:
            for cut in range(3, len(word) - 2):
                parts = word[:cut], word[cut:]
                if all(p in self._known for p in parts) and max(map(len, parts)) >= 4:
                    return parts
        common = word in common_words()
        if word in anatomy_words() or (common and not (boldly and len(word) >= 6)):
            return (word,)
        most = 2 if len(word) >= 8 and not common else 1
        lemma = load_vocabulary().lemma
        for edits in range(1, most + 1):
            near = {w for w in self._candidates(word, edits) if OSA.distance(word, w) == edits}
            near = {w for w in near if (boldly and len(w) >= 5) or _plausible(word, w)}
            if near:
                return (min(near),) if len({lemma(w) for w in near}) == 1 else (word,)
        return (word,)

    def _candidates(self, word: str, edits: int) -> Iterable[str]:
        starts = {word[0], word[1]}  # a swap of the first two letters
        for start in starts:
            for length in range(len(word) - edits, len(word) + edits + 1):
                for candidate in self._by_start.get((start, length), ()):
                    if start == word[0] or candidate[:2] == word[1::-1]:
                        yield candidate

    def _join(self, tokens: Sequence[str]) -> list[str]:
        found: list[str] = []
        for token in tokens:
            torn = bool(found) and _WORD.match(token) and len(token) > 2 and f"{found[-1]}{token}" in self._known
            if torn and not (self.known(found[-1]) and self.known(token)):
                found[-1] += token
            else:
                found.append(token)
        return found


def _plausible(word: str, meant: str) -> bool:
    """Four letters are too few for a changed one, but for sides; two swapped letters, or one doubled, are seen."""
    if len(word) >= 5 and len(meant) >= 5:
        return True
    if meant in _SIDES:
        return len(word) >= 4
    swapped = len(word) == len(meant) and sorted(word) == sorted(meant)
    doubled = len(word) == len(meant) + 1 and any(
        word[i] == word[i + 1] and word[:i] + word[i + 1 :] == meant for i in range(len(word) - 1)
    )
    return swapped or doubled


@lru_cache(maxsize=1)
def common_words() -> frozenset[str]:
    """Words of English that are frequent enough to be whole words of the text encoder's vocabulary."""
    try:
        vocabulary = json.loads(_TOKENIZER.read_text("utf-8"))["model"]["vocab"]
    except (OSError, ValueError, KeyError):
        return frozenset()
    return frozenset(w for w in vocabulary if len(w) >= _SHORTEST and _WORD.match(w))


@lru_cache(maxsize=1)
def anatomy_words() -> frozenset[str]:
    """Words of anatomy and disease that lie near words of classes, and are not those."""
    lines = _ANATOMY.read_text("utf-8").splitlines()
    return frozenset(w for line in lines if not line.startswith("#") for w in line.split())
