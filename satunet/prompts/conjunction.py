"""Prompts that list several structures: "liver, spleen and left kidney".

A list is accepted only if each structure in it is understood and it is clear which words belong together: in "left
hippocampus and amygdala", the side may belong to both; in "liver and tumor", the tumor may be the liver's. Such lists
are refused with the reason. Structures may share a word: "frontal and parietal lobes", "gluteus maximus and medius".
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from satunet.prompts.index import TYPES_LEFT_OUT, ClassIndex
from satunet.prompts.parsing import SEPARATORS, Clause, read_clause, split_clauses

_LESION_WORDS = {"tumor", "lesion", "metastasis", "cyst", "nodule", "edema", "hemorrhage", "scar"}
_ClassesOf = Callable[[Clause], tuple[str, ...]]


@dataclass(frozen=True, kw_only=True)
class ListReading:
    """The meaning of a list: its classes, or the reason why it is ambiguous."""

    classes: tuple[str, ...] = ()
    reason: str = ""


def read_list(tokens: Sequence[str], classes_of: _ClassesOf, index: ClassIndex) -> ListReading | None:
    """Read a list.

    Args:
        tokens: Words and separators.
        classes_of: Function that returns the classes that a clause names; empty if none.
        index: Index of the classes.

    Returns:
        The meaning; ``None`` if the tokens are not a list, or if a structure in it is unknown.
    """
    if not {*SEPARATORS, "and"} & set(tokens):
        return None
    # Some classes have an "and" in their name ("portal vein and splenic vein"), so commas alone are tried first.
    for separators in ((*SEPARATORS,), (*SEPARATORS, "and")):
        parts = [read_clause(part) for part in split_clauses(tokens, separators)]
        if len(parts) < 2:
            continue
        parts = _share_words(_share_side(parts), classes_of, index)
        found = [classes_of(part) for part in parts]
        if all(found):
            reason = _unclear(parts, index)
            if reason:
                return ListReading(reason=reason)
            return ListReading(classes=tuple(dict.fromkeys(name for names in found for name in names)))
    return None


def _share_side(parts: list[Clause]) -> list[Clause]:
    """If only one side is given in a list of ribs, give it to all of them: "left 5th and 6th ribs"."""
    sides = {p.side for p in parts if p.side is not None}
    ribs = all(len(p.words) == 1 and p.words[0].startswith("rib:") for p in parts)
    return [replace(p, side=next(iter(sides))) for p in parts] if ribs and len(sides) == 1 else parts


def _share_words(parts: list[Clause], classes_of: _ClassesOf, index: ClassIndex) -> list[Clause]:
    """Complete parts that name no class by themselves with the words and side of the previous or last part."""
    last, done = parts[-1], list(parts)
    for i, part in enumerate(parts):
        if classes_of(part):
            if i < len(parts) - 1 and _lacks_type(part, last, index):
                done[-1] = replace(last, side=part.side)
            continue
        # "frontal and parietal lobe", "upper and lower lobe of the left lung"
        tried = [replace(part, side=part.side or last.side, words=(*part.words, *last.words[n:]))
                 for n in range(1, len(last.words) + (last.side is not None))]  # fmt: skip
        if i > 0:  # "gluteus maximus and medius", "left atrium and ventricle"
            before = done[i - 1]
            fewest = 0 if before.side is not None and part.side is None else 1
            ahead = [replace(part, side=part.side or before.side, words=(*before.words[:n], *part.words))
                     for n in range(len(before.words) - 1, fewest - 1, -1)]  # fmt: skip
            tried = ahead + (tried if part is not last else [])
        found = next((clause for clause in tried if classes_of(clause)), None)
        if found is not None:
            done[i] = found
            if i == 0 and part.side and last.side is None:
                done[-1] = replace(last, side=part.side)
    return done


def _lacks_type(part: Clause, last: Clause, index: ClassIndex) -> bool:
    """Whether a part with a side lacks the last part's word for its type: "left precentral and postcentral gyrus"."""
    sided = part.side in ("left", "right") and last.side is None
    return sided and last.words[-1] in TYPES_LEFT_OUT and index.find(part.key) is None


def _unclear(parts: Sequence[Clause], index: ClassIndex) -> str:
    """Reason why a list is ambiguous; empty if it is not."""
    for part, other in pairwise(parts):
        leading = part.side in ("left", "right") and other.side is None
        if leading and _sided(other, index) and not part.last_is_side:
            return f"the side of {' '.join(other.words)!r} is not clear: name it, or ask for each separately"
        if part.joined_by_of and not other.joined_by_of and not any(":" in w for w in other.words):
            return f"{' '.join(other.words)!r} may belong to the words before 'of': ask for each separately"
    if parts[-1].last_is_side and parts[-1].side in ("left", "right"):
        unsided = next((p for p in parts[:-1] if p.side is None and _sided(p, index)), None)
        if unsided is not None:
            return f"the side of {' '.join(unsided.words)!r} is not clear: name it, or ask for each separately"
    return _unclear_lesion(parts, index)


def _unclear_lesion(parts: Sequence[Clause], index: ClassIndex) -> str:
    """Reason why a lesion's organ is unclear ("liver and tumor", "lung and liver tumor"); empty if it is clear."""
    for lesion in parts:
        kinds = _LESION_WORDS & set(lesion.words)
        bare = set(lesion.words) <= _LESION_WORDS
        if not kinds or not (bare or lesion is parts[-1]):
            continue
        for part in parts:
            own = set(part.words)
            if own & _LESION_WORDS or own <= set(lesion.words):
                continue
            if any(index.find((side, frozenset(own | kinds))) is not None for side in {None, part.side}):
                return f"the lesion may be in {' '.join(part.words)!r}: ask for each separately"
    return ""


def _sided(clause: Clause, index: ClassIndex) -> bool:
    return index.find_clause(replace(clause, side="left")) is not None
