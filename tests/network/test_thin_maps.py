"""Gradients of convolutions over maps that are two voxels thin, in bfloat16 on a CPU."""

from __future__ import annotations

import pytest
import torch

from satunet.network.backbone import ConvBlock


@pytest.mark.parametrize("shape", [(2, 3, 3), (2, 4, 4), (2, 9, 9), (3, 3, 3)])
def test_the_gradient_of_thin_maps_is_that_of_double_precision(shape: tuple[int, int, int]) -> None:
    torch.manual_seed(0)
    block = ConvBlock(64, 64, (3, 3, 3), (1, 1, 1)).to(memory_format=torch.channels_last_3d)
    x, pull = torch.randn(2, 64, *shape), torch.randn(2, 64, *shape)
    exact = ConvBlock(64, 64, (3, 3, 3), (1, 1, 1)).double()
    exact.load_state_dict(block.state_dict())
    (exact(x.double()) * pull.double()).sum().backward()
    wanted = exact.conv.weight.grad
    assert wanted is not None
    for turn in range(20):
        junk = torch.full((200_000 * (1 + turn % 9),), float("nan"))  # what a kernel may find in memory
        del junk
        block.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            (block(x) * pull).sum().backward()
        got = block.conv.weight.grad
        assert got is not None
        assert torch.isfinite(got).all()
        assert (got.double() - wanted).norm() < 0.03 * wanted.norm()
