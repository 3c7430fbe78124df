"""One step of the optimizer: loss, gradients, clipping, update; none where loss or gradients are not finite.

Several processes share a step: its loss and gradients are those that one process would get of the whole batch.
"""

from __future__ import annotations

import contextlib
import gc
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from satunet.compute import distributed
from satunet.compute.devices import autocast_for
from satunet.network.model import PromptedUNet
from satunet.trainers.config import TrainingConfig
from satunet.trainers.unified.batches.batch import Batch
from satunet.trainers.unified.loss import PromptedLoss, prompted_loss
from satunet.trainers.unified.voxels import voxel_loss
from satunet.trainers.unified.watching.statistics import StepClock


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """Result of a step.

    Attributes:
        loss: Mean over the processes.
        skipped: Whether the loss or its gradients were not finite, so that the weights are unchanged.
        suspects: Scans of a skipped step that may be the cause.
        of_query: (B, K) losses of the queries of this process.
    """

    loss: float
    skipped: bool
    suspects: list[str]
    of_query: Tensor


class Stepper:
    """Takes the steps of a training.

    Args:
        network: Network whose weights learn.
        optimizer: Optimizer of these weights.
        scaler: Scaler of float16's gradients; ``None`` in other precisions.
        config: Learning rate, clipping, precision, seed.
        device: Device of the network.
        at_once: Largest number of crops per forward pass.
        crop_voxels: Voxels of these crops; of smaller crops, more fit into a pass. If not given, the size is ignored.

    Attributes:
        clock: Seconds of the parts of the last step.
        voxel_weight: Weight of the classification of single voxels in the next steps; see
            :mod:`satunet.trainers.unified.voxels`.
        chunk_on_gpu: Queries whose logits a GPU works on at once.
    """

    voxel_weight: float = 0.0
    chunk_on_gpu: int = 32

    def __init__(
        self,
        network: PromptedUNet,
        optimizer: torch.optim.Optimizer,
        scaler: torch.GradScaler | None,
        config: TrainingConfig,
        device: torch.device,
        *,
        at_once: int,
        crop_voxels: int | None = None,
    ) -> None:
        self.network, self.optimizer, self.scaler = network, optimizer, scaler
        self.config, self.device, self.at_once = config, device, at_once
        self.crop_voxels = crop_voxels
        self.clock = StepClock(device)
        self._module: nn.Module = _Forward(network)
        if distributed.world_size() > 1:
            # DDP would wait for the gradients of unused weights, which published networks have.
            self._module = DistributedDataParallel(
                self._module,
                device_ids=[device.index] if device.type == "cuda" else None,
                find_unused_parameters=True,
            )

    def take(self, batch: Batch, step: int, data_seconds: float = 0.0) -> StepResult:
        """One optimisation step.

        Args:
            batch: Batch from the loader.
            step: Number of the step, on which learning rate and dropout depend.
            data_seconds: Time that the step waited for its batch.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.learning_rate_at(step)
        # Dropout is the same after a resume, and different in every process.
        torch.manual_seed(
            int(np.random.SeedSequence([self.config.seed, step, distributed.rank()]).generate_state(1)[0])
        )
        self.clock.start(data_seconds)
        self.optimizer.zero_grad(set_to_none=True)
        scaler = self.scaler
        own, of_query = 0.0, []
        count = self._count(batch)
        parts = [*batch.split(self._at_once(batch))]
        for number, part in enumerate(parts, start=1):
            with self._gradients_stay_here() if number < len(parts) else contextlib.nullcontext():
                share = self.voxel_weight * len(part.scans) / len(batch.scans)
                loss = self._loss(self._module, part, count, share)
                self.clock.done("forward")
                (scaler.scale(loss.total) if scaler is not None else loss.total).backward()
                self.clock.done("backward")
            own += float(loss.total.detach())
            of_query.append(loss.of_query)
        if scaler is not None:
            scaler.unscale_(self.optimizer)
        norm = torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.config.gradient_clip)
        value = distributed.total(own, self.device) / distributed.world_size()
        # float16 finds its scale by overflowing: infinite gradients of a finite loss are the scaler's to handle, unless
        # its scale is so small that it cannot be the cause.
        searching = scaler is not None and scaler.get_scale() >= 1
        skipped = not np.isfinite(value) or not (searching or bool(torch.isfinite(norm)))
        suspects: list[str] = []
        if skipped:
            # Every process comes here in the same step: the norm of the gradients is that of all.
            self.optimizer.zero_grad(set_to_none=True)
            mine = batch.scans if np.isfinite(value) or not np.isfinite(own) else ()
            suspects = [scan for part in distributed.gather(mine) for scan in part]
            if scaler is not None:
                scaler.update()  # it has looked at these gradients, and would refuse those of the next step
        elif scaler is not None:
            scaler.step(self.optimizer)
            scaler.update()
        else:
            self.optimizer.step()
        self.clock.done("optimizer")
        return StepResult(loss=value, skipped=skipped, suspects=suspects, of_query=torch.cat(of_query))

    def evaluate(self, batch: Batch) -> PromptedLoss:
        """The loss of a batch that is this process's alone, without gradients; in parts as large as a step's.

        Args:
            batch: Batch from the loader.
        """
        count = max(1.0, float(batch.valid.sum()))
        module = _Forward(self.network)
        with torch.no_grad():
            parts = [self._loss(module, part, count) for part in batch.split(self._at_once(batch))]
        return PromptedLoss(
            torch.stack([p.total for p in parts]).sum(),
            torch.cat([p.of_query for p in parts]),
            torch.cat([p.dice for p in parts]),
        )

    def _count(self, batch: Batch) -> float:
        """Divisor of the losses with which their mean over the processes is the mean over the queries of all."""
        own = float(batch.valid.sum())
        if distributed.world_size() == 1:
            return max(1.0, own)
        return max(1.0, distributed.total(own, self.device)) / distributed.world_size()

    def _at_once(self, batch: Batch) -> int:
        """Crops of this batch that the network sees at once."""
        if self.crop_voxels is None:
            return self.at_once
        return max(self.at_once, self.at_once * self.crop_voxels // batch.labels[0].numel())

    def _loss(self, module: nn.Module, batch: Batch, count: float, voxel_weight: float = 0.0) -> PromptedLoss:
        b = batch.to(self.device)
        with autocast_for(self.device, self.config.precision):
            maps, embeddings = module(b.image, b.queries, b.modality)
        # A CPU is fastest when a chunk stays in its cache.
        chunk = 16 if self.device.type == "cpu" else self.chunk_on_gpu
        masks = prompted_loss(
            maps,
            embeddings,
            b.labels,
            b.membership,
            b.valid,
            chunk=chunk,
            count=count,
            ignored=b.some_ignored,
        )
        if not voxel_weight:
            return masks
        voxels = voxel_loss(maps[0], embeddings[0], b.labels, b.membership, b.positive)
        return masks._replace(total=masks.total + voxel_weight * voxels)

    def _gradients_stay_here(self) -> contextlib.AbstractContextManager[None]:
        """Gradients of all but the last part of a batch are not sent to the other processes yet."""
        module = self._module
        return module.no_sync() if isinstance(module, DistributedDataParallel) else contextlib.nullcontext()

    def leave_processes(self) -> None:
        """Let go of DDP, before the process group ends.

        Whoever drops the last reference to the group joins its threads. DDP would do so while it holds Python's lock,
        which those threads need: now and then, a run would end but never exit.
        """
        if distributed.world_size() > 1:
            self._module = nn.Identity()
            gc.collect()


class _Forward(nn.Module):
    """Image and queries → feature maps and mask embeddings, in one call: DDP follows one ``forward`` per step."""

    def __init__(self, network: PromptedUNet) -> None:
        super().__init__()
        self.network = network

    def forward(
        self, image: Tensor, queries: Tensor, modality: Tensor
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """(B, 1, X, Y, Z), (B, K, D), (B,) → one map and one embedding per scale."""
        features = self.network.encode_image(image)
        return features.maps, self.network.decode(features, queries, modality)
