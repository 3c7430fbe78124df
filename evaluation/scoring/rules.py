"""The rules of a scoring: tolerances, what an absent class scores, which metrics, which classes are lesions."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from satunet.errors import UserError


@dataclass(frozen=True, kw_only=True)
class AbsencePolicy:
    """What a class scores where it is absent; ``nan`` leaves the case out of that class's mean.

    Attributes:
        name: Name of the policy, stored with the results.
        both: DSC, NSD and lesion-wise F1 of a class absent in reference and prediction.
        reference: The same, absent in the reference, present in the prediction.
        prediction: The same, present in the reference, absent in the prediction.
        both_mm: Distances (HD95, ASSD) of a class absent in both.
        one_mm: Distances of a class absent in one of the two, which have no definition of their own.
    """

    name: str
    both: float
    reference: float
    prediction: float
    both_mm: float = math.nan
    one_mm: float = math.nan

    def __post_init__(self) -> None:
        for where in ("both", "reference", "prediction"):
            value = getattr(self, where)
            if not (math.isnan(value) or 0 <= value <= 1):
                raise UserError(f"absence policy {self.name!r}: {where} must be nan or between 0 and 1, got {value}")
        for where in ("both_mm", "one_mm"):
            value = getattr(self, where)
            if not (math.isnan(value) or 0 <= value < math.inf):
                raise UserError(f"absence policy {self.name!r}: {where} must be nan or a length, got {value}")

    def score(self, n_reference: int, n_prediction: int) -> float:
        """DSC, NSD and F1 where one of the masks, or both, have no voxel."""
        return self.prediction if n_reference else self.reference if n_prediction else self.both

    def distance_mm(self, n_reference: int, n_prediction: int) -> float:
        """HD95 and ASSD where one of the masks, or both, have no voxel."""
        return self.one_mm if n_reference or n_prediction else self.both_mm


POLICIES: Mapping[str, AbsencePolicy] = {
    "sat": AbsencePolicy(name="sat", both=1.0, reference=0.0, prediction=0.0),
    "nnunet": AbsencePolicy(name="nnunet", both=math.nan, reference=0.0, prediction=0.0),
    "brats": AbsencePolicy(name="brats", both=1.0, reference=0.0, prediction=0.0, both_mm=0.0, one_mm=374.0),
}
"""``sat``: rightly finding nothing is right (arXiv 2312.17183). ``nnunet``: it is left out, as nnunetv2 does.
``brats``: as ``sat``, with the distances of the BraTS challenge, 374 mm (the diagonal of its volumes) for a miss."""


def absence_policy(policy: str | AbsencePolicy) -> AbsencePolicy:
    """A policy by name.

    Raises:
        UserError: No policy has that name.
    """
    if isinstance(policy, AbsencePolicy):
        return policy
    if policy not in POLICIES:
        raise UserError(f"absence policy {policy!r}: allowed are {', '.join(POLICIES)}")
    return POLICIES[policy]


@dataclass(frozen=True, kw_only=True)
class Rules:
    """How to score.

    Attributes:
        tolerance_mm: Surfaces closer than or as close as this count as equal in NSD.
        tolerances_mm: Class → its own tolerance.
        policy: What absent classes score, or the name of a policy.
        distances: Whether HD95 and ASSD are computed, which takes longer than the rest.
        lesions: Classes whose lesions are counted one by one.
    """

    tolerance_mm: float = 1.0
    tolerances_mm: Mapping[str, float] = field(default_factory=dict)
    policy: AbsencePolicy = POLICIES["sat"]
    distances: bool = True
    lesions: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        object.__setattr__(self, "policy", absence_policy(self.policy))
        object.__setattr__(self, "lesions", frozenset(self.lesions))
        object.__setattr__(self, "tolerances_mm", {str(n): float(v) for n, v in self.tolerances_mm.items()})
        for name, value in (("tolerance_mm", self.tolerance_mm), *self.tolerances_mm.items()):
            if not (math.isfinite(value) and value >= 0):
                raise UserError(f"{name}: a tolerance in mm must be a number that is not negative, got {value}")

    def tolerance_of(self, class_name: str) -> float:
        """Tolerance of a class, in mm."""
        return self.tolerances_mm.get(class_name, self.tolerance_mm)

    def to_json(self) -> dict[str, Any]:
        """What must be equal for scores to be comparable."""
        return {
            "tolerance_mm": self.tolerance_mm,
            "tolerances_mm": dict(sorted(self.tolerances_mm.items())),
            "policy": self.policy.name,
            "distances": self.distances,
            "lesions": sorted(self.lesions),
        }
