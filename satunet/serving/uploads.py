"""Uploads of clients: their size is limited while they arrive, and that of archives again while they are unpacked."""

from __future__ import annotations

import stat
import zipfile
from collections.abc import AsyncIterator
from pathlib import Path

from satunet.errors import UnreadableImageError, UserError
from satunet.images.image import IMAGE_ENDINGS
from satunet.prediction.door.inputs import Scan, collect_scans
from satunet.serving.door import too_large

UNPACKED = 10
"""Largest size of an unpacked archive, as a multiple of the largest upload."""
_MOST_FILES = 20_000
_CHUNK = 1 << 20


class TooLargeError(UserError):
    """An upload beyond the limit."""


def ending_of(name: str) -> str:
    """Ending of an upload's file name, the only part of the name that is used.

    Raises:
        UserError: Files with this ending cannot be read.
    """
    lower = name.lower()
    for ending in (*IMAGE_ENDINGS, ".zip"):
        if lower.endswith(ending):
            if ending == ".mhd":
                raise UserError("an .mhd file has its voxels in a second file: upload .mha, or both files in a .zip")
            return ending
    raise UserError(f"the file name must end in {', '.join(IMAGE_ENDINGS)} or .zip (DICOM, or one image)")


async def receive(chunks: AsyncIterator[bytes], file: Path, most_bytes: int) -> None:
    """Write an upload to a file.

    Raises:
        TooLargeError: The upload is larger than allowed; the file is removed.
    """
    size = 0
    try:
        with file.open("wb") as stream:
            async for chunk in chunks:
                size += len(chunk)
                if size > most_bytes:
                    raise TooLargeError(too_large(most_bytes))
                stream.write(chunk)
    except BaseException:
        file.unlink(missing_ok=True)
        raise


def scan_in(file: Path, most_bytes: int) -> Scan:
    """The scan of an uploaded file; an archive is unpacked beside it.

    Raises:
        UserError: The archive holds no scan or more than one.
        ScanError: The file cannot be read.
    """
    if file.suffix != ".zip":
        (scan,) = collect_scans([file])
        return scan
    folder = file.with_suffix("")
    unpack(file, folder, most_bytes)
    file.unlink()
    scans = collect_scans([folder])
    if len(scans) != 1:
        raise UserError(f"the archive holds {len(scans)} scans or series; upload one at a time")
    return scans[0]


def unpack(archive: Path, folder: Path, most_bytes: int) -> None:
    """Unpack an archive's files under new names with the same endings.

    Args:
        archive: A ``.zip`` file.
        folder: Folder to write to.
        most_bytes: Largest size of all files together.

    Raises:
        TooLargeError: The unpacked files are larger, whatever sizes the archive declares.
        UnreadableImageError: The file is not an archive, or is damaged.
    """
    try:
        with zipfile.ZipFile(archive) as content:
            members = [m for m in content.infolist() if not m.is_dir() and not stat.S_ISLNK(m.external_attr >> 16)]
            if len(members) > _MOST_FILES:
                raise TooLargeError(f"the archive holds {len(members):,} files; at most {_MOST_FILES:,} are allowed")
            folder.mkdir()
            left = most_bytes
            for number, member in enumerate(members):
                left -= _unpack_one(content, member, folder / _name(member.filename, number), left, most_bytes)
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, OSError) as error:
        raise UnreadableImageError(archive, f"the archive cannot be unpacked ({error})") from error


def _unpack_one(content: zipfile.ZipFile, member: zipfile.ZipInfo, target: Path, left: int, most_bytes: int) -> int:
    written = 0
    with content.open(member) as source, target.open("wb") as stream:
        while chunk := source.read(_CHUNK):
            written += len(chunk)
            if written > left:
                raise TooLargeError(f"the archive unpacks to more than the allowed {most_bytes / 1e6:,.0f} MB")
            stream.write(chunk)
    return written


def _name(given: str, number: int) -> str:
    # The header of an image may refer to its data file by name, so plain names are kept; all others become numbers.
    last = given.replace("\\", "/").rsplit("/", 1)[-1]
    plain = last.isascii() and last.replace(".", "").replace("_", "").replace("-", "").isalnum() and len(last) <= 100
    lower = last.lower()
    image = lower.endswith((*IMAGE_ENDINGS, ".raw", ".zraw"))
    if plain and image and not last.startswith((".", "-")):
        return last
    return f"{number:06d}.dcm"
