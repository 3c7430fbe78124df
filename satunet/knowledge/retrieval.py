"""Four retrieval measures of how well embeddings represent the tree, on concepts that were held out of training.

Candidates are always the preferred names of all concepts, trained or not, never a short list.

- synonym → term: whether a synonym's nearest candidate is its own term;
- definition → term: the same for a definition;
- part → whole: whether "X is part of" is nearest to a whole of X; X itself does not count;
- side confusion: the share of sided names ("left X") whose nearest other candidate is the other side ("right X").
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from satunet.knowledge.concepts import Concept, relation_text, wholes_of
from satunet.knowledge.tree import name_key

Encode = Callable[[Sequence[str]], NDArray[np.float32]]
_CHUNK = 512


@dataclass(frozen=True, kw_only=True)
class Retrieval:
    """Result of one retrieval task.

    Attributes:
        queries: Number of queries.
        recall_at_1: Share of queries whose first answer is right.
        recall_at_10: Share of queries with a right answer among the first ten.
        mrr: Mean reciprocal rank of the first right answer.
    """

    queries: int
    recall_at_1: float
    recall_at_10: float
    mrr: float


@dataclass(frozen=True, kw_only=True)
class Measures:
    """All four measures.

    Attributes:
        candidates: Number of names that answers are chosen from.
        synonym: Retrieval of terms by their synonyms.
        definition: Retrieval of terms by their definitions.
        part_whole: Retrieval of wholes by their parts.
        side_confusion: Share of sided names whose nearest other name is their other side; NaN if there are none.
        sided: Number of sided names that were queried.
    """

    candidates: int
    synonym: Retrieval
    definition: Retrieval
    part_whole: Retrieval
    side_confusion: float
    sided: int

    def rounded(self) -> dict[str, object]:
        """The numbers for a report, rounded to four decimals, with ``None`` for NaN."""
        content = asdict(self)
        for part in (content, *(v for v in content.values() if isinstance(v, dict))):
            for key, value in part.items():
                if isinstance(value, float):
                    part[key] = None if math.isnan(value) else round(value, 4)
        return content


def measure(encode: Encode, concepts: Sequence[Concept], *, of: Callable[[Concept], bool] | None = None) -> Measures:
    """Measure an encoder.

    Args:
        encode: Function from n texts to (n, D) embeddings of unit length.
        concepts: All concepts of the tree.
        of: Function that chooses the concepts to query; those held out if not given.
    """
    asked = [i for i, c in enumerate(concepts) if (of(c) if of is not None else c.held_out)]
    candidates = encode([c.name for c in concepts])

    synonyms: list[tuple[str, set[int], set[int]]] = []
    definitions: list[tuple[str, set[int], set[int]]] = []
    parts: list[tuple[str, set[int], set[int]]] = []
    named: dict[str, set[int]] = {}
    for i, concept in enumerate(concepts):
        for name in concept.names:
            named.setdefault(name_key(name), set()).add(i)
    for i in asked:
        concept = concepts[i]
        # A name shared by several concepts counts as right for each of them.
        synonyms += [(n, named[name_key(n)], set()) for n in concept.names if name_key(n) != name_key(concept.name)]
        definitions += [(d, {i}, set()) for d in concept.definitions]
        wholes = set(wholes_of(concept))
        if wholes:
            parts.append((relation_text(concept.name, "part_of"), wholes, {i}))
    confusion, sided = _side_confusion(candidates, concepts, asked)
    return Measures(
        candidates=len(concepts),
        synonym=_retrieve(encode, synonyms, candidates),
        definition=_retrieve(encode, definitions, candidates),
        part_whole=_retrieve(encode, parts, candidates),
        side_confusion=confusion,
        sided=sided,
    )


def _retrieve(
    encode: Encode, queries: list[tuple[str, set[int], set[int]]], candidates: NDArray[np.float32]
) -> Retrieval:
    """Result of queries (text, right answers, answers that do not count) among (n, D) candidates."""
    if not queries:
        return Retrieval(queries=0, recall_at_1=math.nan, recall_at_10=math.nan, mrr=math.nan)
    vectors = encode([text for text, _, _ in queries])
    ranks = np.empty(len(queries))
    for start in range(0, len(queries), _CHUNK):
        similarity = vectors[start : start + _CHUNK] @ candidates.T
        for row, (_, right, aside) in zip(similarity, queries[start : start + _CHUNK], strict=True):
            row[list(aside)] = -np.inf
            best = row[list(right)].max()
            # Ties count against the encoder; otherwise, one that maps all texts to one point would look good.
            ranks[start] = 1 + np.count_nonzero(row >= best) - np.count_nonzero(row[list(right)] >= best)
            start += 1
    return Retrieval(
        queries=len(queries),
        recall_at_1=float((ranks <= 1).mean()),
        recall_at_10=float((ranks <= 10).mean()),
        mrr=float((1 / ranks).mean()),
    )


def _side_confusion(
    candidates: NDArray[np.float32], concepts: Sequence[Concept], asked: Sequence[int]
) -> tuple[float, int]:
    sided = {(c.base, c.side): i for i, c in enumerate(concepts) if c.side}
    confused = []
    for i in asked:
        concept = concepts[i]
        opposite = {"left": "right", "right": "left"}.get(concept.side or "")
        other = sided.get((concept.base, opposite)) if opposite else None
        if other is None:
            continue
        similarity = candidates @ candidates[i]
        similarity[i] = -np.inf
        confused.append(int(similarity.argmax()) == other)
    return (float(np.mean(confused)) if confused else math.nan), len(confused)
