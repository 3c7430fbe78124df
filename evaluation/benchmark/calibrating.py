"""Calibrate the confidence of a network on patients that it was not trained on, and measure how good it is.

Every class that the model offers in a scan's modality is predicted, as with ``--all``. For most classes, the scan's
labels tell whether the structure is present and give the Dice of its mask. Some classes are known to be absent because
the scan shows another region. Scans are also cut into parts that leave structures out.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from satunet.confidence.calibration import Calibration, Outcome, Seen, Worth
from satunet.confidence.expected import ClassStatistics
from satunet.datasets.raw import Case, Dataset
from satunet.images.image import read_image, read_label_map
from satunet.labels import build_label_space
from satunet.prediction.predictor import Predictor
from satunet.types import Box

logger = logging.getLogger(__name__)

Judges = Iterable[tuple[Dataset, Collection[str] | None]]

FAILED_DSC = 0.5
"""Dice below which a mask is a failure."""
_LEAST_LEFT = 0.35  # smallest part of a scan, as a share of its extent
_SLIVER = 0.2  # a part that holds less than this share of a structure does not tell whether it is present


@dataclass(frozen=True, kw_only=True)
class Known:
    """The truth about a mask, and the confidence that was estimated for it.

    Attributes:
        dataset: Dataset of the scan.
        outcome: Truth about the mask.
        worth: Estimated confidence of the mask.
    """

    dataset: str
    outcome: Outcome
    worth: Worth


def calibrate(
    predictor: Predictor,
    judges: Judges,
    statistics: ClassStatistics,
    *,
    absent: Mapping[str, Collection[str]] | None = None,
    parts: int = 2,
) -> Calibration:
    """Calibrate the confidence of a network; :meth:`Calibration.save` puts it into the model's folder.

    Args:
        predictor: Predictor with its model.
        judges: Datasets, each with the cases that the network was not trained on; ``None`` for all its cases.
        statistics: Sizes and places of the classes in training.
        absent: Dataset → classes that its scans cannot show, in addition to those that its labels reveal.
        parts: Number of parts of each scan that are predicted as well.

    Raises:
        UserError: None of the scans shows a class of the model.
    """
    found = outcomes(predictor, judges, absent=absent, parts=parts)
    return Calibration.fit([outcome for _, outcome in found], statistics, weights_hash=predictor.model.weights_hash)


def outcomes(
    predictor: Predictor,
    judges: Judges,
    *,
    absent: Mapping[str, Collection[str]] | None = None,
    parts: int = 2,
    most_windows: int = 60,
    on_case: Callable[[str, str, list[tuple[str, Outcome]]], object] | None = None,
) -> list[tuple[str, Outcome]]:
    """Outcomes of masks whose truth is known, each with its dataset.

    Args:
        predictor: Predictor with its model.
        judges: Datasets, as for :func:`calibrate`.
        absent: Absent classes, as for :func:`calibrate`.
        parts: Number of parts, as for :func:`calibrate`.
        most_windows: Largest number of windows for a class without labels in the scan; a class that needs more is left
            out.
        on_case: Function that is called with dataset, case and what was found in it.
    """
    rows: list[tuple[str, Outcome]] = []
    for dataset, cases in judges:
        ids = build_label_space([dataset]).ids[dataset.name]
        never = frozenset((absent or {}).get(dataset.name, ()))
        for case in dataset.training_cases():
            if (cases is not None and case.identifier not in cases) or case.label is None:
                continue
            found = [
                (dataset.name, outcome) for outcome in _case(predictor, dataset, case, ids, never, parts, most_windows)
            ]
            rows += found
            if on_case is not None:
                on_case(dataset.name, case.identifier, found)
            logger.info("%s %s: %d structures looked for", dataset.name, case.identifier, len(found))
    return rows


def _case(
    predictor: Predictor,
    dataset: Dataset,
    case: Case,
    ids: Mapping[str, Sequence[int]],
    never: Collection[str],
    parts: int,
    most_windows: int,
) -> Iterator[Outcome]:
    assert case.label is not None
    image = read_image(case.images[0])
    labels = read_label_map(case.label, grid=image.grid).array
    modality = dataset.modalities[0]
    offered = predictor.vocabulary.earned
    names = [
        info.name
        for info in predictor.model.space.classes
        if modality in info.modalities and (offered is None or (info.name, modality) in offered)
    ]
    patient = f"{dataset.name}/{case.identifier}"
    for number, box in enumerate([None, *_parts(labels, ids, names, parts, seed=case.identifier)]):
        whole = box is None
        part = image if box is None else image.cut(box)
        there = labels if box is None else labels[box]
        matches = predictor.match(names)
        scan = predictor.prepare(part, modality, matches)
        asked = [m for m in matches if m.class_name in ids or predictor.windows(scan, [m]) <= most_windows]
        found = {i: predictor.weigh(values, scan) for i, values in predictor.find(scan, asked)}
        for i, match in enumerate(asked):
            if i not in found or match.class_name is None:
                continue
            mask, name = found[i].mask, match.class_name
            known = name in ids
            voxels = int(np.isin(there, ids[name]).sum()) if known else 0
            if known and not whole and 0 < voxels < _SLIVER * int(np.isin(labels, ids[name]).sum()):
                known, voxels = False, -1
            both = 0
            if known and mask.voxels:
                both = int(np.count_nonzero(np.isin(there[mask.box], ids[name]) & mask.inside))
            yield Outcome(
                seen=Seen(class_name=name, evidence=found[i].evidence),
                present=voxels > 0,
                dsc=2 * both / max(1, voxels + mask.voxels),
                scan=f"{patient}/{number}",
                patient=patient,
                known=known or (voxels == 0 and name in never),
            )


def _parts(
    labels: NDArray[np.integer], ids: Mapping[str, Sequence[int]], names: Sequence[str], count: int, *, seed: str
) -> list[Box]:
    """Boxes in a scan, each of which leaves out one structure and as few others as possible."""
    rng = np.random.default_rng([ord(c) for c in seed])
    found: list[Box] = []
    wanted = [name for name in names if name in ids]
    for position in rng.permutation(len(wanted)):
        if len(found) == count:
            break
        inside = np.isin(labels, ids[wanted[int(position)]])
        if not inside.any():
            continue
        ways = []
        for axis in range(3):
            along = np.flatnonzero(inside.any(axis=tuple(a for a in range(3) if a != axis)))
            size = labels.shape[axis]
            for start, stop in ((0, int(along[0])), (int(along[-1]) + 1, size)):
                if stop - start >= max(_LEAST_LEFT * size, 8):
                    ways.append(((stop - start) / size, axis, start, stop))
        if ways:
            _, axis, start, stop = max(ways)
            box = [slice(0, n) for n in labels.shape]
            box[axis] = slice(start, stop)
            found.append((box[0], box[1], box[2]))
    return found


# ---- quality ---------------------------------------------------------------------------------------------------------


def cross_checked(
    rows: Sequence[tuple[str, Outcome]],
    statistics: ClassStatistics,
    *,
    apart: Callable[[str, Outcome], str],
    folds: int | None = None,
    asked: Callable[[str, Outcome], Outcome | None] | None = None,
) -> list[Known]:
    """The confidence of each mask by a calibration that did not include its patient.

    Args:
        rows: Rows from :func:`outcomes`.
        statistics: Statistics of the classes in training.
        apart: Function that names what calibration and check must not share: an outcome's patient or dataset.
        folds: Number of calibrations; by default one for each name from ``apart``.
        asked: What to estimate of a row instead: the outcome as it would be if less was looked for; ``None`` leaves it
            out.
    """
    groups = sorted({apart(*row) for row in rows})
    count = min(folds or len(groups), len(groups))
    order = np.random.default_rng(0).permutation(len(groups))
    fold_of = {groups[int(g)]: place % count for place, g in enumerate(order)}
    found: list[Known] = []
    for fold in range(count):
        others = [outcome for row in rows if fold_of[apart(*row)] != fold for outcome in row[1:]]
        calibration = Calibration.fit(others, statistics)
        mine = [row for row in rows if fold_of[apart(*row)] == fold]
        if asked is not None:
            mine = [(dataset, o) for dataset, outcome in mine if (o := asked(dataset, outcome)) is not None]
        found += said(calibration, mine)
    return found


def said(calibration: Calibration, rows: Sequence[tuple[str, Outcome]]) -> list[Known]:
    """Confidence that a calibration gives to masks whose truth is known, with the other masks of the scan as input."""
    scans: dict[str, list[tuple[str, Outcome]]] = defaultdict(list)
    for row in rows:
        scans[row[1].scan].append(row)
    return [
        Known(dataset=dataset, outcome=outcome, worth=worth)
        for several in scans.values()
        for (dataset, outcome), worth in zip(
            several, calibration.estimate([outcome.seen for _, outcome in several]), strict=True
        )
        if outcome.known
    ]


@dataclass(frozen=True, kw_only=True)
class Quality:
    """Quality of the estimates; ``nan`` where it cannot be computed.

    Attributes:
        masks: Number of masks drawn, of structures that are present or absent.
        failures: Number of masks with a Dice below one half.
        rank_correlation: Spearman's correlation of confidence and Dice over the masks drawn.
        failure_auroc: Area under the ROC curve when confidence tells failures from other masks.
        dice_error: Mean absolute difference of confidence and Dice.
        dice_bias: Mean difference of confidence and Dice.
        structures: Number of structures that were predicted.
        absent: Number of structures that are absent.
        absent_error: Expected calibration error of "absent", in ten bins.
        absent_chance: The same error that probabilities would have on average if they were right, because masks are few.
        absent_drawn: Share of absent structures that have a mask when no mask is left out.
        absent_left: The same share when masks are left out whose probability of "absent" reaches the threshold.
        present_lost: Share of masks with a Dice of at least one half that the threshold leaves out.
    """

    masks: int
    failures: int
    rank_correlation: float
    failure_auroc: float
    dice_error: float
    dice_bias: float
    structures: int
    absent: int
    absent_error: float
    absent_chance: float
    absent_drawn: float
    absent_left: float
    present_lost: float


def quality(known: Sequence[Known], threshold: float) -> Quality:
    """Quality of the estimates.

    Args:
        known: Estimates and truth.
        threshold: Probability of "absent" at or above which masks are left out.
    """
    drawn = [k for k in known if k.outcome.seen.evidence.drawn]
    confidence = np.array([k.worth.confidence or 0.0 for k in drawn])
    dsc = np.array([k.outcome.dsc for k in drawn])
    gone = [k for k in known if not k.outcome.present]
    good = [k for k in drawn if k.outcome.present and k.outcome.dsc >= FAILED_DSC]
    shown = [k for k in gone if k.outcome.seen.evidence.drawn]
    absent = np.array([k.worth.absent for k in known])
    return Quality(
        masks=len(drawn),
        failures=int((dsc < FAILED_DSC).sum()),
        rank_correlation=_rank_correlation(confidence, dsc),
        failure_auroc=auroc(-confidence, dsc < FAILED_DSC),
        dice_error=_mean(np.abs(confidence - dsc)),
        dice_bias=_mean(confidence - dsc),
        structures=len(known),
        absent=len(gone),
        absent_error=calibration_error(absent, np.array([not k.outcome.present for k in known])),
        absent_chance=chance_error(absent),
        absent_drawn=len(shown) / len(gone) if gone else float("nan"),
        absent_left=sum(k.worth.absent < threshold for k in shown) / len(gone) if gone else float("nan"),
        present_lost=_mean(np.array([float(k.worth.absent >= threshold) for k in good])),
    )


def auroc(scores: NDArray[np.float64], positive: NDArray[np.bool_]) -> float:
    """Probability that a positive has a larger score than a negative; ties count one half. ``nan`` if there are none of
    either kind.
    """
    from scipy.stats import rankdata

    yes, no = int(positive.sum()), int((~positive).sum())
    if not yes or not no:
        return float("nan")
    return float((rankdata(scores)[positive].sum() - yes * (yes + 1) / 2) / (yes * no))


def calibration_error(probabilities: NDArray[np.float64], true: NDArray[np.bool_], bins: int = 10) -> float:
    """Expected calibration error: mean difference between predicted and observed frequency, over bins of equal
    width.
    """
    if not len(true):
        return float("nan")
    places = np.minimum((probabilities * bins).astype(int), bins - 1)
    said_sum = np.bincount(places, weights=probabilities, minlength=bins)
    came = np.bincount(places, weights=true.astype(float), minlength=bins)
    return float(np.abs(said_sum - came).sum() / len(true))


def chance_error(probabilities: NDArray[np.float64], *, draws: int = 200, seed: int = 0) -> float:
    """Mean :func:`calibration_error` of probabilities that are right: of outcomes drawn with them.

    Few outcomes differ from their probabilities by chance, so that the error of right ones is not 0 (Roelofs et al.,
    "Mitigating bias in calibration error estimation", 2022).

    Args:
        probabilities: (n,) probabilities.
        draws: Number of sets of outcomes.
        seed: Seed of the draws.
    """
    chance = np.random.default_rng(seed)
    errors = [calibration_error(probabilities, chance.random(len(probabilities)) < probabilities) for _ in range(draws)]
    return _mean(np.array(errors))


def _rank_correlation(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    from scipy.stats import rankdata

    if len(a) < 3 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return float("nan")
    return float(np.corrcoef(rankdata(a), rankdata(b))[0, 1])


def _mean(values: NDArray[np.float64]) -> float:
    return float(values.mean()) if len(values) else float("nan")
