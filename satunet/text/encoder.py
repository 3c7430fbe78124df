"""The interface of text encoders: texts (and a modality) → embeddings, in batches, cached on disk.

Encoders are frozen. Embeddings are cached, so that a second run with the same texts does not load the model. Each kind
of encoder is a subclass; :func:`satunet.text.load_text_encoder` chooses it by name.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from satunet.errors import ModelError
from satunet.text.cache import EmbeddingCache

Progress = Callable[[int, int], None]


class TextEncoder(ABC):
    """A frozen text encoder with a cache; the model itself is loaded once a text is not in the cache.

    Attributes:
        name: Name by which the encoder was requested; plan and bank record it.
        uses_modality: Whether the embedding of a text depends on the modality.
    """

    uses_modality: ClassVar[bool] = False

    def __init__(self, name: str, cache: EmbeddingCache | None = None, *, batch: int = 64) -> None:
        self.name = name
        self._cache = cache
        self._batch = batch
        self._dim: int | None = None

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """Hash of everything that an embedding depends on besides text and modality; part of the cache's keys."""

    @abstractmethod
    def _embed(self, texts: list[str], modality: str | None) -> NDArray[np.float32]:
        """(n, D) embeddings of one batch of texts.

        Raises:
            ModelError: The model cannot be loaded.
        """

    @property
    def dim(self) -> int:
        """Width of an embedding."""
        if self._dim is None:
            self._dim = int(self.encode(["dimension"]).shape[1])
        return self._dim

    def encode(
        self, texts: Sequence[str], *, modality: str | None = None, on_progress: Progress | None = None
    ) -> NDArray[np.float32]:
        """Embed texts.

        Args:
            texts: Any number of texts.
            modality: Modality, one of :data:`satunet.datasets.raw.MODALITIES`; some encoders ignore it.
            on_progress: Function that is called with the number of texts done and of all texts, including cached ones.

        Returns:
            (n, D) float32, of unit length if the model normalises its embeddings.

        Raises:
            ModelError: The model cannot be loaded, or its output is not finite.
        """
        if not texts:
            return np.zeros((0, self._dim or 0), dtype=np.float32)
        modality = modality if self.uses_modality else None
        unique = list(dict.fromkeys(texts))
        known = self._known(unique, modality)
        # Texts of similar length share a batch, because a batch is padded to its longest text.
        missing = sorted((t for t in unique if t not in known), key=len)
        for start in range(0, len(missing), self._batch):
            batch = missing[start : start + self._batch]
            vectors = np.asarray(self._embed(batch, modality), dtype=np.float32)
            if vectors.ndim != 2 or len(vectors) != len(batch) or not np.isfinite(vectors).all():
                raise ModelError(
                    f"text encoder {self.name!r} returned shape {vectors.shape} for {len(batch)} texts; expected "
                    f"({len(batch)}, D) finite numbers"
                )
            fresh = dict(zip(batch, vectors, strict=True))
            if self._cache is not None:
                self._cache.put(self.fingerprint, {_cache_key(t, modality): v for t, v in fresh.items()})
            known |= fresh
            if on_progress is not None:
                on_progress(len(known), len(unique))
        result = np.stack([known[t] for t in texts]).astype(np.float32)
        self._dim = int(result.shape[1])
        return result

    def _known(self, texts: list[str], modality: str | None) -> dict[str, NDArray[np.float32]]:
        if self._cache is None:
            return {}
        keys = {_cache_key(t, modality): t for t in texts}
        return {keys[k]: v for k, v in self._cache.get(self.fingerprint, list(keys)).items()}


def _cache_key(text: str, modality: str | None) -> str:
    return text if modality is None else f"{text}\x1f{modality}"
