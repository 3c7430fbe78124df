"""A model with a known answer: geometry is proven independent of training."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from satunet.datasets.raw import Dataset
from satunet.labels import build_label_space
from satunet.network.config import NetworkConfig
from satunet.network.model import ImageFeatures, PromptedUNet
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
    spacing_mm: tuple[float, float, float] = (1.0, 1.0, 1.0),
    patch: tuple[int, int, int] = (16, 16, 16),
    orientation: str = "RAS",
) -> ModelFolder:
    labels = {"bright": (1,), "left bright": (2,), "right bright": (3,)}
    space = build_label_space(
        [Dataset(id=1, name="Dataset001_A", folder=Path(), channel_names=("0",), modalities=("mri",), labels=labels)]
    )
    vectors = np.zeros((len(space.classes), 6), np.float32)
    bank = TextBank(encoder_name="minilm", encoder_fingerprint="x", texts=space.class_names, vectors=vectors)
    plan = UnifiedPlan(
        spacing_mm=spacing_mm, patch_size=patch, network=NETWORK, datasets=("Dataset001_A",), orientation=orientation
    )
    return ModelFolder(
        path=Path("model"),
        plan=plan,
        space=space,
        bank=bank,
        network=Bright(),
        weights_hash="abc",
        fold="all",  # type: ignore[arg-type]
    )


def model_of(*datasets: tuple[dict[str, tuple[int, ...]], str]) -> ModelFolder:
    """A model of datasets, each with labels and a modality; every class is where the image exceeds its mean."""
    made = make_model()
    space = build_label_space(
        [
            Dataset(
                id=k, name=f"Dataset{k:03d}_A", folder=Path(), channel_names=("0",), modalities=(modality,),
                labels=labels,
            )
            for k, (labels, modality) in enumerate(datasets, start=1)
        ]
    )  # fmt: skip
    vectors = np.zeros((len(space.classes), 6), np.float32)
    return replace(made, space=space, bank=replace(made.bank, texts=space.class_names, vectors=vectors))


def write_model(folder: Path) -> Path:
    """A model folder as the trainer leaves it; its network was never trained, but answers with more than one value."""
    model = make_model()
    torch.manual_seed(0)
    network = PromptedUNet(NETWORK)
    with torch.no_grad():
        network.logit_bias.fill_(0.0)
        network.logit_scale.fill_(20.0)
    vectors = np.random.default_rng(0).normal(size=model.bank.vectors.shape).astype(np.float32)
    (folder / "fold_all").mkdir(parents=True)
    model.plan.save(folder / "plans.json")
    model.space.save(folder / "label_space.json")
    replace(model.bank, encoder_name=model.plan.text_encoder, vectors=vectors).save(folder / "text_bank.safetensors")
    torch.save({"network_weights": network.state_dict()}, folder / "fold_all" / "checkpoint_final.pth")
    return folder


@pytest.fixture
def model() -> ModelFolder:
    return make_model()
