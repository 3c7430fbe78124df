"""Names of published models: ``sat-nano``, ``sat-pro``, or ``hf:owner/name[/folder][@revision]``."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path

from satunet.errors import ModelError
from satunet.jobs.cache import cache_dir

HUB_PREFIX = "hf:"
_PART = re.compile(r"[A-Za-z0-9][\w.-]*")
_REVISION = re.compile(r"[\w][\w./-]*")
_SAT_CITATION = (
    "Zhao et al., Large-Vocabulary Segmentation for Medical Images with Text Prompts, npj Digital Medicine 2025 "
    "(arXiv 2312.17183)"
)


@dataclass(frozen=True, kw_only=True)
class Published:
    """A model on the hub.

    Attributes:
        name: Requested name without the revision.
        repository: ``owner/name`` on the hub.
        folder: Folder in the repository; empty for the top folder.
        revision: Branch, tag or commit; ``None`` for the newest commit at the time of the first fetch.
        citation: Publication to cite; empty if only the repository's page states it.
        about: Description for lists.
    """

    name: str
    repository: str
    folder: str = ""
    revision: str | None = None
    citation: str = ""
    about: str = ""

    @property
    def place(self) -> Path:
        """Model folder in the cache; it need not exist."""
        key = "--".join(filter(None, (*self.repository.split("/"), *self.folder.split("/"))))
        if self.revision is not None:
            key += "@" + self.revision.replace("/", "--")
        return models_dir() / key

    @property
    def fetched(self) -> Path:
        """Folder in which the files of the repository are kept until they are imported, under their own paths."""
        return fetched_dir(self.repository, self.revision)


KNOWN = {
    known.name: known
    for known in (
        Published(
            name="sat-nano",
            repository="zzh99/SAT",
            folder="Nano",
            citation=_SAT_CITATION,
            about="SAT-Nano, 110.28 M parameters",
        ),
        Published(
            name="sat-pro",
            repository="zzh99/SAT",
            folder="Pro",
            citation=_SAT_CITATION,
            about="SAT-Pro, 477.09 M parameters",
        ),
    )
}
"""Models with a name of their own."""


def models_dir() -> Path:
    """Folder of the imported models."""
    return cache_dir() / "models"


def fetched_dir(repository: str, revision: str | None = None) -> Path:
    """Folder in which files of a repository are kept until they are imported."""
    folder = cache_dir() / "fetched" / Path(*repository.split("/"))
    return folder if revision is None else folder.with_name(f"{folder.name}@{revision.replace('/', '--')}")


def published_model(name: str) -> Published | None:
    """The published model with a given name; ``None`` if the name is not that of a published model.

    Raises:
        ModelError: The name begins with ``hf:``, but is malformed.
    """
    bare, at, revision = name.partition("@")
    if bare in KNOWN:
        found = replace(KNOWN[bare], revision=revision or None)
    elif name.startswith(HUB_PREFIX):
        owner, _, rest = bare.removeprefix(HUB_PREFIX).partition("/")
        repository, _, folder = rest.partition("/")
        found = Published(
            name=bare, repository=f"{owner}/{repository}", folder=folder.strip("/"), revision=revision or None
        )
    else:
        return None
    parts = [*found.repository.split("/"), *filter(None, found.folder.split("/"))]
    whole = all(_PART.fullmatch(part) for part in parts) and (not at or _REVISION.fullmatch(revision))
    if not whole or ".." in name:
        known = ", ".join(KNOWN)
        raise ModelError(f"{name}: not the name of a model; allowed are {known} and hf:owner/name[/folder][@revision]")
    return found
