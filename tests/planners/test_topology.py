from __future__ import annotations

import numpy as np
import pytest
import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from satunet.errors import PlanError
from satunet.network.config import NetworkConfig
from satunet.network.model import PromptedUNet
from satunet.planners.unified.topology import (
    BYTES_PER_ELEMENT,
    GB,
    LOSS_CHUNK,
    Width,
    backbone_parameters,
    feature_map_elements,
    largest_batch,
    memory_bytes,
    plan_topology,
    prompting_parameters,
)

WIDTH = Width(base_features=32, text_dim=384)


def nnunets_elements(network: NetworkConfig, patch: tuple[int, int, int], classes: int = 2) -> int:
    """What nnU-Net's own network says of itself, less its segmentation layer."""
    built = PlainConvUNet(
        input_channels=1,
        n_stages=len(network.features_per_stage),
        features_per_stage=network.features_per_stage,
        conv_op=nn.Conv3d,
        kernel_sizes=network.kernel_sizes,
        strides=network.strides,
        n_conv_per_stage=network.n_conv_per_stage,
        num_classes=classes,
        n_conv_per_stage_decoder=network.n_conv_per_stage_decoder,
        norm_op=None,
    )
    return int(built.compute_conv_feature_map_size(patch)) - classes * int(np.prod(patch))


@pytest.mark.parametrize(
    ("spacing", "patch"),
    [((1.0, 1.0, 1.0), (128, 128, 128)), ((1.0, 1.0, 3.0), (96, 160, 48)), ((0.5, 0.5, 5.0), (192, 160, 12))],
)
def test_feature_maps_are_counted_as_by_building_nnunets_network(
    spacing: tuple[float, float, float], patch: tuple[int, int, int]
) -> None:
    planned = plan_topology(spacing, patch, width=Width(base_features=8, text_dim=24), gpu_memory_gb=100)
    assert feature_map_elements(planned.network, planned.patch_size) == nnunets_elements(
        planned.network, planned.patch_size
    )


@given(
    st.tuples(*[st.sampled_from([0.5, 0.8, 1.0, 2.0, 3.0, 6.0])] * 3),
    st.tuples(*[st.integers(1, 700)] * 3),
    st.sampled_from([1.0, 4.0, 8.0, 24.0]),
    st.sampled_from([8, 16, 32]),
)
@settings(deadline=None, max_examples=60)
def test_any_plan_fits_its_budget_and_its_strides(
    spacing: tuple[float, float, float], shape: tuple[int, int, int], memory: float, features: int
) -> None:
    width = Width(base_features=features, text_dim=384)
    planned = plan_topology(spacing, shape, width=width, gpu_memory_gb=memory)
    assert memory_bytes(planned.network, planned.patch_size, 2) <= memory * GB
    assert largest_batch(planned.network, planned.patch_size, memory, LOSS_CHUNK) >= 2
    divisor = planned.network.divisor
    for size, step, limit in zip(planned.patch_size, divisor, shape, strict=True):
        assert size % step == 0
        assert size < limit + step  # no larger than the scans but for rounding up


def test_more_memory_never_gives_a_smaller_patch() -> None:
    voxels = [
        np.prod(plan_topology((1, 1, 1), (400, 400, 400), width=WIDTH, gpu_memory_gb=gb).patch_size)
        for gb in (1, 2, 4, 8, 12, 16, 24, 40)
    ]
    assert voxels == sorted(voxels)
    assert voxels[0] < voxels[-1]


def test_eight_gb_plan_is_close_to_nnunets() -> None:
    """nnU-Net takes 128³ at 1 mm for 8 GB; prompting costs some of it."""
    planned = plan_topology((1, 1, 1), (400, 400, 400), width=WIDTH, gpu_memory_gb=8)
    assert 0.55 < np.prod(planned.patch_size) / 128**3 <= 1.0


def test_the_batch_is_the_largest_that_fits() -> None:
    planned = plan_topology((1, 1, 1), (64, 64, 64), width=WIDTH, gpu_memory_gb=8)
    batch = largest_batch(planned.network, planned.patch_size, 8, 32)
    assert memory_bytes(planned.network, planned.patch_size, batch) <= 8 * GB
    assert memory_bytes(planned.network, planned.patch_size, batch + 1) > 8 * GB


def kept_by_decoding(network: NetworkConfig, patch: tuple[int, int, int], queries: int) -> int:
    """Elements that torch saves for the backward pass of the memory tokens and the query decoder, counted."""
    built = PromptedUNet(network)
    sizes = [tuple(p // s for p, s in zip(patch, factor, strict=True)) for factor in ((1, 1, 1), (2, 2, 2))]
    skips = [torch.zeros(1, f, *n) for f, n in zip(network.features_per_stage, sizes, strict=True)]
    built.backbone.forward = lambda image: (skips, skips[::-1])  # type: ignore[method-assign]
    parameters = {p.data_ptr() for p in built.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage.nbytes() // tensor.element_size()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        features = built.encode_image(torch.zeros(1, 1, *patch))
        results = built.decode(features, torch.zeros(1, queries, network.text_dim), torch.zeros(1, dtype=torch.long))
    assert all(r.requires_grad for r in results)
    return sum(kept.values())


def test_memory_is_nnunets_and_what_the_loss_keeps() -> None:
    network = NetworkConfig.auto(
        features_per_stage=(8, 16), strides=((1, 1, 1), (2, 2, 2)), kernel_sizes=((3, 3, 3),) * 2, text_dim=24
    )
    elements = (2 + 2 + 1) * 8 * 16**3 + 2 * 16 * 8**3
    assert feature_map_elements(network, (16, 16, 16)) == elements
    map_gradients = 4 * 8 * 16**3
    loss = 4 * 16**3 * (8 + 4 * 32)
    weights = 16 * (backbone_parameters(network) + prompting_parameters(network))
    expected = 3 * (elements * BYTES_PER_ELEMENT + map_gradients) + loss + weights
    decoder = memory_bytes(network, (16, 16, 16), 3) - expected
    assert decoder == pytest.approx(3 * 4 * kept_by_decoding(network, (16, 16, 16), 32), rel=0.5)
    # more queries than a chunk cost what the query decoder keeps, and no masks
    more = memory_bytes(network, (16, 16, 16), 3, 500) - memory_bytes(network, (16, 16, 16), 3, 32)
    kept = kept_by_decoding(network, (16, 16, 16), 500) - kept_by_decoding(network, (16, 16, 16), 32)
    assert more == pytest.approx(3 * 4 * kept, rel=0.5)
    assert memory_bytes(network, (16, 16, 16), 3, 8) < memory_bytes(network, (16, 16, 16), 3, 32)


@pytest.mark.parametrize("patch", [(64, 64, 64), (96, 48, 12)])
def test_parameters_are_counted_as_by_building_the_network(patch: tuple[int, int, int]) -> None:
    network = plan_topology((1, 1, 3), patch, width=Width(base_features=8, text_dim=24), gpu_memory_gb=50).network
    built = PromptedUNet(network)
    assert backbone_parameters(network) == sum(p.numel() for p in built.backbone.parameters())
    assert backbone_parameters(network) + prompting_parameters(network) == sum(p.numel() for p in built.parameters())


@pytest.mark.parametrize(
    ("network", "millions"), [(NetworkConfig.nano(), 110.277568), (NetworkConfig.pro(), 477.08736)]
)
def test_parameters_of_sats_networks(network: NetworkConfig, millions: float) -> None:
    assert (backbone_parameters(network) + prompting_parameters(network)) / 1e6 == pytest.approx(millions, abs=1e-9)


def test_a_given_patch_is_rounded_up_to_the_strides() -> None:
    planned = plan_topology((1, 1, 1), (400, 400, 400), width=WIDTH, gpu_memory_gb=8, patch_size=(60, 64, 50))
    assert all(p % d == 0 for p, d in zip(planned.patch_size, planned.network.divisor, strict=True))
    assert all(p >= g for p, g in zip(planned.patch_size, (60, 64, 50), strict=True))


def test_features_double_up_to_a_limit() -> None:
    assert WIDTH.of_stages(6) == (32, 64, 128, 256, 320, 320)
    assert Width(base_features=64, text_dim=1).of_stages(6) == (64, 128, 256, 512, 640, 640)
    assert Width(base_features=16, max_features=100, text_dim=1).of_stages(4) == (16, 32, 64, 100)
    with pytest.raises(PlanError, match="max_features"):
        Width(base_features=16, max_features=8, text_dim=1)


def test_a_budget_nothing_fits_says_so() -> None:
    with pytest.raises(PlanError, match="memory"):
        plan_topology((1, 1, 1), (200, 200, 200), width=WIDTH, gpu_memory_gb=0.001)
