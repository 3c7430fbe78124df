"""One plan for all datasets, and the reasons for it."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from satunet.datasets.catalogue import load_catalogue
from satunet.errors import PlanError
from satunet.jobs.files import write_json
from satunet.jobs.records import to_plain
from satunet.network.config import NetworkConfig
from satunet.plan import UnifiedPlan
from satunet.planners.fingerprint.dataset import DatasetFingerprint, merge_fingerprints
from satunet.planners.options import LOSS_CHUNK, PlanOptions
from satunet.planners.unified.normalization import plan_normalization
from satunet.planners.unified.topology import (
    GB,
    MIN_BATCH,
    Topology,
    Width,
    largest_batch,
    memory_bytes,
    plan_topology,
)

logger = logging.getLogger(__name__)

ANISOTROPY = 3.0
SAT_SPACING = (1.0, 1.0, 3.0)
SAT_PATCH = (288, 288, 96)
SAT_TRAINING_PATCH = (288, 288, 64)
SAT_BATCH = 16
SAT_AT_ONCE = {"nano": 2, "pro": 1}
"""Patches per GPU in SAT's training, on 8 GPUs for SAT-Nano and 16 for SAT-Pro."""
MUCH_COARSER = 4.0
"""Smallest ratio between the plan's spacing and the scans' that is remarked on, if few voxels are left."""
FEW_VOXELS = 16
LARGE_BATCH = 128
MAX_SHARE_OF_DATA = 0.05
"""Share of all voxels that one batch may hold, as in nnU-Net."""
_TEXT_DIM = {"minilm": 384}
_BASE_FEATURES = ((40.0, 64), (4.0, 32), (0.0, 16))
"""(smallest GPU memory in GB, features of the first stage)."""


def plan_unified(fingerprints: Sequence[DatasetFingerprint], options: PlanOptions | None = None) -> UnifiedPlan:
    """Plan one network for all datasets.

    The weight of every scan is 1/sqrt(scans of its dataset) × the catalogue's factor, as in training, so that a large
    dataset does not dominate.

    Args:
        fingerprints: Fingerprints of the datasets.
        options: Given values; everything else is planned.

    Raises:
        PlanError: There is no dataset, values are invalid, or nothing fits the memory.
    """
    options = PlanOptions() if options is None else options
    if not fingerprints:
        raise PlanError("a plan needs at least one dataset")
    text_dim = _text_dim(options.text_encoder)
    records = {f.dataset: load_catalogue().by_name(f.dataset) for f in fingerprints}
    factors = {name: record.weight for name, record in records.items() if record is not None}
    weights = {f.dataset: f.scans**-0.5 * factors.get(f.dataset, 1.0) for f in fingerprints}
    spacings, shapes, scan_weights = _scans(fingerprints, weights)
    why: dict[str, str] = {}
    spacing = _spacing(options, spacings, shapes, scan_weights, why)
    if options.preset == "auto":
        extents = shapes * spacings / np.array(spacing)
        network, patch = _auto(options, spacing, extents, scan_weights, text_dim, why)
        batch = _batch(options, network, patch, extents, why)
    else:
        network, patch, batch = _published(options, text_dim, why)
    _remarks(options, network, patch, batch, spacing, (spacings, shapes, scan_weights), why)
    why["queries"] = (
        f"at most {options.queries_per_scan} per patch; more cost time, but the loss keeps only {LOSS_CHUNK} at once"
    )
    schemes = plan_normalization(fingerprints, options.normalization)
    why["normalisation"] = schemes.why
    why["weights"] = (
        "a scan is drawn with 1/sqrt(scans of its dataset), so that large datasets do not crowd out small ones"
    )
    raised = sorted(name for name, factor in factors.items() if factor != 1)
    if raised:
        why["weights"] += f"; times SAT's factor for {', '.join(raised)}"
    orientation: dict[str, str] = {}
    if options.preset != "auto":
        # A network with SAT's weights expects SAT's orientations; a planned network gets all scans in the same one.
        orientation = {n: r.orientation for n, r in records.items() if r is not None and r.orientation != "RAS"}
    if orientation:
        why["orientation"] = "RAS, except where SAT uses another: " + ", ".join(
            f"{n} {o}" for n, o in sorted(orientation.items())
        )
    names = tuple(sorted(f.dataset for f in fingerprints))
    return UnifiedPlan(
        dataset_name=options.name,
        spacing_mm=spacing,
        patch_size=patch,
        batch_size=batch,
        patches_at_once=SAT_AT_ONCE.get(options.preset),
        training_patch_size=SAT_TRAINING_PATCH if options.preset != "auto" and options.patch_size is None else None,
        queries_per_scan=options.queries_per_scan,
        normalization=schemes.by_modality,
        channel_normalization=schemes.by_channel,
        network=network,
        text_encoder=options.text_encoder,
        datasets=names,
        dataset_weights={name: weights[name] for name in names},
        dataset_orientation=orientation,
        explanation=why,
        options=to_plain(options),
    )


def save_unified_plan(plan: UnifiedPlan, fingerprints: Sequence[DatasetFingerprint]) -> Path:
    """Write the plan and the merged fingerprint into the unified dataset's folder; returns the plan's path."""
    file = plan.unified_folder.plan
    plan.save(file)  # first, because a fingerprint without a plan beside it counts as that of a raw dataset
    merged = merge_fingerprints(fingerprints, plan.dataset_name)
    write_json(plan.unified_folder.fingerprint, merged.to_nnunet(cases=False))
    return file


def weighted_quantile(values: NDArray[np.float64], weights: NDArray[np.float64], q: float) -> float:
    """Smallest value whose cumulative weight reaches the share ``q`` of the total weight."""
    order = np.argsort(values, kind="stable")
    cumulated = np.cumsum(weights[order])
    return float(values[order][np.searchsorted(cumulated, q * cumulated[-1] * (1 - 1e-12))])


def _scans(
    fingerprints: Sequence[DatasetFingerprint], weights: dict[str, float]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    rows = [(c.spacing_ras, c.shape_ras, weights[f.dataset] * c.channels) for f in fingerprints for c in f.cases]
    spacings, shapes, scan_weights = zip(*rows, strict=True)
    return np.array(spacings, float), np.array(shapes, float), np.array(scan_weights, float)


def _spacing(
    options: PlanOptions,
    spacings: NDArray[np.float64],
    shapes: NDArray[np.float64],
    weights: NDArray[np.float64],
    why: dict[str, str],
) -> tuple[float, float, float]:
    if options.spacing_mm is not None:
        why["spacing"] = f"{options.spacing_mm} mm was given"
        return options.spacing_mm
    if options.preset != "auto":
        why["spacing"] = f"{SAT_SPACING} mm is what SAT-{options.preset.capitalize()} was trained at"
        return SAT_SPACING
    median = [weighted_quantile(spacings[:, a], weights, 0.5) for a in range(3)]
    shape = [weighted_quantile(shapes[:, a], weights, 0.5) for a in range(3)]
    reason = "median over scans, each weighing 1/sqrt(scans of its dataset)"
    worst = int(np.argmax(median))
    others = [a for a in range(3) if a != worst]
    if median[worst] > ANISOTROPY * max(median[a] for a in others) and shape[worst] * ANISOTROPY < min(
        shape[a] for a in others
    ):
        low = weighted_quantile(spacings[:, worst], weights, 0.1)
        median[worst] = max(low, max(median[a] for a in others) + 1e-5)
        reason += f"; axis {'RAS'[worst]} is anisotropic and takes the 10th percentile, as in nnU-Net"
    x, y, z = (round(m, 4) for m in median)
    why["spacing"] = f"{(x, y, z)} mm: {reason}"
    return x, y, z


def _auto(
    options: PlanOptions,
    spacing: tuple[float, float, float],
    extents: NDArray[np.float64],
    weights: NDArray[np.float64],
    text_dim: int,
    why: dict[str, str],
) -> tuple[NetworkConfig, tuple[int, int, int]]:
    """Network and patch; ``extents`` are the scans' shapes at the target spacing."""
    median = [weighted_quantile(extents[:, a], weights, 0.5) for a in range(3)]

    @cache
    def topology_of(features: int, gpu_memory_gb: float) -> Topology:
        width = Width(
            base_features=features,
            max_features=options.max_features,
            text_dim=text_dim,
            queries=options.queries_per_scan,
            backbone=options.backbone,
        )
        return plan_topology(spacing, median, width=width, gpu_memory_gb=gpu_memory_gb, patch_size=options.patch_size)

    features = _base_features(options, topology_of, why)
    topology = topology_of(features, options.gpu_memory_gb)
    patch, network = topology.patch_size, topology.network
    shape = tuple(round(m) for m in median)
    if options.patch_size is None:
        reason = f"is the largest that fits {options.gpu_memory_gb:g} GB, and no larger than the median scan, {shape}"
        if any(p > n for p, n in zip(patch, shape, strict=True)):
            reason += f", rounded up to what the strides {network.divisor} allow"
    elif patch == options.patch_size:
        reason = "was given"
    else:
        reason = f"is {options.patch_size} rounded up to the strides {network.divisor}"
    why["patch"] = f"{patch} voxels {reason}"
    why["network"] = f"{len(network.strides)} stages with {network.features_per_stage} features, by nnU-Net's rules"
    if network.backbone == "residual":
        why["network"] += f"; residual encoder with {network.n_conv_per_stage} blocks, as in nnU-Net's ResEnc planners"
    return network, patch


def _base_features(options: PlanOptions, topology_of: Callable[[int, float], Topology], why: dict[str, str]) -> int:
    """Features of the first stage: more with more memory, unless patch × features would shrink."""
    if options.base_features is not None:
        why["features"] = f"{options.base_features} in the first stage was given"
        return options.base_features
    gpu_memory_gb = options.gpu_memory_gb
    levels = [(edge, n) for edge, n in reversed(_BASE_FEATURES) if gpu_memory_gb >= edge]
    features = levels[0][1]
    kept = False
    if options.patch_size is None:
        for edge, more in levels[1:]:
            # The step is taken at its threshold if nothing is lost there, else at the first memory at which nothing is.
            kept = all(
                _content(topology_of, features, gb) > _content(topology_of, more, gb) for gb in (edge, gpu_memory_gb)
            )
            features = features if kept else more
    else:
        features = levels[-1][1]
    reason = {64: "SAT-Nano's, from 40 GB on", 32: "nnU-Net's, from 4 GB on", 16: "half of nnU-Net's, below 4 GB"}
    why["features"] = f"{features} in the first stage: {reason[features]}"
    if kept:
        why["features"] += "; with more of them, patch × features would shrink"
    return features


def _content(topology_of: Callable[[int, float], Topology], features: int, gpu_memory_gb: float) -> float:
    """Patch × features of a plan; 0 if nothing fits."""
    try:
        return float(np.prod(topology_of(features, gpu_memory_gb).patch_size)) * features
    except PlanError:
        return 0.0


def _batch(
    options: PlanOptions,
    network: NetworkConfig,
    patch: tuple[int, int, int],
    extents: NDArray[np.float64],
    why: dict[str, str],
) -> int:
    if options.batch_size is not None:
        why["batch"] = f"{options.batch_size} was given"
        return options.batch_size
    fitting = largest_batch(network, patch, options.gpu_memory_gb, options.queries_per_scan)
    share = round(MAX_SHARE_OF_DATA * float(np.prod(extents, axis=1).sum()) / float(np.prod(patch)))
    batch = max(MIN_BATCH, min(fitting, share))
    limit = "as many as fit the memory" if fitting <= share else f"{MAX_SHARE_OF_DATA:.0%} of the data"
    why["batch"] = f"{batch}: {limit}, at least {MIN_BATCH}"
    if fitting < MIN_BATCH:
        why["batch"] = f"{batch}: the smallest batch for training; {fitting} would fit the memory"
    return batch


def _remarks(
    options: PlanOptions,
    network: NetworkConfig,
    patch: tuple[int, int, int],
    batch: int,
    spacing: tuple[float, float, float],
    scans: tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]],
    why: dict[str, str],
) -> None:
    """Note the memory that a step takes, and values of the plan that are probably not intended."""
    needed = memory_bytes(network, patch, batch, options.queries_per_scan) / GB
    why["memory"] = f"{needed:.1f} GB for a training step by the planner's estimate"
    remarks = []
    if needed > options.gpu_memory_gb:
        why["memory"] += f", more than the {options.gpu_memory_gb:g} GB planned for"
        given = [
            f"--{name}"
            for name, value in (
                ("preset", None if options.preset == "auto" else options.preset),
                ("patch_size", options.patch_size),
                ("batch_size", options.batch_size),
                ("base_features", options.base_features),
            )
            if value is not None
        ]
        asked = f", with {' and '.join(given)} as given" if given else ""
        remarks.append(
            f"a training step needs {needed:.1f} GB by the planner's estimate, more than the {options.gpu_memory_gb:g} GB "
            f"planned for{asked}"
        )
    spacings, shapes, weights = scans
    own = [weighted_quantile(spacings[:, a], weights, 0.5) for a in range(3)]
    seen = [weighted_quantile(shapes[:, a] * spacings[:, a] / spacing[a], weights, 0.5) for a in range(3)]
    coarser = max(s / o for s, o in zip(spacing, own, strict=True))
    if coarser > MUCH_COARSER and min(seen) < FEW_VOXELS:
        remarks.append(
            f"at {tuple(round(s, 3) for s in spacing)} mm the median scan is {tuple(round(n) for n in seen)} voxels, "
            f"{coarser:.0f} times coarser than its own {tuple(round(s, 3) for s in own)} mm"
        )
    if batch > LARGE_BATCH:
        remarks.append(f"{batch} patches per step, so many because a patch of {patch} voxels is so small")
    if remarks:
        why["remarks"] = "; ".join(remarks)
        logger.warning("%s", why["remarks"])


def _published(
    options: PlanOptions, text_dim: int, why: dict[str, str]
) -> tuple[NetworkConfig, tuple[int, int, int], int]:
    preset, patch_size, batch_size = options.preset, options.patch_size, options.batch_size
    network = NetworkConfig.nano() if preset == "nano" else NetworkConfig.pro()
    if text_dim == network.query_dim:
        network = dataclasses.replace(network, adapter="modality")
    else:
        # With another text encoder than SAT's, embeddings are projected to the width of SAT's queries.
        network = dataclasses.replace(network, text_dim=text_dim, adapter="whitened_projection")
    why["network"] = f"SAT-{preset.capitalize()} as published"
    patch = patch_size or SAT_PATCH
    why["patch"] = f"{patch} voxels " + ("was given" if patch_size else "as SAT predicts with")
    batch = batch_size or SAT_BATCH
    why["batch"] = f"{batch} " + ("was given" if batch_size else "as published") + f", {SAT_AT_ONCE[preset]} at once"
    if not patch_size:
        why["training_patch"] = f"{SAT_TRAINING_PATCH} voxels, as SAT was trained with"
    return network, patch, batch


def _text_dim(encoder: str) -> int:
    if encoder in _TEXT_DIM:
        return _TEXT_DIM[encoder]
    from satunet.text import load_text_encoder

    return load_text_encoder(encoder).dim
