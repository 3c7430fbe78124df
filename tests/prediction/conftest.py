"""A model with a known answer: geometry is proven independent of training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from satunet.datasets import Dataset
from satunet.labels import build_label_space
from satunet.network.config import NetworkConfig
from satunet.network.model import ImageFeatures
from satunet.plan import UnifiedPlan
from satunet.prediction import ModelFolder
from satunet.text import TextBank


class Bright(nn.Module):
    """The mask of every prompt is where the normalised image exceeds the prompt's first value."""

    def encode_image(self, image: Tensor) -> ImageFeatures:
        return ImageFeatures(memory=image.new_zeros(1, 1, 1), grid=(1, 1, 1), maps=(image,))

    def decode(self, features: ImageFeatures, queries: Tensor, modality: Tensor | None = None) -> tuple[Tensor, ...]:
        return (torch.stack([torch.full_like(queries[..., 0], 60.0), -60.0 * queries[..., 0]], dim=-1),)


NETWORK = NetworkConfig.auto(
    features_per_stage=(4, 8), strides=((1, 1, 1), (2, 2, 2)), kernel_sizes=((3, 3, 3),) * 2, text_dim=6, query_dim=6
)


def make_model(
    spacing_mm: tuple[float, float, float] = (1.0, 1.0, 1.0), patch: tuple[int, int, int] = (16, 16, 16)
) -> ModelFolder:
    labels = {"bright": (1,), "left bright": (2,), "right bright": (3,)}
    space = build_label_space(
        [Dataset(id=1, name="Dataset001_A", folder=Path(), channel_names=("0",), modalities=("mri",), labels=labels)]
    )
    vectors = np.zeros((len(space.classes), 6), np.float32)
    bank = TextBank(encoder_name="minilm", encoder_fingerprint="x", texts=space.class_names, vectors=vectors)
    plan = UnifiedPlan(spacing_mm=spacing_mm, patch_size=patch, network=NETWORK, datasets=("Dataset001_A",))
    return ModelFolder(
        path=Path("model"),
        plan=plan,
        space=space,
        bank=bank,
        network=Bright(),
        weights_hash="abc",
        fold="all",  # type: ignore[arg-type]
    )


@pytest.fixture
def model() -> ModelFolder:
    return make_model()
