"""Prompts that name one thing after another: "liver, spleen and left kidney".

A list is understood only where every thing in it is, and where it is clear which words belong to which: in "left
hippocampus and amygdala" the side may be of both, in "liver and tumor" the tumor may be the liver's. Such lists are
refused with the reason. Things may share a word: "frontal and parietal lobes", "gluteus maximus and medius".
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from satunet.prompts.index import ClassIndex
from satunet.prompts.parsing import SEPARATORS, Clause, read_clause, split_clauses

_LESION_WORDS = {"tumor", "lesion", "metastasis", "cyst", "nodule", "edema", "hemorrhage", "scar"}
_ClassesOf = Callable[[Clause], tuple[str, ...]]


@dataclass(frozen=True, kw_only=True)
class ListReading:
    """What a list of things means: classes, or why it is not clear."""

    classes: tuple[str, ...] = ()
    reason: str = ""


def read_list(tokens: Sequence[str], classes_of: _ClassesOf, index: ClassIndex) -> ListReading | None:
    """Read a list.

    Args:
        tokens: Words and separators.
        classes_of: Classes that a clause names; empty if none.
        index: The classes.

    Returns:
        ``None`` if it is none, or if something in it is not known.
    """
    if not {*SEPARATORS, "and"} & set(tokens):
        return None
    # "lips" has an "and" in none of its names, "portal vein and splenic vein" has: commas part first.
    for separators in ((*SEPARATORS,), (*SEPARATORS, "and")):
        parts = [read_clause(part) for part in split_clauses(tokens, separators)]
        if len(parts) < 2:
            continue
        parts = _share_words(parts, classes_of)
        found = [classes_of(part) for part in parts]
        if all(found):
            reason = _unclear(parts, index)
            if reason:
                return ListReading(reason=reason)
            return ListReading(classes=tuple(dict.fromkeys(name for names in found for name in names)))
    return None


def _share_words(parts: list[Clause], classes_of: _ClassesOf) -> list[Clause]:
    """Parts that are nothing alone, with words of the part before ("gluteus maximus and medius") or of the last."""
    last, done = parts[-1], list(parts)
    for i, part in enumerate(parts):
        if classes_of(part):
            continue
        if i > 0:
            before = done[i - 1]
            shared = (replace(part, side=part.side or before.side, words=(*before.words[:n], *part.words))
                      for n in range(len(before.words) - 1, 0, -1))  # fmt: skip
            found = next((clause for clause in shared if classes_of(clause)), None)
        else:
            shared = (replace(part, words=(*part.words, *last.words[n:])) for n in range(1, len(last.words)))
            found = next((clause for clause in shared if classes_of(clause)), None)
            if found is not None and part.side and last.side is None:
                done[-1] = replace(last, side=part.side)
        if found is not None:
            done[i] = found
    return done


def _unclear(parts: Sequence[Clause], index: ClassIndex) -> str:
    """Why it is not clear what a list means; empty if it is."""
    for part, other in pairwise(parts):
        leading = part.side in ("left", "right", "both") and other.side is None
        if leading and _sided(other, index) and not part.last_is_side:
            return f"the side of {' '.join(other.words)!r} is not clear: name it, or ask for each by itself"
    if parts[-1].last_is_side and parts[-1].side in ("left", "right"):
        unsided = next((p for p in parts[:-1] if p.side is None and _sided(p, index)), None)
        if unsided is not None:
            return f"the side of {' '.join(unsided.words)!r} is not clear: name it, or ask for each by itself"
    bare = [set(p.words) <= _LESION_WORDS for p in parts]
    if any(bare) and not all(bare):
        return "it is not clear where the lesion is: name its organ"
    first = parts[0].words
    if len(first) > 1 and first[0] in _LESION_WORDS and not any(_LESION_WORDS & set(p.words) for p in parts[1:]):
        return f"{' '.join(parts[-1].words)!r} may be where the lesion is: ask for each by itself"
    return ""


def _sided(clause: Clause, index: ClassIndex) -> bool:
    return index.find_clause(replace(clause, side="left")) is not None
