"""Train the unified network from its plan."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from satunet.compute import distributed
from satunet.compute.devices import pick_device
from satunet.datasets.unified import UnifiedFolder
from satunet.errors import DatasetError, ModelError, UserError
from satunet.jobs.files import atomic_folder, only_writer, read_json
from satunet.jobs.progress import progress_bar
from satunet.jobs.records import from_plain
from satunet.labels import LabelSpace
from satunet.models.checkpoints import load_checkpoint
from satunet.models.results import last_checkpoint
from satunet.plan import UnifiedPlan
from satunet.text import TEXT_ENCODER_FOLDER
from satunet.text.copying import copy_text_encoder
from satunet.trainers.config import TrainingChoices, TrainingConfig
from satunet.trainers.unified.setup import differences
from satunet.trainers.unified.trainer import SATTrainer

logger = logging.getLogger(__name__)


def train_unified(dataset_name: str, **options: Any) -> Path:
    """Like :func:`run_training`, for callers that need only the model folder."""
    return run_training(dataset_name, **options).model_folder


def run_training(
    dataset_name: str,
    *,
    fold: int | str = 0,
    config: TrainingConfig | TrainingChoices,
    device: str = "auto",
    continue_training: bool | Literal["if_begun"] = False,
    pretrained_weights: Path | None = None,
    minutes: float | None = None,
    validate: bool = True,
    only_validate: bool = False,
) -> SATTrainer:
    """Train, under a progress bar, then validate; as one of several processes if torchrun started this one.

    Args:
        dataset_name: The unified dataset, planned and preprocessed.
        fold: Number of the fold, or ``"all"``.
        config: Settings of the training. If these are choices, a resumed run adopts those that were made and otherwise
            keeps the settings it was started with; a whole configuration is used as it is.
        device: Device to train on.
        continue_training: Whether to resume from the last checkpoint; a finished run is only validated. A run that
            never began is started, with a warning unless ``"if_begun"`` says that this is expected.
        pretrained_weights: Weights to start from, see :func:`satunet.trainers.unified.pretrained.read_weights`.
        minutes: Time limit, as for a queue; training stops at a checkpoint before it is over.
        validate: Whether to segment the fold's held-out scans at the end.
        only_validate: Whether to do nothing else; the run must be finished.

    Returns:
        The trainer; its ``model_folder`` and ``failed_scans`` are what most callers look at.

    Raises:
        UserError: Options contradict each other, there is nothing to validate, existing folds have another plan, or
            another training of this fold is running.
        PlanError, DatasetError: The dataset is not planned or not preprocessed.
        ModelError: A checkpoint cannot be used.
    """
    if continue_training and pretrained_weights is not None:
        raise UserError("give either --c or --pretrained_weights: a continued run has its weights already")
    unified = UnifiedFolder(name=dataset_name)
    plan = UnifiedPlan.load(unified.plan)
    if not unified.dataset_json.is_file():  # the last file that preprocessing writes
        raise DatasetError(
            f"{unified.folder}: it is planned, but not preprocessed; 'satunet preprocess -d {dataset_name}' does that"
        )
    model = unified.results
    goes_on = (continue_training or only_validate) and last_checkpoint(model / f"fold_{fold}") is not None
    encoder = None
    if goes_on:
        plan = _plan_of_run(model, plan)
    elif pretrained_weights is not None:
        plan, encoder = _as_pretrained(plan, pretrained_weights)
    with distributed.process_group(pick_device(device)) as own_device, _alone(model / f"fold_{fold}"):
        if not goes_on:
            _refuse_another_plan(model, plan, LabelSpace.load(unified.label_space))
        plans = plan.to_nnunet() | {"continue_training": bool(continue_training)}
        trainer = SATTrainer(plans, plan.configuration, fold, read_json(unified.dataset_json), own_device)
        trainer.goes_on = goes_on
        trainer.configure(_resolved(config, trainer))
        if not goes_on:
            trainer.text_encoder_folder = _own_text_encoder(trainer, encoder)
        trainer.deadline = None if minutes is None else time.monotonic() + 60 * minutes
        finished = False
        if continue_training or only_validate:
            finished = _go_on(trainer, only_validate=only_validate, expected=continue_training != "if_begun")
        if pretrained_weights is not None:
            from satunet.trainers.unified.pretrained import scans_seen, start_from

            trainer.scans_seen = scans_seen(pretrained_weights)
            trainer.initialize()
            trainer.print_to_log_file(start_from(trainer.network, pretrained_weights))
        if not finished:
            try:
                finished = _train(trainer)
            finally:
                trainer.leave_processes()
        if finished and (validate or only_validate):
            trainer.perform_actual_validation()
        trainer.reporter.close()
    return trainer


@contextlib.contextmanager
def _alone(fold: Path) -> Iterator[None]:
    """Exclude a second training of the fold; of processes that train together, the first holds the lock for all."""
    with contextlib.ExitStack() as held:
        problem = None
        if distributed.rank() == 0:
            try:
                held.enter_context(only_writer(fold))
            except UserError:
                problem = f"{fold}: another training of this fold is running; wait for it, or end it"
        problem = distributed.gather(problem)[0]
        if problem is not None:
            raise UserError(problem)
        yield


def _resolved(config: TrainingConfig | TrainingChoices, trainer: SATTrainer) -> TrainingConfig:
    """The whole configuration: choices are completed by the settings that the run was started with."""
    if isinstance(config, TrainingConfig):
        return config
    found = last_checkpoint(Path(str(trainer.output_folder))) if trainer.goes_on else None
    if found is None:
        return config.config()
    before = load_checkpoint(found).get("satunet", {}).get("training_config", {})
    return config.config(from_plain(before, TrainingConfig, source=found, error=ModelError))


def _plan_of_run(model: Path, planned: UnifiedPlan) -> UnifiedPlan:
    """The plan that a result folder was started with; if the current one differs, this is logged."""
    plan = UnifiedPlan.load(model / "plans.json")
    other = differences(plan, planned)
    if other:
        logger.info("%s keeps the plan it was started with, which is not today's: %s", model, "; ".join(other))
    return plan


def _refuse_another_plan(model: Path, plan: UnifiedPlan, space: LabelSpace) -> None:
    """Refuse to mix plans: all folds of a result folder share the plan and label space that lie beside them.

    Raises:
        UserError: A fold has a checkpoint that was trained with another plan.
    """
    trained = sorted(f for f in model.glob("fold_*") if last_checkpoint(f) is not None)
    if not trained or not (model / "plans.json").is_file():
        return
    other = differences(UnifiedPlan.load(model / "plans.json"), plan)
    before = LabelSpace.load(model / "label_space.json")
    if (before.classes, before.ids, before.ignored) != (space.classes, space.ids, space.ignored):
        other.append(f"label space of {len(before.classes)} classes there, {len(space.classes)} now")
    if other:
        raise UserError(
            f"{trained[0]} was trained with another plan ({'; '.join(other)}), and all folds of a result folder must have "
            "the same plan. Give this plan a dataset name of its own ('satunet plan_and_preprocess --name "
            f"Dataset901_Name'), continue that run (--c), or move {model} away"
        )


def _own_text_encoder(trainer: SATTrainer, source: Path | None) -> Path | None:
    """The text encoder that a model brought, copied beside the network that starts from this model; else ``None``."""
    own = trainer.model_folder / TEXT_ENCODER_FOLDER
    if distributed.rank() == 0:
        shutil.rmtree(own, ignore_errors=True)
        if source is not None:
            with atomic_folder(own) as folder:
                copy_text_encoder(source, folder)
    distributed.barrier()
    return own if source is not None else None


def _as_pretrained(plan: UnifiedPlan, path: Path) -> tuple[UnifiedPlan, Path | None]:
    """The plan with the network and text encoder of the model that training starts from, if it is a whole model, and
    the folder of that encoder, if the model carries it.

    The preprocessed scans do not depend on the network, so a dataset with a plan of its own is fine-tuned without
    planning again. Spacing and normalisation stay those of the plan; a difference is reported.
    """
    from satunet.trainers.unified.pretrained import plan_beside, text_encoder_beside

    theirs = plan_beside(path)
    if theirs is None:
        return plan, None
    if any(p % d for p, d in zip(plan.patch_size, theirs.network.divisor, strict=True)):
        raise UserError(
            f"{path}: its network needs patches that are divisible by {theirs.network.divisor}, the plan's are "
            f"{plan.patch_size}; plan again with another --patch_size, such as {theirs.patch_size}"
        )
    for what in ("spacing_mm", "orientation", "normalization"):
        if getattr(plan, what) != getattr(theirs, what):
            logger.warning(
                "%s was trained with %s %s, the plan has %s", path, what, getattr(theirs, what), getattr(plan, what)
            )
    if plan.network != theirs.network:
        logger.info("the network is that of %s", path)
    plan = dataclasses.replace(plan, network=theirs.network, text_encoder=theirs.text_encoder)
    return plan, text_encoder_beside(path)


def _go_on(trainer: SATTrainer, *, only_validate: bool, expected: bool) -> bool:
    """Load the last checkpoint; returns whether it is the final one. A missing one matters only if ``expected``."""
    output = Path(str(trainer.output_folder))
    final = output / "checkpoint_final.pth"
    if only_validate and not final.is_file():
        raise UserError(f"{output}: there is no checkpoint_final.pth; train first, or continue with --c")
    found = final if only_validate else last_checkpoint(output)
    if found is None:
        if expected:
            logger.warning("there is no checkpoint in %s; starting from the beginning", output)
        return False
    try:
        trainer.load_checkpoint(found)
    except ModelError as error:
        best = output / "checkpoint_best.pth"
        if found.name != "checkpoint_latest.pth" or not best.is_file():
            raise
        raise ModelError(f"{error}; {best} is there: remove {found.name} and --c continues from it") from error
    if found == final:
        logger.info("%s is trained already", output)
        if not only_validate and distributed.rank() == 0:
            (output / "checkpoint_latest.pth").unlink(missing_ok=True)  # of a run killed right before it would do so
        if not only_validate and trainer.current_epoch < trainer.num_epochs:
            logger.warning(
                "%s: the run ended after epoch %d, it does not continue to %d; a new one can start from it with "
                "-pretrained_weights",
                output,
                trainer.current_epoch,
                trainer.num_epochs,
            )
        return True
    logger.info("continuing from %s at epoch %d", found, trainer.current_epoch)
    return False


def _train(trainer: SATTrainer) -> bool:
    """Train; returns whether training reached its end."""
    first = distributed.rank() == 0
    with progress_bar("Training", trainer.config.steps) if first else contextlib.nullcontext(_no_bar) as advance:
        advance(trainer.current_epoch * trainer.num_iterations_per_epoch)
        trainer.on_step = lambda step, loss: advance(note=f"loss {loss:.3f}")
        trainer.run_training()
    if trainer.current_epoch < trainer.num_epochs:
        logger.info(
            "stopped in time after epoch %d of %d; continue with --c", trainer.current_epoch, trainer.num_epochs
        )
        return False
    logger.info("model: %s", trainer.model_folder)
    return True


def _no_bar(steps: int = 1, note: str = "") -> None:
    """Show nothing: only the first process shows progress."""
