"""Windows are looked at in float16 where it holds a network's numbers, and in something wider where not."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import Tensor

from satunet.compute import devices
from satunet.compute.devices import precision_for, precision_for_prediction
from satunet.network.config import NetworkConfig
from satunet.network.model import PromptedUNet
from satunet.serving.memory import Recent, RememberingNetwork, feature_bytes
from satunet.windows.engine import WindowedScan

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def test_auto_predicts_in_float16_on_cuda_and_trains_in_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SATUNET_PRECISION", raising=False)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: True)
    assert precision_for(CUDA) is torch.bfloat16
    assert precision_for_prediction(CUDA) is torch.float16
    assert precision_for_prediction(CUDA, "bfloat16") is torch.bfloat16
    for native in (True, False):
        monkeypatch.setattr(devices, "cpu_has_bfloat16", lambda native=native: native)
        assert precision_for_prediction(CPU) is precision_for(CPU)
    monkeypatch.setenv("SATUNET_PRECISION", "float32")
    assert precision_for_prediction(CUDA) is torch.float32, "the variable says what auto means"


@pytest.mark.parametrize(("device", "native", "dtype"), [
    (CUDA, True, torch.bfloat16), (CUDA, False, torch.float32), (CPU, True, torch.bfloat16), (CPU, False, torch.float32),
    (torch.device("mps"), True, torch.float32),
])  # fmt: skip
def test_what_is_wider(device: torch.device, native: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: native)
    monkeypatch.setattr(devices, "cpu_has_bfloat16", lambda: native)
    assert devices.wider_than_float16(device) is dtype


def make(gain: float, place: str = "backbone.encoder.stages.0.0.convs.0.conv") -> PromptedUNet:
    """A small network, the weights of one convolution of which are ``gain`` times as large as usual."""
    torch.manual_seed(0)
    config = NetworkConfig.auto(
        features_per_stage=(4, 8),
        strides=((1, 1, 1), (2, 2, 2)),
        kernel_sizes=((3, 3, 3),) * 2,
        text_dim=6,
        query_dim=24,
    )
    network = PromptedUNet(config).eval()
    with torch.no_grad():
        network.logit_bias.fill_(0.0)
        network.logit_scale.fill_(20.0)
        network.get_submodule(place).weight.mul_(gain)  # type: ignore[operator]
    return network


def masks(network: object, volume: Tensor, precision: str) -> list[Tensor]:
    torch.manual_seed(2)
    scan = WindowedScan(
        network=network,  # type: ignore[arg-type]
        volume=volume,
        queries=torch.randn(3, 6),
        modality=0,
        patch=(8, 8, 8),
        device=CPU,
        precision=precision,  # type: ignore[arg-type]
    )
    found = [torch.zeros(volume.shape, dtype=torch.bool) for _ in range(3)]
    for k, probability in scan.probabilities():
        if probability.values is not None:
            found[k][probability.box] = probability.values > 0.5
    return found


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> pytest.LogCaptureFixture:
    monkeypatch.setattr(logging.getLogger("satunet"), "propagate", True)
    monkeypatch.setattr(devices, "cpu_has_bfloat16", lambda: False)
    return caplog


@pytest.mark.parametrize("remembering", [False, True])
@pytest.mark.parametrize(
    "place", ["backbone.encoder.stages.0.0.convs.0.conv", "backbone.decoder.stages.0.convs.1.conv", "mask_embed_proj.2"]
)
def test_a_network_that_overflows_float16_is_found_out_once(
    place: str, remembering: bool, said: pytest.LogCaptureFixture
) -> None:
    torch.manual_seed(1)
    volume, network = torch.randn(12, 8, 8), make(1e6, place)
    expected = masks(network, volume, "float32")
    assert sum(int(m.sum()) for m in expected) > 0
    with torch.autocast("cpu", torch.float16), torch.inference_mode():
        features = network.encode_image(volume[None, None, :8])
        numbers = features.maps[0].sum() + network.decode(features, torch.randn(1, 3, 6))[0].sum()
    assert not numbers.isfinite()
    used = RememberingNetwork(network, Recent(1 << 30, feature_bytes), 0) if remembering else network
    for _ in range(2):
        found = masks(used, volume, "float16")
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert said.text.count("too large for float16; continuing in float32") == 1


def test_one_that_does_not_overflow_is_seen_in_float16(said: pytest.LogCaptureFixture) -> None:
    torch.manual_seed(1)
    volume, network = torch.randn(12, 8, 8), make(1)
    seen: list[bool] = []
    network.backbone.register_forward_hook(lambda *_: seen.append(torch.is_autocast_enabled("cpu")))
    found, expected = (masks(network, volume, precision) for precision in ("float16", "float32"))
    assert seen == [True, True, False, False], "two windows, each once"
    different = sum(int((a ^ b).sum()) for a, b in zip(found, expected, strict=True))
    assert different < 0.02 * sum(int(m.sum()) for m in expected)
    assert "float16" not in said.text


def test_values_that_are_no_numbers_are_not_float16s_fault(said: pytest.LogCaptureFixture) -> None:
    network, volume = make(1), torch.full((8, 8, 8), torch.nan)
    masks(network, volume, "float16")
    assert "float16" not in said.text
    seen: list[bool] = []
    network.backbone.register_forward_hook(lambda *_: seen.append(torch.is_autocast_enabled("cpu")))
    masks(network, torch.randn(8, 8, 8), "float16")
    assert seen == [True]


def test_what_is_wider_does_not_ask_what_auto_means(
    said: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where ``auto`` is float16, a second look in ``auto`` would overflow as well."""
    torch.manual_seed(1)
    volume, network = torch.randn(8, 8, 8), make(1e6)
    expected = masks(network, volume, "float32")
    monkeypatch.setenv("SATUNET_PRECISION", "float16")
    found = masks(network, volume, "auto")
    assert sum(int(m.sum()) for m in expected) > 0
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert "continuing in float32 (--precision float32 starts with it)" in said.text
