"""Choice of the normalisation of each modality: SAT's scheme, or nnU-Net's rules applied to the union."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from satunet.datasets.raw import MODALITIES, modality_of_channel
from satunet.plan import SAT_NORMALIZATION, Normalization
from satunet.planners.fingerprint.dataset import DatasetFingerprint
from satunet.planners.fingerprint.intensities import ChannelStatistics
from satunet.planners.options import NormalizationSchemes

CUT_OUT_BELOW = 0.75
"""Median share of a volume inside its nonzero box below which nnU-Net regards scans as masked."""

_NNUNET_SCHEMES = {
    "ct": "CTNormalization",
    "nonorm": "NoNormalization",
    "zscore": "ZScoreNormalization",
    "rescale_to_0_1": "RescaleTo01Normalization",
    "rgb_to_0_1": "RGBTo01Normalization",
}
"""Channel name in lower case → nnunetv2's class."""


@dataclass(frozen=True, kw_only=True)
class Schemes:
    """Normalisations of a union.

    Attributes:
        by_modality: Modality → normalisation.
        by_channel: ``"<dataset>:<channel>"`` → normalisation, if different from that of its modality.
        why: Reason, in one sentence.
    """

    by_modality: dict[str, Normalization]
    by_channel: dict[str, Normalization] = field(default_factory=dict)
    why: str


def plan_normalization(fingerprints: Sequence[DatasetFingerprint], schemes: NormalizationSchemes) -> Schemes:
    """Choose the normalisations.

    nnU-Net's rules go by the channel's name in ``dataset.json``: ``CT`` is clipped and scaled by the intensities of all
    foreground; ``noNorm``, ``rescale_to_0_1``, ``rgb_to_0_1`` and ``zscore`` name their scheme; any other channel is
    z-scored scan by scan, over the nonzero voxels only if cropping keeps less than three quarters of the scans. A
    channel whose name does not say CT is also treated as CT if that is its modality. A modality gets the scheme of most
    of its scans; channels of that modality with another scheme are kept separately.
    """
    if schemes == "sat":
        why = "CT is clipped to [-500, 1000] HU, other modalities to their 0.5 and 99.5 percentiles (SAT)"
        return Schemes(by_modality=dict(SAT_NORMALIZATION), why=why)
    names = {
        (f.dataset, channel): _scheme_of(_name(f, channel), statistics.modality)
        for f in fingerprints
        for channel, statistics in enumerate(f.channels)
    }
    intensities = _ct_intensities(fingerprints, names)
    found = {"other": Normalization()}
    others: dict[str, Normalization] = {}
    reasons = []
    for modality in sorted({c.modality for f in fingerprints for c in f.channels}, key=MODALITIES.index):
        sizes = [c.relative_size for f in fingerprints if _has(f, modality) for c in f.cases]
        cut_out = bool(np.median(sizes) < CUT_OUT_BELOW)
        scans: Counter[str] = Counter()
        for f in fingerprints:
            for channel, statistics in enumerate(f.channels):
                if statistics.modality == modality:
                    scans[names[f.dataset, channel]] += len(f.cases)
        usual = min(scans, key=lambda scheme: (-scans[scheme], scheme))
        found[modality] = _normalization(usual, cut_out, intensities)
        reasons.append(f"{modality if modality != 'ct' else 'CT'} by {_said(found[modality])}")
        for f in fingerprints:
            for channel, statistics in enumerate(f.channels):
                scheme = names[f.dataset, channel]
                if statistics.modality == modality and scheme != usual:
                    others[f"{f.dataset}:{channel}"] = _normalization(scheme, cut_out, intensities)
    if others:
        told = ", ".join(f"{where} by {_said(scheme)}" for where, scheme in sorted(others.items()))
        reasons.append(f"but {told}; a prediction goes by the modality alone")
    return Schemes(by_modality=found, by_channel=others, why=f"nnU-Net's schemes: {', '.join(reasons)}")


def _name(fingerprint: DatasetFingerprint, channel: int) -> str:
    names = fingerprint.channel_names
    return names[channel] if channel < len(names) else ""


def _scheme_of(name: str, modality: str) -> str:
    """Name of nnunetv2's class for a channel."""
    scheme = _NNUNET_SCHEMES.get(name.casefold())
    if scheme is None and modality == "ct" and modality_of_channel(name) == "other":
        return "CTNormalization"
    return scheme or "ZScoreNormalization"


def _ct_intensities(
    fingerprints: Sequence[DatasetFingerprint], names: Mapping[tuple[str, int], str]
) -> dict[str, float] | None:
    """Foreground intensities of all channels with nnU-Net's CT scheme; ``None`` if there are none."""
    merged: ChannelStatistics | None = None
    for f in fingerprints:
        for channel, statistics in enumerate(f.channels):
            if names[f.dataset, channel] == "CTNormalization":
                merged = statistics if merged is None else merged.merge(statistics)
    found = {} if merged is None else merged.to_nnunet()
    needed = [found.get(key, math.nan) for key in ("mean", "std", "percentile_00_5", "percentile_99_5")]
    return found if all(map(math.isfinite, needed)) and needed[2] < needed[3] else None


def _normalization(scheme: str, cut_out: bool, intensities: Mapping[str, float] | None) -> Normalization:
    if scheme == "CTNormalization" and intensities is None:
        scheme = "ZScoreNormalization"
    return Normalization.of_nnunet(scheme, use_mask=cut_out, intensities=intensities)


def _said(scheme: Normalization) -> str:
    if scheme.clip is not None:
        return f"its foreground (mean {scheme.mean:.0f}, std {scheme.std:.0f})"
    if scheme.unit_range:
        return "its range, scaled to [0, 1]"
    if scheme.mean is not None:
        return "stored values" if scheme.std == 1 else f"stored values, divided by {scheme.std:.0f}"
    return f"z-score{' of nonzero voxels' if scheme.nonzero else ''}"


def _has(fingerprint: DatasetFingerprint, modality: str) -> bool:
    return any(channel.modality == modality for channel in fingerprint.channels)
