"""Patch and topology for a memory budget, in closed form: no network is built, no GPU is needed.

The unit of memory is nnU-Net's: elements of the feature maps that a network keeps for the backward pass, 560 million
of which fit 8 GB at a batch of two. What text prompting adds is counted in the same unit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from satunet.errors import PlanError
from satunet.network.config import Axes, NetworkConfig

REFERENCE_ELEMENTS = 560_000_000
REFERENCE_GB = 8.0
REFERENCE_BATCH = 2
MIN_BATCH = 2
MIN_FEATURE_MAP = 4
MAX_FEATURES = 320
_LOSS_CHUNK = 32


@dataclass(frozen=True, kw_only=True)
class Topology:
    """A planned network's shape.

    Attributes:
        patch_size: Divisible by the strides.
        strides: A stage.
        kernel_sizes: A stage.
        elements: Feature-map elements of one patch, prompting included.
    """

    patch_size: Axes
    strides: tuple[Axes, ...]
    kernel_sizes: tuple[Axes, ...]
    elements: int


def plan_topology(
    spacing_mm: Sequence[float],
    median_shape: Sequence[float],
    *,
    base_features: int,
    gpu_memory_gb: float,
    text_dim: int,
    patch_size: Axes | None = None,
) -> Topology:
    """Largest patch whose network fits the memory at a batch of two; nnU-Net's rules for stages and kernels.

    Args:
        spacing_mm: Target spacing.
        median_shape: Median shape of the scans at that spacing; no patch is larger.
        base_features: Features of the first stage.
        gpu_memory_gb: Memory to fit.
        text_dim: Width of the text embeddings.
        patch_size: Patch to take instead of a planned one (rounded up to what the strides allow).

    Raises:
        PlanError: Not even the smallest patch fits.
    """
    budget = REFERENCE_ELEMENTS / REFERENCE_BATCH * gpu_memory_gb / REFERENCE_GB
    if patch_size is not None:
        return _measure(spacing_mm, patch_size, base_features, text_dim)
    spacing = np.asarray(spacing_mm, dtype=float)
    shape = np.maximum(1, np.asarray(median_shape, dtype=float))
    # As nnU-Net: start from a patch of 256³ voxels whose aspect in mm is a cube, clipped to the median shape.
    start = 1 / spacing
    start = start * (256**3 / np.prod(start)) ** (1 / 3)
    patch = np.maximum(1, np.minimum(np.round(start), np.round(shape))).astype(int)
    topology = _measure(spacing_mm, patch, base_features, text_dim)
    while topology.elements > budget:
        size = np.array(topology.patch_size)
        divisor = np.prod(np.array(topology.strides), axis=0)
        for axis in np.argsort(-size / shape, kind="stable"):
            smaller = size.copy()
            smaller[axis] -= divisor[axis]
            if smaller[axis] < 1:
                continue
            # Stepping by the old divisor may land between the steps of the new one: measure again.
            found = _measure(spacing_mm, smaller, base_features, text_dim)
            if found.elements < topology.elements:
                topology = found
                break
        else:
            raise PlanError(
                f"no network with {base_features} base features fits {gpu_memory_gb} GB; the smallest patch is "
                f"{topology.patch_size}. Give more --gpu_memory or fewer --base_features"
            )
    return topology


def features_of(stages: int, base_features: int) -> tuple[int, ...]:
    """Features a stage: doubled each time, at most 320, as in nnU-Net."""
    return tuple(min(MAX_FEATURES, base_features * 2**stage) for stage in range(stages))


def network_of(topology: Topology, base_features: int, text_dim: int) -> NetworkConfig:
    """The planned network."""
    return NetworkConfig.auto(
        features_per_stage=features_of(len(topology.strides), base_features),
        strides=topology.strides,
        kernel_sizes=topology.kernel_sizes,
        text_dim=text_dim,
    )


def feature_map_elements(network: NetworkConfig, patch_size: Sequence[int]) -> int:
    """Elements of all convolutions' outputs for one patch, as nnU-Net counts them for a plain U-Net.

    Encoder: convolutions of a stage times its features. Decoder: the same, and the transposed convolution's output.
    """
    total = 0
    size = np.array(patch_size, dtype=np.int64)
    stages = len(network.features_per_stage)
    for stage, features in enumerate(network.features_per_stage):
        size = size // np.array(network.strides[stage])
        voxels = int(np.prod(size))
        total += network.n_conv_per_stage[stage] * features * voxels
        if stage < stages - 1:
            total += (network.n_conv_per_stage_decoder[stages - 2 - stage] + 1) * features * voxels
    return total


def prompting_elements(network: NetworkConfig, patch_size: Sequence[int]) -> int:
    """What text prompting adds for one patch, independent of the number of queries.

    The loss keeps one chunk of queries' logits, targets and gradients (three times chunk × voxels) at full
    resolution, and the gradient of each supervised feature map.
    """
    voxels = int(np.prod(np.asarray(patch_size, dtype=np.int64)))
    maps = 0
    for scale, (_, features) in zip(network.scales, network.mask_heads, strict=True):
        maps += features * voxels // int(np.prod(scale))
    return 3 * _LOSS_CHUNK * voxels + maps


def _measure(spacing_mm: Sequence[float], patch: Sequence[int], base_features: int, text_dim: int) -> Topology:
    from nnunetv2.experiment_planning.experiment_planners.network_topology import get_pool_and_conv_props

    _, strides, kernels, padded, _ = get_pool_and_conv_props(
        tuple(spacing_mm), tuple(int(p) for p in patch), MIN_FEATURE_MAP, 999999
    )
    if len(strides) < 2:
        # A patch too small to be pooled by nnU-Net's rules still needs a bottleneck.
        strides, kernels = ((1, 1, 1), (1, 1, 1)), ((3, 3, 3), (3, 3, 3))
    x, y, z = (int(p) for p in padded)
    topology = Topology(
        patch_size=(x, y, z),
        strides=tuple(tuple(s) for s in strides),
        kernel_sizes=tuple(tuple(k) for k in kernels),
        elements=0,
    )
    network = network_of(topology, base_features, text_dim)
    elements = feature_map_elements(network, topology.patch_size) + prompting_elements(network, topology.patch_size)
    return Topology(
        patch_size=topology.patch_size,
        strides=topology.strides,
        kernel_sizes=topology.kernel_sizes,
        elements=elements,
    )
