"""A repository on the hub: listing it at one commit, fetching its files and checking them.

All requests name the commit of the listing, so that files of two versions are never mixed. A partial download is kept
next to its target, under a name that contains the hash of the whole file, and is resumed by a later call or process. A
file is accepted if its size and hash (SHA-256 for large files, git's own for small ones) match the listing.

Rejected: ``hf_hub_download``. It discards the partial downloads of processes that have ended, which may be gigabytes,
and does not check hashes.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from satunet.errors import ModelError

logger = logging.getLogger(__name__)

_ATTEMPTS = 3
"""Number of consecutive attempts without new data after which the download fails."""


class HubUnreachableError(ModelError):
    """The hub did not answer, or access to it is switched off."""


@dataclass(frozen=True, kw_only=True)
class HubFile:
    """A file of a repository.

    Attributes:
        path: Path in the repository.
        size: Size in bytes.
        sha256: SHA-256 of a file in Git LFS; ``None`` for other files.
        git_hash: Git's SHA-1 of the content; for a file in Git LFS, of its pointer.
    """

    path: str
    size: int
    sha256: str | None
    git_hash: str

    @property
    def name(self) -> str:
        """Last part of the path."""
        return PurePosixPath(self.path).name

    def is_whole(self, file: Path) -> bool:
        """Whether a file on disk has the size and the content that the listing states."""
        if not file.is_file() or file.stat().st_size != self.size:
            return False
        digest = hashlib.sha256() if self.sha256 is not None else hashlib.sha1(b"blob %d\0" % self.size)
        with file.open("rb") as stream:
            while block := stream.read(1 << 22):
                digest.update(block)
        return digest.hexdigest() == (self.sha256 or self.git_hash)


@dataclass(frozen=True, kw_only=True)
class Listing:
    """A repository at one commit.

    Attributes:
        repository: ``owner/name``.
        commit: 40 hexadecimal digits.
        licence: Licence, as the repository's card states it; ``None`` if it states none.
        files: All files.
    """

    repository: str
    commit: str
    licence: str | None
    files: tuple[HubFile, ...]

    def inside(self, folder: str) -> list[HubFile]:
        """Files in a folder and its sub-folders; all files for an empty name."""
        return [f for f in self.files if not folder or f.path.startswith(f"{folder}/")]

    def directly_in(self, folder: str) -> list[HubFile]:
        """Files in a folder, without its sub-folders."""
        parent = PurePosixPath(folder) if folder else PurePosixPath(".")
        return [f for f in self.files if PurePosixPath(f.path).parent == parent]


def endpoint() -> str:
    """Address of the hub: ``HF_ENDPOINT`` if it is set, else that of Hugging Face."""
    from huggingface_hub import constants

    return os.environ.get("HF_ENDPOINT", constants.ENDPOINT).rstrip("/")


def list_repository(repository: str, revision: str | None = None) -> Listing:
    """List a repository at a revision.

    Args:
        repository: ``owner/name``.
        revision: Branch, tag or commit; the newest commit if not given.

    Raises:
        HubUnreachableError: The hub does not answer.
        ModelError: There is no such repository or revision, or access to it is denied.
    """
    from huggingface_hub import HfApi

    try:
        info = HfApi(endpoint=endpoint()).model_info(repository, revision=revision, files_metadata=True)
    except Exception as error:  # the hub library's own errors, and those of whichever HTTP library it uses
        raise _explained(error, repository, revision) from error
    card: Any = info.card_data or {}
    licence = card.get("license_name") or card.get("license")
    return Listing(
        repository=repository,
        commit=str(info.sha),
        licence=", ".join(licence) if isinstance(licence, list) else licence,
        files=tuple(_file_of(sibling, repository) for sibling in info.siblings or ()),
    )


def _file_of(sibling: Any, repository: str) -> HubFile:
    path = PurePosixPath(sibling.rfilename)
    if path.is_absolute() or ".." in path.parts or "\\" in sibling.rfilename:
        raise ModelError(
            f"{repository}: the hub lists a file named {sibling.rfilename!r}, which is not a path inside it"
        )
    lfs = sibling.lfs
    size = sibling.size if sibling.size is not None else (lfs["size"] if lfs else None)
    if size is None or not sibling.blob_id:
        raise ModelError(f"{repository}: the hub does not state the size and hash of {sibling.rfilename!r}")
    return HubFile(path=str(path), size=int(size), sha256=lfs["sha256"] if lfs else None, git_hash=str(sibling.blob_id))


def fetch_files(listing: Listing, files: Iterable[HubFile], folder: Path) -> None:
    """Fetch files to their own paths below a folder; complete files are not fetched again.

    Args:
        listing: The repository.
        files: Files of the listing.
        folder: Folder to write to; it is made if necessary.

    Raises:
        HubUnreachableError: The connection broke and did not come back; partial downloads are kept for the next call.
        ModelError: A file does not match the listing even after it was fetched a second time.
    """
    for file in files:
        target = folder / file.path
        if file.is_whole(target):
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(f"{target.name}.{(file.sha256 or file.git_hash)[:12]}.part")
        for last in (False, True):
            _fetch(listing, file, part)
            if file.is_whole(part):
                break
            part.unlink()
            if last:
                raise ModelError(
                    f"{listing.repository}: {file.path} was fetched twice and does not match the hub's list at "
                    f"{listing.commit[:12]} (SHA-256 or size differ); it was changed or damaged in transit and is not used"
                )
            logger.warning("%s: %s does not match the hub's list; fetching it again", listing.repository, file.path)
        os.replace(part, target)


def _fetch(listing: Listing, file: HubFile, part: Path) -> None:
    """Complete a partial download; a broken connection is reopened as long as new data arrives."""
    from huggingface_hub import hf_hub_url
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import (  # type: ignore[attr-defined]
        build_hf_headers,
        disable_progress_bars,
        enable_progress_bars,
    )

    url = hf_hub_url(listing.repository, file.path, revision=listing.commit, endpoint=endpoint())
    (enable_progress_bars if sys.stderr.isatty() else disable_progress_bars)()
    failed = 0
    while True:
        with part.open("ab") as stream, _quiet():
            have = stream.tell()
            if have > file.size:  # left by an earlier call, and not a part of this file
                stream.truncate(0)
                have = 0
            if have == file.size:
                return
            try:
                http_get(
                    url, stream, resume_size=have, headers=build_hf_headers(), expected_size=file.size,
                    displayed_filename=file.name,
                )  # fmt: skip
                return
            except Exception as error:
                stream.flush()
                now = part.stat().st_size
                if now >= file.size:
                    return  # of the expected size or longer: the hash decides
                failed = 0 if now > have else failed + 1
                explained = _explained(error, listing.repository, listing.commit)
                if failed >= _ATTEMPTS or not isinstance(explained, HubUnreachableError):
                    raise explained from error
                logger.info("%s: the connection broke at %d of %d bytes; resuming", file.path, now, file.size)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the library's warnings about each broken connection; we log one message of our own, or raise."""
    log = logging.getLogger("huggingface_hub")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)


def _explained(error: Exception, repository: str, revision: str | None) -> ModelError:
    """The error to raise for an error of the hub; it says what a person can do about it."""
    from huggingface_hub import errors

    address = f"{endpoint()}/{repository}"
    if isinstance(error, errors.GatedRepoError):
        return ModelError(f"{address}: its terms must be accepted there first; then set HF_TOKEN and run again")
    if isinstance(error, errors.RevisionNotFoundError):
        return ModelError(f"{address}: there is no revision {revision!r}")
    if isinstance(error, errors.RepositoryNotFoundError):
        return ModelError(f"{address}: no such repository, or one that needs HF_TOKEN")
    if isinstance(error, errors.EntryNotFoundError) and not isinstance(error, errors.LocalEntryNotFoundError):
        return ModelError(f"{address}: a listed file does not exist ({_first_line(error)})")
    return HubUnreachableError(f"{address} cannot be reached ({_first_line(error)})")


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
