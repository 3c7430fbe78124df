"""Patch and topology for a memory budget, in closed form: no network is built, and no GPU is needed.

A plain U-Net is estimated as in nnU-Net: 560 million elements of feature maps for two patches (280 per patch) fit 8 GB,
including everything else that training needs. The additional memory of text prompting is counted in bytes, from the
arrays that the loss keeps.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from satunet.errors import PlanError
from satunet.network.config import NetworkConfig
from satunet.planners.options import LOSS_CHUNK
from satunet.types import Axes

GB = 2**30
REFERENCE_ELEMENTS = 560_000_000
"""nnU-Net's ``UNet_reference_val_3d``: feature-map elements of one patch, at a batch of two, that fit 8 GB."""
REFERENCE_ELEMENTS_RESIDUAL = 680_000_000
"""The same for nnU-Net's residual-encoder planners."""
BYTES_PER_ELEMENT = 8 * GB / (2 * REFERENCE_ELEMENTS)
BYTES_PER_PARAMETER = 16
MIN_BATCH = 2
MIN_FEATURE_MAP = 4
_MAX_FEATURES = 320


@dataclass(frozen=True, kw_only=True)
class Topology:
    """A planned network's shape.

    Attributes:
        patch_size: Patch size, divisible by the strides.
        network: The network.
    """

    patch_size: Axes
    network: NetworkConfig


@dataclass(frozen=True, kw_only=True)
class Width:
    """Width of a planned network.

    Attributes:
        base_features: Features of the first stage, doubled at every stage below it.
        max_features: Largest number of features of a stage; if not given, ten times the first stage's, at least
            nnU-Net's 320.
        text_dim: Width of the text embeddings.
        queries: Queries per patch.
        backbone: ``"plain"`` or ``"residual"``.
    """

    base_features: int
    max_features: int | None = None
    text_dim: int
    queries: int = LOSS_CHUNK
    backbone: str = "plain"

    def __post_init__(self) -> None:
        if self.base_features < 1 or (self.max_features is not None and self.max_features < self.base_features):
            raise PlanError(
                f"base_features must be at least 1 and max_features at least base_features, "
                f"got {self.base_features} and {self.max_features}"
            )

    def of_stages(self, stages: int) -> tuple[int, ...]:
        """Features of each stage."""
        limit = self.max_features or max(_MAX_FEATURES, 10 * self.base_features)
        return tuple(min(limit, self.base_features * 2**stage) for stage in range(stages))


def plan_topology(
    spacing_mm: Sequence[float],
    median_shape: Sequence[float],
    *,
    width: Width,
    gpu_memory_gb: float,
    patch_size: Axes | None = None,
) -> Topology:
    """Largest patch whose network fits the memory with a batch of two, with nnU-Net's rules for stages and kernels.

    Args:
        spacing_mm: Target spacing.
        median_shape: Median shape of the scans at that spacing; no patch is larger (before it is rounded up to what
            the strides allow).
        width: Width of the network.
        gpu_memory_gb: Memory to fit.
        patch_size: Given patch size, rounded up to what the strides allow; planned if not given.

    Raises:
        PlanError: Not even the smallest patch fits.
    """
    if patch_size is not None:
        return _given_patch(spacing_mm, patch_size, width)
    spacing = np.asarray(spacing_mm, dtype=float)
    shape = np.maximum(1, np.asarray(median_shape, dtype=float))
    # As in nnU-Net: start from a patch with the volume of 256³ voxels that is a cube in mm, clipped to the median shape.
    start = 1 / spacing
    start = start * (256**3 / np.prod(start)) ** (1 / 3)
    topology = _topology(spacing_mm, np.maximum(1, np.minimum(np.round(start), np.round(shape))), width)
    while memory_bytes(topology.network, topology.patch_size, MIN_BATCH, width.queries) > gpu_memory_gb * GB:
        smaller = _smaller(spacing_mm, topology, shape, width)
        if smaller is None:
            raise PlanError(
                f"no network with {width.base_features} base features fits {gpu_memory_gb} GB; the smallest patch is "
                f"{topology.patch_size}. Give more GPU memory or fewer base features"
            )
        topology = smaller
    return topology


def memory_bytes(network: NetworkConfig, patch_size: Sequence[int], batch_size: int, queries: int = LOSS_CHUNK) -> int:
    """Memory of a training step in mixed precision."""
    of_patch, shared = _memory_parts(network, patch_size, queries)
    return int(batch_size * of_patch + shared)


def largest_batch(network: NetworkConfig, patch_size: Sequence[int], gpu_memory_gb: float, queries: int) -> int:
    """Largest batch that fits; 0 if none does."""
    of_patch, shared = _memory_parts(network, patch_size, queries)
    return max(0, int((gpu_memory_gb * GB - shared) / of_patch))


def feature_map_elements(network: NetworkConfig, patch_size: Sequence[int]) -> int:
    """Elements of all convolutions' outputs for one patch, as nnU-Net counts them for a plain U-Net.

    Encoder: convolutions of a stage times its features; in a residual one, two convolutions per block, one for a
    shortcut that is not the identity, and one for the stem. Decoder: convolutions times features, and the transposed
    convolution's output.
    """
    size = np.array(patch_size, dtype=np.int64)
    stages = len(network.features_per_stage)
    residual = network.backbone == "residual"
    total = network.features_per_stage[0] * int(np.prod(size)) if residual else 0
    for stage, features in enumerate(network.features_per_stage):
        size = size // np.array(network.strides[stage])
        voxels = int(np.prod(size))
        convs = network.n_conv_per_stage[stage]
        if residual:
            entering = network.features_per_stage[max(0, stage - 1)]
            convs = 2 * convs + (entering != features or max(network.strides[stage]) > 1)
        total += convs * features * voxels
        if stage < stages - 1:
            total += (network.n_conv_per_stage_decoder[stages - 2 - stage] + 1) * features * voxels
    return total


def backbone_parameters(network: NetworkConfig) -> int:
    """Weights, biases and norms of the U-Net's convolutions."""
    total = 0
    features = network.features_per_stage
    residual = network.backbone == "residual"
    if residual:  # the stem
        total += network.in_channels * features[0] * math.prod(network.kernel_sizes[0]) + 3 * features[0]
    for stage, here in enumerate(features):
        kernel = math.prod(network.kernel_sizes[stage])
        before = features[stage - 1] if stage else features[0] if residual else network.in_channels
        entering = [before] + [here] * ((2 if residual else 1) * network.n_conv_per_stage[stage] - 1)
        if residual and before != here:
            total += before * here + 2 * here  # the shortcut's projection has no bias
        if stage < len(features) - 1:
            # the skip connection doubles what enters the first convolution of a decoder stage
            entering += [2 * here] + [here] * (network.n_conv_per_stage_decoder[len(features) - 2 - stage] - 1)
            total += features[stage + 1] * here * math.prod(network.strides[stage + 1]) + here
        total += sum(inputs * here * kernel + 3 * here for inputs in entering)
    return total


def prompting_parameters(network: NetworkConfig) -> int:
    """Number of parameters besides the U-Net's: memory tokens, query decoder, mask heads, adapter."""
    width, hidden = network.query_dim, network.memory_hidden_dim
    memory = _linear(sum(network.features_per_stage), hidden) + _linear(hidden, width)
    attention = _linear(width, 3 * width) + _linear(width, width)
    feedforward = _linear(width, network.feedforward_dim) + _linear(network.feedforward_dim, width)
    decoder = network.num_query_layers * (attention + feedforward + 3 * 2 * width) + 2 * width
    heads = sum(_linear(width, inner) + _linear(inner, out) for inner, out in network.mask_heads)
    adapter = 0 if network.adapter == "none" else network.num_modalities * width
    if network.adapter == "whitened_projection":
        adapter += _linear(network.text_dim, width) + _linear(width, width)
    scales = 0 if network.preset != "auto" else 2 * len(network.mask_heads)
    return memory + decoder + heads + adapter + scales


def _linear(inputs: int, outputs: int) -> int:
    return (inputs + 1) * outputs


def _prompting_activations(network: NetworkConfig, patch_size: Sequence[int], queries: int) -> int:
    """Elements that the query decoder keeps for its backward pass, for one patch.

    Pooled features and the memory tokens; keys and values of every layer; the intermediate results for the queries.
    Attention weights are not included, because torch's fused attention recomputes them.
    """
    tokens = math.prod(p // d for p, d in zip(patch_size, network.divisor, strict=True))
    width, layers = network.query_dim, network.num_query_layers
    memory = tokens * (sum(network.features_per_stage) + 2 * network.memory_hidden_dim + 2 * width)
    return memory + 2 * layers * tokens * width + layers * queries * (6 * width + 2 * network.feedforward_dim)


def _memory_parts(network: NetworkConfig, patch_size: Sequence[int], queries: int) -> tuple[float, float]:
    """Bytes for each patch of a batch, and bytes that the patches use one after the other.

    The loss computes gradients in its forward pass: float32 gradients of every supervised feature map are kept until
    the backward pass. For one sample and one chunk of queries at a time, it holds the feature map in float32 and four
    arrays of queries × voxels: probabilities, targets, gradients and a temporary one. The query decoder keeps its
    activations. Weights, their gradients and AdamW's two moments are kept throughout.
    """
    voxels = int(np.prod(np.asarray(patch_size, dtype=np.int64)))
    reference = REFERENCE_ELEMENTS_RESIDUAL if network.backbone == "residual" else REFERENCE_ELEMENTS
    of_patch = feature_map_elements(network, patch_size) * BYTES_PER_ELEMENT * REFERENCE_ELEMENTS / reference
    for scale, (_, features) in zip(network.scales, network.mask_heads, strict=True):
        of_patch += 4 * features * (voxels // int(np.prod(scale)))
    shared = 4 * voxels * (network.features_per_stage[0] + 4 * min(queries, LOSS_CHUNK))
    of_patch += 4 * _prompting_activations(network, patch_size, queries)
    shared += BYTES_PER_PARAMETER * (backbone_parameters(network) + prompting_parameters(network))
    return of_patch, float(shared)


def _smaller(spacing_mm: Sequence[float], topology: Topology, shape: NDArray[Any], width: Width) -> Topology | None:
    """The next smaller patch: the axis that covers most of the median shape is shortened."""
    size = np.array(topology.patch_size)
    for axis in np.argsort(-size / shape, kind="stable"):
        # As in nnU-Net: a step by the current divisor may skip sizes that a network with fewer stages could have, so
        # the step is the divisor that results from it.
        probe = size.copy()
        probe[axis] -= topology.network.divisor[axis]
        if probe[axis] < 1:
            continue
        step = size.copy()
        step[axis] -= _topology(spacing_mm, probe, width).network.divisor[axis]
        found = _topology(spacing_mm, step, width)
        if np.prod(found.patch_size) < np.prod(size):
            return found
    return None


def _given_patch(spacing_mm: Sequence[float], patch: Axes, width: Width) -> Topology:
    """Topology of a given patch: nnU-Net's, or with one stage fewer along an axis if that keeps the size.

    For example, nnU-Net's rules pool 288 voxels six times, which needs 320; five times keep the size and leave 9
    voxels.
    """
    usual = _topology(spacing_mm, patch, width)
    ways = [usual]
    for axes in itertools.product((False, True), repeat=3):
        fewer = [
            _pooled_less(n, d) if less else n for n, d, less in zip(patch, usual.network.divisor, axes, strict=True)
        ]
        if fewer != list(patch):
            found = _topology(spacing_mm, fewer, width)
            whole = tuple(math.ceil(n / d) * d for n, d in zip(patch, found.network.divisor, strict=True))
            ways.append(Topology(patch_size=(whole[0], whole[1], whole[2]), network=found.network))
    return min(ways, key=lambda way: math.prod(way.patch_size))  # among equals the first, which has the most stages


def _pooled_less(size: int, divisor: int) -> int:
    """The largest size that nnU-Net pools once less than sizes with this divisor; unchanged if it never pools."""
    return min(size, (2 * MIN_FEATURE_MAP - 1) * divisor // 2) if divisor > 1 else size


def _topology(spacing_mm: Sequence[float], patch: Sequence[float] | NDArray[Any], width: Width) -> Topology:
    from nnunetv2.experiment_planning.experiment_planners.network_topology import get_pool_and_conv_props

    _, strides, kernels, padded, _ = get_pool_and_conv_props(
        tuple(spacing_mm), tuple(int(p) for p in patch), MIN_FEATURE_MAP, 999999
    )
    if len(strides) < 2:
        # A patch too small to be pooled by nnU-Net's rules still needs a bottleneck.
        strides, kernels = ((1, 1, 1), (1, 1, 1)), ((3, 3, 3), (3, 3, 3))
    x, y, z = (int(p) for p in padded)
    network = NetworkConfig.auto(
        features_per_stage=width.of_stages(len(strides)),
        strides=strides,
        kernel_sizes=kernels,
        text_dim=width.text_dim,
        backbone=width.backbone,
    )
    return Topology(patch_size=(x, y, z), network=network)
