"""Settings of both stages of pre-training."""

from __future__ import annotations

import math
from dataclasses import dataclass

from satunet.compute.choices import Precision
from satunet.errors import UserError


@dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """Settings of a pre-training.

    Attributes:
        steps: Optimizer steps.
        batch: Pairs of texts per step, over all processes.
        learning_rate: Peak learning rate; warmed up, then cosine to 0.
        warmup: Share of the steps that warm up.
        weight_decay: Weight decay of AdamW.
        temperature: Temperature of the contrastive loss at the start; it is learned, its inverse at most 100.
        frozen_layers: Number of lowest layers of the text encoder that are not trained, nor are its word embeddings.
        hard: Number of concepts in a group of concepts that are easily confused.
        max_tokens: Largest number of tokens that are read from a text.
        held_out: Share of the names that are kept out of training, for measuring.
        dropout: Whether the text encoder's own dropout is on.
        seed: Seed of split, pairs and dropout.
        checkpoint_every: Steps between checkpoints.
        precision: Data type of both encoders; 'auto' is bfloat16 where the device has it. The loss is always float32.
    """

    steps: int = 1000
    batch: int = 128
    learning_rate: float = 2e-4
    warmup: float = 0.1
    weight_decay: float = 0.01
    temperature: float = 0.05
    frozen_layers: int = 3
    hard: int = 4
    max_tokens: int = 40
    held_out: float = 0.1
    dropout: bool = True
    seed: int = 0
    checkpoint_every: int = 200
    precision: Precision = "auto"

    def __post_init__(self) -> None:
        for name, least in (
            ("steps", 1),
            ("batch", 2),
            ("hard", 1),
            ("checkpoint_every", 1),
            ("frozen_layers", 0),
        ):
            if getattr(self, name) < least:
                raise UserError(f"{name} must be at least {least}, got {getattr(self, name)}")
        if not 0 <= self.held_out < 1 or not 0 <= self.warmup <= 1:
            raise UserError(f"held_out and warmup must be shares, got {self.held_out}, {self.warmup}")
        if self.learning_rate <= 0 or self.temperature <= 0:
            raise UserError(
                f"learning_rate and temperature must be positive, got {self.learning_rate}, {self.temperature}"
            )

    def learning_rate_at(self, step: int) -> float:
        """Linear warm-up, then cosine to 0."""
        warm = max(1, round(self.warmup * self.steps))
        if step < warm:
            return self.learning_rate * (step + 1) / warm
        done = (step - warm) / max(1, self.steps - warm)
        return self.learning_rate * (1 + math.cos(math.pi * done)) / 2


@dataclass(frozen=True, kw_only=True)
class AtlasConfig(PretrainConfig):
    """Settings of stage 2.

    Attributes:
        scans: Crops of scans per step, over all processes.
        learning_rate: Peak learning rate; warmed up, then cosine to 0.
    """

    scans: int = 4
    learning_rate: float = 1e-4

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.scans < 1:
            raise UserError(f"scans must be at least 1, got {self.scans}")
