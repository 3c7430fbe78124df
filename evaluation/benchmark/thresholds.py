"""Thresholds of a network's probabilities, by class: where a mask agrees best with the labels, if not at one half.

A network that was trained for few steps draws some structures too small and others too large, small structures most of
all. Fitting one threshold per class to labelled scans costs no more than predicting them. (Lipton et al. 2014, arXiv
1402.1892, show that even for exact probabilities the best threshold for Dice is not one half, but half the Dice that
can be reached.)
"""

from __future__ import annotations

import logging
import math
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from satunet.datasets.raw import Dataset
from satunet.evaluation.benchmark.judging import Judged, judge
from satunet.geometry import Grid, box_of
from satunet.images.image import Image, read_image, read_label_map
from satunet.labels import build_label_space
from satunet.labels.names import normalize_name
from satunet.plan import UnifiedPlan
from satunet.prediction.masks.found import Found
from satunet.prediction.masks.postprocess import Postprocessing
from satunet.prediction.predictor import Predictor
from satunet.types import Box

logger = logging.getLogger(__name__)

CANDIDATES = tuple(round(0.2 + 0.05 * i, 2) for i in range(10))
"""Thresholds that are tried, 0.2 to 0.65: a network that needs one further from one half should be trained longer."""
LEAST_GAIN, LEAST_SCANS = 0.01, 3


@dataclass(frozen=True, kw_only=True)
class Tried:
    """A class in a labelled scan.

    Attributes:
        dataset: Dataset.
        case: Scan.
        modality: Its modality.
        class_name: Class.
        held: Whether one window held the scan.
        dsc: Dice at each of :data:`CANDIDATES`.
    """

    dataset: str
    case: str
    modality: str
    class_name: str
    held: bool = False
    dsc: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Thresholds:
    """Thresholds for a plan, as its fields ``class_thresholds`` and ``held_thresholds`` have them.

    Attributes:
        anywhere: Modality → class → threshold.
        held: The same where one window holds the scan, for classes with another threshold there.
    """

    anywhere: dict[str, dict[str, float]] = field(default_factory=dict)
    held: dict[str, dict[str, float]] = field(default_factory=dict)

    def of(self, plan: UnifiedPlan) -> UnifiedPlan:
        """A plan with these thresholds."""
        return replace(plan, class_thresholds=self.anywhere, held_thresholds=self.held)


def try_thresholds(
    predictor: Predictor,
    datasets: Iterable[tuple[Dataset, Collection[str] | None]],
    *,
    around: Collection[str] = (),
    margin_mm: float = 10.0,
) -> list[Tried]:
    """Segment labelled scans and score their classes at every threshold.

    Args:
        predictor: Predictor of one model; thresholds that its plan already has are ignored.
        datasets: Datasets, each with the cases to look at; ``None`` for all.
        around: Structures; a scan that shows all of them, and that no window holds, is scored once more, cut to a box
            around them. Only these structures and their sides are scored in it, because others may be cut through.
        margin_mm: Margin of that box on each side.

    Returns:
        A row for each scan or cut scan and each class that is in it.
    """
    model = predictor.model
    bare = _with(predictor, Thresholds())
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
            row = Tried(dataset=dataset.name, case=case.identifier, modality=modality, class_name="", dsc=())
            whole = _scores(bare, image, names, labels, ids, row)
            rows += whole
            box = None if all(r.held for r in whole) else _box_around(around, labels, ids, image.grid, margin_mm)
            if box is not None:
                inside = [n for n in names if set(ids[n]) <= {i for name in around for i in ids[name]}]
                rows += [r for r in _scores(bare, image.cut(box), inside, labels[box], ids, row) if r.held]
            logger.info("%s %s: thresholds tried", dataset.name, case.identifier)
    return rows


def best_thresholds(rows: Sequence[Tried], kept_out: Collection[tuple[str, str]] = ()) -> Thresholds:
    """Thresholds with the largest mean Dice over the scans that show a class; separately for scans that a window holds.

    Every dataset counts equally, whatever its number of scans, because a threshold is for scans from yet another
    source. In each dataset, the scans kept out of training count as much as those trained on, because a network is more
    certain about the latter than it will be about others. Both sides of a structure and the whole have the same
    threshold, from all of their scores. A class keeps one half if nothing else is better by at least
    :data:`LEAST_GAIN`; if fewer than :data:`LEAST_SCANS` scans show it, it keeps one half or, where a window holds the
    scan, the threshold for other scans.

    Args:
        rows: Rows from :func:`try_thresholds`.
        kept_out: Dataset and case of the scans that were kept out.
    """
    anywhere = _best([row for row in rows if not row.held], kept_out)
    held = _best([row for row in rows if row.held], kept_out)
    return Thresholds(
        anywhere=_kept(anywhere, lambda _, __, threshold: threshold != 0.5),
        held=_kept(held, lambda m, name, threshold: threshold != anywhere.get(m, {}).get(name, 0.5)),
    )


def _best(rows: Sequence[Tried], kept_out: Collection[tuple[str, str]]) -> dict[str, dict[str, float]]:
    """Modality → class → best threshold, of the classes that enough scans show."""
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
        if mean[best] - mean[half] < LEAST_GAIN:
            best = half
        if len({(row.dataset, row.case) for row in several}) >= LEAST_SCANS:
            found[modality] |= dict.fromkeys(sorted({row.class_name for row in several}), CANDIDATES[best])
    return found


def _kept(
    by_class: Mapping[str, Mapping[str, float]], wanted: Callable[[str, str, float], bool]
) -> dict[str, dict[str, float]]:
    kept = {m: {name: t for name, t in classes.items() if wanted(m, name, t)} for m, classes in by_class.items()}
    return {m: classes for m, classes in kept.items() if classes}


def judge_fairly(
    predictor: Predictor, datasets: Iterable[tuple[Dataset, Collection[str] | None]], rows: Sequence[Tried],
    kept_out: Collection[tuple[str, str]],
) -> list[Judged]:  # fmt: skip
    """Scores as from :func:`~satunet.evaluation.benchmark.judging.judge`, each scan at the thresholds that are found
    without it.

    Args:
        predictor: Predictor of one model; thresholds that its plan already has are ignored.
        datasets: Datasets, each with the cases to score; ``None`` for all.
        rows: Rows from which the thresholds are found.
        kept_out: As in :func:`best_thresholds`.
    """
    judged: list[Judged] = []
    for dataset, cases in datasets:
        several = [c.identifier for c in dataset.training_cases() if cases is None or c.identifier in cases]
        alike: dict[str, tuple[Thresholds, list[str]]] = {}
        for case in several:
            thresholds = best_thresholds([r for r in rows if (r.dataset, r.case) != (dataset.name, case)], kept_out)
            alike.setdefault(repr(thresholds), (thresholds, []))[1].append(case)
        for thresholds, same in alike.values():
            judged += judge(_with(predictor, thresholds), [(dataset, same)])
    return judged


def _with(predictor: Predictor, thresholds: Thresholds) -> Predictor:
    model = predictor.model
    return Predictor(replace(model, plan=thresholds.of(model.plan)), predictor.options)


def _scores(
    predictor: Predictor, image: Image, names: Sequence[str], labels: NDArray[Any], ids: Mapping[str, Sequence[int]],
    row: Tried,
) -> list[Tried]:  # fmt: skip
    """``row`` for each class that the labels have, with its Dice at each threshold."""
    wanted = [name for name in names if np.isin(labels, ids[name]).any()]
    matches = [predictor.vocabulary.offered(match, row.modality) for match in predictor.match(wanted)]
    scan = predictor.prepare(image, row.modality, matches)
    return [
        replace(
            row,
            class_name=wanted[i],
            held=predictor.is_held(scan, matches[i]),
            dsc=_dice(found, np.isin(labels, ids[wanted[i]])),
        )
        for i, found in predictor.find(scan, matches, level=min(CANDIDATES))
    ]


def _box_around(
    structures: Collection[str], labels: NDArray[Any], ids: Mapping[str, Sequence[int]], grid: Grid, margin_mm: float
) -> Box | None:
    """The box around structures, with a margin; ``None`` if not all of them are there."""
    if not structures or not all(np.isin(labels, ids.get(name, ())).any() for name in structures):
        return None
    around = box_of(np.isin(labels, [i for name in structures for i in ids[name]]))
    assert around is not None
    margins = [math.ceil(margin_mm / spacing) for spacing in grid.spacing_mm]
    x, y, z = (
        slice(max(0, s.start - m), min(n, s.stop + m)) for s, m, n in zip(around, margins, labels.shape, strict=True)
    )
    return x, y, z


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
