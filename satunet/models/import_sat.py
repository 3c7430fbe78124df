"""SAT's published checkpoints → a model folder.

Checkpoints are imported completely or not at all: if a tensor is missing, unknown or of another shape, the import fails
with a list of all differences. No code from the files is run.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from satunet.datasets.catalogue import Catalogue, load_catalogue
from satunet.datasets.raw import MODALITIES, Dataset
from satunet.errors import UserError
from satunet.jobs.files import scratch_folder
from satunet.labels import LabelSpace, build_label_space, text_variants
from satunet.models.checkpoints import empty_network, load_checkpoint, load_weights
from satunet.models.folder import ModelCard
from satunet.models.writing import write_model
from satunet.network.config import NetworkConfig
from satunet.network.published import (
    modality_rows,
    network_state,
    preset_of,
    state_dict_of,
    with_modality,
)
from satunet.plan import SAT_NORMALIZATION, UnifiedPlan
from satunet.text import TextBank, load_text_encoder
from satunet.text.sat import SAT_ARCHITECTURE, save_sat_encoder

logger = logging.getLogger(__name__)

SAT_SPACING_MM = (1.0, 1.0, 3.0)
SAT_PATCH = (288, 288, 96)
_ENCODER = "sat"


def import_sat(
    checkpoint: Path,
    text_encoder: Path,
    output: Path,
    *,
    text_architecture: str = SAT_ARCHITECTURE,
    name: str | None = None,
    licence: str | None = None,
    presets: Sequence[NetworkConfig] | None = None,
    patch_size: tuple[int, int, int] = SAT_PATCH,
    architecture_name: str | None = None,
    origin: Mapping[str, Any] | None = None,
) -> ModelCard:
    """Turn SAT's checkpoints into a model folder for prediction.

    Args:
        checkpoint: ``SAT_Nano.pth`` or ``SAT_Pro.pth``; the shapes of its tensors tell which of the two it is.
        text_encoder: ``text_encoder.pth``, from the same download.
        output: Model folder to write; it must not exist, or be empty.
        text_architecture: Hub name or folder with the configuration and tokenizer of the text encoder.
        name: Display name; "SAT-Nano" or "SAT-Pro" if not given.
        licence: Licence of the weights, as their publishers state it.
        presets: Network configurations to try; SAT's two if not given.
        patch_size: Size of the windows in prediction.
        architecture_name: Name of the text architecture to record, if ``text_architecture`` is a temporary folder.
        origin: Origin of the files, for the model's provenance.

    Raises:
        UserError: ``output`` exists and is not an empty folder.
        ModelError: A file cannot be read, holds objects other than data, or does not fit; the message lists the
            differences.
    """
    if output.exists() and any(output.iterdir() if output.is_dir() else [output]):
        raise UserError(f"{output}: already exists; remove it, or give another folder")
    presets = presets or (NetworkConfig.nano(), NetworkConfig.pro())
    state = state_dict_of(load_checkpoint(checkpoint), source=checkpoint)
    config = preset_of(state, presets, source=checkpoint)
    weights = network_state(state, source=checkpoint)
    load_weights(empty_network(config), weights, source=checkpoint)
    text_state = state_dict_of(load_checkpoint(text_encoder), source=text_encoder)
    output.parent.mkdir(parents=True, exist_ok=True)
    with scratch_folder(output.parent) as temporary:
        folder = temporary / "text_encoder"
        published = save_sat_encoder(
            text_state, folder, source=text_encoder, architecture=text_architecture, architecture_name=architecture_name
        )
        rows, row_sources = modality_rows(published, MODALITIES)
        weights = {k: v.to(torch.float32) for k, v in weights.items()} | {"adapter.modality_embedding.weight": rows}
        plan, space = sat_plan(config, patch_size), sat_label_space()
        encoder = load_text_encoder(str(folder))
        texts = [text for info in space.classes for text in text_variants(info)]
        bank = TextBank.build(encoder, texts)
        bank = TextBank(
            encoder_name=_ENCODER,
            encoder_fingerprint=bank.encoder_fingerprint,
            texts=bank.texts,
            vectors=bank.vectors,
        )
        return write_model(
            output,
            plan=plan,
            space=space,
            bank=bank,
            weights=weights,
            name=name or f"SAT-{config.preset.capitalize()}",
            licence=licence,
            provenance={
                "source": "SAT (arXiv 2312.17183), imported",
                "checkpoint": _file(checkpoint),
                "text_encoder": _file(text_encoder) | {"architecture": architecture_name or text_architecture},
                "modality_embedding": row_sources,
                **(origin or {}),
            },
            text_encoder=folder,
        )


def sat_plan(config: NetworkConfig, patch_size: tuple[int, int, int] = SAT_PATCH) -> UnifiedPlan:
    """SAT's settings for training and prediction as a plan: spacing, orientation, intensities, dataset weights."""
    records = load_catalogue().records
    return UnifiedPlan(
        dataset_name="SAT_DS",
        spacing_mm=SAT_SPACING_MM,
        patch_size=patch_size,
        batch_size=2 if config.preset == "nano" else 1,
        normalization=dict(SAT_NORMALIZATION),
        network=with_modality(config),
        text_encoder=_ENCODER,
        datasets=tuple(sorted(r.folder for r in records)),
        dataset_weights={r.folder: r.scans**-0.5 * r.weight for r in records},
        dataset_orientation={r.folder: r.orientation for r in records if r.orientation != "RAS"},
        explanation={
            "network": f"SAT-{config.preset.capitalize()} as published",
            "spacing": f"{SAT_SPACING_MM} mm is what SAT was trained at",
            "patch": f"{patch_size} voxels" + (" as SAT predicts with" if patch_size == SAT_PATCH else " were given"),
            "normalisation": "SAT's, by modality",
        },
    )


def sat_label_space(catalogue: Catalogue | None = None) -> LabelSpace:
    """The 498 classes of SAT-DS and their modalities, from the catalogue alone; the datasets are not needed."""
    datasets = [
        Dataset(
            id=record.id,
            name=record.folder,
            folder=Path(record.folder),
            channel_names=record.channel_names or (record.modality,),
            modalities=(record.modality,) * max(1, len(record.channel_names)),
            labels={label: (number,) for label, number in record.labels.items()},
        )
        for record in (catalogue or load_catalogue()).records
    ]
    return build_label_space(datasets)


def _file(path: Path) -> dict[str, Any]:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return {"file": path.name, "bytes": path.stat().st_size, "sha256": digest.hexdigest()}
