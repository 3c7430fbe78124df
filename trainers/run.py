"""Train the unified network from its plan."""

from __future__ import annotations

import logging
from pathlib import Path

from satunet.checkpoints import load_checkpoint, load_weights, network_weights
from satunet.devices import pick_device
from satunet.errors import ModelError, UserError
from satunet.files import read_json
from satunet.paths import preprocessed_dir, results_dir
from satunet.progress import progress_bar
from satunet.trainers.config import TrainingConfig

logger = logging.getLogger(__name__)


def model_folder(dataset_name: str, plans_name: str = "satunetPlans", configuration: str = "3d_fullres") -> Path:
    """Where the trainer puts a unified network."""
    return results_dir() / dataset_name / f"SATTrainer__{plans_name}__{configuration}"


def train_unified(
    dataset_name: str,
    *,
    fold: int | str = 0,
    config: TrainingConfig,
    device: str = "auto",
    continue_training: bool = False,
    pretrained_weights: Path | None = None,
) -> Path:
    """Train, under a progress bar.

    Args:
        dataset_name: The unified dataset, planned and preprocessed.
        fold: Number of the fold, or ``"all"``.
        config: How to train.
        device: Where to train.
        continue_training: Go on from the last checkpoint; a finished run is left as it is.
        pretrained_weights: Checkpoint whose weights to start from.

    Returns:
        The model folder.

    Raises:
        UserError: Contradictory options.
        PlanError, DatasetError: Not planned or not preprocessed.
        ModelError: A checkpoint that cannot be used.
    """
    from satunet.plan import UnifiedPlan
    from satunet.trainers.sat_trainer import SATTrainer

    if continue_training and pretrained_weights is not None:
        raise UserError("give either --c or --pretrained_weights: a continued run has its weights already")
    folder = preprocessed_dir() / dataset_name
    plan = UnifiedPlan.load(folder / "satunetPlans.json")
    trainer = SATTrainer(
        plan.to_nnunet(), plan.configuration, fold, read_json(folder / "dataset.json"), pick_device(device)
    )
    trainer.configure(config)
    output = Path(str(trainer.output_folder))
    if continue_training:
        if (output / "checkpoint_final.pth").is_file():
            logger.info("%s is trained already", output)
            return trainer.model_folder
        found = [p for n in ("latest", "best") if (p := output / f"checkpoint_{n}.pth").is_file()]
        if found:
            trainer.load_checkpoint(found[0])
            logger.info("going on from %s at epoch %d", found[0], trainer.current_epoch)
        else:
            logger.warning("there is no checkpoint in %s; starting from the beginning", output)
    if pretrained_weights is not None:
        trainer.initialize()
        if trainer.network is None:
            raise ModelError("the trainer has no network")
        weights = network_weights(load_checkpoint(pretrained_weights), source=pretrained_weights)
        load_weights(trainer.network, weights, source=pretrained_weights)
    with progress_bar("Training", config.steps) as advance:
        advance(trainer.current_epoch * trainer.num_iterations_per_epoch)
        trainer.on_step = lambda step, loss: advance(note=f"loss {loss:.3f}")
        trainer.run_training()
    logger.info("model: %s", trainer.model_folder)
    return trainer.model_folder
