"""Prediction: a model, scans and prompts → masks in each scan's own grid."""

from typing import TYPE_CHECKING as _TYPE_CHECKING

if _TYPE_CHECKING:
    from satunet.models.folder import ModelFolder as ModelFolder
    from satunet.prediction.masks.found import Prediction as Prediction
    from satunet.prediction.masks.postprocess import Postprocessing as Postprocessing
    from satunet.prediction.options import Outputs as Outputs
    from satunet.prediction.options import PredictOptions as PredictOptions
    from satunet.prediction.predictor import Predictor as Predictor

_PLACES = {
    "ModelFolder": "satunet.models.folder",
    "Outputs": "satunet.prediction.options",
    "Postprocessing": "satunet.prediction.masks.postprocess",
    "PredictOptions": "satunet.prediction.options",
    "Prediction": "satunet.prediction.masks.found",
    "Predictor": "satunet.prediction.predictor",
}


def __getattr__(name: str) -> object:
    """An object of this package, imported on first use: a command that only shows its options needs no torch."""
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_PLACES[name]), name)
