"""Engines give what the network's modules give one by one."""

from __future__ import annotations

import dataclasses
import logging

import pytest
import torch
from torch import nn

from satunet.errors import UserError
from satunet.network import NetworkConfig, engines
from satunet.network.backbone import UNet
from satunet.network.cpu.fused import FusedPool, FusedUNet, Setup
from satunet.network.cpu.norms import scale_
from satunet.network.engines import Engine, accelerate, choose_engine, compiled_norm, compiler, for_training
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


@pytest.mark.parametrize("config", [PLAIN, ANISOTROPIC, RESIDUAL, REPEATED], ids=["plain", "thin", "residual", "3ch"])
@pytest.mark.parametrize("shape", [(4, 4, 2), (32, 16, 10), (8, 4, 2)])
@pytest.mark.parametrize("pieces", [1 << 12, 4 << 20], ids=["many pieces", "one piece"])
@torch.inference_mode()
def test_a_fused_network_is_the_network(
    config: NetworkConfig, shape: tuple[int, int, int], pieces: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("fused", "convolutions"):
        monkeypatch.setattr(f"satunet.network.cpu.{module}.CHUNK_BYTES", pieces)
        monkeypatch.setattr(f"satunet.network.cpu.{module}.WINOGRAD_BYTES", pieces)
    network = random_network(config)
    image, texts = torch.randn(2, 1, *shape), torch.randn(2, 3, 10)
    fused = accelerate(network, CPU, engine="fused", precision="float32")
    assert isinstance(fused.backbone, FusedUNet)
    assert isinstance(network.backbone, UNet)
    for ours, expected in zip(fused(image, texts), network(image, texts), strict=True):
        assert (ours - expected).abs().max() < 2e-3 * expected.std()


@pytest.mark.parametrize("config", [PLAIN, RESIDUAL, REPEATED], ids=["plain", "residual", "3ch"])
@torch.inference_mode()
def test_bfloat16_stays_near(config: NetworkConfig) -> None:
    network = random_network(config)
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


@pytest.mark.parametrize("stride", [(2, 2, 2), (1, 2, 2), (3, 1, 2)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.inference_mode()
def test_pooling_is_torchs(stride: tuple[int, int, int], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x = torch.randn(1, 8, 13, 9, 6).contiguous(memory_format=torch.channels_last_3d)
    found = FusedPool(nn.AvgPool3d(stride, stride), Setup(dtype))(x.to(dtype))
    assert found.dtype is dtype
    assert found.is_contiguous(memory_format=torch.channels_last_3d)
    torch.testing.assert_close(found.float(), nn.functional.avg_pool3d(x, stride, stride),
                               rtol=0, atol=1e-6 if dtype is torch.float32 else 2e-2)  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@torch.inference_mode()
def test_torchs_default_type_is_not_ours(dtype: torch.dtype) -> None:
    network, image = random_network(PLAIN), torch.randn(1, 1, 32, 16, 8)
    fused = accelerate(network, CPU, engine="fused", precision="float32")
    expected = fused.encode_image(image).maps[0]
    again = accelerate(network, CPU, engine="fused", precision="float32")
    torch.set_default_dtype(dtype)
    try:
        found = again.backbone(image)[1][0]
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(found, expected)


@torch.inference_mode()
def test_planes_too_large_for_winograd_are_convolved_directly(monkeypatch: pytest.MonkeyPatch) -> None:
    network, image = random_network(RESIDUAL), torch.randn(1, 1, 32, 16, 10)
    monkeypatch.setattr("satunet.network.cpu.convolutions.MOST_WINOGRAD_BYTES", 1)
    monkeypatch.setattr("satunet.network.cpu.fused.winograd", None)
    found = accelerate(network, CPU, engine="fused", precision="float32").encode_image(image).maps[0]
    expected = network.encode_image(image).maps[0]
    assert (found - expected).abs().max() < 2e-3 * expected.std()


def test_auto_is_fused_where_it_runs_and_eager_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("satunet.network.engines.trouble", lambda _: None)
    assert choose_engine(CPU, "auto") == "fused"
    assert choose_engine(torch.device("cuda"), "auto") == "fused"
    assert choose_engine(torch.device("mps"), "auto") == "eager"
    network = random_network(PLAIN)
    assert accelerate(network, CPU, engine="eager") is network
    with pytest.raises(UserError, match="allowed are auto, eager, fused, compile"):
        accelerate(network, CPU, engine="fast")  # type: ignore[arg-type]
    monkeypatch.delenv("SATUNET_PRECISION", raising=False)
    assert accelerate(network, CPU, precision="float16") is network
    monkeypatch.setenv("SATUNET_PRECISION", "float16")
    assert accelerate(network, CPU) is network
    assert isinstance(accelerate(network, CPU, precision="float32").backbone, FusedUNet)
    chosen: Engine
    for chosen in ("fused", "compile"):
        with pytest.raises(UserError, match=rf"engine '{chosen}' .* for float16, take 'eager'"):
            accelerate(network, CPU, engine=chosen)
    assert choose_engine(torch.device("cuda"), "fused") == "fused"
    with pytest.raises(UserError, match="runs on a CPU or CUDA"):
        choose_engine(torch.device("mps"), "fused")


@pytest.mark.parametrize("engine", ["auto", "fused"])
def test_a_gpu_without_triton_is_eager_and_says_so_once(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("satunet.network.engines.trouble", lambda _: "Triton is not installed")
    said: list[str] = []
    monkeypatch.setattr(engines.logger, "warning", lambda text, *values: said.append(text % values))
    engines._say_eager.cache_clear()
    for _ in range(2):
        assert choose_engine(torch.device("cuda"), engine) == "eager"
    assert len(said) == 1
    assert "does not run on cuda (Triton is not installed)" in said[0]
    assert choose_engine(CPU, engine) == "fused"


def test_training_takes_the_blocks_where_they_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PromptedUNet, "to", lambda self, *_, **__: self)  # there may be no GPU
    monkeypatch.setattr("satunet.network.engines.use_channels_last", lambda network: used.append(network))
    for reason, expected in ((None, True), ("no compiler", False)):
        used: list[nn.Module] = []
        monkeypatch.setattr("satunet.network.engines.trouble", lambda _, reason=reason: reason)
        network = random_network(PLAIN)
        assert for_training(network, torch.device("cuda")) is network
        assert (used == [network]) is expected
        assert not used or for_training(network, CPU) is network


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
    norm, plain = compiled_norm(), torch.randn(50, 8)
    rows = plain.clone()
    norm.scale(rows, torch.ones(8), torch.zeros(8), 0.01)
    scale_(plain, torch.ones(8), torch.zeros(8), 0.01)
    assert torch.equal(rows, plain)
    assert "no such header" in caplog.text


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("slope", [0.01, None])
def test_compiled_norms_are_the_norms(dtype: torch.dtype, slope: float | None) -> None:
    if compiler() is None:
        pytest.skip("no C++ compiler here")
    torch.manual_seed(0)
    rows = (torch.randn(600, 16) + 5).to(dtype)
    other, scale, offset = rows.clone(), torch.randn(16), torch.randn(16)
    compiled_norm().scale(rows, scale, offset, slope)
    scale_(other, scale, offset, slope)
    torch.testing.assert_close(rows, other)
