"""A portable bank of embeddings: a model needs no text encoder for the texts in its bank."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from satunet.errors import ModelError, PromptError
from satunet.jobs.files import atomic_path
from satunet.jobs.records import MALFORMED
from satunet.text.encoder import Progress, TextEncoder


@dataclass(frozen=True, kw_only=True, eq=False)
class TextBank:
    """Texts and their embeddings.

    Attributes:
        encoder_name: Name of the encoder.
        encoder_fingerprint: Hash of the encoder.
        texts: Texts without repetitions.
        vectors: (n, D) float32, one row per text.
    """

    encoder_name: str
    encoder_fingerprint: str
    texts: tuple[str, ...]
    vectors: NDArray[np.float32]

    def __post_init__(self) -> None:
        if self.vectors.ndim != 2 or len(self.vectors) != len(self.texts) or len(set(self.texts)) != len(self.texts):
            raise ValueError(f"{len(self.texts)} texts, vectors of shape {self.vectors.shape}")
        object.__setattr__(self, "_rows", {text: row for row, text in enumerate(self.texts)})

    @classmethod
    def build(cls, encoder: TextEncoder, texts: Sequence[str], on_progress: Progress | None = None) -> TextBank:
        """Encode texts; repeated texts are kept once."""
        unique = tuple(dict.fromkeys(texts))
        return cls(
            encoder_name=encoder.name,
            encoder_fingerprint=encoder.fingerprint,
            texts=unique,
            vectors=encoder.encode(unique, on_progress=on_progress),
        )

    @property
    def dim(self) -> int:
        """Width of an embedding."""
        return int(self.vectors.shape[1])

    def __contains__(self, text: object) -> bool:
        return text in self._rows  # type: ignore[attr-defined]

    def row(self, text: str) -> int:
        """Row of a text.

        Raises:
            PromptError: The text is not in the bank.
        """
        try:
            return int(self._rows[text])  # type: ignore[attr-defined]
        except KeyError:
            raise PromptError(f"{text!r} is not among the {len(self.texts)} texts of the bank") from None

    def matrix(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """(n, D) embeddings of texts; raises the same errors as :meth:`row`."""
        return self.vectors[[self.row(text) for text in texts]]

    @property
    def digest(self) -> str:
        """SHA-256 of the encoder's identity, texts and embeddings, 64 hexadecimal digits."""
        digest = hashlib.sha256(json.dumps([self.encoder_name, self.encoder_fingerprint, self.texts]).encode())
        digest.update(f"{self.vectors.dtype}|{self.vectors.shape}|".encode())
        digest.update(np.ascontiguousarray(self.vectors).tobytes())
        return digest.hexdigest()

    def save(self, path: Path) -> None:
        """Write the bank as a safetensors file, atomically."""
        from safetensors.numpy import save

        metadata = {
            "encoder_name": self.encoder_name,
            "encoder_fingerprint": self.encoder_fingerprint,
            "texts": json.dumps(self.texts, ensure_ascii=False),
            "digest": self.digest,
        }
        with atomic_path(path) as temporary:
            # Not save_file, whose own temporary file nobody removes after a kill.
            temporary.write_bytes(save({"vectors": np.ascontiguousarray(self.vectors)}, metadata))

    @classmethod
    def load(cls, path: Path) -> TextBank:
        """Read a bank and check it against its digest; banks of older versions have no digest.

        Raises:
            ModelError: The file does not exist, is not a bank, or is damaged.
        """
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="numpy") as file:
                metadata = file.metadata() or {}
                vectors = file.get_tensor("vectors")
            bank = cls(
                encoder_name=metadata["encoder_name"],
                encoder_fingerprint=metadata["encoder_fingerprint"],
                texts=tuple(json.loads(metadata["texts"])),
                vectors=vectors,
            )
        except (OSError, SafetensorError, *MALFORMED) as error:
            raise ModelError(f"{path}: not a bank of text embeddings ({error})") from error
        if metadata.get("digest", bank.digest) != bank.digest:
            raise ModelError(f"{path}: damaged: texts or embeddings do not match the file's digest")
        return bank
