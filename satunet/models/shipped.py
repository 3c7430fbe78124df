"""Models by name: those that come with satunet, and the one that is taken when none is given."""

from __future__ import annotations

import os
from pathlib import Path

from satunet.models.results import model_folder

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


def default_model() -> tuple[Path, str]:
    """The model to take when none is given, and a sentence that says which.

    The user's own network of dataset 900 if one was trained, else ``starter``.
    """
    if os.environ.get("nnUNet_results"):
        own = model_folder("Dataset900_Unified")
        if (own / "plans.json").is_file():
            return own, f"no model was given: taking your own, {own}"
    name = SHIPPED[0]
    return resolve_model(name), f"no model was given: taking {name!r}, which comes with satunet; -m takes another"
