"""Prediction of a specialist nnU-Net by nnunetv2 itself."""

from __future__ import annotations

import contextlib
import logging
import shutil
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch

from satunet.compute.devices import autocast_for, pick_device
from satunet.errors import ModelError
from satunet.jobs.files import scratch_folder
from satunet.jobs.progress import prints_to_log
from satunet.jobs.workers import reason_of
from satunet.models.checkpoints import load_checkpoint
from satunet.trainers.specialist.trainer import register, specialist_folder

logger = logging.getLogger(__name__)


def predict_specialist(
    dataset_name: str,
    cases: Sequence[tuple[str, Sequence[Path]]],
    output: Path,
    *,
    fold: int | str = "all",
    device: str = "auto",
    model: Path | None = None,
    while_predicting: AbstractContextManager[object] | None = None,
) -> dict[str, str]:
    """Write label maps ``<case>.<ending>`` with nnunetv2's predictor; existing ones are kept.

    A case that cannot be read or does not fit into memory never stops the others.

    Args:
        dataset_name: The specialist's dataset.
        cases: (identifier, files, one per channel).
        output: Folder of the label maps.
        fold: Fold of the specialist.
        device: Device to compute on.
        model: Result folder of another nnU-Net of this dataset.
        while_predicting: Context that is entered when the network is loaded and left when all cases are done.

    Returns:
        Case → reason why it has no label map.

    Raises:
        ModelError: The specialist is not trained, or no case could be predicted.
    """
    folder = model or specialist_folder(dataset_name)
    checkpoint = folder / f"fold_{fold}" / "checkpoint_final.pth"
    if not checkpoint.is_file():
        raise ModelError(f"{folder}: no finished training of fold {fold}; train it with 'satunet train --specialist'")
    load_checkpoint(checkpoint)  # nnunetv2 unpickles it, so a file that holds more than data is refused first
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
        with while_predicting or contextlib.nullcontext():
            failures = _predict_each(predictor, cases, output)
    for case, reason in failures.items():
        logger.error("%s: %s", case, reason)
    if failures and len(failures) == len(cases):
        case, reason = next(iter(failures.items()))
        raise ModelError(f"{folder}: none of {len(cases)} cases could be predicted; {case}: {reason}")
    return failures


def _predict_each(predictor: Any, cases: Sequence[tuple[str, Sequence[Path]]], output: Path) -> dict[str, str]:
    """Predict case by case into a temporary folder: nnunetv2 writes straight to the final file, and a killed run would
    leave half of it.
    """
    for left_over in output.glob(".tmp-*"):  # safe, because there is only one writer
        shutil.rmtree(left_over, ignore_errors=True)
    ending = str(predictor.dataset_json["file_ending"])
    failures: dict[str, str] = {}
    for case, images in cases:
        if (output / f"{case}{ending}").is_file():
            continue
        try:
            with scratch_folder(output) as temporary:
                predictor.predict_from_files_sequential(
                    [[str(p) for p in images]],
                    [str(temporary / case)],
                    save_probabilities=False,
                    overwrite=True,
                )
                for name in ("dataset.json", "plans.json", f"{case}{ending}"):
                    (temporary / name).replace(output / name)
        except Exception as error:  # nnunetv2 and its readers raise any type of error
            failures[case] = reason_of(error)
    return failures


def _precision(device: torch.device) -> AbstractContextManager[object]:
    # nnunetv2 leaves precision alone on a CPU; on CUDA it chooses its own.
    return autocast_for(device) if device.type == "cpu" else contextlib.nullcontext()
