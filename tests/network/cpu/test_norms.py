"""Instance norm in pieces is instance norm."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from satunet.network.cpu.norms import Moments, scale_


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


@pytest.mark.parametrize("count", [1, 7, 16, 17, 5000])
@pytest.mark.parametrize("mean", [0.0, 300.0])
def test_moments_of_bfloat16_are_not_rounded_to_it(count: int, mean: float) -> None:
    torch.manual_seed(0)
    rows = (torch.randn(count, 12) * 4 + mean).bfloat16()
    found, exact = Moments.of(rows), rows.double()
    torch.testing.assert_close(found.mean, exact.mean(0), rtol=1e-6, atol=1e-5)
    deviation = (exact - exact.mean(0)).square().sum(0)
    torch.testing.assert_close(found.deviation, deviation, rtol=1e-4, atol=1e-3)


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
    moments = Moments.together([Moments.of(part) for part in rows.split(9001)])
    scale, offset = moments.scale_and_offset(norm.weight.detach().float(), norm.bias.detach().float(), 1e-5)
    scale_(rows, scale, offset, slope)
    torch.testing.assert_close(rows.double(), expected, rtol=1e-3, atol=1e-4 + 1e-6 * mean)
