"""``satunet train``: the unified network, or the specialist nnU-Nets it is compared with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import arg

from satunet.cli.options import Device, Fold, Verbose, dataset_names

if TYPE_CHECKING:
    from satunet.trainers.config import TrainingConfig


@dataclass(frozen=True, kw_only=True)
class Train:
    """Train the text-prompted network of a unified plan, or a dataset's specialist nnU-Net."""

    dataset: Annotated[str, arg(aliases=["-d"], metavar="ID", help="Id or name of the unified dataset.")] = "900"
    fold: Fold = "0"
    specialist: Annotated[
        tuple[str, ...],
        arg(metavar="ID", help="Train the nnU-Nets of these datasets (or 'all') by nnunetv2 instead."),
    ] = ()
    recipe: Annotated[
        Literal["sat", "nnunet", "short"],
        arg(
            help="'sat': as published; 'nnunet': SGD with polynomial decay; 'short': few steps, for a CPU. Specialists are trained by nnU-Net's own unless it is 'short'."
        ),
    ] = "sat"
    steps: Annotated[int | None, arg(aliases=["--budget"], help="Training steps; the recipe's if not given.")] = None
    learning_rate: Annotated[float | None, arg(help="Peak learning rate; the recipe's if not given.")] = None
    batch_size: Annotated[int | None, arg(help="Patches a step; the plan's if not given.")] = None
    queries: Annotated[int | None, arg(help="Queries a patch, at most; the plan's if not given.")] = None
    workers: Annotated[int | None, arg(help="Processes that load data; chosen by the machine if not given.")] = None
    seed: Annotated[int, arg(help="Seed of sampling, augmentation and initialisation.")] = 0
    continue_: Annotated[bool, arg(name="continue", aliases=["--c"], help="Go on from the last checkpoint.")] = False
    pretrained_weights: Annotated[
        Path | None, arg(aliases=["-pretrained_weights"], metavar="FILE", help="Checkpoint to start from.")
    ] = None
    device: Device = "auto"
    verbose: Verbose = False

    def run(self) -> int:
        """Train; every checkpoint is written whole, and the same command with ``--c`` goes on."""
        from satunet.environment import quick_check

        quick_check()
        return self._specialists() if self.specialist else self._unified()

    def _recipe(self) -> TrainingConfig:
        from satunet.trainers.config import TrainingConfig

        given = {
            "steps": self.steps,
            "learning_rate": self.learning_rate,
            "batch_size": self.batch_size,
            "queries_per_scan": self.queries,
            "workers": self.workers,
            "seed": self.seed,
        }
        return TrainingConfig.from_recipe(self.recipe, **{k: v for k, v in given.items() if v is not None})

    def _unified(self) -> int:
        from satunet.paths import dataset_name_of
        from satunet.progress import setup_logging
        from satunet.trainers.run import model_folder, train_unified

        name = dataset_name_of(self.dataset)
        setup_logging(model_folder(name) / f"fold_{_fold(self.fold)}" / "train.log", verbose=self.verbose)
        train_unified(
            name,
            fold=_fold(self.fold),
            config=self._recipe(),
            device=self.device,
            continue_training=self.continue_,
            pretrained_weights=self.pretrained_weights,
        )
        return 0

    def _specialists(self) -> int:
        from satunet.paths import results_dir
        from satunet.progress import JobSummary, setup_logging
        from satunet.trainers.specialist import train_specialist

        names = dataset_names(self.specialist)
        setup_logging(results_dir() / "specialists.log", verbose=self.verbose)
        summary = JobSummary("specialist nnU-Nets")
        for name in names:
            try:
                train_specialist(
                    name,
                    fold=_fold(self.fold),
                    steps=self.steps,
                    recipe=self._recipe() if self.recipe == "short" else None,
                    device=self.device,
                    continue_training=self.continue_,
                )
                summary.done(name)
            except Exception as error:  # one dataset's failure must not end a night of trainings
                summary.failed(name, error)
        summary.show()
        return summary.exit_code


def _fold(text: str) -> int | str:
    from satunet.errors import UserError

    if text == "all":
        return "all"
    if not text.isdigit():
        raise UserError(f"fold must be a number or 'all', got {text!r}")
    return int(text)
