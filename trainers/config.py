"""How to train, as plain data that is saved with the run."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from satunet.errors import UserError

CONFIG_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """Hyper-parameters of a training run.

    Attributes:
        recipe: Where the values come from: ``"sat"`` (published), ``"nnunet"``, ``"short"``, ``"cpu"``.
        optimizer: ``"adamw"`` or ``"sgd"`` (Nesterov, momentum 0.99).
        schedule: ``"cosine"`` to zero or ``"poly"`` (exponent 0.9), after the warm-up.
        learning_rate: Peak.
        weight_decay: Of the optimizer.
        steps: Training steps.
        warmup_steps: Steps of linear warm-up.
        steps_per_epoch: Steps between two validations and checkpoints.
        validation_steps: Patches a validation.
        batch_size: Patches a step, of all processes together; the plan's if ``None``.
        queries_per_scan: Queries a patch, at most; the plan's if ``None``.
        foreground_share: Share of crops that are centred on a class.
        negative_share: Negative queries, at most, as a share of the positive ones.
        augment: Whether to augment.
        text_variants: Whether to draw other wordings of a class.
        gradient_clip: Norm that gradients are clipped to.
        precision: ``"auto"``, ``"bfloat16"``, ``"float16"`` or ``"float32"``.
        workers: Processes that load data; 0 loads between steps; ``None`` chooses.
        seed: Of sampling, augmentation and initialisation.
        bad_steps: Steps among the last 1000 that may be skipped because loss or gradients were not finite.
        tensorboard: Whether to write TensorBoard event files.
    """

    recipe: str = "sat"
    optimizer: str = "adamw"
    schedule: str = "cosine"
    learning_rate: float = 1e-4
    weight_decay: float = 1e-2
    steps: int = 200_000
    warmup_steps: int = 20_000
    steps_per_epoch: int = 250
    validation_steps: int = 50
    batch_size: int | None = None
    queries_per_scan: int | None = None
    foreground_share: float = 0.5
    negative_share: float = 0.5
    augment: bool = True
    text_variants: bool = True
    gradient_clip: float = 12.0
    precision: str = "auto"
    workers: int | None = None
    seed: int = 0
    bad_steps: int = 20
    tensorboard: bool = True

    def __post_init__(self) -> None:
        for name, allowed in (
            ("optimizer", ("adamw", "sgd")),
            ("schedule", ("cosine", "poly")),
            ("precision", ("auto", "bfloat16", "float16", "float32")),
        ):
            if getattr(self, name) not in allowed:
                raise UserError(f"training: {name} {getattr(self, name)!r}; allowed are {', '.join(allowed)}")
        for name, least in (("steps", 1), ("steps_per_epoch", 1), ("bad_steps", 0), ("validation_steps", 0)):
            if getattr(self, name) < least:
                raise UserError(f"training: {name} must be at least {least}, got {getattr(self, name)}")
        for name in ("learning_rate", "gradient_clip"):
            if not getattr(self, name) > 0:
                raise UserError(f"training: {name} must be positive, got {getattr(self, name)}")
        for name in ("foreground_share", "negative_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"training: {name} must lie in [0, 1], got {getattr(self, name)}")

    @classmethod
    def from_recipe(cls, recipe: str, **changes: Any) -> TrainingConfig:
        """A recipe with some values changed; the warm-up keeps its share of the steps.

        Raises:
            UserError: An unknown recipe or value.
        """
        if recipe not in RECIPES:
            raise UserError(f"training recipe {recipe!r}; allowed are {', '.join(RECIPES)}")
        base = RECIPES[recipe]
        if "steps" in changes and "warmup_steps" not in changes:
            steps = int(changes["steps"])
            changes["warmup_steps"] = round(base.warmup_steps * steps / base.steps)
            changes.setdefault("steps_per_epoch", min(base.steps_per_epoch, steps))
        return dataclasses.replace(base, **changes)

    def learning_rate_at(self, step: int) -> float:
        """Learning rate of a step, counted from 0."""
        import math

        if step < self.warmup_steps:
            return self.learning_rate * (step + 1) / self.warmup_steps
        done = (step - self.warmup_steps) / max(1, self.steps - self.warmup_steps)
        if self.schedule == "poly":
            return float(self.learning_rate * max(0.0, 1 - done) ** 0.9)
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {"version": CONFIG_VERSION} | dataclasses.asdict(self)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> TrainingConfig:
        """The inverse of :meth:`to_json`; what an older version did not write has its default.

        Raises:
            UserError: A value that is not allowed, or one this version does not know.
        """
        values = {k: v for k, v in content.items() if k != "version"}
        unknown = sorted(set(values) - {f.name for f in dataclasses.fields(cls)})
        if unknown:
            raise UserError(f"training configuration: {', '.join(unknown)} is not known to this version")
        return cls(**values)


RECIPES = {
    "sat": TrainingConfig(),
    "nnunet": TrainingConfig(
        recipe="nnunet",
        optimizer="sgd",
        schedule="poly",
        learning_rate=1e-2,
        weight_decay=3e-5,
        steps=250_000,
        warmup_steps=0,
    ),
    "short": TrainingConfig(
        recipe="short",
        learning_rate=3e-3,
        steps=200,
        warmup_steps=20,
        steps_per_epoch=50,
        validation_steps=4,
        queries_per_scan=96,
    ),
    "cpu": TrainingConfig(
        recipe="cpu",
        learning_rate=8e-4,
        steps=3000,
        warmup_steps=100,
        steps_per_epoch=50,
        validation_steps=8,
        queries_per_scan=256,
        gradient_clip=2.0,
    ),
}
"""``sat``: arXiv 2312.17183. ``nnunet``: nnU-Net's optimizer and schedule. ``short``: a few minutes, on a CPU. ``cpu``: an
hour or more, of many datasets: at the learning rate of ``short``, a network of 27 of them was no better after 750 steps
than after 50. All classes of a crop are asked for: a step with 256 queries takes 1.2 times as long as one with 32."""
