"""Thresholds of a network's probabilities, by class: where a mask agrees best with the labels, if not at one half.

A network that was trained for few steps draws some structures too small and others too large, the more so the smaller
they are. A threshold for each class is a fit of one number to labelled scans, as cheap as a prediction of them. (Lipton et
al. 2014, arXiv 1402.1892, show that even for exact probabilities the best threshold for Dice is not one half, but half the
Dice that can be reached.)
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from satunet.datasets.raw import Dataset
from satunet.evaluation.benchmark.judging import Judged, judge
from satunet.images.image import Image, read_image, read_label_map
from satunet.labels import build_label_space
from satunet.labels.names import normalize_name
from satunet.prediction.masks.found import Found
from satunet.prediction.masks.postprocess import Postprocessing
from satunet.prediction.predictor import Predictor

logger = logging.getLogger(__name__)

CANDIDATES = tuple(round(0.2 + 0.05 * i, 2) for i in range(10))
"""Thresholds that are tried, 0.2 to 0.65: far from one half, a network is to be trained longer, not corrected."""
LEAST_GAIN, LEAST_SCANS = 0.01, 3


@dataclass(frozen=True, kw_only=True)
class Tried:
    """A class in a labelled scan.

    Attributes:
        dataset: Dataset.
        case: Scan.
        modality: Its modality.
        class_name: Class.
        dsc: Dice at each of :data:`CANDIDATES`.
    """

    dataset: str
    case: str
    modality: str
    class_name: str
    dsc: tuple[float, ...]


def try_thresholds(predictor: Predictor, datasets: Iterable[tuple[Dataset, Collection[str] | None]]) -> list[Tried]:
    """Segment labelled scans and score their classes at every threshold.

    Args:
        predictor: Predictor of one model; thresholds that its plan has already are left aside.
        datasets: Datasets, each with the cases to look at; ``None`` for all.

    Returns:
        A row for each scan and each class that is in it.
    """
    model = predictor.model
    bare = _with(predictor, {})
    offered = bare.vocabulary.earned
    rows: list[Tried] = []
    for dataset, cases in datasets:
        ids = build_label_space([dataset]).ids[dataset.name]
        modality = dataset.modalities[0]
        names = [n for n in sorted(ids) if n in model.space and (offered is None or (n, modality) in offered)]
        for case in dataset.training_cases():
            if (cases is not None and case.identifier not in cases) or case.label is None or not names:
                continue
            image = read_image(case.images[0])
            labels = read_label_map(case.label, grid=image.grid).array
            for name, dsc in _scores(bare, image, modality, names, labels, ids).items():
                rows.append(
                    Tried(dataset=dataset.name, case=case.identifier, modality=modality, class_name=name, dsc=dsc)
                )
            logger.info("%s %s: thresholds tried", dataset.name, case.identifier)
    return rows


def best_thresholds(rows: Sequence[Tried], kept_out: Collection[tuple[str, str]] = ()) -> dict[str, dict[str, float]]:
    """Modality → class → threshold with the largest mean Dice over the scans that show the class.

    Every dataset counts equally, whatever its number of scans, because a threshold is for scans of yet another source; and
    of each, scans that were kept out of training and scans that were trained on count equally, because on the latter a
    network is surer than it will be on others. Both sides of a structure and the whole have the same threshold, from all
    of their scores. A class keeps one half if nothing else is better by at least :data:`LEAST_GAIN`, or if fewer than
    :data:`LEAST_SCANS` scans show it.

    Args:
        rows: From :func:`try_thresholds`.
        kept_out: Dataset and case of the scans that were kept out.
    """
    half = CANDIDATES.index(0.5)
    scores: dict[tuple[str, str], list[Tried]] = defaultdict(list)
    for row in rows:
        scores[row.modality, normalize_name(row.class_name).base].append(row)
    found: dict[str, dict[str, float]] = defaultdict(dict)
    for (modality, _), several in sorted(scores.items()):
        parts: dict[tuple[str, bool], list[tuple[float, ...]]] = defaultdict(list)
        for row in several:
            parts[row.dataset, (row.dataset, row.case) in kept_out].append(row.dsc)
        mean = np.mean([np.mean(part, axis=0) for part in parts.values()], axis=0)
        best = int(mean.argmax())
        scans = {(row.dataset, row.case) for row in several}
        if len(scans) >= LEAST_SCANS and mean[best] - mean[half] >= LEAST_GAIN:
            found[modality] |= dict.fromkeys(sorted({row.class_name for row in several}), CANDIDATES[best])
    return dict(found)


def judge_fairly(
    predictor: Predictor, datasets: Iterable[tuple[Dataset, Collection[str] | None]], rows: Sequence[Tried],
    kept_out: Collection[tuple[str, str]],
) -> list[Judged]:  # fmt: skip
    """Scores as from :func:`~satunet.evaluation.benchmark.judging.judge`, each scan at the thresholds that are found
    without it.

    Args:
        predictor: Predictor of one model; thresholds that its plan has already are left aside.
        datasets: Datasets, each with the cases to score; ``None`` for all.
        rows: What the thresholds are found from.
        kept_out: As in :func:`best_thresholds`.
    """
    judged: list[Judged] = []
    for dataset, cases in datasets:
        several = [c.identifier for c in dataset.training_cases() if cases is None or c.identifier in cases]
        alike: dict[str, tuple[dict[str, dict[str, float]], list[str]]] = {}
        for case in several:
            thresholds = best_thresholds([r for r in rows if (r.dataset, r.case) != (dataset.name, case)], kept_out)
            alike.setdefault(repr(thresholds), (thresholds, []))[1].append(case)
        for thresholds, same in alike.values():
            judged += judge(_with(predictor, thresholds), [(dataset, same)])
    return judged


def _with(predictor: Predictor, thresholds: dict[str, dict[str, float]]) -> Predictor:
    model = predictor.model
    return Predictor(replace(model, plan=replace(model.plan, class_thresholds=thresholds)), predictor.options)


def _scores(
    predictor: Predictor, image: Image, modality: str, names: Sequence[str], labels: NDArray[Any],
    ids: Mapping[str, Sequence[int]],
) -> dict[str, tuple[float, ...]]:  # fmt: skip
    """Class → Dice at each threshold, of the classes that the labels have."""
    wanted = [name for name in names if np.isin(labels, ids[name]).any()]
    matches = [predictor.vocabulary.offered(match, modality) for match in predictor.match(wanted)]
    scan = predictor.prepare(image, modality, matches)
    scores = {}
    for i, found in predictor.find(scan, matches, level=min(CANDIDATES)):
        scores[wanted[i]] = _dice(found, np.isin(labels, ids[wanted[i]]))
    return scores


def _dice(found: Found, reference: NDArray[np.bool_]) -> tuple[float, ...]:
    restored = found.restored()
    if restored is None:
        return (0.0,) * len(CANDIDATES)
    values, start = restored
    inside = reference[tuple(slice(s, s + n) for s, n in zip(start, values.shape, strict=True))]
    every, scores = int(reference.sum()), []
    for threshold in CANDIDATES:
        mask = values > threshold
        if found.one_piece:
            mask = Postprocessing(largest_component=True)(mask)
        scores.append(2 * int((mask & inside).sum()) / (every + int(mask.sum())))
    return tuple(scores)
