"""The presets are SAT's published networks: names, shapes, counts, numbers."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from satunet.network import NetworkConfig
from satunet.network.backbone import ConvBlock
from satunet.network.model import PromptedUNet


def published_parameters(file: Path) -> dict[str, tuple[int, ...]]:
    """Name → shape, without the second names of the convolution blocks."""
    rows = (line.split("\t") for line in file.read_text().splitlines())
    shapes = {name: tuple(int(n) for n in shape.strip("()").split(",") if n.strip()) for name, shape in rows}
    return {name: shape for name, shape in shapes.items() if ".all_modules." not in name}


@pytest.mark.parametrize("preset", ["nano", "pro"])
def test_parameter_names_and_shapes(preset: str, shared_dir: Path) -> None:
    with torch.device("meta"):
        network = PromptedUNet(getattr(NetworkConfig, preset)())
    ours = {name: tuple(p.shape) for name, p in network.named_parameters()}
    assert ours == published_parameters(shared_dir / "reference" / f"sat_{preset}_state_dict.tsv")
    assert set(network.state_dict()) == set(ours)


@pytest.mark.parametrize(("preset", "millions"), [("nano", 110.28), ("pro", 477.09)])
def test_parameter_counts(preset: str, millions: float) -> None:
    with torch.device("meta"):
        network = PromptedUNet(getattr(NetworkConfig, preset)())
    assert round(sum(p.numel() for p in network.parameters()) / 1e6, 2) == millions


@pytest.mark.slow
@torch.inference_mode()
def test_forward_equals_the_published_network(shared_dir: Path) -> None:
    network = PromptedUNet(NetworkConfig.nano()).eval()
    for name, parameter in network.named_parameters():
        parameter.copy_(_value_by_name(name, parameter))
    reference = np.load(shared_dir / "reference" / "sat_nano_forward.npz")
    outputs = network(torch.from_numpy(reference["image"]), torch.from_numpy(reference["queries"]))
    assert len(outputs) == 4
    for scale, output in enumerate(outputs):
        expected = torch.from_numpy(reference[f"logits_{scale}"])
        assert output.shape == expected.shape
        assert ((output - expected).abs().max() / expected.std()).item() < 1e-4


def _value_by_name(name: str, parameter: torch.Tensor) -> torch.Tensor:
    noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(zlib.crc32(name.encode())))
    if noise.ndim > 1:
        return noise / float(noise[0].numel() ** 0.5)
    return 1 + 0.1 * noise if name.endswith("weight") else 0.1 * noise


def _with_aliases(block: nn.Module, prefix: str = "") -> dict[str, torch.Tensor]:
    state = {prefix + name: value.clone() for name, value in block.state_dict().items()}
    for index, layer in enumerate(("conv", "norm")):
        for kind in ("weight", "bias"):
            state[f"{prefix}all_modules.{index}.{kind}"] = state[f"{prefix}{layer}.{kind}"].clone()
    return state


class TestSecondNamesOfABlock:
    """Published checkpoints hold each block's layers twice."""

    source = ConvBlock(2, 3, (3, 3, 3), (1, 1, 1))

    def check(self, state: dict[str, torch.Tensor]) -> None:
        before = dict(state)
        target = ConvBlock(2, 3, (3, 3, 3), (1, 1, 1))
        target.load_state_dict(state)
        assert state.keys() == before.keys()
        for name, value in target.state_dict().items():
            assert torch.equal(value, self.source.state_dict()[name])

    def test_both_are_read(self) -> None:
        self.check(_with_aliases(self.source))

    def test_either_is_enough(self) -> None:
        state = _with_aliases(self.source)
        self.check({name: value for name, value in state.items() if "all_modules" in name})
        self.check({name: value for name, value in state.items() if "all_modules" not in name})

    def test_copies_that_differ_are_refused(self) -> None:
        state = _with_aliases(self.source)
        state["all_modules.1.bias"] += 1
        with pytest.raises(RuntimeError, match=r"norm\.bias and all_modules\.1\.bias"):
            ConvBlock(2, 3, (3, 3, 3), (1, 1, 1)).load_state_dict(state)
