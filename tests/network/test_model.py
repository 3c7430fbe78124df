"""The network as a function: shapes, independence of queries, memory tokens, position encoding."""

from __future__ import annotations

import contextlib
import dataclasses
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from satunet.network import NetworkConfig
from satunet.network.decoder import position_encoding
from satunet.network.model import PromptedUNet, _average_to, mask_logits

AUTO = NetworkConfig.auto(
    features_per_stage=(4, 6, 8),
    strides=((1, 1, 1), (2, 2, 1), (2, 2, 2)),
    kernel_sizes=((3, 3, 1), (3, 3, 3), (3, 3, 3)),
    text_dim=10,
    query_dim=16,
    num_scales=2,
)
SAT_LIKE = dataclasses.replace(
    NetworkConfig.nano(),
    features_per_stage=(4, 4, 6),
    strides=((1, 1, 1), (2, 2, 2), (2, 2, 2)),
    kernel_sizes=((3, 3, 3),) * 3,
    n_conv_per_stage=(2,) * 3,
    n_conv_per_stage_decoder=(2,) * 2,
    query_dim=24,
    text_dim=24,
    feedforward_dim=32,
    memory_hidden_dim=24,
    mask_heads=((8, 4), (8, 4)),
)


def build(config: NetworkConfig) -> PromptedUNet:
    torch.manual_seed(0)
    return PromptedUNet(config).eval()


@settings(deadline=None, max_examples=12)
@given(
    cells=st.tuples(*[st.integers(1, 4)] * 3),
    queries=st.integers(0, 5),
    config=st.sampled_from([AUTO, SAT_LIKE]),
    train=st.booleans(),
)
def test_any_patch_divisible_by_the_strides(
    cells: tuple[int, int, int], queries: int, config: NetworkConfig, train: bool
) -> None:
    network = build(config).train(train)
    shape = [c * d for c, d in zip(cells, config.divisor, strict=True)]
    outputs = network(torch.randn(2, 1, *shape), torch.randn(2, queries, config.text_dim), torch.tensor([0, 1]))
    expected = [[2, queries, *(n // s for n, s in zip(shape, scale, strict=True))] for scale in config.scales]
    assert [list(o.shape) for o in outputs] == expected
    assert all(o.isfinite().all() for o in outputs)


@pytest.mark.parametrize("config", [AUTO, SAT_LIKE])
@torch.no_grad()
def test_queries_are_independent(config: NetworkConfig) -> None:
    network = build(config).double()
    image, queries = torch.randn(2, 1, 16, 12, 8).double(), torch.randn(2, 7, config.text_dim).double()
    features = network.encode_image(image)
    whole = network(image, queries, torch.tensor([1, 0]))
    for part in (slice(0, 3), slice(3, 4), slice(4, 7)):
        embeddings = network.decode(features, queries[:, part], torch.tensor([1, 0]))
        for scale, (feature_map, embedding) in enumerate(zip(features.maps, embeddings, strict=True)):
            torch.testing.assert_close(mask_logits(feature_map, embedding), whole[scale][:, part], rtol=0, atol=1e-12)
    other = queries.clone()
    other[:, 2] = torch.randn(2, config.text_dim)
    changed = (network(image, other, torch.tensor([1, 0]))[0] - whole[0]).abs().amax((0, 2, 3, 4))
    assert (changed > 1e-9).tolist() == [False, False, True, False, False, False, False]


@torch.no_grad()
def test_samples_of_a_batch_are_independent() -> None:
    network = build(AUTO).double()
    image, queries = torch.randn(2, 1, 8, 8, 4).double(), torch.randn(2, 3, 10).double()
    modality = torch.tensor([3, 1])
    both = network(image, queries, modality)[0]
    for b in range(2):
        alone = network(image[b : b + 1], queries[b : b + 1], modality[b : b + 1])[0]
        torch.testing.assert_close(alone, both[b : b + 1], rtol=0, atol=1e-12)


@torch.no_grad()
def test_the_modality_matters_to_the_adapter_only() -> None:
    image = torch.randn(1, 1, 8, 8, 4)
    auto, sat = build(AUTO), build(SAT_LIKE)
    text = torch.randn(1, 2, 10)
    ct, mri, none = (auto(image, text, m)[0] for m in (torch.tensor([0]), torch.tensor([1]), None))
    assert not torch.allclose(ct, mri)
    assert not torch.allclose(ct, none)
    text = torch.randn(1, 2, 24)
    assert torch.equal(sat(image, text, torch.tensor([1]))[0], sat(image, text)[0])


def test_deep_supervision_can_be_switched_off() -> None:
    network = build(AUTO)
    inputs = torch.randn(1, 1, 8, 8, 4), torch.randn(1, 2, 10)
    full = network(*inputs)
    network.deep_supervision = False
    (only,) = network(*inputs)
    assert len(full) == 2
    assert torch.equal(only, full[0])


@torch.no_grad()
def test_memory_tokens_are_averages_of_every_stage() -> None:
    network = build(AUTO)
    seen: list[torch.Tensor] = []
    network.projection_layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    features = network.encode_image(image := torch.randn(2, 1, 16, 8, 12))
    skips, _ = network.backbone(image)
    assert features.grid == (4, 2, 6)
    assert features.memory.shape == (2, 48, 16)
    pooled = torch.cat([functional.adaptive_avg_pool3d(s, features.grid) for s in skips], dim=1)
    for index, (i, j, k) in enumerate(np.ndindex(features.grid)):
        torch.testing.assert_close(seen[0][:, index], pooled[:, :, i, j, k], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("width", [12, 16, 768])
def test_position_encoding_by_its_definition(width: int) -> None:
    shape = (3, 2, 4)
    encoding = position_encoding(shape, width, device=torch.device("cpu")).reshape(*shape, width)
    channels = math.ceil(width / 6) * 2
    for index in np.ndindex(shape):
        expected = []
        for position in index:
            for pair in range(channels // 2):
                angle = position / 10000 ** (2 * pair / channels)
                expected += [math.sin(angle), math.cos(angle)]
        np.testing.assert_allclose(encoding[index].numpy(), expected[:width], atol=1e-6)


@pytest.mark.parametrize("bias", [False, True])
def test_mask_logits_are_dot_products(bias: bool) -> None:
    features, embedding = torch.randn(2, 4, 3, 5, 2), torch.randn(2, 3, 4 + bias)
    expected = torch.einsum("bcxyz,bnc->bnxyz", features, embedding[..., :4])
    if bias:
        expected = expected + embedding[..., 4][..., None, None, None]
    torch.testing.assert_close(mask_logits(features, embedding), expected, rtol=1e-5, atol=1e-5)
    # Features of an autocast region, embeddings from outside it.
    assert mask_logits(features.bfloat16(), embedding).dtype == torch.bfloat16


def test_a_planned_network_starts_near_background() -> None:
    logits = build(AUTO)(torch.randn(2, 1, 16, 16, 8), torch.randn(2, 20, 10), torch.tensor([0, 1]))
    for scale in logits:
        assert scale.sigmoid().mean() < 0.1


def test_autocast_gives_nearly_the_same() -> None:
    network = build(AUTO)
    inputs = torch.randn(1, 1, 16, 16, 8), torch.randn(1, 4, 10), torch.tensor([0])
    exact = network(*inputs)[0]
    with torch.autocast("cpu", torch.bfloat16):
        rough = network(*inputs)[0]
    assert rough.dtype == torch.bfloat16
    assert (rough.float() - exact).abs().max() < 0.1 * exact.std() + 0.05


def test_a_patch_that_the_strides_do_not_divide_is_refused() -> None:
    with pytest.raises(ValueError, match=r"divisible by the strides \(4, 4, 2\)"):
        build(AUTO).encode_image(torch.randn(1, 1, 10, 8, 4))


@pytest.mark.parametrize("shape", [(1, 2, 8, 8, 4), (1, 8, 8, 4)])
def test_an_image_without_its_one_channel_is_refused(shape: tuple[int, ...]) -> None:
    # A TypeError where the array annotations are checked, before the function runs.
    with pytest.raises((ValueError, TypeError)):
        build(AUTO).encode_image(torch.randn(shape))


def test_queries_of_another_width_are_refused() -> None:
    network = build(AUTO)
    features = network.encode_image(torch.randn(1, 1, 8, 8, 4))
    with pytest.raises(ValueError, match=r"\(B, N, 10\)"):
        network.decode(features, torch.randn(1, 2, 11))


@pytest.mark.parametrize("config", [AUTO, SAT_LIKE])
def test_a_forward_pass_never_waits_for_a_gpu(config: NetworkConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """On tensors without values, reading one back on the host, which a GPU would have to be waited for, raises."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())  # there is none on meta
    with torch.device("meta"):
        network = PromptedUNet(config).eval()
        shape = [2 * d for d in config.divisor]
        outputs = network(torch.empty(1, 1, *shape), torch.empty(1, 3, config.text_dim), torch.empty(1).long())
    assert outputs[0].shape == (1, 3, *shape)
    with pytest.raises(RuntimeError, match="meta"):  # the check itself can fail
        float(outputs[0].sum())


@pytest.mark.parametrize("grid", [(2, 5, 3), (8, 5, 9), (1, 1, 1)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d])
def test_boxes_are_averaged_as_by_pooling(grid: tuple[int, int, int], layout: torch.memory_format) -> None:
    """In both layouts in memory, with the gradient."""
    maps = torch.randn(2, 6, 8, 10, 9).to(memory_format=layout)
    mine, theirs = maps.clone().requires_grad_(), maps.clone().requires_grad_()
    found, expected = _average_to(mine, grid), functional.adaptive_avg_pool3d(theirs, grid)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    weights = torch.randn(found.shape)
    for result in (found, expected):
        (result * weights).sum().backward()
    torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-5, atol=1e-6)
