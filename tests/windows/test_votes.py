"""Votes of looks, counted by hand."""

from __future__ import annotations

import math

import pytest
import torch

from satunet.windows.votes import Votes


def test_all_is_kept_on_the_device_of_the_network() -> None:
    votes = Votes.none(2, torch.device("meta"))
    assert {votes.yes.device.type, votes.all.device.type, votes.largest.device.type} == {"meta"}
    votes.add(
        0, torch.tensor([0]), torch.ones(2, 1, device="meta"), torch.ones(1, device="meta"),
        asked=torch.ones(2, dtype=torch.bool, device="meta"), width=1,
    )  # fmt: skip
    votes.finish(0)
    assert votes.all.device.type == "meta"


def test_votes_of_two_looks_at_a_layer() -> None:
    votes = Votes.none(3, torch.device("cpu"))
    assert votes.agreements() == [0, 0, 0]
    assert votes.peaks() == [0, 0, 0]
    asked = torch.tensor([True, True, False])
    first = torch.tensor([[1.0, -1.0], [-2.0, -3.0], [5.0, 5.0]])
    second = torch.tensor([[-1.0, -1.0], [0.5, -4.0], [5.0, 5.0]])
    votes.add(0, torch.tensor([0, 2]), first, torch.tensor([1.0, 1.0]), asked=asked, width=4)
    votes.add(0, torch.tensor([0, 1]), second, torch.tensor([3.0, 1.0]), asked=asked, width=4)
    votes.finish(1)
    assert votes.agreements() == [0, 0, 0], "the layer is not done"
    votes.finish(0)
    # Query 0: block 0 alone has a yes, of weight 1 of 4. Query 1: block 0, 3 of 4. Query 2 was not asked.
    assert votes.agreements() == pytest.approx([0.25, 0.75, 0.0])
    assert votes.peaks() == pytest.approx([1 / (1 + math.exp(-1)), 1 / (1 + math.exp(-0.5)), 0.0])
    assert votes.yes.dtype == votes.all.dtype == torch.float32
