"""Settings of a specialist's training, which are saved with its fold."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from satunet.errors import ModelError, UserError
from satunet.jobs.files import write_json
from satunet.jobs.records import from_plain, load_json, to_plain
from satunet.trainers.config import TrainingChoices, TrainingConfig

DEFAULT_STEPS = 1000 * 250
"""nnU-Net's number of training steps."""


@dataclass(frozen=True, kw_only=True)
class SpecialistConfig:
    """How a specialist is trained.

    Attributes:
        steps: Training steps.
        recipe: Optimizer and schedule; nnU-Net's own if ``None``.
        learning_rate: Learning rate that nnU-Net's own schedule starts from; nnU-Net's if ``None``.
        batch_size: Patches per step; the specialist plan's if ``None``.
        seed: Seed of initialisation and sampling; nnU-Net draws one if ``None``.
    """

    steps: int = DEFAULT_STEPS
    recipe: TrainingConfig | None = None
    learning_rate: float | None = None
    batch_size: int | None = None
    seed: int | None = None

    @classmethod
    def of(cls, config: TrainingChoices | TrainingConfig, begun: SpecialistConfig | None = None) -> SpecialistConfig:
        """Settings that a user chose; a continued run keeps everything that was not chosen again.

        Args:
            config: Choices, or a whole configuration in place of nnU-Net's.
            begun: Settings of the run to continue.

        Raises:
            UserError: A value that is not allowed, or another recipe than the run was started with.
        """
        if isinstance(config, TrainingConfig):
            return cls(steps=config.steps, recipe=config, batch_size=config.batch_size, seed=config.seed)
        checked = config.config(begun.recipe if begun is not None and begun.recipe is not None else None)
        own = config.recipe in ("short", "cpu")
        if begun is not None and begun.recipe is None and own:
            raise UserError(
                f"the run was started with nnU-Net's own recipe and cannot continue with {config.recipe!r}; leave --recipe out"
            )
        recipe = checked if own or (begun is not None and begun.recipe is not None) else None
        base = begun or cls(steps=recipe.steps if recipe is not None else DEFAULT_STEPS)
        given = config.given()
        taken = {k: given[k] for k in ("steps", "learning_rate", "batch_size", "seed") if k in given}
        return dataclasses.replace(base, recipe=recipe, **taken)

    def save(self, file: Path) -> None:
        """Write the settings as JSON."""
        content = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        write_json(file, content | {"recipe": "nnunet" if self.recipe is None else to_plain(self.recipe)}, sealed=True)

    @classmethod
    def load(cls, file: Path) -> SpecialistConfig:
        """Read what :meth:`save` wrote.

        Raises:
            ModelError: No such file, or it is damaged.
        """
        content = load_json(file, what="the configuration of a specialist's training", error=ModelError)
        if not isinstance(content, Mapping):
            raise ModelError(f"{file}: expected a JSON object")
        fields: dict[str, Any] = dict(content)
        recipe = fields.pop("recipe", "nnunet")
        found = from_plain(fields, cls, source=file, error=ModelError)
        if recipe == "nnunet":
            return found
        return dataclasses.replace(found, recipe=from_plain(recipe, TrainingConfig, source=file, error=ModelError))
