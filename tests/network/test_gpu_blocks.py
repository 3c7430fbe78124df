"""Blocks as a GPU computes them give what torch's modules give, forwards and backwards."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from torch import Tensor, nn

from satunet.network import NetworkConfig
from satunet.network.backbone import UNet, use_channels_last
from satunet.network.gpu import average_to, joined, normalise, one_channel, trouble
from satunet.network.model import PromptedUNet

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))]
CONFIG = NetworkConfig.auto(
    features_per_stage=(6, 8, 12),
    strides=((1, 1, 1), (2, 2, 2), (2, 2, 2)),
    kernel_sizes=((3, 3, 3),) * 3,
    text_dim=8,
)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("slope", [0.01, None])
def test_norm_and_leaky_relu_are_torchs(slope: float | None, device: str) -> None:
    torch.manual_seed(0)
    x = (3 + 2 * torch.randn(2, 6, 5, 4, 3, device=device)).requires_grad_()
    norm = nn.InstanceNorm3d(6, affine=True).to(device)
    with torch.no_grad():
        norm.weight.add_(0.3 * torch.randn_like(norm.weight))
        norm.bias.add_(torch.randn_like(norm.bias))
    expected = norm(x) if slope is None else nn.functional.leaky_relu(norm(x), slope)
    found = normalise(x, norm, slope)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    gradient = torch.randn_like(expected)
    inputs = (x, norm.weight, norm.bias)
    for ours, theirs in zip(
        torch.autograd.grad(found, inputs, gradient), torch.autograd.grad(expected, inputs, gradient), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(normalise(x.detach().clone(), norm, slope), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("backbone", ["plain", "residual"])
@pytest.mark.parametrize("shape", [(8, 8, 4), (4, 4, 4)])
def test_a_backbone_with_channels_last_computes_the_same(
    shape: tuple[int, int, int], backbone: str, device: str
) -> None:
    torch.manual_seed(0)
    net = UNet(dataclasses.replace(CONFIG, backbone=backbone)).to(device)
    other = copy.deepcopy(net)
    use_channels_last(other)
    # Of 4 x 4 x 4 the lowest map is one voxel, which is not normalised.
    image = torch.randn(2, 1, *shape, device=device)
    for ours, theirs in zip(*(skips + maps for skips, maps in (other(image), net(image))), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)
    for network in (net, other):
        sum(m.square().mean() for m in network(image)[1]).backward()  # type: ignore[union-attr]
    for (name, theirs), ours in zip(net.named_parameters(), other.parameters(), strict=True):
        if theirs.grad is None:
            assert ours.grad is None  # the norm of a single voxel
        else:  # of a bias in front of a norm, zero on one side and rounding on the other
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-3, atol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("slope", [0.01, None])
def test_gradients_are_those_of_finite_differences(slope: float | None) -> None:
    torch.manual_seed(0)
    x = (1 + torch.randn(2, 3, 2, 3, 2, dtype=torch.float64)).requires_grad_()
    norm, bias = nn.InstanceNorm3d(3, affine=True, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
    norm.weight.data.uniform_(0.5, 2)
    norm.bias.data.normal_()

    def run(x: Tensor, weight: Tensor, shift: Tensor, bias: Tensor) -> Tensor:
        changed = copy.copy(norm)
        changed._parameters = {"weight": weight, "bias": shift}  # type: ignore[dict-item]
        return normalise(x + bias[:, None, None, None].detach(), changed, slope, bias)

    assert torch.autograd.gradcheck(run, (x, norm.weight, norm.bias, bias.requires_grad_()))


def _stats(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    return x.mean(0), 1 / (x.var(0, correction=0) + eps).sqrt()


def _reduce(dy: Tensor, x: Tensor, mean: Tensor, invstd: Tensor, *_: object) -> tuple[Tensor, ...]:
    """As torch's CUDA kernel defines it: sum dy, sum dy (x - mean), and the latter / deviation, the former again."""
    product = (dy * (x - mean)).sum(0)
    return dy.sum(0), product, product * invstd, dy.sum(0)


def _element(dy: Tensor, x: Tensor, mean: Tensor, invstd: Tensor, weight: Tensor, sum_dy: Tensor, sum_dy_xmu: Tensor,
             count: Tensor) -> Tensor:  # fmt: skip
    return (dy - sum_dy / count - (x - mean) * invstd**2 * sum_dy_xmu / count) * weight * invstd


@pytest.fixture
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The branches for CUDA, with what they call written out from the source of torch's kernels."""
    monkeypatch.setattr("satunet.network.gpu._on_gpu", lambda _: True)
    monkeypatch.setattr("satunet.network.triton_kernels.scale_and_leaky_relu", None)
    monkeypatch.setattr(torch, "batch_norm_stats", _stats)
    monkeypatch.setattr(torch, "batch_norm_elemt", lambda x, w, b, mean, invstd, _: (x - mean) * invstd * w + b)
    monkeypatch.setattr(torch, "batch_norm_backward_reduce", _reduce)
    monkeypatch.setattr(torch, "batch_norm_backward_elemt", _element)


@pytest.mark.parametrize("backbone", ["plain", "residual"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.usefixtures("as_on_a_gpu")
def test_every_gradient_of_a_network_is_the_eager_ones_in_float64(backbone: str, channels: int) -> None:
    """The whole network: skips, tokens, masks; the first convolution of repeated channels beside zeros."""
    torch.manual_seed(0)
    net = PromptedUNet(dataclasses.replace(CONFIG, backbone=backbone, in_channels=channels, query_dim=16)).double()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    other = copy.deepcopy(net)
    use_channels_last(other)
    image, texts = (torch.randn(2, 1, 16, 8, 12, dtype=torch.float64), torch.randn(2, 3, 8, dtype=torch.float64))
    with torch.no_grad():  # norms in place, skips joined in place
        for ours, theirs in zip(other.encode_image(image).maps, net.encode_image(image).maps, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)
    for network in (net, other):
        network.adapter = None
        features = network.encode_image(image)
        queries = texts.new_ones(2, 3, 16) * texts[..., :1]
        embeddings = network.transformer_decoder(queries, features.memory, features.memory.new_zeros(1, 1))
        total = sum((m.square() + m).mean() for m in features.maps) + embeddings.square().sum()
        total.backward()
    checked = 0
    for (name, theirs), ours in zip(net.named_parameters(), other.parameters(), strict=True):
        if theirs.grad is None:
            assert ours.grad is None
            continue
        checked += 1
        distance = (ours.grad - theirs.grad).norm()
        scale = 1.0 if name.endswith("conv.bias") else theirs.grad.norm()
        assert distance <= 1e-9 * scale, f"{name}: {distance / scale:.1e}"
    assert checked > 30


def test_in_bfloat16_gradients_are_as_far_from_float64_as_the_modules_are() -> None:
    """Blocks may round elsewhere, not more: what is left between them and the modules is bfloat16's own noise."""
    torch.manual_seed(0)
    net = UNet(CONFIG)
    exact = copy.deepcopy(net).double()
    other = copy.deepcopy(net)
    use_channels_last(other)
    image = torch.randn(1, 1, 32, 32, 16)

    def gradients(network: UNet, x: Tensor, half: bool) -> dict[str, Tensor]:
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            maps = network(x)[1]
        sum((m.float() if half else m).abs().mean() for m in maps).backward()  # type: ignore[union-attr]
        return {n: p.grad.double() for n, p in network.named_parameters() if p.grad is not None}

    truth = gradients(exact, image.double(), False)
    errors = {}
    for side, network in (("modules", net), ("blocks", other)):
        found = gradients(network, image, True)
        errors[side] = {n: float((found[n] - g).norm() / g.norm()) for n, g in truth.items() if "conv.bias" not in n}
    worst = {side: max(of.values()) for side, of in errors.items()}
    assert worst["modules"] > 0.01, "there is noise"
    assert worst["blocks"] < 1.3 * worst["modules"], worst
    mean = {side: sum(of.values()) / len(of) for side, of in errors.items()}
    assert mean["blocks"] < 1.1 * mean["modules"], mean


@pytest.mark.parametrize("padded", [1, 8, 16])
@pytest.mark.parametrize("repeats", [1, 3])
def test_repeated_channels_are_one_channel(padded: int, repeats: int) -> None:
    torch.manual_seed(0)
    image = torch.randn(2, 1, 6, 5, 4, dtype=torch.float64).expand(-1, repeats, -1, -1, -1)
    weight = torch.randn(7, repeats, 3, 3, 1, dtype=torch.float64, requires_grad=True)
    x, folded = one_channel(image, weight, padded)
    assert x.shape[1] == folded.shape[1] == padded
    assert x.is_contiguous(memory_format=torch.channels_last_3d)
    found, expected = (nn.functional.conv3d(*pair, padding=(1, 1, 0)) for pair in ((x, folded), (image, weight)))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    gradient = torch.randn_like(expected)
    (ours,), (theirs,) = (torch.autograd.grad(y, weight, gradient) for y in (found, expected))
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("stride", [(2, 2, 2), (1, 2, 2), (3, 1, 2)])
@pytest.mark.parametrize("bias", [True, False])
@torch.no_grad()
def test_a_joined_skip_is_a_concatenation(stride: tuple[int, int, int], bias: bool) -> None:
    torch.manual_seed(0)
    up = nn.ConvTranspose3d(5, 4, stride, stride, bias=bias, dtype=torch.float64)
    x = torch.randn(2, 5, 3, 4, 2, dtype=torch.float64).contiguous(memory_format=torch.channels_last_3d)
    skip = torch.randn(2, 6, *(n * s for n, s in zip(x.shape[2:], stride, strict=True)), dtype=torch.float64)
    found = joined(up, x, skip)
    assert found.is_contiguous(memory_format=torch.channels_last_3d)
    torch.testing.assert_close(found, torch.cat((up(x), skip), 1), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("grid", [(12, 8, 6), (4, 8, 2), (3, 1, 3), (1, 2, 1), (2, 4, 6)])
def test_boxes_are_averaged_as_by_pooling(grid: tuple[int, int, int]) -> None:
    torch.manual_seed(0)
    maps = torch.randn(2, 5, 12, 8, 6, dtype=torch.float64).contiguous(memory_format=torch.channels_last_3d)
    found, expected = (f(maps.requires_grad_(), grid) for f in (average_to, nn.functional.adaptive_avg_pool3d))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    gradient = torch.randn_like(expected)
    (ours,), (theirs,) = (torch.autograd.grad(y, maps, gradient) for y in (found, expected))
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_means_of_boxes_stay_unbiased_in_half_precision(dtype: torch.dtype) -> None:
    """1/3 is rounded by two thousandths in bfloat16, which must not become part of every mean."""
    torch.manual_seed(0)
    maps = (30000 * torch.rand(1, 16, 24, 6, 3)).to(dtype).contiguous(memory_format=torch.channels_last_3d)
    found, exact = average_to(maps, (8, 6, 3)).double(), average_to(maps.double(), (8, 6, 3))
    assert found.isfinite().all()
    assert abs(float((found / exact).mean()) - 1) < 5e-4


def test_what_keeps_the_blocks_from_running_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, state = torch.device("cpu"), torch.get_rng_state()
    assert trouble.__wrapped__(cpu) is None
    assert torch.equal(torch.get_rng_state(), state)
    with torch.inference_mode():
        assert trouble.__wrapped__(cpu) is None
    monkeypatch.setattr("satunet.network.triton_kernels.scale_and_leaky_relu", None)
    assert trouble.__wrapped__(torch.device("cuda")) == "Triton is not installed"
    monkeypatch.setattr("satunet.network.gpu._scale", lambda rows, scale, offset, slope, out: out.copy_(rows))
    assert "are wrong" in str(trouble.__wrapped__(cpu))

    def broken(*_: object) -> None:
        raise RuntimeError("Failed to find C compiler.\nand more")

    monkeypatch.setattr("satunet.network.gpu._scale", broken)
    assert trouble.__wrapped__(cpu) == "Failed to find C compiler."
