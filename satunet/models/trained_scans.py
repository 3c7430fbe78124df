"""Which scans a model was trained on, so that no benchmark scores it on them.

A result folder names them. A model folder is made to be sent around, and names of scans may be nobody's business: it
holds digests, by which somebody who has a scan of that name can ask whether it is one of them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Container, Iterable
from dataclasses import dataclass
from pathlib import Path

from satunet.errors import ModelError
from satunet.jobs.files import read_json, write_json
from satunet.models.results import trained_scans

TRAINED_SCANS_FILE = "trained_scans.json"


@dataclass(frozen=True)
class HashedNames(Container[str]):
    """A set of names that tells whether one is in it, and nothing else.

    Attributes:
        digests: Of the names: the first 16 hexadecimal digits of SHA-256.
    """

    digests: frozenset[str]

    @classmethod
    def of(cls, names: Iterable[str]) -> HashedNames:
        """The set of these names."""
        return cls(frozenset(map(_digest, names)))

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and _digest(name) in self.digests

    @classmethod
    def of_model(cls, path: Path, fold: int | str) -> HashedNames | None:
        """Scans (``<dataset>__<case>__<channel>``) that a model folder or result folder was trained on.

        Args:
            path: The folder.
            fold: Of a result folder.

        Returns:
            ``None`` if nothing tells.

        Raises:
            ModelError: What tells is damaged.
        """
        file = path / TRAINED_SCANS_FILE
        if file.is_file():
            return cls.load(file)
        names = trained_scans(path / f"fold_{fold}")
        return cls.of(names) if names else None

    def save(self, file: Path) -> None:
        """As JSON."""
        write_json(file, {"sha256": sorted(self.digests)})

    @classmethod
    def load(cls, file: Path) -> HashedNames:
        """Read what :meth:`save` wrote.

        Raises:
            ModelError: It is damaged.
        """
        try:
            digests = read_json(file)["sha256"]
            if not all(isinstance(d, str) and len(d) == 16 for d in digests):
                raise ValueError("digests have 16 digits")
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ModelError(f"{file}: no digests of scans ({type(error).__name__}: {error})") from error
        return cls(frozenset(digests))


def _digest(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()[:16]
