"""Results of reading a prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

Status = Literal["known", "several", "similar", "unknown"]


class Encoder(Protocol):
    """The part of a text encoder's interface that prompts need."""

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """(n, D) embeddings of unit length."""
        ...


@dataclass(frozen=True, kw_only=True)
class PromptMatch:
    """The query for one mask: a class, or the prompt's own embedding.

    Attributes:
        prompt: Prompt that the user typed, or one of the classes that it stands for.
        class_name: Class whose embedding is used; ``None`` for the prompt's own embedding.
        status: Status of the prompt. ``"known"``: it names a class; ``"similar"``: it is close to a class, either as a
            class with a description ("large liver tumor") or according to the text encoder; ``"unknown"``: no class is
            close; ``"embedding"``: it was given as an embedding.
        similarity: Cosine similarity to the nearest class, if an encoder was used; 1 if the prompt names a class.
        nearest: Nearest classes with their similarities, best first.
        expanded_from: Prompt that the user typed, if it stands for several classes and ``prompt`` is one of them.
        note: Note in one sentence: how the prompt was read, or why it was refused.
    """

    prompt: str
    class_name: str | None
    status: str
    similarity: float | None = None
    nearest: tuple[tuple[str, float], ...] = ()
    expanded_from: str | None = None
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Reading:
    """The meaning of a prompt.

    Attributes:
        prompt: Prompt that the user typed.
        status: Status of the prompt. ``"known"``: it names one class; ``"several"``: it stands for several classes;
            ``"similar"``: it is close to a class; ``"unknown"``: there is nothing to segment.
        classes: Classes that the prompt means; the nearest class for a similar prompt, empty for an unknown one.
        similarity: Cosine similarity to the nearest class, if an encoder was used; 1 if the words name a class.
        nearest: Nearest classes with their similarities, best first, if the prompt names no class.
        reason: Explanation of how the prompt was read, or why there is nothing to segment; may be empty if the prompt
            is the name of a class.
    """

    prompt: str
    status: Status
    classes: tuple[str, ...] = ()
    similarity: float | None = None
    nearest: tuple[tuple[str, float], ...] = ()
    reason: str = ""

    def matches(self) -> list[PromptMatch]:
        """One match per mask, or a single match that says why there is no mask."""
        if self.status == "several":
            return [
                PromptMatch(prompt=name, class_name=name, status="known", similarity=1.0,
                            expanded_from=self.prompt, note=self.reason)
                for name in self.classes
            ]  # fmt: skip
        by_words = self.status == "known" or (self.status == "similar" and self.similarity is None)
        named = self.classes[0] if by_words else None
        return [PromptMatch(prompt=self.prompt, class_name=named, status=self.status, similarity=self.similarity,
                            nearest=self.nearest, note=self.reason)]  # fmt: skip
