"""Training blocks on a CPU against PyTorch's own operators in float64."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from satunet.network.backbone import ConvBlock, UNet, use_cpu_training
from satunet.network.config import NetworkConfig
from satunet.network.cpu import training
from satunet.network.cpu.convolutions import winograd_pays
from satunet.network.engines import for_training
from satunet.network.model import PromptedUNet

CPU = torch.device("cpu")


@pytest.fixture(params=[1, 2], ids=["one thread", "two threads"])
def threads(request: pytest.FixtureRequest):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


def distance(found: Tensor, expected: Tensor) -> float:
    """Largest difference, as a share of the largest value."""
    found, expected = found.detach().double(), expected.detach().double()
    return float((found - expected).abs().max() / expected.abs().max().clamp_min(1e-30))


def check_convolution(
    samples: int, channels: tuple[int, int], shape: tuple[int, ...], kernel: tuple[int, int], *, last: bool
) -> None:
    torch.manual_seed(sum(shape))
    x = torch.randn(samples, channels[0], *shape, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(channels[1], channels[0], 3, *kernel, dtype=torch.float64, requires_grad=True)
    padding = [n // 2 for n in weight.shape[2:]]
    expected = nn.functional.conv3d(x, weight, padding=padding)
    gradient = torch.randn_like(expected)
    wanted = torch.autograd.grad(expected, (x, weight), gradient)

    memory = torch.channels_last_3d if last else torch.contiguous_format
    ours = [v.detach().float().contiguous(memory_format=memory).requires_grad_() for v in (x, weight)]
    found = training.convolve(*ours, padding)
    assert found.is_contiguous(memory_format=torch.channels_last_3d)
    assert distance(found, expected) < 2e-5
    for gradient_found, gradient_wanted in zip(torch.autograd.grad(found, ours, gradient.float()), wanted, strict=True):
        assert distance(gradient_found, gradient_wanted) < 2e-5


@settings(max_examples=20)
@given(
    samples=st.integers(1, 2),
    channels=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    shape=st.tuples(st.integers(1, 14), st.integers(1, 11), st.integers(1, 11)),
    kernel=st.tuples(st.sampled_from([1, 3, 5]), st.sampled_from([1, 3, 5])),
    last=st.booleans(),
)
def test_a_convolution_and_its_gradients_are_torchs(
    samples: int, channels: tuple[int, int], shape: tuple[int, int, int], kernel: tuple[int, int], last: bool
) -> None:
    check_convolution(samples, channels, shape, kernel, last=last)


@pytest.mark.usefixtures("threads")
def test_threads_share_the_planes_of_a_convolution(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "WINOGRAD_BYTES", 1 << 10)  # many pieces
    check_convolution(2, (16, 20), (18, 9, 7), (3, 3), last=True)


def test_only_the_gradients_that_are_asked_for_are_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight = torch.randn(1, 16, 8, 8, 8), torch.randn(16, 16, 3, 3, 3, requires_grad=True)
    y = training.convolve(x, weight, (1, 1, 1))
    monkeypatch.setattr(training, "_convolved", None)
    y.sum().backward()
    assert weight.grad is not None


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("slope", [None, 0.01])
@pytest.mark.parametrize("shape", [(5, 7, 9), (1, 1, 2), (40, 33, 17)])
def test_the_norm_and_its_gradients_are_torchs(slope: float | None, shape: tuple[int, int, int]) -> None:
    torch.manual_seed(0)
    norm = nn.InstanceNorm3d(20, affine=True, dtype=torch.float64)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    x = (3 * torch.randn(2, 20, *shape, dtype=torch.float64) + 5).requires_grad_()
    expected = norm(x) if slope is None else nn.functional.leaky_relu(norm(x), slope)
    gradient = torch.randn_like(expected)
    wanted = torch.autograd.grad(expected, (x, norm.weight, norm.bias), gradient)

    other, ours = copy.deepcopy(norm).float(), x.detach().float().requires_grad_()
    bias = torch.randn(20, requires_grad=True)
    found = training.normalise(ours, other, slope, bias)
    assert distance(found, expected) < 1e-5
    *gradients, of_bias = torch.autograd.grad(found, (ours, other.weight, other.bias, bias), gradient.float())
    for gradient_found, gradient_wanted in zip(gradients, wanted, strict=True):
        # Of two voxels, the norm passes nearly nothing on: what is left of terms of about 1 is rounding.
        assert (gradient_found - gradient_wanted).abs().max() < 1e-5 * max(1, float(gradient_wanted.abs().max()))
    assert not of_bias.any()  # the norm cancels the convolution's bias; none at all would end distributed training


def network(config: NetworkConfig) -> PromptedUNet:
    torch.manual_seed(1)
    made = PromptedUNet(config)
    for parameter in made.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    return made


def step(of: PromptedUNet, image: Tensor, texts: Tensor) -> tuple[list[Tensor], dict[str, Tensor]]:
    out = of(image, texts)
    sum(logits.square().mean() for logits in out).backward()  # type: ignore[union-attr]
    return out, {name: p.grad for name, p in of.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("backbone", ["plain", "residual"])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_step_is_the_step_of_the_modules(backbone: str, channels: int) -> None:
    config = NetworkConfig.auto(
        features_per_stage=(16, 24, 32), strides=((1, 1, 1), (2, 2, 2), (2, 2, 2)),
        kernel_sizes=((3, 3, 3),) * 3, n_conv_per_stage=(2, 2, 2), n_conv_per_stage_decoder=(1, 2), text_dim=10,
    )  # fmt: skip
    config = dataclasses.replace(config, in_channels=channels, backbone=backbone)
    usual = network(config).double()
    ours = for_training(copy.deepcopy(usual).float(), CPU)
    blocks = [block for block in ours.modules() if isinstance(block, ConvBlock)]
    assert all(block.trains_on_cpu for block in blocks)
    assert any(winograd_pays(block.conv, (16, 16, 16)) for block in blocks)
    image, texts = torch.randn(2, 1, 16, 20, 16), torch.randn(2, 3, 10)
    expected, wanted = step(usual, image.double(), texts.double())
    found, gradients = step(ours, image, texts)
    for logits, reference in zip(found, expected, strict=True):
        assert distance(logits, reference) < 1e-4
    assert gradients.keys() == wanted.keys()
    for name, gradient in gradients.items():
        if not name.endswith("conv.bias"):  # rounding, where the norm does not cancel it exactly
            assert distance(gradient, wanted[name]) < 2e-3, name


def test_a_map_of_one_voxel_keeps_its_bias() -> None:
    block = ConvBlock(16, 16, (3, 3, 3), (2, 2, 2))
    nn.init.normal_(block.conv.bias)
    x = torch.randn(1, 16, 2, 2, 2)
    expected = block(x)
    use_cpu_training(block)
    assert torch.allclose(block(x), expected, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_types_are_left_to_torch(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "block", None)
    block = ConvBlock(16, 16, (3, 3, 3), (1, 1, 1))
    use_cpu_training(block)
    x = torch.randn(1, 16, 8, 16, 32)
    if dtype is torch.bfloat16:
        with torch.autocast("cpu", dtype):
            assert block(x).shape == x.shape
    else:
        assert block.double()(x.double()).dtype is dtype


def test_it_is_used_by_the_networks_that_are_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[UNet] = []
    monkeypatch.setattr("satunet.network.engines.use_cpu_training", used.append)
    made = UNet(NetworkConfig.auto(features_per_stage=(8, 16), strides=((1, 1, 1), (2, 2, 2)),
                kernel_sizes=((3, 3, 3),) * 2, n_conv_per_stage=(1, 1), n_conv_per_stage_decoder=(1,), text_dim=10))  # fmt: skip
    assert for_training(made, CPU) is made
    assert used == [made]
