"""Models by name: those that come with satunet."""

from __future__ import annotations

from pathlib import Path

SHIPPED = ("starter",)
"""Names of the models in the package; a folder of that name goes first."""


def resolve_model(model: Path | str) -> Path:
    """The folder of a model that is given by name or path; a path that is neither stays as it is.

    Args:
        model: Folder, or one of :data:`SHIPPED`.
    """
    path = Path(model).expanduser()
    if str(model) in SHIPPED and not path.is_dir():
        return Path(__file__).parent / str(model)
    return path
