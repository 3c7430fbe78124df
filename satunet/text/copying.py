"""Copying a text encoder's folder: only the encoder's files, and no links."""

from __future__ import annotations

import shutil
from pathlib import Path

from satunet.errors import ModelError
from satunet.text.sat import is_sat_encoder
from satunet.text.transformer import check_folder

_ENDINGS = {".json", ".txt", ".safetensors", ".model", ".bin", ".npz", ".md"}
_HIDDEN = "."


def copy_text_encoder(source: Path, target: Path) -> None:
    """Copy a text encoder.

    Args:
        source: Folder of the text encoder.
        target: Folder to write; if it exists, it must be empty.

    Raises:
        ModelError: The folder holds no text encoder, or one of its files is a link.
    """
    if not is_sat_encoder(source):
        check_folder(source)
    target.mkdir(parents=True, exist_ok=True)
    for file in sorted(source.rglob("*")):
        relative = file.relative_to(source)
        if any(part.startswith(_HIDDEN) for part in relative.parts):
            continue
        if any(place.is_symlink() for place in [file, *file.parents][: len(relative.parts)]):
            raise ModelError(f"{file}: is a link; all files of a text encoder must be in its own folder to be copied")
        if file.is_file() and file.suffix in _ENDINGS:
            (target / relative).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target / relative)
