"""The rules of scoring: tolerances, scores of absent classes, the choice of metrics, and the ids of organs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Annotated, Any, Literal

from tyro.conf import arg

from satunet.errors import UserError
from satunet.labels import normalize_name
from satunet.labels.scored import Organs

Policy = Literal["sat", "nnunet", "brats"]


@dataclass(frozen=True, kw_only=True)
class AbsencePolicy:
    """Scores of a class that is absent; ``nan`` leaves the case out of the mean of that class.

    Attributes:
        both: DSC, NSD and lesion-wise F1 of a class absent in reference and prediction.
        reference: The same scores of a class that is absent in the reference only.
        prediction: The same scores of a class that is absent in the prediction only.
        both_mm: Distances (HD95, ASSD) of a class absent in both.
        one_mm: Distances of a class absent in one of the two, which the metrics do not define.
    """

    both: float
    reference: float = 0.0
    prediction: float = 0.0
    both_mm: float = math.nan
    one_mm: float = math.nan

    def score(self, n_reference: int, n_prediction: int) -> float:
        """DSC, NSD and F1 of a class that is empty in one mask or both."""
        return self.prediction if n_reference else self.reference if n_prediction else self.both

    def distance_mm(self, n_reference: int, n_prediction: int) -> float:
        """HD95 and ASSD of a class that is empty in one mask or both."""
        return self.one_mm if n_reference or n_prediction else self.both_mm


POLICIES: Mapping[Policy, AbsencePolicy] = {
    "sat": AbsencePolicy(both=1.0),
    "nnunet": AbsencePolicy(both=math.nan),
    "brats": AbsencePolicy(both=1.0, both_mm=0.0, one_mm=374.0),
}
"""``sat``: finding nothing where there is nothing scores 1 (arXiv 2312.17183). ``nnunet``: such cases are left out, as
in nnunetv2. ``brats``: as ``sat``, with the distances of the BraTS challenge: 374 mm (the diagonal of its volumes) for
a miss."""


@dataclass(frozen=True, kw_only=True)
class Rules:
    """How to score; the options of ``evaluate`` and ``benchmark``.

    Attributes:
        tolerance_mm: Tolerance of NSD: surfaces within this distance count as equal.
        tolerances: Tolerances of single classes, each as ``"class=mm"``.
        policy: Name of the policy for absent classes.
        no_distances: Whether HD95 and ASSD, which take longer than the rest, are left out.
        organs: Whether an organ is scored with the lesions in it.
        trust_shape: Whether a prediction with the shape of its reference lies on its grid, whatever the headers say.
    """

    tolerance_mm: Annotated[float, arg(name="tolerance", help="Tolerance of the normalised surface Dice, in mm.")] = 1.0
    tolerances: Annotated[
        tuple[str, ...], arg(metavar="CLASS=MM", help="Tolerances of single classes that differ, such as aorta=2.")
    ] = ()
    policy: Annotated[
        Policy,
        arg(
            help="Policy for classes absent in reference and prediction: 'sat' scores them 1, 'nnunet' leaves them out; 'brats' "
            "is 'sat' with distances of 374 mm for a class absent in one of the two."
        ),
    ] = "sat"
    no_distances: Annotated[bool, arg(help="Leave out HD95 and ASSD, which saves a quarter of the time.")] = False
    organs: Annotated[
        Organs,
        arg(
            help="Organs with a lesion in them: 'whole' scores organ and lesion together as the organ, as SAT does; 'listed' scores only "
            "the ids that dataset.json gives the organ, as nnU-Net does."
        ),
    ] = "whole"
    trust_shape: Annotated[
        bool,
        arg(
            help="Treat predictions of the same shape as their reference as being on its grid, whatever position the headers give."
        ),
    ] = False

    def __post_init__(self) -> None:
        for name, value in (("tolerance", self.tolerance_mm), *self.tolerances_mm.items()):
            if not (math.isfinite(value) and value >= 0):
                raise UserError(f"{name}: a tolerance in mm must not be negative, got {value}")

    @cached_property
    def tolerances_mm(self) -> dict[str, float]:
        """Tolerances of single classes, class → mm."""
        own = {}
        for text in self.tolerances:
            name, equals, value = text.rpartition("=")
            try:
                own[normalize_name(name).canonical] = float(value)
            except ValueError:
                equals = ""
            if not equals:
                raise UserError(f"--tolerances takes CLASS=MM, such as aorta=2; got {text!r}")
        return dict(sorted(own.items()))

    @property
    def absence(self) -> AbsencePolicy:
        """The policy."""
        return POLICIES[self.policy]

    @property
    def distances(self) -> bool:
        """Whether HD95 and ASSD are computed."""
        return not self.no_distances

    def tolerance_of(self, class_name: str) -> float:
        """Tolerance of a class, in mm."""
        return self.tolerances_mm.get(class_name, self.tolerance_mm)

    def of_classes(self, names: Iterable[str]) -> Rules:
        """The same rules, without tolerances of other classes."""
        wanted = set(names)
        return replace(self, tolerances=tuple(f"{n}={v}" for n, v in self.tolerances_mm.items() if n in wanted))

    def comparable(self) -> dict[str, Any]:
        """Settings that must be equal for scores to be comparable, in the form of ``summary.json``, nnU-Net's format.

        This is not the record of the options: two ways to ask for the same tolerances give the same entry.
        """
        return {
            "tolerance_mm": self.tolerance_mm,
            "tolerances_mm": self.tolerances_mm,
            "policy": self.policy,
            "distances": self.distances,
            "organs": self.organs,
            **({"trust_shape": True} if self.trust_shape else {}),
        }
