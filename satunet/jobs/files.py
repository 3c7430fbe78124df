"""Files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import filelock

from satunet.errors import DiskFullError, SatunetError, UserError
from satunet.jobs.file_names import safe_name
from satunet.jobs.leftovers import START, temporary_beside
from satunet.jobs.quick import collection_paused

_LITTLE = 1 << 20
"""Free bytes below which a disk counts as full."""


@contextlib.contextmanager
def atomic_path(final: Path) -> Iterator[Path]:
    """Give a temporary path beside ``final`` that is renamed to it when the block succeeds.

    The temporary name ends like the final one (``.nii.gz``, ``.b2nd``), because writers choose the format by it, and
    starts with a dot, so that nothing lists it as a result. On an error, or if nothing was written, the temporary file
    is removed and ``final`` is left as it was. The folder is made if needed. Temporary files of killed processes are
    removed from it (:mod:`satunet.jobs.leftovers`).

    Raises:
        DiskFullError: There is no space left.
    """
    final = Path(final)
    with _told_of(final), _atomic_path(final) as temporary:
        yield temporary


@contextlib.contextmanager
def _told_of(final: Path) -> Iterator[None]:
    """Let errors of the disk name the final file, whichever library raised them."""
    try:
        yield
    except Exception as error:
        if isinstance(error, SatunetError):
            raise
        cause = cause_of(error)
        if _disk_is_full(cause, final.parent):
            raise DiskFullError(
                f"{final}: no space left on the disk. What is done is kept; make room and start the same job again"
            ) from error
        if isinstance(cause, OSError) and (cause is not error or _is_temporary(cause.filename)):
            raise OSError(cause.errno, os.strerror(cause.errno or 0), str(final)) from error
        raise


_OF_DISKS = {errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG}


def disk_trouble(error: BaseException) -> str | None:
    """What is wrong with the disk, as in "no space left on device"; ``None`` if the error has another cause."""
    cause = cause_of(error)
    if isinstance(error, DiskFullError):
        return os.strerror(errno.ENOSPC).lower()
    if isinstance(cause, OSError) and cause.errno in _OF_DISKS:
        return os.strerror(cause.errno).lower()
    return None


def cause_of(error: BaseException) -> BaseException:
    """The operating system's error behind another error; the error itself if there is none.

    Libraries in Rust put it at the end of their message (``os error 28``); torch raises another error while handling
    it.
    """
    earlier: BaseException | None = error
    while earlier is not None:
        if isinstance(earlier, OSError) and (earlier is error or earlier.errno in _OF_DISKS):
            return earlier
        if told := re.search(r"\(os error (\d+)\)", str(earlier)):
            return OSError(int(told[1]), os.strerror(int(told[1])))
        earlier = earlier.__cause__ or earlier.__context__
    return error


def _is_temporary(name: object) -> bool:
    return name is None or any(part.startswith(START) for part in Path(os.fsdecode(name)).parts)  # type: ignore[arg-type]


@contextlib.contextmanager
def scratch_folder(parent: Path) -> Iterator[Path]:
    """An empty folder inside another one, removed at the end; folders of killed processes are removed as well."""
    folder = temporary_beside(parent / "scratch")
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _atomic_path(final: Path) -> Iterator[Path]:
    final.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_beside(final)  # not made here: some writers (blosc2) refuse to write to a file that exists
    try:
        yield temporary
        if temporary.is_file():
            temporary.chmod(_usual_rights(0o666))
        temporary.replace(final)
    finally:
        temporary.unlink(missing_ok=True)


def flush_to_disk(paths: Iterable[Path]) -> None:
    """Flush files, and their entries in their folders, to the disk, so that they survive a power cut.

    Every process sees a renamed file whole, but its content and name may still be only in memory. Before a manifest or
    record says that a file exists, the file must be flushed. File systems that cannot flush are ignored.
    """
    files = list(paths)
    places = [*files, *dict.fromkeys(file.parent for file in files)]
    if len(files) > 1:  # concurrent flushes share the journal's writes
        with ThreadPoolExecutor(min(16, len(files))) as threads:
            list(threads.map(_flush, files))
        places = places[len(files) :]
    for place in places:
        _flush(place)


_CANNOT_FLUSH = {errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EACCES, errno.EPERM, errno.EISDIR}
"""Errors of file systems that cannot flush, or cannot flush folders, and of Windows for every folder."""


def _flush(path: Path) -> None:
    try:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:
        if error.errno not in _CANNOT_FLUSH:  # the disk could not store the content
            raise OSError(error.errno, os.strerror(error.errno or 0), str(path)) from error


def make_readable(folder: Path) -> None:
    """Give all files in a folder the permissions of a new file; some writers (safetensors) make theirs private."""
    rights = _usual_rights(0o666)
    for file in folder.rglob("*"):
        if file.is_file() and not file.is_symlink():
            file.chmod(rights)


def _usual_rights(mode: int) -> int:
    umask = os.umask(0)
    os.umask(umask)
    return mode & ~umask


def _disk_is_full(error: BaseException, folder: Path) -> bool:
    """Whether an error comes from a full disk; C libraries only say that they could not write."""
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    try:
        return shutil.disk_usage(folder).free < _LITTLE
    except OSError:
        return False


@contextlib.contextmanager
def atomic_folder(final: Path) -> Iterator[Path]:
    """Give an empty folder beside ``final`` that is renamed to it when the block succeeds, and removed if it fails.

    Raises:
        UserError: ``final`` exists already (an empty folder does not count).
        DiskFullError: There is no space left.
    """
    final = Path(final)
    if final.exists() and not (final.is_dir() and not any(final.iterdir())):
        raise UserError(f"{final}: already exists; remove it, or give another folder")
    final.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_beside(final)
    temporary.mkdir()
    try:
        with _told_of(final):
            yield temporary
            make_readable(temporary)
            try:
                if final.is_dir():
                    with contextlib.suppress(FileNotFoundError):  # another job has removed it, and is about to rename
                        final.rmdir()
                temporary.replace(final)
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
                raise UserError(
                    f"{final}: another job has made it meanwhile; remove it, or give another folder"
                ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextlib.contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Be the only job that writes to a folder; unfinished files of killed jobs are removed first.

    The lock is released when the process ends, in whatever way. On file systems without locks, none is used.

    Raises:
        UserError: Another job is writing there.
        OSError: The lock cannot be written; it names the file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(folder / ".lock", blocking=False, mode=_usual_rights(0o666))
    try:
        lock.acquire()
    except filelock.Timeout as error:
        raise UserError(f"{folder}: another job is writing here; wait for it, or end it") from error
    except (NotImplementedError, OSError) as error:
        if not _has_no_locks(error):
            if isinstance(error, OSError) and error.filename is None:  # the error is about a file descriptor
                raise OSError(error.errno, os.strerror(error.errno or 0), str(folder / ".lock")) from error
            raise
    try:
        for left_over in folder.glob(".tmp-*"):
            left_over.unlink(missing_ok=True)
        yield
    finally:
        lock.release()


def _has_no_locks(error: BaseException) -> bool:
    return isinstance(error, NotImplementedError) or getattr(error, "errno", None) in (
        errno.ENOSYS,
        errno.ENOLCK,
        errno.EOPNOTSUPP,
    )


def write_text(path: Path, text: str) -> None:
    """Write a text file whole, in UTF-8, and flush it to the disk."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
        _flush(temporary)
    _flush(path.parent)


def write_json(path: Path, content: Any, *, sealed: bool = False) -> None:
    """Write ``content`` as JSON, whole; dataclasses, paths, numpy scalars and arrays are understood.

    Args:
        path: The file.
        content: Content to write.
        sealed: Whether to add a digest of the content, which :func:`read_json` checks. Files that people edit, and
            formats of other programs, have none.
    """
    with collection_paused():
        plain = json.loads(json.dumps(content, default=_to_json))  # keys are strings, tuples are lists
        text = _laid_out(seal(plain) if sealed else plain)
    write_text(path, text + "\n")


_LARGE = 100_000
_LINE = 100
_DEEPEST = 3


def _laid_out(plain: Any) -> str:
    """JSON for people to read: one value per line, or in large files one case per line.

    Python's encoder is compiled only for a single line; for thousands of cases, the difference is seconds.
    """
    short = json.dumps(plain)
    return json.dumps(plain, indent=1) if len(short) < _LARGE else _broken(plain, short, 0)


def _broken(plain: Any, short: str, depth: int) -> str:
    """The values of the outer levels on lines of their own."""
    if not plain or not isinstance(plain, (dict, list)) or len(short) <= _LINE or depth == _DEEPEST:
        return short
    if isinstance(plain, list) and short.startswith("[[") and '"' not in short and short.count("[") == len(plain) + 1:
        parts = [f"[{row}]" for row in short[2:-2].split("], [")]  # rows of numbers need not be encoded one by one
        parts = (
            parts if max(map(len, parts)) <= _LINE else [_broken(each, json.dumps(each), depth + 1) for each in plain]
        )
    elif isinstance(plain, dict):
        parts = [f"{json.dumps(key)}: {_broken(each, json.dumps(each), depth + 1)}" for key, each in plain.items()]
    else:
        parts = [_broken(each, json.dumps(each), depth + 1) for each in plain]
    begin, end = "{}" if isinstance(plain, dict) else "[]"
    step = "\n" + " " * (depth + 1)
    return f"{begin}{step}{(',' + step).join(parts)}{step[:-1]}{end}"


DIGEST = "content_sha256"
"""Key of a sealed object's digest."""


def seal(content: Mapping[str, Any]) -> dict[str, Any]:
    """An object of plain JSON values with its digest added."""
    return {**content, DIGEST: digest_of(content)}


def unseal(content: Any, source: Path | str) -> Any:
    """Check an object's digest and remove it; content without a digest is returned unchanged.

    Raises:
        ValueError: The content is not what was written; the message names the source.
    """
    if not isinstance(content, dict) or not isinstance(content.get(DIGEST), str):
        return content
    said = {key: value for key, value in content.items() if key != DIGEST}
    if content[DIGEST] != digest_of(said):
        raise ValueError(
            f"{source}: damaged: its content is not what was written (its digest says so; if you changed it on purpose, "
            f"remove the line {DIGEST!r})"
        )
    return said


def digest_of(content: Mapping[str, Any]) -> str:
    """SHA-256 of an object's content, independent of its formatting: 64 hexadecimal digits."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def read_json(path: Path) -> Any:
    """Read a JSON file; the digest of a sealed one is checked and removed.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is not JSON, not in UTF-8, nested too deeply, or it is sealed and was changed; the message
            names it.
    """
    return unseal(parse_json(Path(path).read_bytes(), path), path)


def parse_json(text: str | bytes, source: Path | str) -> Any:
    """Parse a text in JSON.

    Args:
        text: The text, in UTF-8 if it is bytes.
        source: Origin of the content, for messages.

    Raises:
        ValueError: The text is not JSON, not in UTF-8, nested too deeply, or has numbers that are too long; the message
            names the source.
    """
    try:
        decoded = text.decode("utf-8-sig") if isinstance(text, bytes) else text  # some editors add a byte order mark
        with collection_paused():
            return json.loads(decoded)
    except UnicodeDecodeError as error:
        raise ValueError(f"{source}: not JSON: its text is not in UTF-8 (byte {error.start})") from error
    except RecursionError as error:
        raise ValueError(f"{source}: not JSON that can be used: it is nested too deeply") from error
    except ValueError as error:  # not JSON, or a number of thousands of digits
        raise ValueError(f"{source}: not JSON ({error})") from error


def mask_file_name(name: str) -> str:
    """File name, without ending, of a prompt's mask; see :mod:`satunet.jobs.file_names`."""
    return safe_name(name)


def _to_json(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, (set, frozenset)):
        return sorted(value)
    if hasattr(value, "tolist"):  # numpy arrays and scalars, without importing numpy here
        return value.tolist()
    raise TypeError(f"cannot write a {type(value).__name__} as JSON")
