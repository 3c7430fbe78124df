"""Names of temporary files that identify their process, so that those of killed processes can be removed.

``.tmp-<machine>-<process>-<start>-<number>-<final name>``: machine (with its boot and PID namespace), process number
and start time, in base 36. If the process is gone, the file is removed. Files that this machine cannot judge (those of
another machine on a shared disk, or of other programs) are kept for a day.

Rejected: a lock on each temporary file. Some writers remove the given file and create their own.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import os
import platform
import re
import shutil
import time
from contextlib import suppress
from pathlib import Path

START = ".tmp-"
_NAME = re.compile(r"^\.tmp-(?P<machine>[0-9a-z]{4})-(?P<process>[0-9a-z]+)-(?P<start>[0-9a-z]+)-[0-9a-z]+-")
_LONG_S = 24 * 3600
_number = itertools.count()
_swept: set[tuple[int, str]] = set()


def temporary_beside(final: Path) -> Path:
    """A path beside ``final`` that no other writer uses, and whose name ends like the final one.

    The first call for a folder also removes temporary files of killed processes there.
    """
    remove_leftovers(final.parent)
    process = os.getpid()
    whose = f"{_machine()}-{_digits(process)}-{_start_of(process) or '0'}"
    return final.with_name(f"{START}{whose}-{_digits(next(_number))}-{final.name}")


def remove_leftovers(folder: Path) -> None:
    """Remove temporary files and folders in a folder whose process is gone; once per process and folder."""
    key = (os.getpid(), os.path.abspath(folder))
    if key in _swept:
        return
    _swept.add(key)
    with suppress(OSError):  # it does not exist yet, or may not be read
        for entry in os.scandir(folder):
            if entry.name.startswith(START) and _is_left(entry):
                with suppress(OSError):
                    if entry.is_dir(follow_symlinks=False):
                        shutil.rmtree(entry.path, ignore_errors=True)
                    else:
                        os.unlink(entry.path)


def _is_left(entry: os.DirEntry[str]) -> bool:
    match = _NAME.match(entry.name)
    if match is not None and match["machine"] == _machine() and match["start"] != "0":
        return _start_of(int(match["process"], 36)) != match["start"]
    try:
        return time.time() - entry.stat(follow_symlinks=False).st_mtime > _LONG_S
    except OSError:
        return False


@functools.cache
def _machine() -> str:
    """Four digits that identify this machine, its boot and its PID namespace."""
    parts = [platform.node()]
    with suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii"))
        parts.append(str(os.stat("/proc/self/ns/pid").st_ino))
    return _digits(int.from_bytes(hashlib.sha256("|".join(parts).encode()).digest()[:8], "big"))[-4:].rjust(4, "0")


def _start_of(process: int) -> str | None:
    """Start time of a process, in ticks since the boot; ``None`` if it does not exist or, outside Linux, always."""
    try:
        return _digits(int(Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[19]))
    except (OSError, ValueError, IndexError):
        return None


def _digits(number: int) -> str:
    """A number in base 36."""
    text = ""
    while True:
        number, digit = divmod(number, 36)
        text = "0123456789abcdefghijklmnopqrstuvwxyz"[digit] + text
        if not number:
            return text
