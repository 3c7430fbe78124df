"""Scores of a model on real scans that it never saw, class by class, in the files' own grids.

One pass over folders of nnU-Net datasets asks for every class that both the dataset and the model know by its name.
The scores decide which classes a model may offer; ``satunet evaluate``, in contrast, scores predictions on disk.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from satunet.datasets.raw import MODALITIES, Dataset
from satunet.evaluation.scoring.metrics import score_masks
from satunet.evaluation.scoring.rules import Rules
from satunet.images.image import read_image, read_label_map
from satunet.labels import LabelSpace, build_label_space
from satunet.models.folder import ClassScore
from satunet.prediction.masks.found import Prediction
from satunet.prediction.predictor import Predictor

logger = logging.getLogger(__name__)

RULES = Rules(tolerance_mm=1.0)


@dataclass(frozen=True, kw_only=True)
class Judged:
    """Scores of a class in a scan.

    Attributes:
        dataset: Dataset of the scan.
        case: The scan.
        modality: Modality of the scan.
        class_name: The class.
        dsc: Dice similarity coefficient, ``nan`` if neither mask has a voxel.
        nsd: Normalised surface Dice at 1 mm.
        reference_ml: Volume in the reference.
        predicted_ml: Volume of the prediction.
    """

    dataset: str
    case: str
    modality: str
    class_name: str
    dsc: float
    nsd: float
    reference_ml: float
    predicted_ml: float


def judge(
    predictor: Predictor,
    datasets: Iterable[tuple[Dataset, Collection[str] | None]],
    *,
    show: Callable[[Dataset, str, Prediction, Any], object] | None = None,
) -> list[Judged]:
    """Segment scans and score the classes that model and dataset both know.

    Args:
        predictor: Predictor with its model.
        datasets: Datasets, each with the cases to score; ``None`` for all.
        show: Function that is called with each prediction and its label map.
    """
    rows: list[Judged] = []
    known, offered = set(predictor.model.space.class_names), predictor.vocabulary.earned
    for dataset, cases in datasets:
        ids = build_label_space([dataset]).ids[dataset.name]
        modality = dataset.modalities[0]
        names = [n for n in sorted(ids) if n in known and (offered is None or (n, modality) in offered)]
        for case in dataset.training_cases():
            if (cases is not None and case.identifier not in cases) or case.label is None or not names:
                continue
            image = read_image(case.images[0])
            reference = read_label_map(case.label, grid=image.grid)
            prediction = predictor.predict(image, names, modality=modality)
            for name, mask in zip(names, prediction.masks, strict=True):
                wanted = np.isin(reference.array, ids[name])
                found = mask.mask if mask.mask is not None else np.zeros_like(wanted)
                scores = score_masks(wanted, found, image.grid.spacing_mm, rules=RULES, class_name=name)
                rows.append(
                    Judged(
                        dataset=dataset.name,
                        case=case.identifier,
                        modality=modality,
                        class_name=name,
                        dsc=float(scores.dsc),
                        nsd=float(scores.nsd),
                        reference_ml=float(wanted.sum() * image.grid.voxel_ml),
                        predicted_ml=float(found.sum() * image.grid.voxel_ml),
                    )
                )
            if show is not None:
                show(dataset, case.identifier, prediction, reference)
            logger.info("%s %s judged", dataset.name, case.identifier)
    return rows


def means(rows: Sequence[Judged]) -> dict[str, dict[str, dict[str, float]]]:
    """Dataset → class → mean DSC and NSD and number of scans that show the class."""
    found: dict[str, dict[str, list[Judged]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        if row.reference_ml > 0:
            found[row.dataset][row.class_name].append(row)
    return {
        dataset: {
            name: {
                "dsc": float(np.mean([r.dsc for r in several])),
                "nsd": float(np.mean([r.nsd for r in several])),
                "scans": len(several),
            }
            for name, several in sorted(classes.items())
        }
        for dataset, classes in sorted(found.items())
    }


def earned(
    rows: Sequence[Judged], trained_on: Collection[str], least: float = 0.5
) -> tuple[list[ClassScore], dict[str, float]]:
    """The classes that a model may offer: those with a mean DSC of at least ``least`` over all scored scans, whether of
    patients kept out of training or from other sources. The scores cover all of these scans.

    Args:
        rows: Rows from :func:`judge`.
        trained_on: Datasets with other scans that the model was trained on.
        least: Mean DSC that a class must reach, modality by modality.

    Returns:
        A score for each such class, modality and dataset; and ``"class (modality)"`` → mean DSC of the others.
    """
    every: dict[tuple[str, str], list[Judged]] = defaultdict(list)
    for row in rows:
        if row.reference_ml > 0:
            every[row.class_name, row.modality].append(row)
    scores: list[ClassScore] = []
    missed: dict[str, float] = {}
    for (name, modality), several in sorted(every.items()):
        mean = float(np.mean([r.dsc for r in several]))
        if mean < least:
            missed[f"{name} ({modality})"] = round(mean, 3)
            continue
        for dataset in sorted({r.dataset for r in several}):
            own = [r for r in several if r.dataset == dataset]
            scores.append(
                ClassScore(
                    class_name=name,
                    modality=modality,
                    dsc=round(float(np.mean([r.dsc for r in own])), 4),
                    nsd=round(float(np.mean([r.nsd for r in own])), 4),
                    scans=len(own),
                    dataset=dataset,
                    kept_out=dataset in trained_on,
                )
            )
    return scores, missed


def offered_space(space: LabelSpace, scores: Collection[ClassScore]) -> LabelSpace:
    """The label space of the classes that have scores, with the modalities in which they have them."""
    modalities: dict[str, set[str]] = defaultdict(set)
    for score in scores:
        modalities[score.class_name].add(score.modality)
    classes = tuple(
        replace(info, modalities=tuple(m for m in MODALITIES if m in modalities[info.name]))
        for info in space.classes
        if info.name in modalities
    )
    ids = {
        dataset: {name: values for name, values in own.items() if name in modalities}
        for dataset, own in space.ids.items()
    }
    return LabelSpace(classes=classes, ids={d: own for d, own in ids.items() if own})
