"""What became of a prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

Status = Literal["known", "several", "similar", "unknown"]


class Encoder(Protocol):
    """What a text encoder must do here."""

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """(n, D) embeddings of unit length."""
        ...


@dataclass(frozen=True, kw_only=True)
class PromptMatch:
    """What a mask is asked for by: a class, or the prompt's own embedding.

    Attributes:
        prompt: Prompt that the user typed.
        class_name: The class whose embedding is used; ``None``: the prompt's own.
        status: ``"known"``: it names a class; ``"similar"``: it does not, but is close to one: what a class is with a
            description ("large liver tumor"), or what the text encoder finds near; ``"unknown"``: nothing the network
            knows comes near; ``"embedding"``: it is one.
        similarity: Cosine similarity to the nearest class, where an encoder was asked.
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
    """What a prompt means.

    Attributes:
        prompt: Prompt that the user typed.
        status: ``"known"``: it names one class; ``"several"``: it stands for more than one; ``"similar"``: it names
            none, and what it names is close to one; ``"unknown"``: there is nothing to segment.
        classes: The classes; for a similar prompt the nearest one; none for an unknown one.
        similarity: 1 for what words name; the cosine similarity to the nearest class where an encoder was asked.
        nearest: Nearest classes with their similarities, best first, where the prompt names none.
        reason: Explanation of how it was read, or why there is nothing to segment; may be empty for the name of a
            class.
    """

    prompt: str
    status: Status
    classes: tuple[str, ...] = ()
    similarity: float | None = None
    nearest: tuple[tuple[str, float], ...] = ()
    reason: str = ""

    def matches(self) -> list[PromptMatch]:
        """One match for each mask, or one that says why there is none."""
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
