"""From text embeddings to queries."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from satunet.network.config import NetworkConfig


class ModalityAdapter(nn.Module):
    """Query = text embedding + embedding of the scan's modality, as in SAT.

    SAT keeps the modality embedding in its text encoder and trains it with the segmentation network, while the rest of
    the encoder is frozen. Here it is part of the network, so that text embeddings do not depend on the modality.
    """

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.modality_embedding = nn.Embedding(config.num_modalities, config.query_dim)
        nn.init.normal_(self.modality_embedding.weight, std=0.02)

    def fit_whitening(self, embeddings: Tensor) -> None:
        """Do nothing: texts are not whitened."""

    def forward(self, text: Tensor, modality: Tensor | None) -> Tensor:
        """(B, N, D) texts, (B,) modality indices → (B, N, D) queries."""
        return text if modality is None else text + self.modality_embedding(modality)[:, None]


class QueryAdapter(nn.Module):
    """Whitening → projection → modality embedding.

    A sentence encoder maps "left hippocampus" and "right hippocampus" to almost the same point (cosine 0.95), and a
    network takes thousands of steps to separate them. Whitening with the statistics of the class embeddings makes them
    nearly orthogonal before the first step. Because it is a fixed linear map, texts other than class names are still
    understood.
    """

    mean: Tensor
    whitening: Tensor

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(config.text_dim))
        self.register_buffer("whitening", torch.eye(config.text_dim))
        self.norm = nn.LayerNorm(config.text_dim, elementwise_affine=False)
        self.projection = nn.Sequential(
            nn.Linear(config.text_dim, config.query_dim), nn.GELU(), nn.Linear(config.query_dim, config.query_dim)
        )
        self.modality_embedding = nn.Embedding(config.num_modalities, config.query_dim)
        nn.init.normal_(self.modality_embedding.weight, std=0.02)

    @torch.no_grad()
    def fit_whitening(self, embeddings: Tensor) -> None:
        """Set the whitening from the embeddings of the class names, (M, text_dim), M ≥ 1.

        Directions are scaled by sqrt(λ)/(λ + ε) rather than 1/sqrt(λ + ε): a direction in which the classes do not
        differ (λ ≈ 0) carries only noise from the wording, and is removed instead of amplified.
        """
        x = embeddings.detach().to(torch.float64)
        mean = x.mean(0)
        covariance = (x - mean).T @ (x - mean) / max(1, len(x))
        values, vectors = torch.linalg.eigh(covariance)
        values = values.clamp_min(0)
        used = values[values > values.max() * 1e-9] if values.max() > 0 else values
        shrinkage = 0.1 * (used.median() if used.numel() else torch.tensor(1.0))
        gain = values.sqrt() / (values + shrinkage.clamp_min(1e-12))
        matrix = (vectors * gain) @ vectors.T if len(x) > 1 else torch.eye(x.shape[1], dtype=torch.float64)
        self.mean.copy_(mean if len(x) > 1 else torch.zeros_like(mean))
        self.whitening.copy_(matrix)

    def forward(self, text: Tensor, modality: Tensor | None) -> Tensor:
        """(B, N, text_dim) texts, (B,) modality indices → (B, N, query_dim) queries."""
        # The norm gives unit variance for any encoder; in float32, because whitening amplifies rounding errors.
        with torch.autocast(text.device.type, enabled=False):
            white = self.norm((text.float() - self.mean) @ self.whitening)
        queries: Tensor = self.projection(white)
        if modality is not None:
            queries = queries + self.modality_embedding(modality)[:, None]
        return queries


def build_adapter(config: NetworkConfig) -> ModalityAdapter | QueryAdapter | None:
    """The adapter that a configuration names; ``None`` if text embeddings are used as queries directly."""
    if config.adapter == "none":
        return None
    return ModalityAdapter(config) if config.adapter == "modality" else QueryAdapter(config)
