"""A scan of 120 ellipsoids and a network with SAT-Nano's cost that finds them: see bench_prediction.py."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from satunet.network.config import NetworkConfig
from satunet.network.model import ImageFeatures, PromptedUNet

STRUCTURES, UNIONS, PROMPTS = 120, 30, 497
WIDTH = 64
SHARP, SHIFT = 40.0, 26.0


def phantom(shape: Sequence[int]) -> np.ndarray:
    """Number of the structure at each voxel, and behind the point how deep inside: 0.5 on the border … 0.99."""
    rng = np.random.default_rng(0)
    image = np.zeros(shape, np.float32)
    cells = (6, 5, 4)
    for k in range(STRUCTURES):
        place = np.unravel_index(k, cells)
        low = [int(n * p / c) for n, p, c in zip(shape, place, cells, strict=True)]
        high = [int(n * (p + 1) / c) for n, p, c in zip(shape, place, cells, strict=True)]
        axes = [np.linspace(-1, 1, b - a) for a, b in zip(low, high, strict=True)]
        radii = rng.uniform(0.5, 1.0, 3)
        squares = [(a / r) ** 2 for a, r in zip(np.meshgrid(*axes, indexing="ij"), radii, strict=True)]
        depth = np.clip(0.65 + 1.5 * (1 - np.sqrt(sum(squares))), 0, 0.99)
        x, y, z = (slice(a, b) for a, b in zip(low, high, strict=True))
        image[x, y, z] = np.where(depth > 0.3, k + 1 + depth, 0)
    return image


class PhantomNano(nn.Module):
    """SAT-Nano's cost, the phantom's masks."""

    def __init__(self, config: NetworkConfig | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.nano: Any = PromptedUNet(config or NetworkConfig.nano())
        codes = nn.functional.normalize(torch.randn(PROMPTS, WIDTH), dim=1)
        for k in range(UNIONS):
            codes[STRUCTURES + k] = codes[4 * k] + codes[4 * k + 1]
        self.register_buffer("codes", codes)
        self.register_buffer("features", torch.cat((torch.zeros(1, WIDTH), codes[:STRUCTURES])).T.contiguous())

    def encode_image(self, image: Tensor) -> ImageFeatures:
        real = self.nano.encode_image(image)
        memory, grid, dtype = real.memory, real.grid, real.maps[0].dtype
        del real
        structure = image[:, 0].floor()
        depth = (image[:, 0] - structure).to(dtype)
        flat = self.features.to(dtype).index_select(1, structure.long().flatten())  # (C, B·X·Y·Z)
        flat *= depth.flatten()
        maps = flat.reshape(WIDTH, *image[:, 0].shape).transpose(0, 1)
        return ImageFeatures(memory=memory, grid=grid, maps=(maps,))

    def decode(self, features: ImageFeatures, queries: Tensor, modality: Tensor | None = None) -> tuple[Tensor, ...]:
        self.nano.decode(features, queries, modality)
        codes = self.codes[queries[..., 0].long()]  # (B, N, C)
        return (torch.cat((SHARP * codes, torch.full_like(codes[..., :1], -SHIFT)), dim=-1),)
