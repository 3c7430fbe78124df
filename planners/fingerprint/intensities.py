"""Foreground intensities of a channel, in a form that merges.

As in nnU-Net, every case has the same weight, regardless of the size of its foreground. nnU-Net draws the same number
of voxels from every case, with replacement; here, a case is described by exact moments and its quantile function, and a
dataset by sums of moments and a t-digest (Dunning, Ertl 2019; Apache DataSketches), which gives the percentiles of a
union without opening a scan again. Of the available sketches, it is the only deterministic one: the same scans give the
same file.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from satunet.types import PackedFloats

SKETCH_K = 2000
"""Size of the sketch (20 KB): the error of percentiles is below 0.2 percentage points in rank, and below 0.01 in the
tails."""
PERCENTILES = (0.5, 50.0, 99.5)
RANKS: NDArray[np.float64] = np.unique(
    np.concatenate([np.linspace(0, 0.02, 129), np.linspace(0.02, 0.98, 769), np.linspace(0.98, 1, 129)]).round(9)
)
"""Ranks at which a case's quantile function is kept: 0.016 percentage points apart in the tails, 0.125 between."""
_VALUES_PER_CASE = 5_000
"""Number of values that a case contributes to the sketch."""


@dataclass(frozen=True, kw_only=True, eq=False)
class CaseIntensities:
    """Foreground of one channel of one case.

    Attributes:
        mean: Mean of all foreground voxels.
        mean_square: Mean of their squares.
        minimum: Smallest voxel.
        maximum: Largest voxel.
        quantiles: float32, the quantile function at :data:`RANKS`.
    """

    mean: float
    mean_square: float
    minimum: float
    maximum: float
    quantiles: PackedFloats

    def __post_init__(self) -> None:
        if self.quantiles.size != RANKS.size:
            raise ValueError(f"{self.quantiles.size} quantiles; expected {RANKS.size}")

    @classmethod
    def of(cls, values: NDArray[Any], limit: int) -> CaseIntensities | None:
        """Describe foreground voxels, with the quantiles of ``limit`` of them; ``None`` if there are none."""
        if values.size == 0:
            return None
        exact = values.astype(np.float64)
        kept = exact if values.size <= limit else np.random.default_rng(1234).choice(exact, limit, replace=False)
        return cls(
            mean=float(exact.mean()),
            mean_square=float(np.square(exact).mean()),
            minimum=float(exact.min()),
            maximum=float(exact.max()),
            quantiles=PackedFloats(np.quantile(kept, RANKS).astype(np.float32)),
        )

    def shifted(self, offset: float) -> CaseIntensities:
        """The same foreground with ``offset`` added to every voxel."""
        return CaseIntensities(
            mean=self.mean + offset,
            mean_square=self.mean_square + 2 * offset * self.mean + offset**2,
            minimum=self.minimum + offset,
            maximum=self.maximum + offset,
            quantiles=PackedFloats((self.quantiles.astype(np.float64) + offset).astype(np.float32)),
        )


@dataclass(frozen=True, kw_only=True)
class ChannelStatistics:
    """Foreground intensities of one channel over cases.

    Attributes:
        modality: Modality of the channel.
        cases: Cases with foreground.
        mean_sum: Sum of the cases' means.
        square_sum: Sum of the cases' mean squares.
        minimum: Smallest intensity.
        maximum: Largest intensity.
        quantiles: Values at :data:`PERCENTILES`, if they were computed from voxels; ``None`` after merging.
        sketch: t-digest, serialised.
    """

    modality: str
    cases: int
    mean_sum: float
    square_sum: float
    minimum: float
    maximum: float
    quantiles: tuple[float, ...] | None
    sketch: bytes

    @classmethod
    def of(cls, cases: Sequence[CaseIntensities | None], modality: str) -> ChannelStatistics:
        """Statistics of a channel over the cases of a dataset."""
        found = [case for case in cases if case is not None]
        sketch = _sketch()
        ranks = (np.arange(_VALUES_PER_CASE) + 0.5) / _VALUES_PER_CASE
        for case in found:
            sketch.update(np.interp(ranks, RANKS, case.quantiles).astype(np.float32))
        return cls(
            modality=modality,
            cases=len(found),
            mean_sum=math.fsum(case.mean for case in found),
            square_sum=math.fsum(case.mean_square for case in found),
            minimum=min((case.minimum for case in found), default=float("nan")),
            maximum=max((case.maximum for case in found), default=float("nan")),
            quantiles=_percentiles([case.quantiles for case in found]) if found else None,
            sketch=sketch.serialize(),
        )

    @classmethod
    def from_nnunet(cls, content: Mapping[str, float], cases: int, modality: str) -> ChannelStatistics:
        """Statistics from nnU-Net's fingerprint, which has no sketch; an approximate one is made.

        Moments are nnU-Net's. Percentiles between the given ones follow a normal distribution on either side of the
        median.
        """
        low, median, high = (float(content[key]) for key in ("percentile_00_5", "median", "percentile_99_5"))
        minimum, maximum = float(content["min"]), float(content["max"])
        ranks = (np.arange(_VALUES_PER_CASE) + 0.5) / _VALUES_PER_CASE
        shape = _normal_quantile(np.clip(ranks, 0.005, 0.995)) / _normal_quantile(np.array(0.995))
        values = median + np.where(shape < 0, -shape * (low - median), shape * (high - median))
        values = np.where(ranks < 0.005, np.interp(ranks, [0, 0.005], [minimum, low]), values)
        values = np.where(ranks > 0.995, np.interp(ranks, [0.995, 1], [high, maximum]), values)
        mean = float(content["mean"])
        return cls(
            modality=modality,
            cases=cases,
            mean_sum=mean * cases,
            square_sum=(float(content["std"]) ** 2 + mean**2) * cases,
            minimum=minimum,
            maximum=maximum,
            quantiles=(low, median, high),
            sketch=_repeated(values.astype(np.float32), cases).serialize(),
        )

    def merge(self, other: ChannelStatistics) -> ChannelStatistics:
        """Statistics of both together."""
        sketch = _sketch(self.sketch)
        sketch.merge(_sketch(other.sketch))
        return ChannelStatistics(
            modality=self.modality if self.modality == other.modality else "other",
            cases=self.cases + other.cases,
            mean_sum=self.mean_sum + other.mean_sum,
            square_sum=self.square_sum + other.square_sum,
            minimum=float(np.fmin(self.minimum, other.minimum)),
            maximum=float(np.fmax(self.maximum, other.maximum)),
            quantiles=None,
            sketch=sketch.serialize(),
        )

    def percentiles(self, ranks: Sequence[float]) -> list[float]:
        """Percentiles from the sketch for ``ranks`` in [0, 100]; NaN without foreground."""
        if self.cases == 0:
            return [float("nan")] * len(ranks)
        sketch = _sketch(self.sketch)
        return [float(sketch.get_quantile(r / 100)) for r in ranks]

    def to_nnunet(self) -> dict[str, float]:
        """Entry of nnU-Net's ``foreground_intensity_properties_per_channel``; NaN without foreground."""
        low, median, high = self.quantiles or self.percentiles(PERCENTILES)
        mean = self.mean_sum / self.cases if self.cases else float("nan")
        variance = self.square_sum / self.cases - mean**2 if self.cases else float("nan")
        return {
            "mean": mean,
            "median": median,
            "std": float(np.sqrt(np.maximum(variance, 0.0))),
            "min": self.minimum,
            "max": self.maximum,
            "percentile_99_5": high,
            "percentile_00_5": low,
        }


def _percentiles(cases: Sequence[NDArray[np.float32]]) -> tuple[float, ...]:
    """:data:`PERCENTILES` of all cases together, with equal weights, from their quantile functions."""
    wanted = np.array(PERCENTILES) / 100
    if len(cases) == 1:
        return tuple(float(v) for v in np.interp(wanted, RANKS, cases[0]))
    # Values of a case between two ranks are approximated by the mean of both, weighted with the share of voxels between.
    values = np.concatenate([(case[1:] + case[:-1]) / 2 for case in cases])
    order = np.argsort(values, kind="stable")
    weights = np.tile(np.diff(RANKS), len(cases))[order]
    ranks = (np.cumsum(weights) - weights / 2) / weights.sum()
    return tuple(float(v) for v in np.interp(wanted, ranks, values[order]))


def _normal_quantile(ranks: NDArray[np.float64]) -> NDArray[np.float64]:
    from scipy.special import ndtri

    result: NDArray[np.float64] = ndtri(ranks)
    return result


def _repeated(values: NDArray[np.float32], times: int) -> Any:
    """The sketch of values that occur ``times`` times, by doubling."""
    result, power = _sketch(), _sketch()
    power.update(values)
    while times:
        if times & 1:
            result.merge(power)
        times >>= 1
        if times:
            power.merge(_sketch(power.serialize()))
    return result


def _sketch(content: bytes | None = None) -> Any:
    import datasketches

    if content is None:
        return datasketches.tdigest_float(SKETCH_K)
    return datasketches.tdigest_float.deserialize(content)
