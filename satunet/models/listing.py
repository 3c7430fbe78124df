"""List of the available models: shipped, fetched, trained here, and those that can be fetched by name."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from satunet.datasets.raw import MODALITIES
from satunet.errors import SatunetError
from satunet.jobs.wording import counted
from satunet.labels import LabelSpace, catalogue_space
from satunet.models.choice import models_here
from satunet.models.folder import MODEL_FILE, ClassScore, ModelCard, is_model_folder
from satunet.models.published.known import KNOWN, models_dir
from satunet.models.shipped import SHIPPED, resolve_model


def list_models() -> list[dict[str, Any]]:
    """One row per model: name, kind, size, classes, modalities, licence, scores, place; ``problem`` if unreadable."""
    kept = {known.place: known.name for known in KNOWN.values()}
    rows = [_row(name, "shipped", resolve_model(name)) for name in SHIPPED]
    rows += [_row(kept.get(folder, folder.name), "fetched", folder) for folder in _cached()]
    rows += [_row(str(folder), "yours", folder) for folder in models_here()]
    space = catalogue_space()
    for known in KNOWN.values():
        if not (known.place / MODEL_FILE).is_file():
            about = {"classes": len(space.classes), "modalities": _modalities(space)}
            place = f"not here yet: {known.about}, from {known.repository} ({known.folder}); {known.citation}"
            rows.append(
                {"model": known.name, "kind": "known"} | about | {"licence": "shown before fetching", "place": place}
            )
    return rows


def _cached() -> list[Path]:
    return sorted(file.parent for file in models_dir().glob(f"[!.]*/{MODEL_FILE}"))


def _row(name: str, kind: str, folder: Path) -> dict[str, Any]:
    row: dict[str, Any] = {"model": name, "kind": kind}
    try:
        space = LabelSpace.load(folder / "label_space.json")
        card = ModelCard.load(folder / MODEL_FILE) if is_model_folder(folder) else None
        size = sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())
    except (SatunetError, OSError) as error:  # a damaged model must not hide the others
        return row | {"problem": str(error), "place": str(folder)}
    row |= {"MB": round(size / 1e6, 1), "classes": len(space.classes), "modalities": _modalities(space)}
    if card is not None:
        row |= {"licence": card.licence or "not stated", "scores": _summary(card.scores)}
    return row | {"place": str(folder)}


def _modalities(space: LabelSpace) -> list[str]:
    known = {m for c in space.classes for m in c.modalities}
    return [m for m in MODALITIES if m in known]


def _summary(scores: tuple[ClassScore, ...]) -> str:
    """Mean DSC over pairs of class and modality, such as "mean DSC 0.75 of 40 classes by modality (satunet info)".

    Each pair counts by the mean over its scans.
    """
    classes: dict[tuple[str, str], list[ClassScore]] = {}
    for score in scores:
        classes.setdefault((score.class_name, score.modality), []).append(score)
    if not classes:
        return ""
    means = [sum(s.dsc * s.scans for s in own) / sum(s.scans for s in own) for own in classes.values()]
    return f"mean DSC {statistics.fmean(means):.2f} of {counted(len(means), 'class', 'classes')} by modality (satunet info)"
