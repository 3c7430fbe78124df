"""Engines give what the network's modules give one by one."""

from __future__ import annotations

import dataclasses
import logging

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from satunet.errors import UserError
from satunet.network import NetworkConfig
from satunet.network.backbone import UNet
from satunet.network.engines import accelerate, choose_engine, compiled_normalize
from satunet.network.fused import _WEIGHT, FusedUNet, Moments, direct, normalize_, winograd
from satunet.network.model import PromptedUNet

CPU = torch.device("cpu")
PLAIN = NetworkConfig.auto(
    features_per_stage=(16, 20, 24),
    strides=((1, 1, 1), (2, 2, 1), (2, 2, 2)),
    kernel_sizes=((3, 3, 1), (3, 3, 3), (3, 3, 3)),
    text_dim=10,
    query_dim=12,
)
ANISOTROPIC = dataclasses.replace(PLAIN, kernel_sizes=((1, 3, 3), (3, 1, 3), (3, 3, 3)))
RESIDUAL = NetworkConfig.auto(
    features_per_stage=(16, 16, 24),
    strides=((1, 1, 1), (2, 2, 1), (2, 2, 2)),
    kernel_sizes=((3, 3, 3),) * 3,
    text_dim=10,
    query_dim=12,
    backbone="residual",
    n_conv_per_stage=(1, 2, 2),
)
REPEATED = dataclasses.replace(PLAIN, in_channels=3)


def random_network(config: NetworkConfig) -> PromptedUNet:
    """No weight is at its start, so that nothing that is left out goes unnoticed."""
    torch.manual_seed(0)
    network = PromptedUNet(config).eval()
    for parameter in network.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return network


@settings(deadline=None, max_examples=25)
@given(
    shape=st.tuples(st.integers(1, 19), st.integers(1, 9), st.integers(1, 9)),
    kernel=st.tuples(st.sampled_from([1, 3]), st.sampled_from([1, 3])),
)
@torch.no_grad()
def test_winograd_is_a_convolution(shape: tuple[int, int, int], kernel: tuple[int, int]) -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(1, 4, *shape), torch.randn(5, 4, 3, *kernel)
    padding = (kernel[0] // 2, kernel[1] // 2)
    expected = torch.conv3d(x.double(), weight.double(), None, 1, (1, *padding))
    parts = torch.einsum("ka,ocayz->kocyz", _WEIGHT, weight.double())
    ours = torch.full((*expected.shape[2:], 5), torch.nan)
    for first in range(0, shape[0], 8):
        planes = (first, min(shape[0], first + 8))
        winograd(x[0].permute(1, 2, 3, 0).contiguous(), [p.float() for p in parts], padding, planes, ours)
    torch.testing.assert_close(ours.permute(3, 0, 1, 2).double()[None], expected, rtol=1e-4, atol=2e-4)


@settings(deadline=None, max_examples=40)
@given(
    extent=st.integers(2, 12),
    kernel=st.sampled_from([1, 3]),
    stride=st.sampled_from([1, 2]),
    step=st.integers(1, 5),
)
@torch.no_grad()
def test_a_convolution_in_pieces_is_the_convolution(extent: int, kernel: int, stride: int, step: int) -> None:
    torch.manual_seed(0)
    last = torch.channels_last_3d
    x = torch.randn(1, 4, extent, 5, 6).contiguous(memory_format=last)
    weight = torch.randn(5, 4, kernel, 3, 1).contiguous(memory_format=last)
    strides, padding = (stride, 1, 2), (kernel // 2, 1, 0)
    expected = torch.conv3d(x, weight, None, strides, padding)
    ours = torch.full((*expected.shape[2:], 5), torch.nan)
    for first in range(0, len(ours), step):
        direct(x, weight, strides, padding, (first, min(len(ours), first + step)), ours)
    torch.testing.assert_close(ours.permute(3, 0, 1, 2)[None], expected, rtol=1e-5, atol=1e-5)


@settings(deadline=None, max_examples=25)
@given(sizes=st.lists(st.integers(1, 400), min_size=1, max_size=5), mean=st.sampled_from([0.0, 50.0]))
def test_moments_of_pieces_together_are_those_of_all(sizes: list[int], mean: float) -> None:
    torch.manual_seed(0)
    rows = torch.randn(sum(sizes), 3) + mean * torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))[:, None]
    found = Moments.together([Moments.of(part) for part in rows.split(sizes)])
    assert found.count == len(rows)
    torch.testing.assert_close(found.mean, rows.double().mean(0), rtol=1e-5, atol=1e-5)
    deviation = (rows.double() - rows.double().mean(0)).square().sum(0)
    torch.testing.assert_close(found.deviation, deviation, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("voxels", [2, 5, 16, 5000, 40003])
@pytest.mark.parametrize("slope", [0.01, None])
@pytest.mark.parametrize("mean", [0.0, 300.0])
def test_instance_norm_and_leaky_relu(voxels: int, slope: float | None, mean: float) -> None:
    torch.manual_seed(0)
    rows = torch.randn(voxels, 12) + mean
    norm = nn.InstanceNorm1d(12, eps=1e-5, affine=True).double()
    norm.weight.data, norm.bias.data = torch.randn(12).double(), torch.randn(12).double()
    expected = norm(rows.T[None].double())[0].T
    expected = nn.functional.leaky_relu(expected, slope) if slope is not None else expected
    normalize_(rows, norm.weight.detach().float(), norm.bias.detach().float(), 1e-5, slope)
    torch.testing.assert_close(rows.double(), expected, rtol=1e-3, atol=1e-4 + 1e-6 * mean * voxels**0)


@pytest.mark.parametrize("config", [PLAIN, ANISOTROPIC, RESIDUAL, REPEATED], ids=["plain", "thin", "residual", "3ch"])
@pytest.mark.parametrize("shape", [(4, 4, 2), (32, 16, 10), (8, 4, 2)])
@pytest.mark.parametrize("pieces", [1 << 12, 4 << 20], ids=["many pieces", "one piece"])
@torch.inference_mode()
def test_a_fused_network_is_the_network(
    config: NetworkConfig, shape: tuple[int, int, int], pieces: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("satunet.network.fused._CHUNK_BYTES", pieces)
    monkeypatch.setattr("satunet.network.fused._WINOGRAD_BYTES", pieces)
    network = random_network(config)
    image, texts = torch.randn(2, 1, *shape), torch.randn(2, 3, 10)
    fused = accelerate(network, CPU, engine="fused", precision="float32")
    assert isinstance(fused.backbone, FusedUNet)
    assert isinstance(network.backbone, UNet)
    for ours, expected in zip(fused(image, texts), network(image, texts), strict=True):
        assert (ours - expected).abs().max() < 2e-3 * expected.std()


@torch.inference_mode()
def test_bfloat16_stays_near() -> None:
    network = random_network(PLAIN)
    image, texts = torch.randn(1, 1, 32, 16, 8), torch.randn(1, 3, 10)
    fused = accelerate(network, CPU, engine="fused", precision="bfloat16")
    ours = fused.encode_image(image)
    exact = network.encode_image(image)
    assert ours.maps[0].dtype == torch.bfloat16
    with torch.autocast("cpu", torch.bfloat16):
        usual = network.encode_image(image)
    error = (ours.maps[0].float() - exact.maps[0]).abs().mean()
    assert error < 1.5 * (usual.maps[0].float() - exact.maps[0]).abs().mean()
    with torch.autocast("cpu", torch.bfloat16):
        assert fused(image, texts)[0].isfinite().all()


def test_auto_is_fused_on_a_cpu_and_eager_elsewhere() -> None:
    assert choose_engine(CPU, "auto") == "fused"
    assert choose_engine(torch.device("cuda"), "auto") == "eager"
    assert choose_engine(torch.device("mps"), "auto") == "eager"
    network = random_network(PLAIN)
    assert accelerate(network, CPU, engine="eager") is network
    with pytest.raises(UserError, match="allowed are auto, eager, fused, compile"):
        accelerate(network, CPU, engine="fast")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="take 'eager'"):
        accelerate(network, CPU, precision="float16")
    with pytest.raises(UserError, match="runs on a CPU"):
        choose_engine(torch.device("cuda"), "fused")


def test_without_a_compiler_compile_is_fused_and_says_so(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("satunet.network.engines.compiler", lambda: None)
    monkeypatch.setattr(logging.getLogger("satunet"), "propagate", True)
    assert choose_engine(CPU, "compile") == "fused"
    assert "needs a C++ compiler" in caplog.text


def test_a_compiler_that_fails_ends_nothing(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging.getLogger("satunet"), "propagate", True)

    def broken(*_: object, **__: object) -> object:
        def run(*_: object) -> None:
            raise RuntimeError("CppCompileError: no such header")

        return run

    monkeypatch.setattr(torch, "compile", broken)
    normalize = compiled_normalize()
    rows, other = torch.randn(50, 8), torch.zeros(0)
    other = rows.clone()
    normalize(rows, torch.ones(8), torch.zeros(8), 1e-5, 0.01)
    normalize_(other, torch.ones(8), torch.zeros(8), 1e-5, 0.01)
    assert torch.equal(rows, other)
    assert "no such header" in caplog.text


@pytest.mark.slow
def test_compiled_norms_are_the_norms() -> None:
    from satunet.network.engines import compiler

    if compiler() is None:
        pytest.skip("no C++ compiler here")
    torch.manual_seed(0)
    normalize, rows = compiled_normalize(), torch.randn(600, 16) + 5
    other = rows.clone()
    gain, offset = torch.randn(16), torch.randn(16)
    normalize(rows, gain, offset, 1e-5, 0.01)
    normalize_(other, gain, offset, 1e-5, 0.01)
    torch.testing.assert_close(rows, other, rtol=1e-4, atol=1e-4)
