"""Confidence of masks, and the decision which masks are left out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from satunet.confidence.calibration import Calibration, Seen, Worth
from satunet.geometry import Grid
from satunet.prediction.masks.boxed import BoxedMask
from satunet.prediction.masks.found import PromptMask, Weighed
from satunet.prediction.masks.plausibility import Anatomy, Structure, doubts, repaired
from satunet.prediction.options import PredictOptions
from satunet.prompts.matching import PromptMatch


def judge(
    matches: Sequence[PromptMatch],
    masks: Sequence[Weighed | None],
    calibrations: Sequence[Calibration],
    options: PredictOptions,
    grid: Grid,
    anatomy: Anatomy,
) -> tuple[PromptMask, ...]:
    """Estimate the confidence of all masks of a scan, and leave out those beyond the limits in the options.

    Args:
        matches: Matches that were predicted.
        masks: Mask of each match; ``None`` for prompts that mean nothing to the models.
        calibrations: Calibrations of those models that have one; without any, no mask is left out.
        options: Options of the user.
        grid: Grid of the scan.
        anatomy: Anatomical knowledge to compare the masks with.
    """
    known = [(i, mask) for i, mask in enumerate(masks) if mask is not None]
    worths: list[Worth | None] = [None] * len(masks)
    if calibrations and known:
        seen = [Seen(class_name=matches[i].class_name, evidence=mask.evidence) for i, mask in known]
        first, *others = calibrations
        for (i, _), found in zip(known, first.with_others(others, seen), strict=True):
            worths[i] = found
    judged = []
    for match, mask, worth in zip(matches, masks, worths, strict=True):
        boxed = None if mask is None else mask.mask
        reason = _reason(boxed, worth, options)
        if reason and boxed is not None:
            boxed = BoxedMask.empty(boxed.shape)
        judged.append(PromptMask(match=match, boxed=boxed, worth=worth, left_out=reason))
    return _plausible(judged, grid, anatomy, repair=options.repair)


def _plausible(masks: Sequence[PromptMask], grid: Grid, anatomy: Anatomy, *, repair: bool) -> tuple[PromptMask, ...]:
    """Note contradictions between masks, and repair them if ``repair`` is set."""
    first: dict[str, int] = {}
    for i, mask in enumerate(masks):
        if mask.match.class_name is not None and mask.boxed is not None and mask.boxed.voxels:
            first.setdefault(mask.match.class_name, i)
    structures = [Structure(name=n, mask=b) for n, i in first.items() if (b := masks[i].boxed) is not None]
    found = list(masks)
    for i, told in zip(first.values(), doubts(structures, grid, anatomy), strict=True):
        found[i] = replace(found[i], doubts=told)
    if repair and any(mask.doubts for mask in found):
        for i, better in zip(first.values(), repaired(structures, grid, anatomy), strict=True):
            if better.mask is not found[i].boxed:
                found[i] = replace(found[i], boxed=better.mask, repaired=True)
    return tuple(found)


def _reason(mask: BoxedMask | None, worth: Worth | None, options: PredictOptions) -> str:
    """Reason why a mask is left out; empty if it is kept."""
    if mask is None or worth is None or not mask.voxels:
        return ""
    if options.max_absent < 1 and worth.absent >= options.max_absent:
        return f"absent with a probability of {worth.absent:.2f}"
    if worth.confidence is not None and worth.confidence < options.min_confidence:
        return f"confidence {worth.confidence:.2f} is below {options.min_confidence:g}"
    return ""
