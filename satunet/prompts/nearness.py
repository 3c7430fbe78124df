"""Classes that lie near a prompt: by its spelling and words, or by a text encoder among those that words allow."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from satunet.labels import LabelSpace, text_variants
from satunet.prompts.matching import Encoder
from satunet.prompts.parsing import Clause, read_name

Nearest = tuple[tuple[str, float], ...]


def allowed_classes(clause: Clause, space: LabelSpace) -> list[str]:
    """Classes whose side does not contradict a clause's: the other side never, and no side where one is asked for."""
    if clause.side in ("left", "right"):
        return [c.name for c in space.classes if read_name(c.name).side == clause.side]
    return [c.name for c in space.classes if read_name(c.name).side is None]


def nearest_by_spelling(prompt: str, clause: Clause, space: LabelSpace, count: int = 3) -> Nearest:
    """Classes whose words are those of a prompt, or are spelled like it, best first; never of the other side."""
    from rapidfuzz import fuzz, process

    names = allowed_classes(clause, space) or [c.name for c in space.classes if read_name(c.name).side is None]
    wanted = frozenset(clause.words)
    scores = {name: score / 100 for name, score, _ in process.extract(prompt.lower(), names, limit=None,
                                                                     scorer=fuzz.token_sort_ratio)}  # fmt: skip
    for name in names:
        words = frozenset(read_name(name).words)
        if wanted & words:
            scores[name] = max(scores[name], len(wanted & words) / len(wanted | words))
    best = sorted(scores.items(), key=lambda pair: -pair[1])[:count]
    return tuple((name, round(score, 4)) for name, score in best)


def nearest_by_meaning(text: str, names: Sequence[str], space: LabelSpace, encoder: Encoder, count: int = 3) -> Nearest:
    """Classes whose texts are most like a text to an encoder, with cosine similarities, best first."""
    texts: list[str] = []
    owners: list[int] = []
    for i, name in enumerate(names):
        for variant in text_variants(space.info(name)):
            texts.append(variant)
            owners.append(i)
    vectors: NDArray[np.float32] = encoder.encode([text, *texts])
    vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    best = np.full(len(names), -1.0)
    np.maximum.at(best, owners, vectors[1:] @ vectors[0])
    order = np.argsort(-best, kind="stable")[:count]
    return tuple((names[i], round(float(best[i]), 4)) for i in order)
