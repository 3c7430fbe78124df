"""The batches of a run: one stream to train on, one to validate on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from satunet.compute import distributed
from satunet.trainers.config import TrainingConfig
from satunet.trainers.unified.batches.batch import Batch
from satunet.trainers.unified.batches.loading import CACHE_BYTES, StepBatches, batches, worker_count
from satunet.trainers.unified.setup import TrainingSetup


@dataclass(frozen=True, kw_only=True, eq=False)
class Streams:
    """What a process reads during training.

    Attributes:
        training: Step → batch to train on.
        validation: Step → batch to validate on, the same ones in every epoch.
        training_batches: Batches of the steps that are left, loaded ahead.
        validation_batches: Batches of the validations that are left, loaded ahead while the network still trains.
        validation_steps: Steps of one validation that are this process's.
    """

    training: StepBatches
    validation: StepBatches
    training_batches: Iterator[Batch]
    validation_batches: Iterator[Batch]
    validation_steps: range

    @classmethod
    def begin(cls, setup: TrainingSetup, config: TrainingConfig, device: torch.device, epoch: int) -> Streams:
        """Start the processes that load.

        Args:
            setup: Constant inputs of the training.
            config: Settings of the training.
            device: Device of the network.
            epoch: First epoch.
        """
        with distributed.first_process_first():
            _ = setup.index  # the other processes map the file that the first one may have to make
        workers = worker_count(config, device)
        rank, processes = distributed.rank(), distributed.world_size()
        split, pin = setup.split, device.type == "cuda"
        training = StepBatches(
            setup,
            split.train,
            config,
            rank=rank,
            world_size=processes,
            cache_bytes=CACHE_BYTES // max(1, workers),
        )
        validation = StepBatches(setup, split.val or split.train, config, stream=1)
        steps = range(epoch * config.steps_per_epoch, config.steps)
        own = range(rank, config.validation_steps, processes)
        order = [*own] * (config.epochs - epoch)
        return cls(
            training=training,
            validation=validation,
            training_batches=batches(training, steps, workers, pin_memory=pin),
            validation_batches=batches(validation, order, min(workers, 2), pin_memory=pin),
            validation_steps=own,
        )
