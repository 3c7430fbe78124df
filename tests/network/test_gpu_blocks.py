"""Blocks as a GPU computes them give what torch's modules give, forwards and backwards."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from torch import nn

from satunet.network import NetworkConfig
from satunet.network.backbone import UNet, use_channels_last
from satunet.network.gpu import normalise

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
        elif ours.grad is None:  # a bias in front of a norm: its gradient is 0 but for rounding
            assert name.endswith("conv.bias")
            torch.testing.assert_close(theirs.grad, torch.zeros_like(theirs), rtol=0, atol=1e-4)
        else:
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-3, atol=1e-4)
