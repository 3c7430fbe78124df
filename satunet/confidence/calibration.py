"""From the evidence for a mask to estimates of its Dice and of the probability that the structure is absent.

Two small models are fitted on patients that the network was not trained on: one for the probability that the structure
is in the scan, and one for the Dice if it is. Both are logistic with non-negative weights, so that stronger evidence
never lowers the confidence. Each class has an offset, which is shrunk towards the pooled model; the fewer masks of the
class are known, the stronger the shrinkage (ridge regression, the posterior mode of a random intercept).

If structures of several regions of the body were looked for, the other masks of a scan say much about each mask. If
not, a second pair of models is used, which was fitted without the features that depend on other masks: with usual
values in place of unknown ones, the first pair would be overconfident.

Rejected: isotonic regression per class, which needs more than a few patients.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from satunet.confidence.evidence import Evidence, Triple
from satunet.confidence.expected import ClassStatistics
from satunet.errors import ModelError, UserError
from satunet.jobs.records import load_record, save_record

CONFIDENCE_FILE = "confidence.json"
CONTEXT = ("placed", "company", "home")
"""Features that depend on the other masks of the scan."""
FEATURES = ("peak", "agreement", "inside", "overlap", "whole", "free", "size", *CONTEXT)
"""Features of the models, from 0 (worst) to 1 (best).

``size`` is near 1 if the volume is as in training. ``placed`` is near 1 if the position is as in training, or if the
scan's border explains why it is not: the centre of a structure that is cut off is displaced. ``place`` says how near a
mask is to its usual position, and ``company`` is the median of ``place`` over all masks of the scan. ``home`` says how
well the class's region of the body is recognised (:meth:`~satunet.confidence.expected.ClassStatistics.homes`). The
other features are from :class:`~satunet.confidence.evidence.Evidence`. A calibration uses the features that it names.
"""
_WEIGHT_SPREAD = 6.0  # prior spread of a feature's weight
_OFFSET_SPREAD = 1.5  # prior spread of a class's offset
_MOST_OF_A_SCAN = 12.0  # masks of one scan are correlated; together they count as at most this many


@dataclass(frozen=True, kw_only=True)
class Worth:
    """Estimates for a mask.

    Attributes:
        confidence: Expected Dice; ``None`` if there is no mask.
        absent: Probability that the scan does not show the structure.
    """

    confidence: float | None
    absent: float


@dataclass(frozen=True, kw_only=True)
class Seen:
    """A mask, possibly empty, in a scan.

    Attributes:
        class_name: Class of the mask; ``None`` for a prompt that names no class.
        evidence: Evidence for the mask.
    """

    class_name: str | None
    evidence: Evidence


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """A mask in a scan with known truth.

    Attributes:
        seen: The mask.
        present: Whether the scan shows the structure.
        dsc: Dice of the mask; not used if the mask is empty.
        scan: Scan, or part of one; masks of the same scan are compared with each other.
        patient: Patient of the scan.
        known: Whether the truth is known; if not, the mask only tells where other structures are expected.
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
        bias: Log odds when all features are 0.
        weights: Feature → weight, at least 0.
        offsets: Class → offset of the log odds.
    """

    bias: float
    weights: dict[str, float] = field(default_factory=dict)
    offsets: dict[str, float] = field(default_factory=dict)

    def __call__(self, features: Mapping[str, float], class_name: str | None) -> float:
        """The probability for these features and this class."""
        total = self.bias + sum(weight * features[name] for name, weight in self.weights.items())
        total += self.offsets.get(class_name or "", 0.0)
        return 1 / (1 + math.exp(-max(-50.0, min(50.0, total))))


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Calibration of one network's evidence: the content of ``confidence.json``.

    Attributes:
        weights_hash: Hash of the network's weights, as in :attr:`satunet.models.folder.ModelFolder.weights_hash`.
        present: Model of the probability that a structure with a mask is in the scan.
        missed: Model of the probability that a structure without a mask is in the scan.
        dice: Model of the Dice of a mask whose structure is in the scan.
        present_alone: Model like ``present``, without :data:`CONTEXT`, for masks whose ``home`` is unknown.
        dice_alone: Model like ``dice``, without :data:`CONTEXT`, for the same masks.
        usual: Feature → value to use if it is unknown.
        statistics: Sizes and positions of the classes in training.
        patients: Number of patients that the calibration was fitted on.
        masks: Number of masks, including empty ones, that the calibration was fitted on.
        absent: Number of these masks whose structure is not in the scan.
    """

    RECORD_VERSION: ClassVar[int] = 2

    weights_hash: str
    present: Rule
    missed: Rule
    dice: Rule
    present_alone: Rule
    dice_alone: Rule
    usual: dict[str, float]
    statistics: ClassStatistics = field(default_factory=ClassStatistics)
    patients: int = 0
    masks: int = 0
    absent: int = 0

    def __post_init__(self) -> None:
        rules = (self.present, self.missed, self.dice, self.present_alone, self.dice_alone)
        unknown = {name for rule in rules for name in rule.weights} - set(self.usual)
        if unknown:
            raise ValueError(f"there are weights, but no usual values, for {', '.join(sorted(unknown))}")

    @classmethod
    def upgrade(cls, content: dict[str, Any], version: int) -> dict[str, Any]:
        """Upgrade from version 1, which had one pair of models for all masks."""
        alone = {f"{name}_alone": content[name] for name in ("present", "dice") if name in content}
        return content | alone if version == 1 else content

    @classmethod
    def fit(cls, outcomes: Sequence[Outcome], statistics: ClassStatistics, *, weights_hash: str = "") -> Calibration:
        """Fit a calibration to masks with known truth, from patients that the network was not trained on.

        Raises:
            UserError: There is no mask of a structure that a scan shows.
        """
        every = features_of_scans(outcomes, statistics)
        features = [f for f, o in zip(every, outcomes, strict=True) if o.known]
        outcomes = [o for o in outcomes if o.known]
        drawn = [i for i, o in enumerate(outcomes) if o.seen.evidence.drawn]
        if not any(outcomes[i].present for i in drawn):
            raise UserError("confidence cannot be calibrated: no scan has a mask of a structure that it shows")
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

        alone = [name for name in FEATURES if name not in CONTEXT]
        dsc = [o.dsc for o in outcomes]
        return cls(
            weights_hash=weights_hash,
            present=rule(drawn, present, FEATURES),
            missed=rule(empty, present, ("peak",)),
            dice=rule(shown, dsc, FEATURES),
            present_alone=rule(drawn, present, alone),
            dice_alone=rule(shown, dsc, alone),
            usual=usual,
            statistics=statistics,
            patients=len({o.patient for o in outcomes}),
            masks=len(outcomes),
            absent=sum(not o.present for o in outcomes),
        )

    def estimate(self, masks: Sequence[Seen]) -> list[Worth]:
        """Estimates for all masks of one scan, in order."""
        return [
            self._worth(mask, features)
            for mask, features in zip(masks, features_of(masks, self.statistics), strict=True)
        ]

    def _worth(self, mask: Seen, found: Mapping[str, float | None]) -> Worth:
        features = {name: usual if (v := found.get(name)) is None else v for name, usual in self.usual.items()}
        if not mask.evidence.drawn:
            return Worth(confidence=None, absent=1 - self.missed(features, mask.class_name))
        alone = found.get("home") is None
        present = (self.present_alone if alone else self.present)(features, mask.class_name)
        dice = (self.dice_alone if alone else self.dice)(features, mask.class_name)
        return Worth(confidence=present * dice, absent=1 - present)

    def with_others(self, others: Sequence[Calibration], masks: Sequence[Seen]) -> list[Worth]:
        """Mean of several networks' estimates; all calibrations get the same evidence, that of the mean mask."""
        several = [calibration.estimate(masks) for calibration in (self, *others)]
        return [
            Worth(
                confidence=None if worths[0].confidence is None else float(np.mean([w.confidence for w in worths])),
                absent=float(np.mean([w.absent for w in worths])),
            )
            for worths in zip(*several, strict=True)
        ]

    def save(self, folder: Path) -> None:
        """Write the calibration into the folder of a model."""
        save_record(folder / CONFIDENCE_FILE, self)

    @classmethod
    def load(cls, folder: Path) -> Calibration | None:
        """The calibration in a model's folder; ``None`` if it has none.

        Raises:
            ModelError: The file is damaged.
        """
        file = folder / CONFIDENCE_FILE
        return load_record(file, cls, error=ModelError) if file.is_file() else None


def features_of(masks: Sequence[Seen], statistics: ClassStatistics) -> list[dict[str, float | None]]:
    """:data:`FEATURES` and ``place`` of all masks of one scan; unknown features are ``None``."""
    centres: dict[str, Triple] = {}
    qualities: dict[str, float] = {}
    for mask in masks:
        if mask.class_name is None:
            continue
        if mask.evidence.centre_mm is not None:
            centres.setdefault(mask.class_name, mask.evidence.centre_mm)
        qualities.setdefault(mask.class_name, mask.evidence.overlap * mask.evidence.agreement)
    places = {name: _near(deviation) for name, deviation in statistics.place_deviations(centres).items()}
    company = float(np.median(list(places.values()))) if places else None
    homes = statistics.homes(qualities)
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
                "home": homes.get(mask.class_name or ""),
            }
        )
    return found


def features_of_scans(outcomes: Sequence[Outcome], statistics: ClassStatistics) -> list[dict[str, float | None]]:
    """Like :func:`features_of`, for masks of many scans, in order."""
    found: list[dict[str, float | None]] = [{} for _ in outcomes]
    rows: dict[str, list[int]] = {}
    for i, outcome in enumerate(outcomes):
        rows.setdefault(outcome.scan, []).append(i)
    for several in rows.values():
        for i, features in zip(several, features_of([outcomes[i].seen for i in several], statistics), strict=True):
            found[i] = features
    return found


def _near(deviation: float) -> float:
    """A value from 1 (no deviation) down to 0; one half at two standard deviations."""
    return 1 / (1 + (deviation / 2) ** 2)


def _scaled_logit(p: float) -> float:
    """Log odds, scaled so that -7 to 7, the range that the engine keeps, become 0 to 1."""
    p = min(max(p, 1e-9), 1 - 1e-9)
    return min(max(math.log(p / (1 - p)) / 14 + 0.5, 0.0), 1.0)


def _weights(outcomes: Sequence[Outcome]) -> NDArray[np.float64]:
    """Weights of the masks: many masks of one scan count as a few, because they fail together."""
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
    """Logistic regression of targets from 0 to 1, with non-negative weights of features and shrunk offsets of classes.

    Two artificial rows, a yes and a no with a weight of one half each, prevent certainty from few data.
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
