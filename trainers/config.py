"""How to train: options that commands embed and that are saved with the run."""

from __future__ import annotations

import dataclasses
import math
import typing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from tyro.conf import arg

from satunet.compute.choices import Precision
from satunet.errors import UserError

Recipe = Literal["sat", "nnunet", "short", "cpu"]

VOXELS_UNTIL = 0.7
"""Share of the steps, from the first one, in which single voxels are classified as well."""

_LEAST = {
    "steps": 1,
    "warmup_steps": 0,
    "steps_per_epoch": 1,
    "validation_steps": 0,
    "batch_size": 1,
    "patches_at_once": 1,
    "queries_per_scan": 1,
    "workers": 0,
    "seed": 0,
    "bad_steps": 0,
    "weight_decay": 0,
    "voxel_weight": 0,
}


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """Hyper-parameters of a training run.

    Attributes:
        recipe: Values of all settings that are not given: 'sat' as published; 'nnunet' SGD with polynomial decay;
            'short' for a few minutes and 'cpu' for an hour or more, both on a CPU. Specialists keep nnU-Net's own
            recipe unless it is 'short' or 'cpu'.
        optimizer: Optimizer: AdamW, or SGD with Nesterov's momentum 0.99.
        schedule: Course of the learning rate after the warm-up: cosine to zero, or polynomial with exponent 0.9.
        learning_rate: Peak learning rate.
        weight_decay: Weight decay of the optimizer.
        steps: Training steps.
        warmup_steps: Steps of linear warm-up.
        steps_per_epoch: Steps between two validations and checkpoints.
        validation_steps: Batches of a validation.
        batch_size: Patches per step, over all processes; the plan's if not given.
        patches_at_once: Patches that a process works on at the same time; the others of the step follow, and all
            gradients are added up. The plan's if not given.
        patches: Size of the patches: 'plan' takes the plan's. With 'fit' and 'fill', a step takes patches of one
            dataset, the smallest that hold its scans and that the strides allow, but no larger than the plan's: 'fit'
            takes the plan's number of patches, 'fill' as many as match the voxels of the plan's batch.
        dataset_draws: Frequency of datasets: 'plan' follows the plan's weights of their scans, 'even' draws all
            datasets equally often.
        queries_per_scan: Largest number of queries per patch; the plan's if not given.
        foreground_share: Share of crops that are centred on a class.
        negative_share: Largest number of negative queries, as a share of the positive ones.
        voxel_weight: Weight of a classification of single voxels, in addition to the loss of the masks, in the first 70
            % of the steps.
        weight_average: Decay of the running average of the weights per step, once there are enough steps; the average
            is what is validated and used. 0 uses the last weights.
        augment: Whether to augment.
        text_variants: Whether to draw other wordings of a class.
        gradient_clip: Norm to which gradients are clipped.
        precision: Data type of convolutions and matrix products; 'auto' takes the fastest that the device has.
        workers: Processes that load data; 0 loads between steps; chosen for the machine if not given.
        seed: Seed of sampling, augmentation and initialisation.
        bad_steps: Number of steps among the last 1000 that may be skipped because loss or gradients were not finite.
        tensorboard: Whether to write TensorBoard event files.
    """

    RECORD_VERSION: ClassVar[int] = 1

    recipe: Recipe = "sat"
    optimizer: Literal["adamw", "sgd"] = "adamw"
    schedule: Literal["cosine", "poly"] = "cosine"
    learning_rate: float = 1e-4
    weight_decay: float = 1e-2
    steps: Annotated[int, arg(aliases=["--budget"])] = 200_000
    warmup_steps: int = 20_000
    steps_per_epoch: int = 250
    validation_steps: int = 50
    batch_size: int | None = None
    patches_at_once: int | None = None
    patches: Literal["plan", "fit", "fill"] = "plan"
    dataset_draws: Literal["plan", "even"] = "plan"
    queries_per_scan: Annotated[int | None, arg(name="queries")] = None
    foreground_share: float = 0.5
    negative_share: float = 0.5
    voxel_weight: float = 0.0
    weight_average: float = 0.0
    augment: bool = True
    text_variants: bool = True
    gradient_clip: float = 12.0
    precision: Precision = "auto"
    workers: int | None = None
    seed: int = 0
    bad_steps: int = 20
    tensorboard: bool = True

    def __post_init__(self) -> None:
        for name, least in _LEAST.items():
            value = getattr(self, name)
            if value is not None and not value >= least:
                raise UserError(f"training: {name} must be at least {least}, got {value}")
        for name in ("learning_rate", "gradient_clip"):
            if not getattr(self, name) > 0:
                raise UserError(f"training: {name} must be positive, got {getattr(self, name)}")
        for name in ("foreground_share", "negative_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"training: {name} must lie in [0, 1], got {getattr(self, name)}")
        if not 0 <= self.weight_average < 1:
            raise UserError(f"training: weight_average must lie in [0, 1), got {self.weight_average}")

    @classmethod
    def from_recipe(cls, recipe: Recipe, **changes: Any) -> TrainingConfig:
        """A recipe with some values changed; the warm-up keeps its share of the steps.

        Raises:
            UserError: A value that is not allowed.
        """
        base = RECIPES[recipe]
        if "steps" in changes and changes["steps"] >= 1:
            changes.setdefault("warmup_steps", round(base.warmup_steps * changes["steps"] / base.steps))
            changes.setdefault("steps_per_epoch", min(base.steps_per_epoch, changes["steps"]))
        return dataclasses.replace(base, **changes)

    @property
    def epochs(self) -> int:
        """Number of epochs; the last one may be shorter."""
        return -(-self.steps // self.steps_per_epoch)

    def voxel_weight_at(self, step: int) -> float:
        """Weight of the voxel loss in a step, counted from 0; keeping it until the end would make masks too large."""
        return self.voxel_weight if step < VOXELS_UNTIL * self.steps else 0.0

    def learning_rate_at(self, step: int) -> float:
        """Learning rate of a step, counted from 0."""
        if step < self.warmup_steps:
            return self.learning_rate * (step + 1) / self.warmup_steps
        done = (step - self.warmup_steps) / max(1, self.steps - self.warmup_steps)
        if self.schedule == "poly":
            return float(self.learning_rate * max(0.0, 1 - done) ** 0.9)
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


RECIPES: dict[Recipe, TrainingConfig] = {
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
"""``sat``: arXiv 2312.17183. ``nnunet``: nnU-Net's optimizer and schedule. ``short``: a few minutes on a CPU. ``cpu``:
an hour or more on many datasets. At the learning rate of ``short``, a network for 27 datasets was no better after 750
steps than after 50. All classes of a crop are asked for: a step with 256 queries takes only 1.2 times as long as one
with 32."""


class _Choices:
    """Fields of a :class:`TrainingConfig` that a user chose; every other field is ``None``.

    The fields of :class:`TrainingChoices` are made from those of :class:`TrainingConfig`: each is written down once.
    """

    if TYPE_CHECKING:
        recipe: Recipe | None
        steps: int | None

    def given(self) -> dict[str, Any]:
        """Field → value, for the fields that were chosen."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}  # type: ignore[arg-type]
        return {name: value for name, value in values.items() if value is not None}

    def config(self, begun: TrainingConfig | None = None) -> TrainingConfig:
        """The settings of the training.

        Args:
            begun: Settings of the run to continue: everything that was not chosen again stays.

        Raises:
            UserError: A value is not allowed, or the recipe is not the one that the run was started with.
        """
        given = self.given()
        recipe = given.pop("recipe", None)
        if begun is None:
            return TrainingConfig.from_recipe(recipe or "sat", **given)
        if recipe not in (None, begun.recipe):
            raise UserError(
                f"the run was started with the recipe {begun.recipe!r} and cannot continue with {recipe!r}; leave --recipe "
                "out, or start a new run from its weights with -pretrained_weights"
            )
        return dataclasses.replace(begun, **given)

    def arguments(self) -> list[str]:
        """The choices as options of ``satunet train``."""
        named = {"queries_per_scan": "queries"}
        return [part for k, v in self.given().items() for part in (f"--{named.get(k, k)}", str(v))]


if TYPE_CHECKING:

    class TrainingChoices(_Choices):
        """See :class:`_Choices`."""

        def __init__(self, **chosen: Any) -> None: ...

else:

    def _optional(hint: Any) -> Any:
        """The type hint with ``None`` allowed; its annotations for tyro stay outside."""
        if typing.get_origin(hint) is Annotated:
            base, *how = typing.get_args(hint)
            return Annotated[(base | None, *how)]
        return hint | None

    TrainingChoices = dataclasses.make_dataclass(
        "TrainingChoices",
        [
            (f.name, _optional(typing.get_type_hints(TrainingConfig, include_extras=True)[f.name]), None)
            for f in dataclasses.fields(TrainingConfig)
        ],
        bases=(_Choices,),
        frozen=True,
        kw_only=True,
    )
    TrainingChoices.__doc__ = (TrainingConfig.__doc__ or "").replace(
        "Hyper-parameters of a training run.",
        "How to train. Settings that are not given are the recipe's or, with --c, those that the run was started with.",
    )
    TrainingChoices.__module__ = __name__
