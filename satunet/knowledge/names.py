"""Our own table of names: synonyms, words of other languages, and groups of classes.

``names.json`` was written for satunet and is not derived from another source. Its keys are names of classes in the
label space.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

from satunet.errors import KnowledgeError
from satunet.jobs.files import read_json
from satunet.jobs.records import MALFORMED
from satunet.knowledge.tree import name_key

NAMES_VERSION = 2
_FILE = Path(__file__).parent / "names.json"
LANGUAGES = {"de": "German", "fr": "French", "es": "Spanish", "it": "Italian", "nl": "Dutch", "pt": "Portuguese",
             "la": "Latin"}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Names:
    """The table.

    Attributes:
        synonyms: Class → other English names.
        foreign: Class → language → words for it.
        foreign_sides: ``"left"`` or ``"right"`` → words in other languages.
        groups: Group → names that its classes may have in a label space.
        group_words: Group → other names of the group.
    """

    synonyms: Mapping[str, tuple[str, ...]]
    foreign: Mapping[str, Mapping[str, tuple[str, ...]]]
    foreign_sides: Mapping[str, tuple[str, ...]]
    groups: Mapping[str, tuple[str, ...]]
    group_words: Mapping[str, tuple[str, ...]]

    @cached_property
    def class_of(self) -> dict[str, str]:
        """Key of a synonym → class."""
        return {name_key(n): name for name, others in self.synonyms.items() for n in others}

    @cached_property
    def meaning_of(self) -> dict[str, tuple[str, str]]:
        """Key of a foreign word → (class, language)."""
        found: dict[str, tuple[str, str]] = {}
        for name, languages in self.foreign.items():
            for code, words in languages.items():
                for word in words:
                    found.setdefault(name_key(word), (name, LANGUAGES[code]))
        return found

    @cached_property
    def side_of(self) -> dict[str, str]:
        """Foreign word for a side → ``"left"`` or ``"right"``."""
        return {name_key(word): side for side, words in self.foreign_sides.items() for word in words}

    @cached_property
    def group_of(self) -> dict[str, str]:
        """Key of a group's name → group."""
        pairs = [(g, g) for g in self.groups] + [(w, g) for g, words in self.group_words.items() for w in words]
        return {name_key(word): group for word, group in pairs}


@lru_cache(maxsize=4)
def load_names(path: Path = _FILE) -> Names:
    """Read a table of names.

    Raises:
        KnowledgeError: The file is not a table of names, or has another version.
    """
    try:
        content = read_json(path)
        if content.get("version") != NAMES_VERSION:
            raise KnowledgeError(f"{path}: version {content.get('version')!r}; this satunet reads {NAMES_VERSION}")
        return Names(
            synonyms={k: tuple(v) for k, v in content["synonyms"].items()},
            foreign={k: {c: tuple(w) for c, w in v.items()} for k, v in content["foreign"].items()},
            foreign_sides={k: tuple(v) for k, v in content["foreign_sides"].items()},
            groups={k: tuple(v) for k, v in content["groups"].items()},
            group_words={k: tuple(v) for k, v in content["group_words"].items()},
        )
    except (OSError, *MALFORMED) as error:
        if isinstance(error, KnowledgeError):
            raise
        raise KnowledgeError(f"{path}: not a table of names ({type(error).__name__}: {error})") from error
