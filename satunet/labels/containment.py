"""Parts and wholes among classes, from the datasets' label ids and from the sides in names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import permutations

from satunet.labels.names import normalize_name
from satunet.labels.space import LabelSpace


def wholes_of(space: LabelSpace, names: Iterable[str] | None = None) -> dict[str, frozenset[str]]:
    """Class → classes that it is a part of, directly or through others.

    A class is part of another if its label ids are a subset of the other's in every dataset that has both ("left lung"
    and "lung", "vertebrae L1" and "vertebrae", "liver tumor" and "liver"), or if its name is the other's name with a
    side and no dataset has both. Classes with the same ids in every dataset are not parts of each other.

    Args:
        space: The label space.
        names: Classes to consider; all if not given.
    """
    wanted = sorted(set(space.class_names) if names is None else set(names))
    within: dict[str, set[str]] = {name: set() for name in wanted}
    apart: set[tuple[str, str]] = set()
    together: set[tuple[str, str]] = set()
    for own in space.ids.values():
        sets = {name: frozenset(own[name]) for name in wanted if name in own}
        for (part, p), (whole, w) in permutations(sets.items(), 2):
            together.add((part, whole))
            if not p <= w:
                apart.add((part, whole))
            elif p < w:
                within[part].add(whole)
    for part in wanted:
        within[part] -= {whole for whole in within[part] if (part, whole) in apart}
        parsed = normalize_name(part)
        if parsed.side is not None and parsed.base in within and (part, parsed.base) not in together:
            within[part].add(parsed.base)
    for name in wanted:  # transitive closure (Warshall)
        for part in wanted:
            if name in within[part]:
                within[part] |= within[name] - {part}
    return {name: frozenset(found) for name, found in within.items()}


def wholes_first(names: Iterable[str], wholes: Mapping[str, frozenset[str]]) -> list[str]:
    """The names, sorted so that every whole precedes its parts; otherwise, they keep the given order.

    Args:
        names: Classes, each once.
        wholes: Wholes from :func:`wholes_of`.
    """
    waiting = list(dict.fromkeys(names))
    left = set(waiting)
    ordered: list[str] = []
    while waiting:
        ready = next((n for n in waiting if left.isdisjoint(wholes.get(n, frozenset()))), waiting[0])
        ordered.append(ready)
        waiting.remove(ready)
        left.remove(ready)
    return ordered
