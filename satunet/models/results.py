"""Where a training leaves its network, and what its result folder says."""

from __future__ import annotations

from pathlib import Path

from satunet.errors import ModelError
from satunet.jobs.files import read_json

CONFIG_FILE = "training_config.json"
"""How a fold was trained."""
SPLIT_FILE = "split.json"
"""Scans that a fold was trained and validated on; ``splits_final.json`` may change after."""


def last_checkpoint(folder: Path) -> Path | None:
    """The checkpoint of a fold to go on from: the final one, unless a new run was begun after it and did not end.

    A run that is begun again leaves the final checkpoint of the one before until it has its own.
    """
    final, latest, best = (folder / f"checkpoint_{name}.pth" for name in ("final", "latest", "best"))
    if final.is_file() and latest.is_file() and latest.stat().st_mtime > final.stat().st_mtime:
        return latest
    return next((file for file in (final, latest, best) if file.is_file()), None)


def trained_scans(fold: Path) -> set[str]:
    """Scans that the network of a fold was trained on; none if that was not written down.

    Raises:
        ModelError: The file is damaged.
    """
    file = fold / SPLIT_FILE
    try:
        return set(read_json(file)["train"]) if file.is_file() else set()
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{file}: not the split of a training ({type(error).__name__}: {error})") from error
