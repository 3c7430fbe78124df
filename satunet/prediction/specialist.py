"""Prediction of a specialist nnU-Net by nnunetv2 itself."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Sequence
from pathlib import Path

import torch

from satunet.devices import autocast_for, pick_device
from satunet.errors import ModelError
from satunet.progress import prints_to_log
from satunet.trainers.specialist import register, specialist_folder

logger = logging.getLogger(__name__)


def predict_specialist(
    dataset_name: str,
    cases: Sequence[tuple[str, Sequence[Path]]],
    output: Path,
    *,
    fold: int | str = "all",
    device: str = "auto",
    model: Path | None = None,
) -> None:
    """Write label maps ``<case>.<ending>`` by nnunetv2's predictor; cases that are there stay.

    Args:
        dataset_name: The specialist's dataset.
        cases: (identifier, a file a channel).
        output: Folder of the label maps.
        fold: Fold of the specialist.
        device: Where to compute.
        model: Result folder of another nnU-Net of this dataset.

    Raises:
        ModelError: It is not trained.
    """
    folder = model or specialist_folder(dataset_name)
    if not (folder / f"fold_{fold}" / "checkpoint_final.pth").is_file():
        raise ModelError(f"{folder}: no finished training of fold {fold}; train it with 'satunet train --specialist'")
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    register()
    where = pick_device(device)
    output.mkdir(parents=True, exist_ok=True)
    with prints_to_log(logger, "nnunetv2"), _precision(where):
        predictor = nnUNetPredictor(
            use_mirroring=False,
            perform_everything_on_device=where.type == "cuda",
            device=where,
            allow_tqdm=False,
        )
        predictor.initialize_from_trained_model_folder(str(folder), (fold,))
        predictor.predict_from_files_sequential(
            [[str(p) for p in images] for _, images in cases],
            [str(output / case) for case, _ in cases],
            save_probabilities=False,
            overwrite=False,
        )


def _precision(device: torch.device) -> contextlib.AbstractContextManager[object]:
    # nnunetv2 leaves precision alone on a CPU; on CUDA it chooses its own.
    return autocast_for(device) if device.type == "cpu" else contextlib.nullcontext()
