"""The scans that a network has seen in training, so that no benchmark scores it on them.

Scans are identified by name and by content: the digest of the voxels (:func:`satunet.images.content.voxel_digest`) is
the same in a copy of a dataset, under another name and in another format. A network that was initialised with another
network's weights has also seen the scans of that network. Names of scans may be confidential, so only their digests are
kept: whoever knows the name of a scan can check whether it is among them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Container, Iterable
from dataclasses import dataclass
from pathlib import Path

from satunet.errors import ModelError
from satunet.jobs.files import write_json
from satunet.jobs.records import load_json
from satunet.models.results import trained_scans

TRAINED_SCANS_FILE = "trained_scans.json"


@dataclass(frozen=True)
class TrainedScans(Container[str]):
    """Scans that a network was trained on: tells whether a given scan is among them without naming any.

    Attributes:
        names: Digests of the scans' names (``<dataset>__<case>__<channel>``), 16 hexadecimal digits each.
        voxels: Digests of the scans' voxels, as far as they are known, 32 hexadecimal digits each.
    """

    names: frozenset[str] = frozenset()
    voxels: frozenset[str] = frozenset()

    @classmethod
    def of(cls, names: Iterable[str], voxels: Iterable[str] = ()) -> TrainedScans:
        """The set of these scans.

        Args:
            names: Names of scans.
            voxels: Digests of the scans from :func:`~satunet.images.content.voxel_digest`; empty digests are ignored.
        """
        return cls(frozenset(map(_digest, names)), frozenset(v for v in voxels if v))

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and _digest(name) in self.names

    @property
    def known(self) -> bool:
        """Whether any scan is listed."""
        return bool(self.names or self.voxels)

    def shows(self, voxels: str) -> bool:
        """Whether a scan with these voxels is among them.

        Args:
            voxels: Digest of the scan from :func:`~satunet.images.content.voxel_digest`.
        """
        return voxels in self.voxels

    def __or__(self, other: TrainedScans) -> TrainedScans:
        return TrainedScans(self.names | other.names, self.voxels | other.voxels)

    @classmethod
    def of_model(cls, path: Path, fold: int | str) -> TrainedScans | None:
        """Scans that the network of a model folder or result folder has seen.

        Args:
            path: The folder.
            fold: Fold of a result folder.

        Returns:
            The scans; ``None`` if they were not recorded.

        Raises:
            ModelError: The record is damaged.
        """
        if (path / TRAINED_SCANS_FILE).is_file():
            return cls.load(path / TRAINED_SCANS_FILE)
        return cls._beside(path / f"fold_{fold}")

    @classmethod
    def of_weights(cls, file: Path) -> TrainedScans | None:
        """Scans that the network in a file of weights has seen, from the records in the same folder.

        Args:
            file: Checkpoint in a fold's folder, or weights in a model folder or a pre-training folder.

        Returns:
            The scans; ``None`` if they were not recorded.

        Raises:
            ModelError: The record is damaged.
        """
        return cls._beside(file.parent)

    @classmethod
    def _beside(cls, folder: Path) -> TrainedScans | None:
        """Scans recorded in the folder of a weights file; older versions recorded only the split."""
        file = folder / TRAINED_SCANS_FILE
        seen = cls.of(trained_scans(folder)) | (cls.load(file) if file.is_file() else cls())
        return seen if seen.known else None

    def save(self, file: Path) -> None:
        """Write the digests as JSON."""
        write_json(file, {"sha256": sorted(self.names), "voxels": sorted(self.voxels)}, sealed=True)

    @classmethod
    def load(cls, file: Path) -> TrainedScans:
        """Read what :meth:`save` wrote.

        Raises:
            ModelError: The file is damaged.
        """
        content = load_json(file, what="digests of scans", error=ModelError)
        try:
            names, voxels = content["sha256"], content.get("voxels", [])
            if not all(isinstance(d, str) and len(d) == 16 for d in names):
                raise ValueError("digests of names have 16 digits")
            if not all(isinstance(d, str) and len(d) == 32 for d in voxels):
                raise ValueError("digests of voxels have 32 digits")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ModelError(f"{file}: not a list of digests of scans ({type(error).__name__}: {error})") from error
        return cls(frozenset(names), frozenset(voxels))


def _digest(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()[:16]
