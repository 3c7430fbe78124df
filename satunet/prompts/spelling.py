"""Correction of misspelled words in prompts.

A word is corrected if it is not a word itself and known words are one or two edits away: a letter inserted, omitted or
replaced, or two letters swapped. The first letter must be right, as people rarely misspell it. Short words, numbers,
and words of English or anatomy are left alone: "ileum" is not "ilium", and a "chord" is not a cord.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from functools import lru_cache
from itertools import islice, product
from pathlib import Path

from satunet.prompts.vocabulary import load_vocabulary

_TOKENIZER = Path(__file__).parents[1] / "text" / "anatomy" / "tokenizer.json"
_ANATOMY = Path(__file__).parent / "anatomy_words.txt"
_WORD = re.compile(r"^[a-z]+$")
_SHORTEST = 4
_MOST = 24
"""Largest number of corrections to try for a text with several misspelled words."""
_SIDES = ("left", "right")
_COMMON_FROM = (99, 6, 4)
"""Length from which an English word may be a misspelling, for each boldness."""


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
        self._options: dict[tuple[str, int], tuple[str, ...]] = {}

    def correct(self, text: str, *, boldness: int = 0) -> list[str]:
        """Possible corrections of a text, the likeliest first; empty if nothing looks misspelled.

        Args:
            text: Text in lower case, as from :func:`satunet.prompts.parsing.clean_text`.
            boldness: Degree to which words may count as misspelled. 1, for prompts with another word of a class: also
                English words of six or more letters ("lumber vertebrae"), and words that lack one of five letters. 2,
                for prompts with two such words: also English words of four or more letters ("inferior vena cave").
        """
        pieces = self._join(re.split(r"([^a-z\d:]+)", text))
        choices = [self._options_of(piece, boldness) for piece in pieces]
        if "".join(pieces) == text and all(options == (piece,) for options, piece in zip(choices, pieces, strict=True)):
            return []
        return list(islice(("".join(words) for words in product(*choices)), _MOST))

    def _options_of(self, word: str, boldness: int) -> tuple[str, ...]:
        if (word, boldness) not in self._options:
            self._options[word, boldness] = self._correct(word, boldness)
        return self._options[word, boldness]

    def known(self, word: str) -> bool:
        """Whether a word occurs in the name of a class or in the vocabulary."""
        return word in self._known or load_vocabulary().lemma(word) in self._known

    def _correct(self, word: str, boldness: int) -> tuple[str, ...]:
        if not _WORD.match(word) or len(word) < _SHORTEST or self.known(word):
            return (word,)
        if len(word) >= 7:
            for cut in range(3, len(word) - 2):
                parts = word[:cut], word[cut:]
                if all(p in self._known for p in parts) and max(map(len, parts)) >= 4:
                    return (" ".join(parts),)
        common = word in common_words()
        if word in anatomy_words() or (common and len(word) < _COMMON_FROM[boldness]) or _compound(word):
            return (word,)
        from rapidfuzz.distance import OSA  # few prompts are misspelled

        most = 2 if len(word) >= 8 and not common else 1
        lemma = load_vocabulary().lemma
        for edits in range(1, most + 1):
            near = {w for w in self._candidates(word, edits) if OSA.distance(word, w) == edits}
            near = {w for w in near if (_plausible(word, w) or (boldness and len(w) >= 4 + (boldness < 2)))}
            # "pnterior" may be anterior or posterior: one wrong first letter is as likely as two other wrong letters.
            if near and edits == 2 and any(OSA.distance(word, w, score_cutoff=1) <= 1 for w in self._known):
                return (word,)
            derived = {lemma(w) for w in near if _derived(word, w)}
            near = {w for w in near if lemma(w) not in derived}
            if derived and not near:
                return (word,)
            if near:
                # One word per meaning; if there are several meanings, the other words of the prompt decide.
                return tuple({lemma(w): w for w in sorted(near, reverse=True)}.values())
        return (word,)

    def _candidates(self, word: str, edits: int) -> Iterable[str]:
        starts = {word[0], word[1]}  # a swap of the first two letters
        for start in starts:
            for length in range(len(word) - edits, len(word) + edits + 1):
                for candidate in self._by_start.get((start, length), ()):
                    if start == word[0] or candidate[:2] == word[1::-1]:
                        yield candidate

    def _join(self, pieces: list[str]) -> list[str]:
        """Join words that a space splits ("hippo campus"); pieces are words and separators, alternating."""
        found = pieces[:1]
        for between, word in zip(pieces[1::2], pieces[2::2], strict=True):
            torn = between == " " and len(word) > 2 and _WORD.match(word) and f"{found[-1]}{word}" in self._known
            if torn and not (self.known(found[-1]) and self.known(word)):
                found[-1] += word
            else:
                found += [between, word]
        return found


def _derived(word: str, of: str) -> bool:
    """Whether a word is another one with an ending ("cheeky"); an added e or s or a doubled letter is a misspelling."""
    ending = word.removeprefix(of)
    return word.startswith(of) and ending not in ("e", "s", of[-1])


def _compound(word: str) -> bool:
    """Whether a word is composed of two English words: "brainstorm" is not a misspelling of brainstem."""
    common = common_words()
    return any(word[:cut] in common and word[cut:] in common for cut in range(4, len(word) - 3))


def _plausible(word: str, meant: str) -> bool:
    """Whether a word may be a misspelling of another; with four letters, only by a swap or a doubling, or of a side."""
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
    """English words that are frequent enough to be single tokens of the text encoder."""
    try:
        vocabulary = json.loads(_TOKENIZER.read_text("utf-8"))["model"]["vocab"]
    except (OSError, ValueError, KeyError):
        return frozenset()
    return frozenset(w for w in vocabulary if len(w) >= _SHORTEST and _WORD.match(w))


@lru_cache(maxsize=1)
def anatomy_words() -> frozenset[str]:
    """Words of anatomy and disease that resemble words of class names, but mean something else."""
    lines = _ANATOMY.read_text("utf-8").splitlines()
    return frozenset(w for line in lines if not line.startswith("#") for w in line.split())
