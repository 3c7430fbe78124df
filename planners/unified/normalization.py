"""Which normalisation each modality gets: SAT's by modality, or nnU-Net's rules applied to the union."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from satunet.plan import SAT_NORMALIZATION, Normalization
from satunet.planners.fingerprint.dataset import DatasetFingerprint, merge_fingerprints
from satunet.planners.options import NormalizationSchemes

CUT_OUT_BELOW = 0.75
"""Median share of a volume inside its nonzero box below which nnU-Net takes scans for cut out."""


def plan_normalization(
    fingerprints: Sequence[DatasetFingerprint], schemes: NormalizationSchemes
) -> tuple[dict[str, Normalization], str]:
    """Modality → normalisation, and a sentence that says why.

    nnU-Net's rules: CT is clipped and scaled by the intensities of all foreground; anything else is z-scored scan by
    scan, with the nonzero voxels alone where scans are cut out so that cropping keeps less than three quarters.
    """
    if schemes == "sat":
        why = "CT is clipped to [-500, 1000] HU, other modalities to their 0.5 and 99.5 percentiles (SAT)"
        return dict(SAT_NORMALIZATION), why
    merged = merge_fingerprints(fingerprints)
    found = {"other": Normalization()}
    reasons = []
    for channel in merged.channels:
        intensities = channel.to_nnunet()
        needed = [intensities[key] for key in ("mean", "std", "percentile_00_5", "percentile_99_5")]
        if channel.modality == "ct" and all(map(math.isfinite, needed)) and needed[2] < needed[3]:
            found["ct"] = Normalization.of_nnunet("CTNormalization", intensities=intensities)
            reasons.append(f"CT by its foreground (mean {needed[0]:.0f}, std {needed[1]:.0f})")
            continue
        sizes = [c.relative_size for f in fingerprints if _has(f, channel.modality) for c in f.cases]
        cut_out = bool(np.median(sizes) < CUT_OUT_BELOW)
        found[channel.modality] = Normalization.of_nnunet("ZScoreNormalization", use_mask=cut_out)
        reasons.append(f"{channel.modality} by z-score{' of nonzero voxels' if cut_out else ''}")
    return found, f"nnU-Net's schemes: {', '.join(reasons)}"


def _has(fingerprint: DatasetFingerprint, modality: str) -> bool:
    return any(channel.modality == modality for channel in fingerprint.channels)
