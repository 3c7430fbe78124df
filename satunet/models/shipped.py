"""Models by name: those that come with satunet, and published ones, which are fetched on first use."""

from __future__ import annotations

from pathlib import Path

from satunet.errors import ModelError

SHIPPED = ("starter",)
"""Names of the models in the package; an existing folder with the same name takes precedence."""


def resolve_model(model: Path | str, *, fetch: bool = True) -> Path:
    """The folder of a model given by name or path; anything that is not a known name is returned as a path.

    Args:
        model: Folder, one of :data:`SHIPPED`, or the name of a published model
            (:mod:`satunet.models.published.known`).
        fetch: Whether to fetch a published model that is not in the cache.

    Raises:
        ModelError: A published model cannot be fetched, or it is not in the cache and ``fetch`` is false.
    """
    path = Path(model).expanduser()
    if path.is_dir():
        return path
    name = Path(model).as_posix()
    if name in SHIPPED:
        return Path(__file__).parent / name
    from satunet.models.published.known import published_model

    published = published_model(name)
    if published is None:
        return path
    if not fetch and not published.place.is_dir():
        raise ModelError(f"{name}: not on this machine yet; 'satunet models --fetch {name}' fetches it")
    from satunet.models.published.cached import published_folder

    return published_folder(published)
