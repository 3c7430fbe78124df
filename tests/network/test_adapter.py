"""Whitening of text embeddings, and what it is for: telling left from right early in training."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import normalize

from satunet.network import NetworkConfig
from satunet.network.adapter import QueryAdapter
from satunet.network.model import PromptedUNet
from satunet.trainers.unified.loss import prompted_loss

CONFIG = NetworkConfig.auto(
    features_per_stage=(8, 16, 32),
    strides=((1, 1, 1), (2, 2, 2), (2, 2, 2)),
    kernel_sizes=((3, 3, 3),) * 3,
    text_dim=64,
    query_dim=48,
)


def pairs(count: int, correlation: float = 0.95) -> torch.Tensor:
    """(2 · count, 64) unit vectors; neighbours are pairs with about the given cosine, like "left x", "right x"."""
    generator = torch.Generator().manual_seed(0)
    common = normalize(torch.randn(count, 64, generator=generator), dim=-1).repeat_interleave(2, 0)
    own = normalize(torch.randn(2 * count, 64, generator=generator), dim=-1)
    return normalize(common * correlation**0.5 + own * (1 - correlation) ** 0.5, dim=-1)


def whitened(adapter: QueryAdapter, text: torch.Tensor) -> torch.Tensor:
    seen: list[torch.Tensor] = []
    handle = adapter.projection.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    adapter(text[None], None)
    handle.remove()
    return seen[0][0]


def test_whitening_makes_pairs_nearly_orthogonal() -> None:
    text, adapter = pairs(10), QueryAdapter(CONFIG)
    assert (text[0::2] * text[1::2]).sum(-1).min() > 0.9
    adapter.fit_whitening(text)
    white = normalize(whitened(adapter, text), dim=-1)
    cosines = white @ white.T - torch.eye(20)
    assert cosines.abs().max() < 0.35
    assert cosines.square().mean().sqrt() < 0.12


def test_a_text_outside_the_classes_stays_near_its_class() -> None:
    text, adapter = pairs(10), QueryAdapter(CONFIG)
    adapter.fit_whitening(text)
    generator = torch.Generator().manual_seed(1)
    reworded = text + 0.02 * torch.randn(text.shape, generator=generator)
    cosines = normalize(whitened(adapter, reworded), dim=-1) @ normalize(whitened(adapter, text), dim=-1).T
    assert cosines.argmax(1).tolist() == list(range(20))


@pytest.mark.parametrize("count", [1, 2, 64, 200])
def test_any_number_of_classes(count: int) -> None:
    adapter = QueryAdapter(CONFIG)
    adapter.fit_whitening(torch.randn(count, 64))
    assert adapter(torch.randn(2, 3, 64), torch.tensor([0, 4])).isfinite().all()


def test_equal_texts_for_all_classes_are_no_error() -> None:
    adapter = QueryAdapter(CONFIG)
    adapter.fit_whitening(torch.ones(3, 64))
    assert adapter(torch.ones(1, 3, 64), None).isfinite().all()


def test_whitening_travels_with_the_weights() -> None:
    network = PromptedUNet(CONFIG)
    assert network.adapter is not None
    network.adapter.fit_whitening(pairs(10))
    other = PromptedUNet(CONFIG)
    other.load_state_dict(network.state_dict())
    assert other.adapter is not None
    assert torch.equal(other.adapter.whitening, network.adapter.whitening)
    assert "adapter.whitening" not in dict(network.named_parameters())


def ball_scene(generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Three pairs of balls at mirrored places in noise, shifted at random: (1, 1, X, Y, Z) image, (1, X, Y, Z) ids."""
    axes = [torch.arange(n, dtype=torch.float32) for n in (24, 24, 16)]
    grid = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)
    shift = torch.randint(-1, 2, (3,), generator=generator)
    labels = torch.zeros(grid.shape[:3], dtype=torch.long)
    for pair, (x, y, z) in enumerate([(5, 5, 5), (6, 18, 5), (5, 12, 11)]):
        for side in range(2):
            centre = torch.tensor([x if side == 0 else 23 - x, y, z]) + shift
            labels[((grid - centre) ** 2).sum(-1) < 9] = 1 + 2 * pair + side
    brightness = torch.tensor([0.0, 1.0, 1.0, 2.0, 2.0, 1.5, 1.5])[labels]
    return (brightness + 0.3 * torch.randn(labels.shape, generator=generator))[None, None], labels[None]


@pytest.mark.slow
def test_left_and_right_are_told_apart_within_a_hundred_steps() -> None:
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    text = pairs(3)
    network = PromptedUNet(CONFIG)
    assert network.adapter is not None
    network.adapter.fit_whitening(text)
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    membership = torch.eye(7, dtype=torch.bool)[None, 1:]
    valid, modality = torch.ones(1, 6, dtype=torch.bool), torch.tensor([1])
    for _ in range(100):
        image, labels = ball_scene(generator)
        features = network.encode_image(image)
        embeddings = network.decode(features, text[None], modality)
        loss = prompted_loss(features.maps, embeddings, labels, membership, valid).total
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 12.0)
        optimizer.step()
    network.eval()
    image, labels = ball_scene(generator)
    with torch.no_grad():
        masks = network(image, text[None], modality)[0][0] > 0
    targets = torch.stack([labels[0] == k for k in range(1, 7)])
    dice = 2 * (masks & targets).sum((1, 2, 3)) / (masks.sum((1, 2, 3)) + targets.sum((1, 2, 3)))
    swapped = (masks & targets[[1, 0, 3, 2, 5, 4]]).sum() / masks.sum()
    assert dice.min() > 0.7
    assert swapped < 0.05
