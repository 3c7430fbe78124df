"""Facts about a model, for people and programs, without loading its weights."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from satunet.datasets.raw import MODALITIES
from satunet.errors import ModelError
from satunet.labels import LabelSpace
from satunet.models.folder import (
    MODEL_FILE,
    WEIGHTS_FILE,
    ClassScore,
    ModelCard,
    ModelFolder,
    is_model_folder,
    read_description,
)
from satunet.models.shipped import resolve_model
from satunet.plan import UnifiedPlan
from satunet.text import TEXT_ENCODER_FOLDER, TextBank


def describe_model(path: Path, *, classes: bool = False, verify: bool = False) -> dict[str, Any]:
    """Facts about a model or result folder, as plain values.

    Args:
        path: The folder, or the name of a shipped or published model.
        classes: Whether to list the classes by modality.
        verify: Whether to load the weights and check them against the plan and, in a model folder, against their hash.

    Raises:
        ModelError: This is not a model, or it is damaged.
    """
    path = resolve_model(path, fetch=False)
    plan, space, bank = read_description(path)
    facts: dict[str, Any] = {"folder": str(path)}
    if is_model_folder(path):
        card = ModelCard.load(path / MODEL_FILE)
        facts |= {"kind": "model folder", "name": card.name}
        facts["weights"] = _weights(path / WEIGHTS_FILE) | {"hash": card.weights_hash, "fold": card.fold}
        facts["licence"] = card.licence
        facts["provenance"] = dict(card.provenance)
        if card.scores:
            facts["scores"] = [_score(score) for score in card.scores]
        if card.sources:
            facts["sources"] = [f"{s.name}: {s.what}; {s.licence}; {s.address}" for s in card.sources]
    else:
        facts |= {"kind": "result folder of a training", "name": plan.dataset_name}
        facts["checkpoints"] = [
            f"{file.relative_to(path)} ({file.stat().st_size / 2**20:.1f} MB)"
            for file in sorted(path.glob("fold_*/*.pth"))
        ]
        facts["licence"] = None
    if verify:
        facts["verified"] = _verify(path)
    facts["network"] = _network(plan)
    facts["plan"] = _plan(plan)
    facts["classes"] = _classes(space, listed=classes)
    facts["text_encoder"] = _texts(path, bank)
    return facts


def _score(score: ClassScore) -> str:
    scans = f"{score.scans} scan{'' if score.scans == 1 else 's'} of {score.dataset}"
    why = "patients kept out" if score.kept_out else "never trained on"
    return f"{score.class_name} ({score.modality}): DSC {score.dsc:.3f}, NSD {score.nsd:.3f} on {scans}, {why}"


def _verify(path: Path) -> list[str]:
    """Load the weights (in a result folder, those of every checkpoint) and report on each in one sentence."""
    if is_model_folder(path):
        model = ModelFolder.load(path)
        return [f"weights {model.weights_hash} fit the plan and have the hash in {MODEL_FILE}"]
    files = sorted(path.glob("fold_*/checkpoint_*.pth"))
    if not files:
        raise ModelError(f"{path}: no checkpoint to verify; is the training finished?")
    found = []
    for file in files:
        model = ModelFolder.load(path, fold=file.parent.name.removeprefix("fold_"), checkpoint=file.name)
        found.append(f"{file.relative_to(path)}: weights {model.weights_hash} fit the plan")
    return found


def _network(plan: UnifiedPlan) -> dict[str, Any]:
    from satunet.models.checkpoints import empty_network

    config = plan.network
    parameters = sum(p.numel() for p in empty_network(config).parameters())
    return {
        "preset": config.preset,
        "backbone": config.backbone,
        "parameters": f"{parameters / 1e6:.2f} M",
        "features_per_stage": list(config.features_per_stage),
        "queries": f"{config.num_query_layers} layers of width {config.query_dim}, texts of {config.text_dim} values",
    }


def _plan(plan: UnifiedPlan) -> dict[str, Any]:
    return {
        "orientation": plan.orientation,
        "spacing_mm": list(plan.spacing_mm),
        **_other_spacings(plan),
        "patch_size": list(plan.patch_size),
        "normalization": {m: _scheme(plan, m) for m in plan.normalization},
        "datasets": len(plan.datasets),
    }


def _other_spacings(plan: UnifiedPlan) -> dict[str, Any]:
    found: dict[str, int] = {}
    for modality, classes in plan.class_spacings_mm.items():
        for spacings in classes.values():
            key = f"{modality} at {' or '.join(f'{s:g}' for s in spacings)} mm"
            found[key] = found.get(key, 0) + 1
    return {"classes_by_spacing": found} if found else {}


def _scheme(plan: UnifiedPlan, modality: str) -> str:
    n = plan.normalization_of(modality)
    if n.unit_range:
        return "scaled to [0, 1]"
    parts = [f"clipped to {n.clip}"] if n.clip else []
    parts += [f"clipped to percentiles {n.percentiles}"] if n.percentiles else []
    parts.append(f"mean {n.mean:g}, std {n.std:g}" if n.mean is not None and n.std is not None else "z-score")
    return ", ".join(parts) + (", of voxels that are not zero" if n.nonzero else "")


def _classes(space: LabelSpace, *, listed: bool) -> dict[str, Any]:
    counts = Counter(m for info in space.classes for m in info.modalities)
    found: dict[str, Any] = {"count": len(space.classes), "lesions": sum(info.lesion for info in space.classes)}
    for modality in MODALITIES:
        if counts[modality] and listed:
            found[modality] = [info.name for info in space.classes if modality in info.modalities]
        elif counts[modality]:
            found[modality] = counts[modality]
    return found


def _texts(path: Path, bank: TextBank) -> dict[str, Any]:
    own = path / TEXT_ENCODER_FOLDER
    return {
        "name": bank.encoder_name,
        "fingerprint": bank.encoder_fingerprint,
        "in_the_folder": own.is_dir(),
        "texts_in_the_bank": len(bank.texts),
    }


def _weights(file: Path) -> dict[str, Any]:
    """Facts about the weights in a safetensors file, from its header alone.

    Raises:
        ModelError: The file does not exist, or is truncated.
    """
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            header = json.loads(stream.read(min(length, size)))
        header.pop("__metadata__", None)
        end = 8 + length + max((entry["data_offsets"][1] for entry in header.values()), default=0)
        kinds = sorted({entry["dtype"] for entry in header.values()})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{file}: truncated, or not a safetensors file ({error})") from error
    if end != size:
        raise ModelError(f"{file}: {size} bytes instead of {end}; the file is truncated or damaged")
    return {"file": file.name, "size": f"{size / 2**20:.1f} MB", "types": kinds}
