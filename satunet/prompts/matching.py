"""What a user's words mean in a label space."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from satunet.labels.names import normalize_name, other_side
from satunet.labels.space import LabelSpace, text_variants

logger = logging.getLogger(__name__)

SIMILAR_FROM = 0.70
"""Cosine similarity from which an unknown text is taken to mean something the network may know, unless the encoder
says another (``similar_from``)."""


class Encoder(Protocol):
    """What a text encoder must do here."""

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """(n, D) embeddings of unit length."""
        ...


@dataclass(frozen=True, kw_only=True)
class PromptMatch:
    """What became of a prompt.

    Attributes:
        prompt: What the user typed.
        class_name: The class it names, or ``None``.
        status: ``"known"``: it names a class; ``"similar"``: it does not, but is close to classes, and its own
            embedding is used; ``"unknown"``: nothing the network knows comes near.
        similarity: Cosine similarity to the nearest class, where an encoder was asked.
        nearest: Nearest classes with their similarities, best first.
        expanded_from: What the user typed, where that stands for several classes and ``prompt`` is one of them.
        note: What else there is to say, in a sentence: the word is German, the class is a synonym's.
    """

    prompt: str
    class_name: str | None
    status: str
    similarity: float | None = None
    nearest: tuple[tuple[str, float], ...] = ()
    expanded_from: str | None = None
    note: str = ""


def match_prompt(prompt: str, space: LabelSpace, *, encoder: Encoder | None = None) -> PromptMatch:
    """Find out what a prompt means.

    Spelling, word order and the side's position do not matter; a misspelling by a letter or two is understood. A
    prompt with a side never matches the other side.

    Args:
        prompt: The user's words.
        space: The classes the network knows.
        encoder: Text encoder for prompts that name no class; without it they are ``"unknown"``.
    """
    name = normalize_name(prompt)
    if name.canonical in space:
        return PromptMatch(prompt=prompt, class_name=name.canonical, status="known", similarity=1.0)
    candidates = [
        info.name
        for info in space.classes
        if not (name.side and (info.side == other_side(name.side) or other_side(name.side) in info.name.split()))
    ]
    if not candidates or not name.canonical:
        return PromptMatch(prompt=prompt, class_name=None, status="unknown")
    spelled = same_but_for_spelling(name.canonical, candidates)
    if spelled is not None:
        return PromptMatch(prompt=prompt, class_name=spelled, status="known", similarity=1.0)
    if encoder is None:
        return PromptMatch(prompt=prompt, class_name=None, status="unknown")
    nearest = _nearest(name.canonical, candidates, space, encoder)
    best = nearest[0][1]
    status = "similar" if best >= getattr(encoder, "similar_from", SIMILAR_FROM) else "unknown"
    return PromptMatch(prompt=prompt, class_name=None, status=status, similarity=best, nearest=nearest)


def same_but_for_spelling(name: str, candidates: list[str]) -> str | None:
    """A candidate with as many words, each almost the same; short words and digits must be equal."""
    words = name.split()
    for candidate in difflib.get_close_matches(name, candidates, n=3, cutoff=0.88):
        others = candidate.split()
        if len(others) == len(words) and all(
            a == b
            or (min(len(a), len(b)) >= 6 and difflib.SequenceMatcher(None, a, b).ratio() >= 0.88 and a[0] == b[0])
            for a, b in zip(words, others, strict=True)
        ):
            return candidate
    return None


def _nearest(
    name: str, candidates: list[str], space: LabelSpace, encoder: Encoder, count: int = 3
) -> tuple[tuple[str, float], ...]:
    texts: list[str] = []
    owners: list[int] = []
    for i, candidate in enumerate(candidates):
        for variant in text_variants(space.info(candidate)):
            texts.append(variant)
            owners.append(i)
    vectors: NDArray[Any] = encoder.encode([name, *texts])
    vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    similarity = vectors[1:] @ vectors[0]
    best = np.full(len(candidates), -1.0)
    np.maximum.at(best, owners, similarity)
    order = np.argsort(-best, kind="stable")[:count]
    return tuple((candidates[i], round(float(best[i]), 4)) for i in order)
