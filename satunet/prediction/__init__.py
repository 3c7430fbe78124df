"""Prediction: a model, scans and prompts → masks in each scan's own grid."""

from satunet.models.folder import ModelFolder
from satunet.prediction.predictor import Prediction, Predictor

__all__ = ["ModelFolder", "Prediction", "Predictor"]
