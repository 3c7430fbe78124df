"""What a result was made of, and whether it still is: the one answer to "is this done already?".

A :class:`Stamp` keeps the input files of a result (place, size, times, content hash) and what they were combined with
(plan, weights, options, versions: plain values). Later, the same question with today's files and values gives ``None``
or the reason why the result is stale.

What counts is content. Place and times only save reading a file again: the same resolved path, size, modification time
and change time mean that it was not touched, unless it was written so shortly before the stamp that a later write could
carry the same time (the "racy" files of git). Everything else is decided by the content hash: a folder that was moved
or copied stays fresh, another patient's scan under the same name does not, nor one that was put there with its old
modification time. Change times (``st_ctime``) cannot be set by tools that preserve modification times.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from satunet.errors import MissingFileError

RACY_NS = 2_000_000_000
"""Nanoseconds before a stamp within which times tell nothing: file systems keep them in steps of up to two seconds."""

_CHUNK = 1 << 20


@dataclass(frozen=True, kw_only=True)
class FileState:
    """A file as it was.

    Attributes:
        path: Resolved path.
        size: Size in bytes.
        time_ns: Modification time, nanoseconds since the epoch.
        change_ns: Change time of content or rights, nanoseconds since the epoch.
        sha256: Hash of the content; empty where times alone are to decide.
        seen_ns: When it was looked at, nanoseconds since the epoch, or as soon after its last change as times can be
            trusted: equal files have equal states, however long afterwards they are seen.
    """

    path: str
    size: int
    time_ns: int
    change_ns: int
    sha256: str
    seen_ns: int = field(compare=False)

    @classmethod
    def of(cls, path: Path, *, sha256: str | None = None, read: bool = True) -> FileState:
        """State of a file as it is now.

        Args:
            path: The file.
            sha256: Hash of its content where the caller has just read it.
            read: Whether to read the file for its hash even where its times can be trusted.

        Raises:
            MissingFileError: It is not there, or it not a regular file.
        """
        seen = time.time_ns()
        try:
            if not path.is_file():
                raise MissingFileError(path, "no such file" if not path.exists() else "not a regular file")
            status = path.stat()
            newest = max(status.st_mtime_ns, status.st_ctime_ns)
            digest = sha256 or (content_hash(path) if read or newest >= seen - RACY_NS else "")
        except OSError as error:
            raise MissingFileError(path, f"cannot be read ({error.strerror or error})") from error
        return cls(
            path=str(path.resolve()),
            size=status.st_size,
            time_ns=status.st_mtime_ns,
            change_ns=status.st_ctime_ns,
            sha256=digest,
            seen_ns=min(seen, newest + RACY_NS + 1),
        )

    def is_of(self, path: Path) -> bool:
        """Whether the file at ``path`` holds what this one did; it is read only where times do not tell."""
        try:
            if not path.is_file():
                return False
            if path.stat().st_size != self.size:
                return False
            return self.is_untouched(path) or (self.sha256 != "" and content_hash(path) == self.sha256)
        except OSError:
            return False

    def is_untouched(self, path: Path) -> bool:
        """Whether place, size and times alone say that the file at ``path`` is this one; it is not read.

        ``False`` may mean no more than that they cannot tell.
        """
        try:
            status = path.stat()
            now = (status.st_size, status.st_mtime_ns, status.st_ctime_ns)
            settled = max(self.time_ns, self.change_ns) < self.seen_ns - RACY_NS
            return settled and now == (self.size, self.time_ns, self.change_ns) and _resolved(path) == self.path
        except OSError:
            return False


@dataclass(frozen=True, kw_only=True)
class Stamp:
    """What a result was made of; a record (:mod:`satunet.jobs.records`).

    Attributes:
        files: Input files, in order.
        combined: Values that they were combined with, name → plain value.
    """

    files: tuple[FileState, ...] = ()
    combined: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, files: Iterable[Path], combined: Mapping[str, Any] | None = None, *, read: bool = True) -> Stamp:
        """The stamp of what is there now.

        Args:
            files: Input files; data files behind a header belong to them.
            combined: Name → plain value (what JSON holds).
            read: Whether files are read for their hashes. Where they are large and the result is cheap to make again,
                only those are read whose times tell nothing yet; a file that is touched then makes the result stale.

        Raises:
            MissingFileError: A file is not there.
        """
        return cls(files=tuple(FileState.of(file, read=read) for file in files), combined=_plain(combined or {}))

    def why_stale(self, files: Sequence[Path], combined: Mapping[str, Any] | None = None) -> str | None:
        """Reason why a result with this stamp is not that of these files and values; ``None`` if it is.

        Args:
            files: Input files, as for :meth:`of`.
            combined: Values, as for :meth:`of`.
        """
        now = _plain(combined or {})  # as a saved stamp has them
        changed = [name for name in sorted({*now, *self.combined}) if now.get(name) != self.combined.get(name)]
        if changed:
            return f"made with another {', '.join(changed)}"
        if len(files) != len(self.files):
            return f"made from {len(self.files)} files, but there are {len(files)} now"
        return next(
            (f"{file} is not what the result was made from" for file, was in zip(files, self.files, strict=True)
             if not was.is_of(file)),
            None,
        )  # fmt: skip

    def is_untouched(self, files: Sequence[Path], combined: Mapping[str, Any] | None = None) -> bool:
        """Whether place, size and times alone say that a result with this stamp is fresh; no file is read.

        For runs that look at thousands of results first: what this cannot tell is for :meth:`why_stale`, in a worker.

        Args:
            files: Input files, as for :meth:`of`.
            combined: Values, as for :meth:`of`.
        """
        return (
            _plain(combined or {}) == self.combined
            and len(files) == len(self.files)
            and all(was.is_untouched(file) for file, was in zip(files, self.files, strict=True))
        )

    def renewed(self, files: Sequence[Path]) -> Stamp:
        """The same stamp with today's places and times, after :meth:`why_stale` found nothing; no file is read.

        The next run can then tell without reading them.
        """
        states = tuple(
            FileState.of(file, sha256=was.sha256, read=was.sha256 != "")
            for file, was in zip(files, self.files, strict=True)
        )
        return replace(self, files=states)

    @property
    def digest(self) -> str:
        """Hash of contents and values: equal for equal inputs, wherever they lie."""
        parts = [[file.sha256 for file in self.files], self.combined]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _resolved(path: Path) -> str:
    """``str(path.resolve())`` of an existing file; folders that were resolved before are not looked at link by link."""
    if path.is_symlink():
        return str(path.resolve())
    folder = path.parent
    status = folder.stat()
    return os.path.join(_resolved_folder(str(folder), status.st_dev, status.st_ino, os.getcwd()), path.name)


@lru_cache(maxsize=1024)
def _resolved_folder(folder: str, device: int, inode: int, here: str) -> str:
    """Where a folder is; another one under its name is another device or inode."""
    return os.path.realpath(folder)


def content_hash(path: Path) -> str:
    """SHA-256 of a file's content, hexadecimal.

    Raises:
        OSError: It cannot be read.
    """
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """As they will be when they were saved and read: tuples are lists, keys are texts."""
    if not values:
        return {}
    plain: dict[str, Any] = json.loads(json.dumps(dict(values), sort_keys=True))
    return plain
