"""Freshness of results: whether a result was made from today's inputs is decided here, and only here.

A :class:`Stamp` records the input files of a result (path, size, times, content hash) and the values that they were
combined with (plan, weights, options, versions). Later, it is compared with the current files and values; the answer is
``None`` or the reason why the result is stale.

Content decides. Paths and times only avoid reading a file again: if resolved path, size, modification time and change
time are the same, a file was not touched, unless it was written so shortly before the stamp that a later write could
have the same time (git's "racy" files). In all other cases the content hash decides: a folder that was moved or copied
stays fresh; another patient's scan under the same name is stale, even if it has the old modification time. Change times
(``st_ctime``) cannot be set by tools that preserve modification times.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from satunet.errors import MissingFileError

RACY_NS = 2_000_000_000
"""Nanoseconds before a stamp within which times are not trusted: file systems store them in steps of up to 2 s."""

_CHUNK = 1 << 20


@dataclass(frozen=True, kw_only=True)
class FileState:
    """The state of a file at some time.

    Attributes:
        path: Resolved path.
        size: Size in bytes.
        time_ns: Modification time, nanoseconds since the epoch.
        change_ns: Change time of content or permissions, nanoseconds since the epoch.
        sha256: Hash of the content; empty if only times are compared.
        seen_ns: Time at which the state was recorded, nanoseconds since the epoch, but at most the time from which the
            file's times can be trusted, so that equal files have equal states whenever they are recorded.
    """

    path: str
    size: int
    time_ns: int
    change_ns: int
    sha256: str
    seen_ns: int = field(compare=False)

    @classmethod
    def of(cls, path: Path, *, sha256: str | None = None, read: bool = True) -> FileState:
        """The current state of a file.

        Args:
            path: The file.
            sha256: Hash of its content, if the caller has just read it.
            read: Whether to read the file for its hash even if its times can be trusted.

        Raises:
            MissingFileError: The file does not exist, or is not a regular file.
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
        """Whether the file at ``path`` has the content of this one; it is read only if its times do not decide."""
        try:
            if not path.is_file():
                return False
            if path.stat().st_size != self.size:
                return False
            return self.is_untouched(path) or (self.sha256 != "" and content_hash(path) == self.sha256)
        except OSError:
            return False

    def is_untouched(self, path: Path) -> bool:
        """Whether path, size and times prove that the file at ``path`` is this one; it is not read.

        ``False`` may only mean that they cannot decide.
        """
        if max(self.time_ns, self.change_ns) >= self.seen_ns - RACY_NS:
            return False
        name = os.fspath(path)
        try:
            status = os.lstat(name)
            link = stat.S_ISLNK(status.st_mode)
            if link:
                status = os.stat(name)
            now = (status.st_size, status.st_mtime_ns, status.st_ctime_ns)
            return now == (self.size, self.time_ns, self.change_ns) and _resolved(name, link=link) == self.path
        except OSError:
            return False


@dataclass(frozen=True, kw_only=True)
class Stamp:
    """The inputs of a result; a record (:mod:`satunet.jobs.records`).

    Attributes:
        files: Input files, in order.
        combined: Values that they were combined with, name → plain value.
    """

    files: tuple[FileState, ...] = ()
    combined: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, files: Iterable[Path], combined: Mapping[str, Any] | None = None, *, read: bool = True) -> Stamp:
        """The stamp of the current files and values.

        Args:
            files: Input files, including the data files that headers refer to.
            combined: Name → plain JSON value.
            read: Whether to read files for their hashes. ``False`` suits large files whose results are cheap to make
                again: only files whose times cannot be trusted yet are read, and a file that is touched later makes the
                result stale.

        Raises:
            MissingFileError: A file does not exist.
        """
        return cls(files=tuple(FileState.of(file, read=read) for file in files), combined=_plain(combined or {}))

    def why_stale(self, files: Sequence[Path], combined: Mapping[str, Any] | None = None) -> str | None:
        """Reason why a result with this stamp is not that of these files and values; ``None`` if it is.

        Args:
            files: Input files, as for :meth:`of`.
            combined: Values, as for :meth:`of`.
        """
        now = _plain(combined or {})  # in the form of a saved stamp
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
        """Whether path, size and times prove that a result with this stamp is fresh; no file is read.

        For runs that first check thousands of results; those it cannot decide go to :meth:`why_stale`, in a worker.

        Args:
            files: Input files, as for :meth:`of`.
            combined: Values, as for :meth:`of`.
        """
        return _plain(combined or {}) == self.combined and self.are_untouched(files)

    def are_untouched(self, files: Sequence[Path]) -> bool:
        """The same for the files alone."""
        return len(files) == len(self.files) and all(
            was.is_untouched(file) for file, was in zip(files, self.files, strict=True)
        )

    def renewed(self, files: Sequence[Path]) -> Stamp:
        """The same stamp with current paths and times, after :meth:`why_stale` found nothing; no file is read.

        The next run can then decide without reading the files.
        """
        states = tuple(
            FileState.of(file, sha256=was.sha256, read=was.sha256 != "")
            for file, was in zip(files, self.files, strict=True)
        )
        return replace(self, files=states)

    @property
    def digest(self) -> str:
        """Hash of contents and values: equal for equal inputs, wherever they are stored."""
        parts = [[file.sha256 for file in self.files], self.combined]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _resolved(path: str, *, link: bool) -> str:
    """The path of an existing file without links; folders are resolved only once.

    Args:
        path: The file.
        link: Whether it is a link itself.
    """
    folder, _, name = path.rpartition(os.sep)
    if link or not folder:
        return os.path.realpath(path)
    status = os.stat(folder)
    here = "" if folder.startswith(os.sep) else os.getcwd()
    return _resolved_folder(folder, status.st_dev, status.st_ino, here) + os.sep + name


@lru_cache(maxsize=1024)
def _resolved_folder(folder: str, device: int, inode: int, here: str) -> str:
    """Resolved path of a folder; device and inode in the key tell another folder under the same name apart."""
    return os.path.realpath(folder)


def content_hash(path: Path) -> str:
    """SHA-256 of a file's content, hexadecimal.

    Raises:
        OSError: The file cannot be read.
    """
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values as they are after saving and loading: tuples as lists, keys as strings."""
    if not values:
        return {}
    plain: dict[str, Any] = json.loads(json.dumps(dict(values), sort_keys=True))
    return plain
