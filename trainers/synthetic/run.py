"""The loop over a mixture of sources: one device, weights averaged over the steps, resumable."""

from __future__ import annotations

import contextlib
import copy
import logging
import math
import os
import queue
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from satunet.jobs.records import save_record
from satunet.labels import LabelSpace, text_variants
from satunet.network.config import NetworkConfig
from satunet.network.engines import for_training
from satunet.network.model import PromptedUNet
from satunet.text import TextBank, load_text_encoder
from satunet.trainers.config import VOXELS_UNTIL, TrainingConfig
from satunet.trainers.synthetic.mixture import Group, MixtureBatches
from satunet.trainers.synthetic.voxels import VOXEL_WEIGHT, MixtureStepper
from satunet.trainers.unified.batches.batch import Batch

logger = logging.getLogger(__name__)

AVERAGED = 0.999
"""Share of the averaged weights that a step keeps, once there are enough steps."""
_ALL = 1 << 10
"""Crops that the network sees at once: all of a step."""
LOGGED, SAVED_S = 50, 60.0
"""Steps between two lines of the log, and seconds between two checkpoints."""


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
    bank: TextBank,
    *,
    device: torch.device | str = "cpu",
    seconds: float = math.inf,
    start: Mapping[str, Tensor] | None = None,
    voxels_until: float = VOXELS_UNTIL,
    averaged: float = AVERAGED,
) -> Trained:
    """Train, or go on where an earlier call stopped.

    Args:
        groups: The sources.
        space: Classes of all of them.
        network: Network to train.
        config: Steps, learning rate, precision, seed, workers.
        work: Folder of the checkpoint.
        bank: Embeddings of every wording of every class.
        device: Device to train on.
        seconds: Longest time to train. The learning rate follows the clock where the steps would take longer, so
            that it ends as it should.
        start: Weights to begin with.
        voxels_until: Share of the training in which single voxels are classified, too.
        averaged: Share of the averaged weights that a step keeps, once there are enough steps.
    """
    work.mkdir(parents=True, exist_ok=True)
    device = torch.device(device)
    torch.manual_seed(config.seed)
    model = PromptedUNet(network)
    if model.adapter is not None:
        model.adapter.fit_whitening(torch.from_numpy(bank.matrix(space.class_names)))
    if start is not None:
        model.load_state_dict(start)
    model = for_training(model, device)
    optimizer = torch.optim.AdamW(
        model.parameters(), config.learning_rate, weight_decay=config.weight_decay, fused=device.type == "cuda"
    )
    average = copy.deepcopy(model).requires_grad_(False)
    state: dict[str, Any] = {"step": 0, "seconds": 0.0, "losses": {}}
    checkpoint = work / "checkpoint.pt"
    if checkpoint.is_file():
        state |= torch.load(checkpoint, weights_only=True, map_location=device)
        model.load_state_dict(state["network"])
        average.load_state_dict(state["average"])
        optimizer.load_state_dict(state["optimizer"])
        logger.info("continuing at step %d", state["step"])
    save_record(work / "training_config.json", config)
    # A GPU paints faster than many cores; worker processes have no part in it.
    painted_on = device if not config.workers else "cpu"
    data = MixtureBatches(groups, space, bank, steps=config.steps, seed=config.seed, device=painted_on)
    stepper = MixtureStepper(model, optimizer, None, config, device, at_once=_ALL)
    model.train()
    since: dict[str, list[float]] = defaultdict(list)
    began, spent, saved = time.perf_counter(), state["seconds"], time.perf_counter()
    for step, batch in _loaded(data, state["step"], config, device):
        done = max(step / config.steps, state["seconds"] / seconds)
        stepper.voxel_weight = VOXEL_WEIGHT if done < voxels_until else 0.0
        result = stepper.take(batch, min(int(done * config.steps), config.steps - 1))
        if result.skipped:
            logger.warning("step %d was skipped, its gradients are not finite: %s", step, ", ".join(result.suspects))
        _average(average, model, min(averaged, (1 + step) / (10 + step)))
        since[data.group_of(step).name].append(result.loss)
        state["seconds"] = spent + time.perf_counter() - began
        last = step + 1 == config.steps or state["seconds"] >= seconds
        if (step + 1) % LOGGED == 0 or last:
            means = {name: round(float(np.mean(values)), 4) for name, values in sorted(since.items())}
            state["losses"][step + 1] = means
            shown = ", ".join(f"{name} {value:.3f}" for name, value in means.items())
            logger.info("step %d, %.0f s: %s", step + 1, state["seconds"], shown)
            since.clear()
        if time.perf_counter() - saved > SAVED_S or last:
            saved = time.perf_counter()
            state |= {
                "network": model.state_dict(),
                "average": average.state_dict(),
                "optimizer": optimizer.state_dict(),
                "step": step + 1,
            }
            torch.save(state, checkpoint.with_suffix(".tmp"))
            os.replace(checkpoint.with_suffix(".tmp"), checkpoint)
        if last:
            break
    return Trained(
        weights={name: value.cpu() for name, value in average.state_dict().items()},
        bank=bank,
        steps=state["step"],
        seconds=state["seconds"],
        losses=state["losses"],
    )


def _loaded(
    data: MixtureBatches, first: int, config: TrainingConfig, device: torch.device
) -> Iterator[tuple[int, Batch]]:
    """Steps and their batches, made by worker processes where there are any, or by a GPU beside its steps."""
    steps = range(first, config.steps)
    if not config.workers:
        yield from (_beside(data, steps, device) if device.type == "cuda" else ((step, data[step]) for step in steps))
        return
    loader: DataLoader[Batch] = DataLoader(
        data,  # type: ignore[arg-type]
        batch_size=None,
        sampler=steps,
        num_workers=config.workers,
        prefetch_factor=4,
        pin_memory=device.type == "cuda",
        worker_init_fn=_alone,
    )
    yield from zip(steps, loader, strict=False)


def _beside(data: MixtureBatches, steps: range, device: torch.device) -> Iterator[tuple[int, Batch]]:
    """Batches that a thread makes in a stream of its own, while the steps wait for the GPU."""
    made: queue.Queue[tuple[int, Batch] | BaseException] = queue.Queue(maxsize=3)
    ended = threading.Event()

    def make() -> None:
        stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        try:
            with torch.cuda.stream(stream):
                for step in steps:
                    batch = data[step]
                    if stream is not None:
                        stream.synchronize()
                    while not ended.is_set():
                        with contextlib.suppress(queue.Full):
                            made.put((step, batch), timeout=0.2)
                            break
                    if ended.is_set():
                        return
        except BaseException as error:  # handed over: the steps end with it
            made.put(error)

    thread = threading.Thread(target=make, daemon=True)
    thread.start()
    last: Batch | None = None
    try:
        for _ in steps:
            found = made.get()
            if isinstance(found, BaseException):
                raise found
            # The batch before lives until here: its memory belongs to the other stream, and its step is over only now.
            last = found[1]
            yield found
    finally:
        ended.set()
        thread.join()
        del last


def _alone(worker: int) -> None:
    torch.set_num_threads(1)


@torch.no_grad()
def _average(average: torch.nn.Module, model: torch.nn.Module, kept: float) -> None:
    torch._foreach_lerp_([*average.parameters()], [*model.parameters()], 1 - kept)


def text_bank(space: LabelSpace, encoder: str = "anatomy") -> TextBank:
    """Embeddings of every wording of every class."""
    return TextBank.build(load_text_encoder(encoder), [text for info in space.classes for text in text_variants(info)])
