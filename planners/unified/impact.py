"""Costs of the unified plan for each dataset: resolution, thin classes, structures larger than the patch."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from satunet.jobs.wording import counted
from satunet.plan import UnifiedPlan
from satunet.planners.fingerprint.dataset import CaseFingerprint, DatasetFingerprint, Triple

Ids = Mapping[str, Sequence[int]]


@dataclass(frozen=True, kw_only=True)
class Impact:
    """Costs for a dataset.

    Attributes:
        dataset: Name of the dataset.
        scans: Number of scans.
        spacing_mm: Median spacing along right, anterior, superior.
        coarsening: Factor by which the plan's spacing is coarser along each axis, at least 1.
        thin: Classes whose median thickness along an axis is less than a voxel of the plan, with that thickness in mm;
            thinnest first.
        large: Classes that are longer than the patch along an axis, with the share that a patch covers; largest first.
    """

    dataset: str
    scans: int
    spacing_mm: Triple
    coarsening: Triple
    thin: tuple[tuple[str, float], ...] = ()
    large: tuple[tuple[str, float], ...] = ()

    @property
    def lost_resolution(self) -> float:
        """Number of the dataset's voxels per voxel of the plan, over the axes along which the plan is coarser."""
        return float(np.prod(self.coarsening))


def impact_of(
    plan: UnifiedPlan, fingerprints: Iterable[DatasetFingerprint], labels: Mapping[str, Ids]
) -> tuple[Impact, ...]:
    """Costs of the plan for each dataset, largest first.

    Args:
        plan: The plan.
        fingerprints: Fingerprints of its datasets; those that nnunetv2 made have no labels, and their classes are left
            out.
        labels: Dataset → class → label ids.
    """
    rows = [_impact(plan, fingerprint, labels.get(fingerprint.dataset, {})) for fingerprint in fingerprints]
    return tuple(sorted(rows, key=lambda i: (-i.lost_resolution, -len(i.thin), -len(i.large), i.dataset)))


def summarize(impacts: Sequence[Impact], *, most: int = 3) -> dict[str, str]:
    """The largest costs, as sentences for the plan's explanation."""
    sentences: dict[str, str] = {}
    coarser = [i for i in impacts if i.lost_resolution > 1.5]
    if coarser:
        named = ", ".join(f"{i.dataset} ({_mm(i.spacing_mm)} mm, ×{i.lost_resolution:.1f})" for i in coarser[:most])
        sentences["coarser"] = (
            f"{counted(len(coarser), 'dataset')} {'loses' if len(coarser) == 1 else 'lose'} resolution, most of all {named}"
        )
    thin = sorted((i for i in impacts if i.thin), key=lambda i: -len(i.thin))
    if thin:
        named = ", ".join(f"{i.dataset} ({_named(i.thin, most)})" for i in thin[:most])
        count = sum(len(i.thin) for i in thin)
        sentences["thin"] = (
            f"{counted(count, 'class', 'classes')} {'is' if count == 1 else 'are'} thinner than a voxel of the plan, "
            f"most in {named}"
        )
    large = sorted((i for i in impacts if i.large), key=lambda i: i.large[0][1])
    if large:
        named = ", ".join(f"{i.large[0][0]} ({i.dataset}: {i.large[0][1]:.0%} of it)" for i in large[:most])
        count = sum(len(i.large) for i in large)
        sentences["large"] = (
            f"{counted(count, 'class', 'classes')} {'does' if count == 1 else 'do'} not fit into a patch, least of all {named}"
        )
    return sentences


def _impact(plan: UnifiedPlan, fingerprint: DatasetFingerprint, labels: Ids) -> Impact:
    axes = ["RLAPSI".index(letter) // 2 for letter in plan.orientation_of(fingerprint.dataset)]
    target, patch = np.empty(3), np.empty(3)
    target[axes], patch[axes] = plan.spacing_mm, plan.patch_size  # along right, anterior, superior
    spacings = np.array([case.spacing_ras for case in fingerprint.cases])
    median = np.median(spacings, axis=0)
    x, y, z = (round(float(s), 3) for s in median)
    a, b, c = (round(max(1.0, float(t / m)), 2) for t, m in zip(target, median, strict=True))
    thin, large = [], []
    sizes: dict[int, list[Triple]] = defaultdict(list)
    for case in fingerprint.cases:
        for label, size in case.label_extents_mm.items():
            sizes[label].append(size)
    for name, ids in labels.items():
        extent = _extent(fingerprint.cases, ids) if len(ids) > 1 else _median(sizes.get(ids[0], []) if ids else [])
        if extent is None:
            continue
        if (extent < target).any():
            thin.append((name, round(float(extent[extent < target].min()), 2)))
        covered = float((patch * target / extent).min())
        if covered < 1:
            large.append((name, round(covered, 3)))
    return Impact(
        dataset=fingerprint.dataset,
        scans=fingerprint.scans,
        spacing_mm=(x, y, z),
        coarsening=(a, b, c),
        thin=tuple(sorted(thin, key=lambda t: t[1])),
        large=tuple(sorted(large, key=lambda t: t[1])),
    )


def _extent(cases: Iterable[CaseFingerprint], ids: Sequence[int]) -> np.ndarray | None:
    """Median over cases of the largest extent of any of the labels; ``None`` if no case has them."""
    found = []
    for case in cases:
        sizes = [case.label_extents_mm[n] for n in ids if n in case.label_extents_mm]
        if sizes:
            x, y, z = sizes[0] if len(sizes) == 1 else map(max, *sizes)
            found.append((x, y, z))
    return _median(found)


def _median(sizes: Sequence[Triple]) -> np.ndarray | None:
    return np.median(np.array(sizes), axis=0) if sizes else None


def _mm(values: Triple) -> str:
    return " × ".join(f"{v:g}" for v in values)


def _named(classes: Sequence[tuple[str, float]], most: int) -> str:
    names = ", ".join(f"{name} {mm:g} mm" for name, mm in classes[:most])
    return names + (f", and {len(classes) - most} more" if len(classes) > most else "")
