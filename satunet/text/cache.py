"""Embeddings on disk, by (encoder, text): one SQLite file, safe with several processes at once."""

from __future__ import annotations

import contextlib
import logging
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

logger = logging.getLogger(__name__)

_SCHEMA = "CREATE TABLE IF NOT EXISTS embedding (encoder TEXT, text TEXT, vector BLOB, PRIMARY KEY (encoder, text))"


class EmbeddingCache:
    """A cache of float32 vectors. If it cannot be used, it logs a warning, and texts are encoded again."""

    def __init__(self, folder: Path) -> None:
        self._file = Path(folder) / "embeddings.sqlite"

    def get(self, encoder: str, texts: Sequence[str]) -> dict[str, NDArray[np.float32]]:
        """Vectors of the texts that are in the cache."""
        if not self._file.is_file():
            return {}
        found: dict[str, NDArray[np.float32]] = {}
        with self._guard("read"), contextlib.closing(self._open()) as database:
            for text in dict.fromkeys(texts):
                row = database.execute(
                    "SELECT vector FROM embedding WHERE encoder = ? AND text = ?", (encoder, text)
                ).fetchone()
                if row is not None:
                    found[text] = np.frombuffer(row[0], dtype="<f4").astype(np.float32)
        return found

    def put(self, encoder: str, vectors: Mapping[str, NDArray[np.float32]]) -> None:
        """Add vectors to the cache."""
        rows = [(encoder, text, np.asarray(v, dtype="<f4").tobytes()) for text, v in vectors.items()]
        with self._guard("written"):
            self._file.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.closing(self._open()) as database, database:
                database.execute(_SCHEMA)
                database.executemany("INSERT OR REPLACE INTO embedding VALUES (?, ?, ?)", rows)

    def _open(self) -> sqlite3.Connection:
        return sqlite3.connect(self._file, timeout=60)

    @contextlib.contextmanager
    def _guard(self, what: str) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError, ValueError) as error:
            logger.warning("the embedding cache %s cannot be %s (%s); continuing without it", self._file, what, error)
            if isinstance(error, sqlite3.DatabaseError) and "not a database" in str(error):
                self._file.unlink(missing_ok=True)  # rebuilt by the next put
