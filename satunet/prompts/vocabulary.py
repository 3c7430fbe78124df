"""Words in prompts: synonyms, fillers, and kinds of words that do not name a structure.

``words.json`` was written for satunet and is not derived from another source. It contains no class names; these are in
:mod:`satunet.knowledge.names`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

from satunet.errors import PromptError
from satunet.jobs.files import read_json
from satunet.jobs.records import MALFORMED
from satunet.knowledge.names import load_names

WORDS_VERSION = 1
_FILE = Path(__file__).parent / "words.json"

KINDS = ("negation", "uncertainty", "relation", "measurement", "device", "finding", "part", "other", "descriptor")
"""Kinds of words that do not name a structure; a word of two kinds counts as the first."""

_FINDING = re.compile(
    r"(?:itis|osis|omas?|emia|pathy|megaly|algia|rrhage|rrhoea|plegia|ectasis|ectasia|thorax|peritoneum|penia|malacia"
    r"|trophy|aneurysms?|stenoses)$"
)
_PROCEDURE = re.compile(r"(?:ectomy|ectomies|plasty|otomy|ostomy|scopy|desis)$")
_SINGULAR_ENDS = ("ss", "us", "is", "as")


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """The table of words.

    Attributes:
        same: Word → other words with the same meaning, including irregular plurals.
        adjoining: Two words that are also written as one → that one word.
        fillers: Words without meaning ("the", "segmentation", "normal").
        whole: Words that matter only with a lesion ("whole").
        types: Word for a type of structure → classes whose meaning it does not change ("scapula bone").
        sides: Side, or ``"both"`` → other words for it.
        kinds: Kind of word → words and phrases.
    """

    same: Mapping[str, tuple[str, ...]]
    adjoining: Mapping[str, str]
    fillers: frozenset[str]
    whole: frozenset[str]
    types: Mapping[str, tuple[str, ...]]
    sides: Mapping[str, tuple[str, ...]]
    kinds: Mapping[str, tuple[str, ...]]

    @cached_property
    def meaning(self) -> dict[str, str]:
        """Word → word that represents all words with its meaning."""
        return {w: word for word, others in self.same.items() for w in (word, *others)}

    @cached_property
    def side_of(self) -> dict[str, str]:
        """Word → ``"left"``, ``"right"`` or ``"both"``, including words of other languages."""
        found = {w: side for side, words in load_names().foreign_sides.items() for w in words}
        return found | {w: side for side, words in self.sides.items() for w in (side, *words)}

    @cached_property
    def _kind_of(self) -> dict[str, str]:
        found: dict[str, str] = {}
        for kind in KINDS:
            for word in self.kinds[kind]:
                found.setdefault(word, kind)
        return found

    @cached_property
    def phrases(self) -> tuple[tuple[tuple[str, ...], str], ...]:
        """Phrases of several words, with their kinds."""
        return tuple((tuple(p.split()), kind) for p, kind in self._kind_of.items() if " " in p)

    @cached_property
    def words(self) -> frozenset[str]:
        """All single words in the table."""
        known = {*self.meaning, *self.fillers, *self.whole, *self.types, *self.side_of, *self.adjoining.values()}
        return frozenset(known | {w for word in self._kind_of for w in word.split()})

    def kind(self, word: str) -> str | None:
        """Kind of a word, by the table or by its ending; ``None`` for a word that may name a structure."""
        found = self._kind_of.get(word) or self._kind_of.get(self.lemma(word))
        if found is not None:
            return found
        if word in self.meaning:
            return None
        if _PROCEDURE.search(word):
            return "negation"
        return "finding" if len(word) > 6 and _FINDING.search(word) else None

    def lemma(self, word: str) -> str:
        """Lemma of a word: its singular, in American English, as a noun ("renal" → "kidney")."""
        found = self.meaning.get(word)
        if found is None and len(word) > 3 and word.endswith("s") and not word.endswith(_SINGULAR_ENDS):
            one = f"{word[:-3]}y" if word.endswith("ies") else word[:-1]
            found = self.meaning.get(one, one)
            if word.endswith(("sses", "xes", "ches")):
                found = self.meaning.get(word[:-2], word[:-2])
        if found is None and len(word) > 5 and word.endswith("ae"):
            found = self.meaning.get(word[:-1], word[:-1])
        return word if found is None else found


@lru_cache(maxsize=2)
def load_vocabulary(path: Path = _FILE) -> Vocabulary:
    """Read a table of words.

    Raises:
        PromptError: The file is not a table of words, or has another version.
    """
    try:
        content = read_json(path)
        if content["version"] != WORDS_VERSION:
            raise PromptError(f"{path}: version {content['version']!r}; this satunet reads {WORDS_VERSION}")
        return Vocabulary(
            same={k: tuple(v) for k, v in content["same"].items()},
            adjoining=content["adjoining"],
            fillers=frozenset(content["fillers"]),
            whole=frozenset(content["whole"]),
            types={k: tuple(v) for k, v in content["types"].items()},
            sides={k: tuple(v) for k, v in content["sides"].items()},
            kinds={kind: tuple(content["kinds"][kind]) for kind in KINDS},
        )
    except (OSError, *MALFORMED) as error:
        if isinstance(error, PromptError):
            raise
        raise PromptError(f"{path}: not a table of words ({type(error).__name__}: {error})") from error
