"""Convolutions some planes at a time are torch's."""

from __future__ import annotations

import logging
import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from satunet.network.cpu.convolutions import Kernel, direct, transformed, winograd


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
    ours = torch.full((*expected.shape[2:], 5), torch.nan)
    for first in range(0, shape[0], 8):
        planes = (first, min(shape[0], first + 8))
        winograd(x[0].permute(1, 2, 3, 0).contiguous(), transformed(weight), padding, planes, ours)
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
    weight = torch.randn(5, 4, kernel, 3, 1)
    strides, padding = (stride, 1, 2), (kernel // 2, 1, 0)
    expected = torch.conv3d(x, weight, None, strides, padding)
    ours = torch.full((*expected.shape[2:], 5), torch.nan)
    for first in range(0, len(ours), step):
        direct(x, Kernel(weight), strides, padding, (first, min(len(ours), first + step)), ours)
    torch.testing.assert_close(ours.permute(3, 0, 1, 2)[None], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("inputs", [1, 3, 16])
@pytest.mark.parametrize("axes", [2, 3])
@torch.inference_mode()
def test_a_kernel_is_a_convolution_with_bias_for_any_size_after_the_first(inputs: int, axes: int) -> None:
    torch.manual_seed(0)
    last = torch.channels_last if axes == 2 else torch.channels_last_3d
    convolution = torch.conv2d if axes == 2 else torch.conv3d
    weight, bias = torch.randn(8, inputs, *[3] * axes), torch.randn(8)
    kernel = Kernel(weight, bias)
    for extent in (12, 5, 31):
        x = torch.randn(2, inputs, *[extent] * axes).contiguous(memory_format=last)
        found = kernel(x, [1] * axes, [1] * axes)
        torch.testing.assert_close(found, convolution(x, weight, bias, 1, 1), rtol=1e-4, atol=1e-4)
        assert found.is_contiguous(memory_format=last)


@torch.inference_mode()
def test_a_kernel_works_where_onednn_does_not(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuses(*_: object) -> torch.Tensor:
        raise RuntimeError("bf16 path needs the cpu support avx512bw")

    monkeypatch.setattr(logging.getLogger("satunet"), "propagate", True)
    x, weight = torch.randn(1, 4, 6, 6), torch.randn(8, 4, 3, 3)
    for name in ("_reorder_convolution_weight", "_convolution_pointwise"):
        with monkeypatch.context() as patch, caplog.at_level(logging.DEBUG, "satunet"):
            patch.setattr(torch.ops.mkldnn, name, refuses)
            found = Kernel(weight)(x, (1, 1), (1, 1))
        torch.testing.assert_close(found, torch.conv2d(x, weight, None, 1, 1), rtol=1e-4, atol=1e-4)
        assert "avx512bw" in caplog.text
        caplog.clear()


def test_threads_may_share_a_new_kernel() -> None:
    torch.manual_seed(0)
    x = torch.randn(1, 16, 20, 20).contiguous(memory_format=torch.channels_last)
    weight = torch.randn(16, 16, 3, 3)
    kernel, found = Kernel(weight), []
    start = threading.Barrier(4)

    def work() -> None:
        start.wait(timeout=20)
        with torch.inference_mode():
            found.append(kernel(x, (1, 1), (1, 1)))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    for one in found:
        torch.testing.assert_close(one, torch.conv2d(x, weight, None, 1, 1), rtol=1e-4, atol=1e-4)
