"""Classes near a prompt: by spelling and words, or by a text encoder, among classes whose side agrees."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from satunet.labels import LabelSpace, text_variants
from satunet.prompts.matching import Encoder
from satunet.prompts.parsing import Clause, read_name

Nearest = tuple[tuple[str, float], ...]


def allowed_classes(clause: Clause, space: LabelSpace) -> list[str]:
    """Classes whose side agrees with a clause's: classes of that side, or without a side if the clause has none."""
    if clause.side in ("left", "right"):
        return [c.name for c in space.classes if read_name(c.name).side == clause.side]
    return [c.name for c in space.classes if read_name(c.name).side is None]


def nearest_by_spelling(prompt: str, clause: Clause, space: LabelSpace, count: int = 3) -> Nearest:
    """Classes that share words with a prompt or are spelled like it, best first; never on the opposite side."""
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


class ClassVectors:
    """Embeddings of all texts of a label space's classes, computed once, when the first prompt is compared.

    Args:
        space: Label space with the classes.
        encoder: Text encoder.
    """

    def __init__(self, space: LabelSpace, encoder: Encoder) -> None:
        self.encoder = encoder
        self._space = space

    def nearest(self, text: str, names: Sequence[str], count: int = 3) -> Nearest:
        """Classes among ``names`` whose texts are most similar to a text, with cosine similarities, best first."""
        vector = _unit(self.encoder.encode([text]))[0]
        best = np.full(len(self._space.classes), -1.0)
        np.maximum.at(best, self._owners, self._matrix @ vector)
        found = best[[self._space.index(name) for name in names]]
        order = np.argsort(-found, kind="stable")[:count]
        return tuple((names[i], round(float(found[i]), 4)) for i in order)

    @cached_property
    def _matrix(self) -> NDArray[np.float32]:
        """(texts, D) of unit length."""
        return _unit(self.encoder.encode([text for info in self._space.classes for text in text_variants(info)]))

    @cached_property
    def _owners(self) -> list[int]:
        return [i for i, info in enumerate(self._space.classes) for _ in text_variants(info)]


def _unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit: NDArray[np.float32] = (vectors / np.maximum(lengths, 1e-12)).astype(np.float32)
    return unit
