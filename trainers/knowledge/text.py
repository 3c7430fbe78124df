"""Stage 1: texts of the same concept are pulled together, and those of easily confused concepts pushed apart.

As in SAT (arXiv 2312.17183), a term is paired with its definition, and a term and relation with its tail, in a
contrastive loss in which every pair of the same concept is a positive. Unlike in SAT, batches are made of groups of
siblings, other sides and neighbouring levels.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from satunet.compute.devices import autocast_for, pick_device
from satunet.compute.distributed import process_group, rank
from satunet.errors import KnowledgeError
from satunet.jobs.files import write_json
from satunet.knowledge.concepts import read_concepts
from satunet.knowledge.tree import KnowledgeTree
from satunet.text import load_text_encoder
from satunet.trainers.knowledge import shares as distributed
from satunet.trainers.knowledge.loss import contrastive_loss
from satunet.trainers.knowledge.options import PretrainConfig
from satunet.trainers.knowledge.pairs import Batch, PairSampler
from satunet.trainers.knowledge.run import Run, measured, new_record, parameter_groups, set_learning_rate
from satunet.trainers.knowledge.tower import TextTower

MAX_SCALE = 100.0


class Temperature(nn.Module):
    """A learned factor of cosines."""

    def __init__(self, start: float) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor(1 / start).log())

    def forward(self) -> torch.Tensor:
        """The factor, at most :data:`MAX_SCALE`."""
        return self.log_scale.exp().clamp(max=MAX_SCALE)


class TextStep:
    """One optimizer step on pairs of texts; stage 2 takes it as well.

    Args:
        tower: The text encoder that learns.
        temperature: Temperature of its loss.
        sampler: Sampler of pairs.
        optimizer: Optimizer that includes tower and temperature.
        config: Settings.
    """

    def __init__(
        self,
        tower: TextTower,
        temperature: Temperature,
        sampler: PairSampler,
        optimizer: torch.optim.Optimizer,
        config: PretrainConfig,
    ) -> None:
        self.tower, self.temperature, self.sampler = tower, temperature, sampler
        self.optimizer, self.config = optimizer, config

    def __call__(self, step: int) -> float:
        """Train on the batch of a step; returns the loss."""
        batch = self.sampler(step)
        set_learning_rate(self.optimizer, self.config.learning_rate_at(step))
        seed_step(self.config.seed, step, 0)
        self.tower.train()
        with autocast_for(self.tower.device, self.config.precision):
            loss = self.loss(batch)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        distributed.sum_gradients(self.tower.parameters(), self.temperature.parameters())
        nn.utils.clip_grad_norm_([*self.tower.parameters(), *self.temperature.parameters()], 1.0)
        self.optimizer.step()
        return float(loss.detach())

    def loss(self, batch: Batch) -> torch.Tensor:
        """Loss of a batch; this process embeds its share."""
        count = len(batch.anchors)
        mine, sizes = distributed.share(count), distributed.shares(count)
        texts = [*batch.anchors[mine], *batch.positives[mine]]
        own = self.tower(texts)
        half = len(texts) // 2
        device = self.tower.device
        return contrastive_loss(
            distributed.gather(own[:half], sizes),
            distributed.gather(own[half:], sizes),
            torch.from_numpy(batch.ids).to(device),
            self.temperature(),
            torch.from_numpy(batch.ignored).to(device),
        )


def pretrain_text(
    tree: KnowledgeTree,
    output: Path,
    *,
    encoder: str = "minilm",
    config: PretrainConfig | None = None,
    device: str = "auto",
    continue_training: bool = False,
    tree_file: Path | None = None,
) -> Path:
    """Pre-train a text encoder on a tree.

    Args:
        tree: The tree.
        output: Folder for ``encoder/``, ``checkpoint.pt``, ``log.jsonl`` and ``measures.json``.
        encoder: Name of the encoder to start from.
        config: Settings.
        device: Device to compute on.
        continue_training: Whether to resume from the checkpoint in ``output``.
        tree_file: File of the knowledge tree, for the record.

    Returns:
        The encoder's folder, which :func:`satunet.text.load_text_encoder` accepts as a name.

    Raises:
        KnowledgeError: The tree has too few concepts.
        UserError: There is a checkpoint, but resuming was not asked for or the settings differ.
    """
    config = config or PretrainConfig()
    with process_group(pick_device(device)) as where:
        concepts = read_concepts(tree, held_out=config.held_out, seed=config.seed)
        sampler = PairSampler(concepts, batch=config.batch, hard=config.hard, seed=config.seed)
        if sampler.size < config.hard:
            raise KnowledgeError(f"{sampler.size} concepts to train on; at least {config.hard} are needed")
        start = load_text_encoder(encoder)
        tower = TextTower(
            start,
            frozen_layers=config.frozen_layers,
            max_tokens=config.max_tokens,
            dropout=config.dropout,
            precision=config.precision,
        ).to(where)
        temperature = Temperature(config.temperature).to(where)
        groups = [*parameter_groups(tower, config.weight_decay), *parameter_groups(temperature, 0.0)]
        optimizer = torch.optim.AdamW(groups, lr=config.learning_rate)
        record = new_record("text", start, config, tree, concepts, tree_file)
        run = Run(output, {"tower": tower, "temperature": temperature}, optimizer, record, config)
        run.begin(continue_training)
        if "before" not in record:
            record["before"] = measured(tower, concepts)
        step = TextStep(tower, temperature, sampler, optimizer, config)
        run.train(lambda number: {"loss": step(number)})
        record["after"] = measured(tower, concepts)
        if rank() == 0:
            write_json(output / "measures.json", {k: record[k] for k in ("before", "after")})
            tower.save(output / "encoder", record)
    return output / "encoder"


def seed_step(seed: int, step: int, stage: int) -> None:
    """Make dropout depend only on seed, step and process, so that a resumed run equals an uninterrupted one."""
    torch.manual_seed(hash((seed, step, stage, rank())) % 2**63)
