"""The loop over a mixture of sources: one process, weights averaged over the steps, resumable."""

from __future__ import annotations

import copy
import logging
import os
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from satunet.jobs.records import save_record
from satunet.labels import LabelSpace, text_variants
from satunet.network.config import NetworkConfig
from satunet.network.model import PromptedUNet
from satunet.text import TextBank, load_text_encoder
from satunet.trainers.config import TrainingConfig
from satunet.trainers.synthetic.mixture import Group, MixtureBatches
from satunet.trainers.synthetic.voxels import VOXEL_WEIGHT, MixtureStepper

logger = logging.getLogger(__name__)

AVERAGED = 0.998
"""Share of the averaged weights that a step keeps, once there are enough steps."""
_ALL = 1 << 10
"""Crops that the network sees at once: the batches of a CPU are small."""
LOGGED, SAVED = 50, 150
"""Steps between two lines of the log, and between two checkpoints."""


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What a training leaves behind.

    Attributes:
        weights: Averaged over the last steps.
        bank: Embeddings of every wording of every class.
        steps: Steps taken.
        seconds: Time they took.
        losses: Step → group → mean loss of the steps since the last entry.
    """

    weights: dict[str, Tensor]
    bank: TextBank
    steps: int
    seconds: float
    losses: dict[int, dict[str, float]]


def train_mixture(
    groups: Sequence[Group],
    space: LabelSpace,
    network: NetworkConfig,
    config: TrainingConfig,
    work: Path,
    *,
    encoder: str = "anatomy",
    start: Mapping[str, Tensor] | None = None,
    voxel_weight: float = VOXEL_WEIGHT,
    averaged: float = AVERAGED,
) -> Trained:
    """Train on a CPU, or go on where an earlier call stopped.

    Args:
        groups: The sources.
        space: Classes of all of them.
        network: What to train.
        config: Steps, learning rate, precision, seed.
        work: Folder of the checkpoint.
        encoder: Text encoder.
        start: Weights to begin with.
        voxel_weight: Weight of the voxel loss.
        averaged: Share of the averaged weights that a step keeps.
    """
    work.mkdir(parents=True, exist_ok=True)
    texts = [text for info in space.classes for text in text_variants(info)]
    bank = TextBank.build(load_text_encoder(encoder), texts)
    torch.manual_seed(config.seed)
    model = PromptedUNet(network)
    if model.adapter is not None:
        model.adapter.fit_whitening(torch.from_numpy(bank.matrix(space.class_names)))
    if start is not None:
        model.load_state_dict(start)
    model = model.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    optimizer = torch.optim.AdamW(model.parameters(), config.learning_rate, weight_decay=config.weight_decay)
    average = copy.deepcopy(model).requires_grad_(False)
    state: dict[str, Any] = {"step": 0, "seconds": 0.0, "losses": {}}
    checkpoint = work / "checkpoint.pt"
    if checkpoint.is_file():
        state |= torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["network"])
        average.load_state_dict(state["average"])
        optimizer.load_state_dict(state["optimizer"])
        logger.info("going on at step %d", state["step"])
    save_record(work / "training_config.json", config)
    data = MixtureBatches(groups, space, bank, steps=config.steps, seed=config.seed)
    stepper = MixtureStepper(model, optimizer, None, config, torch.device("cpu"), at_once=_ALL)
    stepper.voxel_weight = voxel_weight
    model.train()
    since: dict[str, list[float]] = defaultdict(list)
    for step in range(state["step"], config.steps):
        began = time.perf_counter()
        result = stepper.take(data[step], step)
        if result.skipped:
            logger.warning("step %d was skipped, its gradients are not finite: %s", step, ", ".join(result.suspects))
        _average(average, model, min(averaged, (1 + step) / (10 + step)))
        since[data.group_of(step).name].append(result.loss)
        state["seconds"] += time.perf_counter() - began
        last = step + 1 == config.steps
        if (step + 1) % LOGGED == 0 or last:
            means = {name: round(float(np.mean(values)), 4) for name, values in sorted(since.items())}
            state["losses"][step + 1] = means
            logger.info("step %d: %s", step + 1, ", ".join(f"{name} {value:.3f}" for name, value in means.items()))
            since.clear()
        if (step + 1) % SAVED == 0 or last:
            state |= {
                "network": model.state_dict(),
                "average": average.state_dict(),
                "optimizer": optimizer.state_dict(),
                "step": step + 1,
            }
            torch.save(state, checkpoint.with_suffix(".tmp"))
            os.replace(checkpoint.with_suffix(".tmp"), checkpoint)
    return Trained(
        weights=average.state_dict(),
        bank=bank,
        steps=config.steps,
        seconds=state["seconds"],
        losses=state["losses"],
    )


@torch.no_grad()
def _average(average: torch.nn.Module, model: torch.nn.Module, kept: float) -> None:
    for mean, value in zip(average.parameters(), model.parameters(), strict=True):
        mean.lerp_(value, 1 - kept)
