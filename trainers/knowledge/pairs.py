"""Pairs of texts for the same concept, in batches of concepts that are easily confused.

A batch depends only on seed and step, so that a resumed run, or one on more processes, sees the same pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from satunet.errors import KnowledgeError
from satunet.knowledge.concepts import Concept, parents_of, relation_text

_MOST_GROUPS = 10_000  # per batch; a tree that gives no pairs must not be searched for ever
_KINDS = ("synonym", "definition", "relation", "side")


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Pairs of texts.

    Attributes:
        anchors: First texts.
        positives: Second texts; the i-th has the same meaning as the i-th anchor.
        ids: (n,) concept that both mean.
        ignored: (n, n) whether anchor i and positive j are neither the same concept nor two that exclude each other (a
            structure may belong to several wholes).
    """

    anchors: tuple[str, ...]
    positives: tuple[str, ...]
    ids: np.ndarray
    ignored: np.ndarray


class PairSampler:
    """Draws batches from the concepts that are not held out.

    Args:
        concepts: All concepts.
        batch: Number of pairs in a batch.
        hard: Number of concepts in a group: one drawn at random, and ``hard - 1`` that are easily confused with it.
        mix: Weights of synonym, definition, relation and side pairs.
        seed: Seed of the draw.
    """

    def __init__(
        self,
        concepts: Sequence[Concept],
        *,
        batch: int = 128,
        hard: int = 4,
        mix: tuple[float, float, float, float] = (0.3, 0.3, 0.25, 0.15),
        seed: int = 0,
    ) -> None:
        self.concepts = concepts
        self.batch, self.hard, self.seed = batch, hard, seed
        self._mix = np.array(mix) / sum(mix)
        self._trained = np.array([i for i, c in enumerate(concepts) if not c.held_out])
        self._sided = {(c.base, c.side): i for i, c in enumerate(concepts) if c.side is not None and not c.held_out}
        self._near = {i: tuple(j for j in concepts[i].near if not concepts[j].held_out) for i in self._trained.tolist()}

    @property
    def size(self) -> int:
        """Number of concepts that are trained."""
        return len(self._trained)

    def __call__(self, step: int) -> Batch:
        """The batch of a step.

        Raises:
            KnowledgeError: The concepts give no pairs.
        """
        rng = np.random.default_rng((self.seed, step))
        anchors: list[str] = []
        positives: list[str] = []
        ids: list[int] = []
        heads: list[int | None] = []
        for _ in range(_MOST_GROUPS):
            if len(ids) >= self.batch:
                break
            kind = _KINDS[rng.choice(len(_KINDS), p=self._mix)]
            for i in self._group(rng):
                drawn = self._pair(i, kind, rng)
                if drawn is not None and len(ids) < self.batch:
                    for anchor, positive, target, head in drawn:
                        anchors.append(anchor)
                        positives.append(positive)
                        ids.append(target)
                        heads.append(head)
        else:
            raise KnowledgeError("the tree gives no pairs: its terms have no synonyms, definitions or relations")
        count = self.batch
        return Batch(
            anchors=tuple(anchors[:count]),
            positives=tuple(positives[:count]),
            ids=np.array(ids[:count]),
            ignored=self._ignored(ids[:count], heads[:count]),
        )

    def _group(self, rng: np.random.Generator) -> list[int]:
        i = int(rng.choice(self._trained))
        near = self._near[i]
        # The other side and the neighbouring levels come first; they are in every group.
        first = list(near[:1])
        rest = rng.permutation(near[1:])[: self.hard - 1 - len(first)].tolist() if len(near) > 1 else []
        return [i, *first, *rest]

    def _pair(self, i: int, kind: str, rng: np.random.Generator) -> list[tuple[str, str, int, int | None]] | None:
        concept = self.concepts[i]
        name = concept.names[0] if rng.random() < 0.6 else str(rng.choice(concept.names))
        if kind == "definition" and concept.definitions:
            return [(_cut(str(rng.choice(concept.definitions)), rng), name, i, None)]
        if kind == "relation":
            usable = [(k, j) for k, js in concept.relations.items() for j in js if not self.concepts[j].held_out]
            usable = [(k, j) for k, j in usable if k != "other_side"]
            if usable:
                how, j = usable[int(rng.integers(len(usable)))]
                tail = self.concepts[j]
                said = tail.names[0] if rng.random() < 0.6 else str(rng.choice(tail.names))
                return [(relation_text(name, how), said, j, i)]
        if kind == "side" and concept.side is None and len(name.split()) <= 4:
            return self._sides(name, i, rng)
        if len(concept.names) > 1:
            others = [n for n in concept.names if n != name]
            return [(str(rng.choice(others)), name, i, None)]
        if concept.side is not None:
            return [(_sided(concept.base, concept.side, rng), name, i, None)]
        if concept.definitions:
            return [(_cut(str(rng.choice(concept.definitions)), rng), name, i, None)]
        return None

    def _sides(self, name: str, i: int, rng: np.random.Generator) -> list[tuple[str, str, int, int | None]]:
        """A structure's left and right, each against the other and against the structure itself.

        A side that is not a concept of its own gets an id above those of the concepts.
        """
        rows: list[tuple[str, str, int, int | None]] = []
        for k, side in enumerate(("left", "right")):
            own = self._sided.get((self.concepts[i].base, side), len(self.concepts) + 2 * i + k)
            rows.append((_sided(name, side, rng), f"{side} {name}", own, None))
        side = "left" if rng.random() < 0.5 else "right"
        return [*rows, (relation_text(f"{side} {name}", f"{side}_variant_of"), name, i, None)]

    def _ignored(self, ids: list[int], heads: list[int | None]) -> np.ndarray:
        ignored = np.zeros((len(ids), len(ids)), dtype=bool)
        for row, head in enumerate(heads):
            if head is not None:
                above = set(parents_of(self.concepts[head]))
                ignored[row] = [j in above and j != ids[row] for j in ids]
        return ignored


def _sided(base: str, side: str, rng: np.random.Generator) -> str:
    short = {"left": "lt", "right": "rt"}[side]
    ways = (f"{base} {side}", f"{base} on the {side} side", f"{side}-sided {base}", f"{base} ({side})",
            f"{short} {base}", f"{base}, {side}", f"{side} side {base}")  # fmt: skip
    return ways[int(rng.integers(len(ways)))]


def _cut(text: str, rng: np.random.Generator, least: int = 6, most: int = 24) -> str:
    """At most ``most`` words; half of the time, a random stretch of them, as SAT does."""
    words = text.split()[:most]
    if len(words) <= least or rng.random() < 0.5:
        return " ".join(words)
    length = int(rng.integers(least, len(words) + 1))
    start = int(rng.integers(0, len(words) - length + 1))
    return " ".join(words[start : start + length])
