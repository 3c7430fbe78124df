"""Writing model folders, from weights of any source or a result folder; a folder appears complete or not at all."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from satunet.confidence.calibration import CONFIDENCE_FILE, Calibration
from satunet.errors import ModelError
from satunet.jobs.files import atomic_folder
from satunet.jobs.fresh import content_hash
from satunet.jobs.records import load_json, save_record
from satunet.labels import LabelSpace
from satunet.models.checkpoints import empty_network, hash_weights, load_weights
from satunet.models.folder import (
    DEFAULT_CHECKPOINT,
    MODEL_FILE,
    WEIGHTS_FILE,
    ClassScore,
    EncoderIdentity,
    ModelCard,
    ModelFolder,
    Source,
    check_bank,
)
from satunet.models.trained_scans import TRAINED_SCANS_FILE, TrainedScans
from satunet.plan import UnifiedPlan
from satunet.text import TEXT_ENCODER_FOLDER, TextBank, load_text_encoder
from satunet.text.copying import copy_text_encoder


def write_model(
    output: Path,
    *,
    plan: UnifiedPlan,
    space: LabelSpace,
    bank: TextBank,
    weights: Mapping[str, Tensor],
    name: str,
    licence: str | None = None,
    provenance: Mapping[str, Any] | None = None,
    fold: int | str = "all",
    text_encoder: Path | None = None,
    trained: TrainedScans | None = None,
    scores: Sequence[ClassScore] = (),
    sources: Sequence[Source] = (),
    calibration: Calibration | None = None,
) -> ModelCard:
    """Write a model folder; it appears complete or not at all.

    Args:
        output: Folder to write; it must not exist.
        plan: Plan whose ``network`` the weights must fit.
        space: Label space with the classes.
        bank: Embeddings of the classes' texts.
        weights: Weights of the network.
        name: Display name.
        licence: Licence of the weights.
        provenance: Origin of the weights; version and date are added.
        fold: Fold that the weights were trained on.
        text_encoder: Folder of the text encoder to include.
        trained: Scans that the network was trained on.
        scores: Scores on scans that the network was not trained on.
        sources: Sources of the training data.
        calibration: Calibration of the network's confidence.

    Raises:
        UserError: The folder exists.
        ModelError: The weights do not fit the plan's network, or the bank does not fit the plan.
    """
    from safetensors.torch import save_file

    from satunet import __version__

    check_bank(bank, plan, output)
    load_weights(empty_network(plan.network), weights, source=output)
    card = ModelCard(
        name=name,
        weights_hash=hash_weights(weights),
        text_encoder=EncoderIdentity(name=bank.encoder_name, fingerprint=bank.encoder_fingerprint),
        licence=licence,
        fold=fold,
        scores=tuple(scores),
        sources=tuple(sources),
        provenance={
            "written_by": f"satunet {__version__}",
            "date": datetime.date.today().isoformat(),
            **(provenance or {}),
        },
    )
    with atomic_folder(output) as folder:
        plan.save(folder / "plans.json")
        space.save(folder / "label_space.json")
        bank.save(folder / "text_bank.safetensors")
        save_file({key: value.contiguous() for key, value in weights.items()}, folder / WEIGHTS_FILE)
        if text_encoder is not None:
            copy_text_encoder(text_encoder, folder / TEXT_ENCODER_FOLDER)
        if trained is not None:
            trained.save(folder / TRAINED_SCANS_FILE)
        if calibration is not None:
            replace(calibration, weights_hash=card.weights_hash[:16]).save(folder)
        # These have hashes of their own, or may be calibrated later.
        apart = (WEIGHTS_FILE, "text_bank.safetensors", CONFIDENCE_FILE)
        others = sorted(file.name for file in folder.iterdir() if file.is_file() and file.name not in apart)
        card = replace(card, files={name: content_hash(folder / name) for name in others})
        save_record(folder / MODEL_FILE, card)
    return card


def export_model(
    source: Path | str,
    output: Path | str,
    *,
    fold: int | str | None = None,
    checkpoint: str = DEFAULT_CHECKPOINT,
    name: str | None = None,
    licence: str | None = None,
) -> ModelCard:
    """Make a model folder from a result folder: everything that prediction needs, without optimizer state and log.

    Args:
        source: Result folder of the unified trainer (or a model folder, which is copied).
        output: Model folder to write; it must not exist.
        fold: Fold, as in :meth:`ModelFolder.load`.
        checkpoint: Checkpoint, as in :meth:`ModelFolder.load`.
        name: Display name; the dataset's name if not given.
        licence: Licence of the weights.

    Raises:
        UserError: ``output`` exists.
        ModelError: The model cannot be loaded, see :meth:`ModelFolder.load`.
    """
    model = ModelFolder.load(source, fold=fold, checkpoint=checkpoint)
    provenance: dict[str, Any] = {"source": "trained by satunet", "datasets": list(model.plan.datasets)}
    if model.card is not None:
        provenance = dict(model.card.provenance)
        licence, name = licence or model.card.licence, name or model.card.name
    else:
        provenance["checkpoint"] = f"fold_{model.fold}/{model.checkpoint}"
        config = model.path / f"fold_{model.fold}" / "training_config.json"
        if config.is_file():
            provenance["training"] = load_json(config, what="the configuration of a training", error=ModelError)
    own = model.path / TEXT_ENCODER_FOLDER
    encoder = own if own.is_dir() else _own_folder_of(model)
    return write_model(
        Path(output),
        plan=model.plan,
        space=model.space,
        bank=model.bank,
        weights=model.network.state_dict(),
        name=name or model.plan.dataset_name,
        licence=licence,
        provenance=provenance,
        fold=model.fold,
        text_encoder=encoder,
        trained=TrainedScans.of_model(model.path, model.fold),
        scores=model.card.scores if model.card else (),
        sources=model.card.sources if model.card else (),
        calibration=model.calibration,
    )


def _own_folder_of(model: ModelFolder) -> Path | None:
    """Text encoder's folder named in a result folder's plan; a model folder's plan may be foreign and not trusted."""
    named = Path(model.plan.text_encoder).expanduser()
    if model.card is not None or not named.is_dir():
        return None
    if load_text_encoder(str(named)).fingerprint != model.bank.encoder_fingerprint:
        raise ModelError(f"{named}: this is not the text encoder that the network was trained with")
    return named
