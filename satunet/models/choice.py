"""The models that a command uses: folders or names, folds and checkpoint, or the default if none is given."""

from __future__ import annotations

import contextlib
import logging
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import arg

from satunet.errors import ModelError, PathsNotSetError
from satunet.models.shipped import SHIPPED, resolve_model

if TYPE_CHECKING:
    from satunet.models.folder import ModelDescription, ModelFolder

logger = logging.getLogger(__name__)

_SHOWN = 8
WHAT_A_MODEL_IS = (
    "a model is a folder with plans.json, label_space.json, text_bank.safetensors and weights: a result folder that "
    "'satunet train' leaves, or one that 'satunet export' or 'satunet import' writes; or a name that 'satunet models' lists"
)


@dataclass(frozen=True, kw_only=True)
class ModelChoice:
    """Models to use together; the probabilities of several models or folds are averaged.

    Attributes:
        model: Model folder; 'starter', which comes with satunet; or a published model, which is fetched once:
            'sat-nano', 'sat-pro', hf:owner/name[/folder][@revision]. Several models are averaged. If not given, your
            own network of dataset 900 or, if there is none, 'starter'.
        fold: Fold whose weights to use, or several to average; may be omitted if there is only one.
        checkpoint: Checkpoint file in the fold's folder.
    """

    model: Annotated[tuple[Path, ...], arg(aliases=["-m"], metavar="MODEL")] = ()
    fold: Annotated[tuple[str, ...], arg(aliases=["-f"], metavar="FOLD")] = ()
    checkpoint: Annotated[str, arg(aliases=["-chk"])] = "checkpoint_final.pth"

    @cached_property
    def folders(self) -> tuple[Path, ...]:
        """The models' folders.

        Raises:
            ModelError: A model does not exist, or none is given and the default cannot be found.
        """
        return tuple(dict.fromkeys(map(existing_model, self.model))) or (default_model(),)

    def describe(self) -> list[ModelDescription]:
        """Descriptions of the models, one per folder, without reading weights.

        Raises:
            ModelError: A model cannot be used, or has no such fold.
        """
        from satunet.models.folder import ModelDescription, checkpoint_of, is_model_folder

        for folder in self.folders:
            for fold in self.fold or (None,):
                if not is_model_folder(folder) and (folder / "plans.json").is_file():
                    checkpoint_of(folder, fold=fold, checkpoint=self.checkpoint)
        return [ModelDescription.read(folder) for folder in self.folders]

    def load(self) -> list[ModelFolder]:
        """The models, one per folder and fold.

        Raises:
            ModelError: A model cannot be loaded.
        """
        from satunet.models.folder import ModelFolder

        folds = tuple(dict.fromkeys(self.fold)) or (None,)
        return [
            ModelFolder.load(folder, fold=fold, checkpoint=self.checkpoint) for folder in self.folders for fold in folds
        ]


def existing_model(given: Path) -> Path:
    """The folder of a model.

    Raises:
        ModelError: The folder does not exist; the message says what a model is and which models were found.
    """
    resolved = resolve_model(given)
    if resolved.is_dir():
        return resolved
    why = "this is a file" if given.is_file() else "there is no such folder"
    raise ModelError(f"{given}: {why}; {WHAT_A_MODEL_IS}. {_here()}")


def default_model() -> Path:
    """The network of dataset 900 in ``nnUNet_results`` if there is one, else the model that comes with satunet."""
    from satunet.datasets.unified import UnifiedFolder

    with contextlib.suppress(PathsNotSetError):
        own = UnifiedFolder().results
        if (own / "plans.json").is_file():
            logger.info("no model was given (-m): using your own, %s", own)
            return own
    name = SHIPPED[0]
    logger.info("no model was given (-m): using %r, which comes with satunet (satunet info %s)", name, name)
    return resolve_model(name)


def models_here() -> list[Path]:
    """Model and result folders of unified networks in ``nnUNet_results`` and in the current folder."""
    from satunet.datasets.paths import results_dir

    places = [Path()]
    with contextlib.suppress(PathsNotSetError):
        places.insert(0, results_dir())
    found = [
        file.parent
        for place in places
        for pattern in ("*/label_space.json", "*/*/label_space.json")
        for file in sorted(place.glob(pattern))
        if (file.parent / "plans.json").is_file()
    ]
    return list(dict.fromkeys(found))


def _here() -> str:
    here = models_here()
    if not here:
        return "There is none here"
    more = f" and {len(here) - _SHOWN} more" if len(here) > _SHOWN else ""
    return f"Here are {', '.join(map(str, here[:_SHOWN]))}{more}"
