"""The chunked loss against the formula as it stands, written out independently."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from satunet.trainers.unified import loss as module
from satunet.trainers.unified.loss import IGNORED, prompted_loss


class Inputs(NamedTuple):
    maps: list[Tensor]
    embeddings: list[Tensor]
    labels: Tensor
    membership: Tensor
    valid: Tensor


def make(
    seed: int = 0,
    *,
    batch: int = 2,
    queries: int = 7,
    ids: int = 6,
    bias: bool = True,
    dtype: torch.dtype = torch.float64,
    valid: float = 0.7,
) -> Inputs:
    g = torch.Generator().manual_seed(seed)
    shapes, channels = [(8, 6, 4), (4, 3, 2)], [5, 3]
    maps = [torch.randn(batch, c, *s, generator=g, dtype=dtype) for c, s in zip(channels, shapes, strict=True)]
    embeddings = [torch.randn(batch, queries, c + bias, generator=g, dtype=dtype) for c in channels]
    return Inputs(
        [m.requires_grad_() for m in maps],
        [e.requires_grad_() for e in embeddings],
        torch.randint(0, ids, (batch, 8, 6, 4), generator=g),
        torch.rand(batch, queries, ids, generator=g) > 0.6,
        torch.rand(batch, queries, generator=g) < valid,
    )


def naive(inputs: Inputs, weights: tuple[float, ...] = (1.0, 0.5)) -> Tensor:
    """One query of one sample at a time, every target a mask of its own, gradients by autograd."""
    total = torch.zeros((), dtype=torch.float64)
    for scale, (feature_map, embedding) in enumerate(zip(inputs.maps, inputs.embeddings, strict=True)):
        terms = []
        for b, n in inputs.valid.nonzero().tolist():
            channels = feature_map.shape[1]
            logits = (feature_map[b].double() * embedding[b, n, :channels].double().view(-1, 1, 1, 1)).sum(0)
            if embedding.shape[-1] > channels:
                logits = logits + embedding[b, n, -1].double()
            labels = inputs.labels[b] if scale == 0 else inputs.labels[b, 1::2, 1::2, 1::2]
            wanted = inputs.membership[b, n].nonzero().flatten().numpy()
            target = torch.from_numpy(np.isin(labels.numpy(), wanted)).double()
            p = 1 / (1 + torch.exp(-logits))
            known = labels != IGNORED
            p, target = p[known], target[known]
            dice = 1 - (2 * (p * target).sum() + 1e-7) / (p.pow(2).sum() + target.pow(2).sum() + 1e-7)
            entropy = -(target * torch.log(p) + (1 - target) * torch.log(1 - p)).mean()
            terms.append(dice + entropy)
        if terms:
            total = total + torch.stack(terms).mean() * weights[scale] / sum(weights)
    return total


def gradients(value: Tensor, inputs: Inputs) -> list[Tensor]:
    return list(torch.autograd.grad(value, [*inputs.maps, *inputs.embeddings]))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("chunk", [1, 3, 100])
def test_value_and_gradients_equal_the_plain_formula(bias: bool, chunk: int) -> None:
    inputs = make(bias=bias)
    value, *_ = prompted_loss(*inputs, chunk=chunk)
    expected = naive(inputs)
    torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-12)
    for ours, theirs in zip(gradients(value, inputs), gradients(expected, inputs), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-14)


@settings(deadline=None, max_examples=15)
@given(
    seed=st.integers(0, 1000),
    batch=st.integers(1, 3),
    queries=st.integers(1, 6),
    ids=st.integers(1, 9),
    valid=st.sampled_from([0.0, 0.3, 1.0]),
    scales=st.tuples(st.floats(0.1, 4), st.floats(0, 4)),
)
def test_single_precision_is_close(
    seed: int, batch: int, queries: int, ids: int, valid: float, scales: tuple[float, float]
) -> None:
    inputs = make(seed, batch=batch, queries=queries, ids=ids, dtype=torch.float32, valid=valid)
    value, *_ = prompted_loss(*inputs, scales, chunk=2)
    expected = naive(inputs, scales)
    assert value.dtype == torch.float32
    assert abs(value.item() - expected.item()) < 1e-5
    if inputs.valid.any():
        for ours, theirs in zip(gradients(value, inputs), gradients(expected, inputs), strict=True):
            assert (ours - theirs).abs().max() <= 1e-4 * theirs.abs().max() + 1e-9


def test_ignored_voxels_count_in_no_sum() -> None:
    inputs = make()
    inputs.labels[torch.rand(inputs.labels.shape, generator=torch.Generator().manual_seed(1)) < 0.4] = IGNORED
    value, of_query, _ = prompted_loss(*inputs, chunk=2)
    expected = naive(inputs)
    torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-12)
    for ours, theirs in zip(gradients(value, inputs), gradients(expected, inputs), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-14)
    assert (
        gradients(prompted_loss(*inputs).total, inputs)[0].permute(0, 2, 3, 4, 1)[inputs.labels == IGNORED] == 0
    ).all()
    inputs.labels[0] = IGNORED
    value, of_query, _ = prompted_loss(*inputs)
    assert torch.isfinite(value) and (of_query[0] == 0).all() and (of_query[1] != 0).any()
    assert all(torch.isfinite(g).all() for g in gradients(value, inputs))
    told = prompted_loss(*inputs, ignored=True).total
    torch.testing.assert_close(told, value)


def test_gradcheck() -> None:
    inputs = make(batch=1, queries=3)

    def function(*tensors: Tensor) -> Tensor:
        value: Tensor = prompted_loss(tensors[:2], tensors[2:], *inputs[2:], chunk=2)[0] * 3.0
        return value

    assert torch.autograd.gradcheck(function, (*inputs.maps, *inputs.embeddings))


@pytest.mark.parametrize("size", [1, 50, 7])
def test_blocks_of_voxels_change_nothing(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = make()
    whole, _, dice = prompted_loss(*inputs)
    expected = gradients(whole, inputs)
    monkeypatch.setattr(module, "CPU_BLOCK", size)
    blocked, _, blocked_dice = prompted_loss(*inputs)
    torch.testing.assert_close(blocked, whole)
    torch.testing.assert_close(blocked_dice, dice)
    torch.testing.assert_close(gradients(blocked, inputs), expected)


def test_a_hand_computed_case() -> None:
    # Two voxels, logits (0, 0): p = 1/2. Target (1, 0): Dice = 1 - 2·½ / (½ + 1) = 1/3, entropy = ln 2.
    maps = [torch.zeros(1, 1, 2, 1, 1)]
    labels = torch.tensor([1, 0]).view(1, 2, 1, 1)
    membership = torch.tensor([[[False, True]]])
    value, _, dice = prompted_loss(maps, [torch.ones(1, 1, 1)], labels, membership, torch.ones(1, 1, dtype=torch.bool))
    assert dice.item() == pytest.approx(1 / 3, abs=1e-6)
    assert value.item() == pytest.approx(1 / 3 + np.log(2), abs=1e-6)


def test_dice_of_each_query_is_of_the_full_resolution_and_detached() -> None:
    inputs = make()
    *_, dice = prompted_loss(*inputs)
    assert not dice.requires_grad
    assert (dice[~inputs.valid] == 0).all()
    first = Inputs(inputs.maps[:1], inputs.embeddings[:1], *inputs[2:])
    torch.testing.assert_close(prompted_loss(*first).dice, dice)
    b, n = inputs.valid.nonzero()[0].tolist()
    logits = torch.einsum("cxyz,c->xyz", inputs.maps[0][b], inputs.embeddings[0][b, n, :-1])
    p = (logits + inputs.embeddings[0][b, n, -1]).sigmoid()
    target = inputs.membership[b, n][inputs.labels[b]].double()
    assert dice[b, n].item() == pytest.approx(1 - (2 * (p * target).sum() / (p.square().sum() + target.sum())).item())


def test_no_valid_query_gives_zero_and_zero_gradients() -> None:
    inputs = make()
    value, _, dice = prompted_loss(*inputs._replace(valid=torch.zeros_like(inputs.valid)))
    assert value.item() == 0
    assert (dice == 0).all()
    assert all((g == 0).all() for g in gradients(value, inputs))


def test_filling_queries_change_nothing() -> None:
    inputs = make(valid=1.0)
    more = Inputs(
        inputs.maps,
        [torch.cat((e, torch.full_like(e[:, :2], 50.0)), 1) for e in inputs.embeddings],
        inputs.labels,
        torch.cat((inputs.membership, inputs.membership[:, :2]), 1),
        torch.cat((inputs.valid, torch.zeros(2, 2, dtype=torch.bool)), 1),
    )
    torch.testing.assert_close(prompted_loss(*more)[0], prompted_loss(*inputs)[0])


@pytest.mark.parametrize("magnitude", [30.0, 1e4])
def test_confident_logits_stay_finite(magnitude: float) -> None:
    inputs = make(dtype=torch.float32)
    inputs = inputs._replace(maps=[(m.detach() * magnitude).requires_grad_() for m in inputs.maps])
    value, *_ = prompted_loss(*inputs)
    assert value.isfinite()
    assert all(g.isfinite().all() for g in gradients(value, inputs))


def test_absent_class_that_is_predicted_absent_costs_nearly_nothing() -> None:
    maps = [torch.full((1, 1, 4, 4, 4), -40.0)]
    labels, membership = torch.zeros(1, 4, 4, 4, dtype=torch.uint8), torch.tensor([[[False, True]]])
    value, *_ = prompted_loss(maps, [torch.ones(1, 1, 1)], labels, membership, torch.ones(1, 1, dtype=torch.bool))
    assert value.item() < 1e-6


def test_half_precision_features_are_summed_in_single() -> None:
    exact = make(dtype=torch.float32)
    half = exact._replace(
        maps=[m.detach().bfloat16().requires_grad_() for m in exact.maps],
        embeddings=[e.detach().bfloat16().requires_grad_() for e in exact.embeddings],
    )
    rounded = exact._replace(
        maps=[m.detach().float().requires_grad_() for m in half.maps],
        embeddings=[e.detach().float().requires_grad_() for e in half.embeddings],
    )
    with torch.autocast("cpu", torch.bfloat16):
        value, *_ = prompted_loss(*half)
    expected, *_ = prompted_loss(*rounded)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, expected)
    for ours, theirs in zip(gradients(value, half), gradients(expected, rounded), strict=True):
        assert ours.dtype == torch.bfloat16
        torch.testing.assert_close(ours, theirs.bfloat16())


@pytest.mark.parametrize("learns", ["maps", "embeddings"])
def test_one_side_alone_may_learn(learns: str) -> None:
    """As where the encoder is frozen, or the texts are."""
    inputs = make()
    fixed = {k: [t.detach() for t in getattr(inputs, k)] for k in ("maps", "embeddings") if k != learns}
    some = inputs._replace(**fixed)
    ours = torch.autograd.grad(prompted_loss(*some).total, getattr(some, learns))
    theirs = torch.autograd.grad(naive(some), getattr(some, learns))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other)


def test_memory_does_not_grow_with_the_queries() -> None:
    few, many = _peak_bytes(queries=8), _peak_bytes(queries=256)
    assert few > 8 * 16**3 * 4, "one chunk of probabilities"
    assert many < 1.3 * few  # 256 queries' embeddings and their gradients are in it


def test_the_loss_of_each_query_adds_up() -> None:
    inputs = make()
    total, of_query, _ = prompted_loss(*inputs)
    assert not of_query.requires_grad
    assert (of_query[~inputs.valid] == 0).all()
    torch.testing.assert_close(of_query.sum() / inputs.valid.sum(), total)
    b, n = inputs.valid.nonzero()[0].tolist()
    alone = torch.zeros_like(inputs.valid)
    alone[b, n] = True
    torch.testing.assert_close(of_query[b, n], prompted_loss(*inputs._replace(valid=alone)).total)


def _peak_bytes(queries: int) -> int:
    """Bytes of all tensors that the loss has alive at once, in chunks of 8 queries, 16³ voxels."""
    feature_map, embedding = torch.randn(1, 4, 16, 16, 16, requires_grad=True), torch.randn(1, queries, 5)
    labels, membership = torch.randint(0, 3, (1, 16, 16, 16)), torch.rand(1, queries, 3) > 0.5
    valid = torch.ones(1, queries, dtype=torch.bool)
    with torch.profiler.profile(profile_memory=True) as profile:
        value, *_ = prompted_loss([feature_map], [embedding], labels, membership, valid, chunk=8)
        value.backward()
    results: Any = profile.profiler
    alive = peak = 0
    for event in results.kineto_results.events():
        if event.name() == "[memory]":
            alive += event.nbytes()
            peak = max(peak, alive)
    return peak


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"maps": [], "embeddings": []}, "at least one scale"),
        ({"embeddings": [torch.zeros(2, 7, 5)]}, "at least one scale"),
        ({"embeddings": [torch.zeros(2, 7, 8), torch.zeros(2, 7, 3)]}, "5 entries"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        prompted_loss(*make()._replace(**change))
    with pytest.raises(ValueError, match="as many weights"):
        prompted_loss(*make(), scale_weights=(1.0,))


def test_a_label_outside_the_membership_is_an_error() -> None:
    inputs = make()
    for shift in (1, -2):
        with pytest.raises(ValueError, match=r"label ids must be in \[0, 6\)"):
            prompted_loss(*inputs._replace(labels=inputs.labels + shift))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_same_on_a_gpu() -> None:
    inputs = make(dtype=torch.float32)
    value, _, dice = prompted_loss(*inputs)
    there = Inputs(
        [m.detach().cuda().requires_grad_() for m in inputs.maps],
        [e.detach().cuda().requires_grad_() for e in inputs.embeddings],
        *(t.cuda() for t in inputs[2:]),
    )
    value_there, _, dice_there = prompted_loss(*there)
    torch.testing.assert_close(value_there.cpu(), value, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(dice_there.cpu(), dice, rtol=1e-5, atol=1e-5)
    for ours, theirs in zip(gradients(value_there, there), gradients(value, inputs), strict=True):
        torch.testing.assert_close(ours.cpu(), theirs, rtol=1e-4, atol=1e-6)
