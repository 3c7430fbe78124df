"""Files in the result folder of a training run: checkpoints, configuration, split."""

from __future__ import annotations

from pathlib import Path

from satunet.errors import ModelError
from satunet.jobs.files import read_json

CONFIG_FILE = "training_config.json"
"""Configuration that a fold was trained with."""
SPLIT_FILE = "split.json"
"""Scans that a fold was trained and validated on; a copy, because ``splits_final.json`` may change afterwards."""
_BEGUN_AGAIN = ".begun_again"


def last_checkpoint(fold: Path) -> Path | None:
    """The checkpoint of a fold to resume from: the final one, unless a later run was begun and is unfinished.

    A new run leaves the previous run's final checkpoint in place until it has its own. A marker file says that a new
    run was begun; nnU-Net's own trainer writes no marker, so the files' modification times decide as well.
    """
    final, latest, best = (fold / f"checkpoint_{name}.pth" for name in ("final", "latest", "best"))
    if final.is_file() and latest.is_file():
        begun_again = (fold / _BEGUN_AGAIN).is_file()
        return latest if begun_again or latest.stat().st_mtime > final.stat().st_mtime else final
    return next((file for file in (final, latest, best) if file.is_file()), None)


def begin_again(fold: Path) -> None:
    """Mark that a new run has begun, if there is a final checkpoint from a previous run."""
    if (fold / "checkpoint_final.pth").is_file():
        (fold / _BEGUN_AGAIN).touch()


def end_run(fold: Path) -> None:
    """Remove the mark: the final checkpoint is now the latest run's own."""
    (fold / _BEGUN_AGAIN).unlink(missing_ok=True)


def trained_scans(fold: Path) -> set[str]:
    """Scans that the network of a fold was trained on; empty if they were not recorded.

    Raises:
        ModelError: The file is damaged.
    """
    file = fold / SPLIT_FILE
    try:
        return set(read_json(file)["train"]) if file.is_file() else set()
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{file}: not the split of a training ({type(error).__name__}: {error})") from error
