"""From what speaks for a mask to an estimate of its Dice, and of the structure not being there.

Two small models, fitted on patients that the network was not trained on: how likely the structure is in the scan, and
how large the Dice is if it is. Both are logistic, with weights of at least zero: whatever speaks more for a mask never
lowers its confidence. Classes have offsets of their own, drawn to the pooled model the more, the fewer masks of them
are known (ridge, the posterior mode of a random intercept).

Rejected: isotonic regression per class, which a few patients cannot feed.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from satunet.confidence.evidence import Evidence, Triple
from satunet.confidence.expected import ClassStatistics
from satunet.errors import ModelError, UserError
from satunet.jobs.records import load_record, save_record

CONFIDENCE_FILE = "confidence.json"
FEATURES = ("peak", "agreement", "inside", "overlap", "whole", "free", "size", "placed", "company")
"""What the models look at: each is 0 at its worst and 1 at its best.

``size`` is near 1 where the volume is as in training, ``placed`` where the place is, or where the scan's border
explains why it is not: the centre of what is left of a structure that was cut lies elsewhere. ``company`` is the median
over all masks of the scan of how near each is to its place (``place``); the others are of
:class:`~satunet.confidence.evidence.Evidence`. A calibration uses the features that it names.
"""
_WEIGHT_SPREAD = 6.0  # of a feature's weight, before anything is known
_OFFSET_SPREAD = 0.5  # of a class's offset
_MOST_OF_A_SCAN = 12.0  # masks of one scan, which are alike, count at most as so many


@dataclass(frozen=True, kw_only=True)
class Worth:
    """What a mask is worth.

    Attributes:
        confidence: Dice that is expected of it; ``None`` where there is no mask.
        absent: Probability that the scan does not show the structure.
    """

    confidence: float | None
    absent: float


@dataclass(frozen=True, kw_only=True)
class Seen:
    """A mask, or that there is none, in a scan.

    Attributes:
        class_name: Class that was looked for; ``None`` for words that name none.
        evidence: Evidence for the mask.
    """

    class_name: str | None
    evidence: Evidence


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """A mask of a scan whose truth is known.

    Attributes:
        seen: The mask.
        present: Whether the scan shows the structure.
        dsc: Dice of the mask; not used if there is no mask.
        scan: Scan (or part of one): masks of the same scan are compared with each other.
        patient: Patient of the scan.
        known: Whether the truth is known; other masks only say where the structures around them lie.
    """

    seen: Seen
    present: bool
    dsc: float
    scan: str
    patient: str
    known: bool = True


@dataclass(frozen=True, kw_only=True)
class Rule:
    """A logistic model.

    Attributes:
        bias: Log odds where all features are 0.
        weights: Feature → weight, at least 0.
        offsets: Class → what is added for it.
    """

    bias: float
    weights: dict[str, float] = field(default_factory=dict)
    offsets: dict[str, float] = field(default_factory=dict)

    def __call__(self, features: Mapping[str, float], class_name: str | None) -> float:
        """A probability."""
        total = self.bias + sum(weight * features[name] for name, weight in self.weights.items())
        total += self.offsets.get(class_name or "", 0.0)
        return 1 / (1 + math.exp(-max(-50.0, min(50.0, total))))


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """What the evidence of one network is worth: content of ``confidence.json``.

    Attributes:
        weights_hash: Hash of the network's weights, as :attr:`satunet.models.folder.ModelFolder.weights_hash`.
        present: Probability that a structure with a mask is in the scan.
        missed: Probability that a structure without a mask is in the scan.
        dice: Dice of a mask of a structure that is in the scan.
        usual: Feature → what is taken where nothing is known of it.
        statistics: Sizes and places of the classes in training.
        patients: Number of patients that it was fitted on.
        masks: Structures in scans that it was fitted on.
        absent: Number of them that the scan does not show.
    """

    RECORD_VERSION: ClassVar[int] = 1

    weights_hash: str
    present: Rule
    missed: Rule
    dice: Rule
    usual: dict[str, float]
    statistics: ClassStatistics = field(default_factory=ClassStatistics)
    patients: int = 0
    masks: int = 0
    absent: int = 0

    def __post_init__(self) -> None:
        unknown = {name for rule in (self.present, self.missed, self.dice) for name in rule.weights} - set(self.usual)
        if unknown:
            raise ValueError(f"weights of {', '.join(sorted(unknown))}, for which no usual values are known")

    @classmethod
    def fit(cls, outcomes: Sequence[Outcome], statistics: ClassStatistics, *, weights_hash: str = "") -> Calibration:
        """Fit to masks whose truth is known, of patients that the network was not trained on.

        Raises:
            UserError: There is no mask to learn from.
        """
        every = features_of_scans(outcomes, statistics)
        features = [f for f, o in zip(every, outcomes, strict=True) if o.known]
        outcomes = [o for o in outcomes if o.known]
        drawn = [i for i, o in enumerate(outcomes) if o.seen.evidence.drawn]
        if not any(outcomes[i].present for i in drawn):
            raise UserError("confidence cannot be calibrated: there is no mask of a structure that a scan shows")
        known = {name: [f[name] for f in features if f.get(name) is not None] for name in FEATURES}
        usual = {name: float(np.mean([v for v in values if v is not None] or [0.5])) for name, values in known.items()}
        whole = [{name: usual[name] if f[name] is None else f[name] for name in FEATURES} for f in features]
        weights = _weights(outcomes)
        classes = [o.seen.class_name or "" for o in outcomes]
        present = [float(o.present) for o in outcomes]
        shown = [i for i in drawn if outcomes[i].present]
        empty = [i for i in range(len(outcomes)) if not outcomes[i].seen.evidence.drawn]

        def rule(rows: Sequence[int], targets: Sequence[float], names: Sequence[str]) -> Rule:
            return _fit(
                np.array([[whole[i][name] for name in names] for i in rows]).reshape(len(rows), len(names)),
                np.array([targets[i] for i in rows]),
                weights[list(rows)],
                [classes[i] for i in rows],
                names,
            )

        return cls(
            weights_hash=weights_hash,
            present=rule(drawn, present, FEATURES),
            missed=rule(empty, present, ("peak",)),
            dice=rule(shown, [o.dsc for o in outcomes], FEATURES),
            usual=usual,
            statistics=statistics,
            patients=len({o.patient for o in outcomes}),
            masks=len(outcomes),
            absent=sum(not o.present for o in outcomes),
        )

    def estimate(self, masks: Sequence[Seen]) -> list[Worth]:
        """What all masks of a scan are worth, in their order."""
        return [
            self._worth(mask, {name: usual if (v := f.get(name)) is None else v for name, usual in self.usual.items()})
            for mask, f in zip(masks, features_of(masks, self.statistics), strict=True)
        ]

    def _worth(self, mask: Seen, features: Mapping[str, float]) -> Worth:
        if not mask.evidence.drawn:
            return Worth(confidence=None, absent=1 - self.missed(features, mask.class_name))
        present = self.present(features, mask.class_name)
        return Worth(confidence=present * self.dice(features, mask.class_name), absent=1 - present)

    def with_others(self, others: Sequence[Calibration], masks: Sequence[Seen]) -> list[Worth]:
        """The mean of what the calibrations of several networks say; all see the same evidence, of their mean."""
        several = [calibration.estimate(masks) for calibration in (self, *others)]
        return [
            Worth(
                confidence=None if worths[0].confidence is None else float(np.mean([w.confidence for w in worths])),
                absent=float(np.mean([w.absent for w in worths])),
            )
            for worths in zip(*several, strict=True)
        ]

    def save(self, folder: Path) -> None:
        """Write it into the folder of a model."""
        save_record(folder / CONFIDENCE_FILE, self)

    @classmethod
    def load(cls, folder: Path) -> Calibration | None:
        """That of a model's folder; ``None`` if it has none.

        Raises:
            ModelError: It is damaged.
        """
        file = folder / CONFIDENCE_FILE
        return load_record(file, cls, error=ModelError) if file.is_file() else None


def features_of(masks: Sequence[Seen], statistics: ClassStatistics) -> list[dict[str, float | None]]:
    """:data:`FEATURES`, and ``place``, of all masks of a scan; ``None`` where nothing is known."""
    centres: dict[str, Triple] = {}
    for mask in masks:
        if mask.class_name is not None and mask.evidence.centre_mm is not None:
            centres.setdefault(mask.class_name, mask.evidence.centre_mm)
    places = {name: _near(deviation) for name, deviation in statistics.place_deviations(centres).items()}
    company = float(np.median(list(places.values()))) if places else None
    found = []
    for mask in masks:
        e = mask.evidence
        size = statistics.size_deviation(mask.class_name, e.volume_ml)
        place = places.get(mask.class_name or "")
        found.append(
            {
                "peak": _scaled_logit(e.peak),
                "agreement": e.agreement,
                "inside": max(0.0, 2 * e.inside - 1),
                "overlap": e.overlap,
                "whole": e.whole,
                "free": e.free,
                "size": None if size is None else _near(size),
                "place": place,
                "placed": None if place is None else 1 - e.free * (1 - place),
                "company": company if mask.class_name in places else None,
            }
        )
    return found


def features_of_scans(outcomes: Sequence[Outcome], statistics: ClassStatistics) -> list[dict[str, float | None]]:
    """The same of masks of many scans, in their order."""
    found: list[dict[str, float | None]] = [{} for _ in outcomes]
    rows: dict[str, list[int]] = {}
    for i, outcome in enumerate(outcomes):
        rows.setdefault(outcome.scan, []).append(i)
    for several in rows.values():
        for i, features in zip(several, features_of([outcomes[i].seen for i in several], statistics), strict=True):
            found[i] = features
    return found


def _near(deviation: float) -> float:
    """1 where there is no deviation, one half at two standard deviations."""
    return 1 / (1 + (deviation / 2) ** 2)


def _scaled_logit(p: float) -> float:
    """Log odds from -7 to 7 as 0 to 1: probabilities that the engine keeps."""
    p = min(max(p, 1e-9), 1 - 1e-9)
    return min(max(math.log(p / (1 - p)) / 14 + 0.5, 0.0), 1.0)


def _weights(outcomes: Sequence[Outcome]) -> NDArray[np.float64]:
    """Masks of one scan fail together: many of them count as a few."""
    counts = Counter(o.scan for o in outcomes)
    parts = Counter(patient for patient, _ in {(o.patient, o.scan) for o in outcomes})
    return np.array([min(1.0, _MOST_OF_A_SCAN / counts[o.scan]) / math.sqrt(parts[o.patient]) for o in outcomes])


def _fit(
    features: NDArray[np.float64],
    targets: NDArray[np.float64],
    weights: NDArray[np.float64],
    classes: Sequence[str],
    names: Sequence[str],
) -> Rule:
    """Logistic regression of targets from 0 to 1, weights of features at least 0, offsets of classes shrunk.

    Two made-up rows, a yes and a no of weight one half each, keep it from certainty where it knows little.
    """
    from scipy.optimize import minimize

    if not len(targets):
        return Rule(bias=0.0)
    known = sorted(set(classes))
    which = np.array([known.index(name) for name in classes])
    count = len(names)
    middle = np.average(features, axis=0, weights=weights) if len(features) else np.zeros(count)
    targets = np.clip(targets, 0.0, 1.0)

    def loss(values: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        bias, slopes, offsets = values[0], values[1 : 1 + count], values[1 + count :]
        logits = bias + features @ slopes + offsets[which]
        total = float(weights @ (np.logaddexp(0, logits) - targets * logits))
        error = weights * (1 / (1 + np.exp(-np.clip(logits, -50, 50))) - targets)
        centre = bias + middle @ slopes
        total += float(np.logaddexp(0, centre) - 0.5 * centre)
        pull = 1 / (1 + math.exp(-max(-50.0, min(50.0, float(centre))))) - 0.5
        total += float(slopes @ slopes) / (2 * _WEIGHT_SPREAD**2) + float(offsets @ offsets) / (2 * _OFFSET_SPREAD**2)
        by_class = np.bincount(which, weights=error, minlength=len(known))
        gradient = np.concatenate(
            (
                [error.sum() + pull],
                features.T @ error + pull * middle + slopes / _WEIGHT_SPREAD**2,
                by_class + offsets / _OFFSET_SPREAD**2,
            )
        )
        return total, gradient

    bounds = [(None, None)] + [(0.0, None)] * count + [(None, None)] * len(known)
    found = minimize(loss, np.zeros(len(bounds)), jac=True, method="L-BFGS-B", bounds=bounds).x
    return Rule(
        bias=round(float(found[0]), 6),
        weights={name: round(float(w), 6) for name, w in zip(names, found[1 : 1 + count], strict=True)},
        offsets={name: round(float(o), 6) for name, o in zip(known, found[1 + count :], strict=True)},
    )
