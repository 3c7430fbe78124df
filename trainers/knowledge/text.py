"""Stage 1: texts that mean one concept are drawn together, those of concepts easily taken for each other apart.

As SAT's (arXiv 2312.17183): term with definition, term + relation with tail, a contrastive loss in which every pair of one
concept is a positive. Different from it: batches are made of groups of siblings, other sides and neighbouring levels.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from satunet.devices import autocast_for, pick_device
from satunet.errors import KnowledgeError, ModelError, UserError
from satunet.files import atomic_path, write_json
from satunet.knowledge.concepts import Concept, read_concepts
from satunet.knowledge.retrieval import Measures, measure
from satunet.knowledge.tree import KnowledgeTree
from satunet.progress import progress_bar
from satunet.text import load_text_encoder
from satunet.trainers.knowledge import distributed
from satunet.trainers.knowledge.config import PretrainConfig
from satunet.trainers.knowledge.loss import contrastive_loss
from satunet.trainers.knowledge.pairs import Batch, PairSampler
from satunet.trainers.knowledge.tower import TextTower

logger = logging.getLogger(__name__)

MAX_SCALE = 100.0
_NO_DECAY = ("bias", "LayerNorm.weight", "layernorm.weight", "norm.weight")


class TextStep:
    """One optimizer step on pairs of texts; stage 2 takes it as well.

    Args:
        tower: The text encoder that learns.
        sampler: Of pairs.
        config: Settings.
    """

    def __init__(self, tower: TextTower, sampler: PairSampler, config: PretrainConfig) -> None:
        self.tower, self.sampler, self.config = tower, sampler, config
        self.log_scale = nn.Parameter(torch.tensor(1 / config.temperature, device=tower.device).log())
        self.optimizer = torch.optim.AdamW(
            [*_parameter_groups(tower, config.weight_decay), {"params": [self.log_scale], "weight_decay": 0.0}],
            lr=config.learning_rate,
        )

    def __call__(self, step: int) -> float:
        """Train on the batch of a step; the loss."""
        batch = self.sampler(step)
        set_learning_rate(self.optimizer, self.config.learning_rate_at(step))
        torch.manual_seed(hash((self.config.seed, step, distributed.rank())) % 2**63)
        self.tower.train()
        with autocast_for(self.tower.device):
            loss = self.loss(batch)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        distributed.sum_gradients([self.tower], [self.log_scale])
        nn.utils.clip_grad_norm_([*self.tower.parameters(), self.log_scale], 1.0)
        self.optimizer.step()
        return float(loss.detach())

    def loss(self, batch: Batch) -> torch.Tensor:
        """Loss of a batch; this process embeds its share."""
        count = len(batch.anchors)
        mine = distributed.share(count)
        texts = [*batch.anchors[mine], *batch.positives[mine]]
        own = self.tower(texts)
        half = len(texts) // 2
        anchors = distributed.gather(own[:half], count)
        positives = distributed.gather(own[half:], count)
        device = self.tower.device
        return contrastive_loss(
            anchors,
            positives,
            torch.from_numpy(batch.ids).to(device),
            self.log_scale.exp().clamp(max=MAX_SCALE),
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
        encoder: Where to start, by name.
        config: Settings.
        device: Where to compute.
        continue_training: Go on from the checkpoint in ``output``.
        tree_file: For the record.

    Returns:
        The encoder's folder; :func:`satunet.text.load_text_encoder` takes it as a name.

    Raises:
        KnowledgeError: A tree with too few concepts.
        UserError: There is a checkpoint and it is not to be gone on from, or it has other settings.
    """
    config = config or PretrainConfig()
    where = pick_device(device)
    with distributed.processes(where):
        first = distributed.rank() == 0
        concepts = read_concepts(tree, held_out=config.held_out, seed=config.seed)
        sampler = PairSampler(concepts, batch=config.batch, hard=config.hard, seed=config.seed)
        if sampler.size < config.hard:
            raise KnowledgeError(f"{sampler.size} concepts to train on; at least {config.hard} are needed")
        start = load_text_encoder(encoder)
        tower = TextTower(
            start, frozen_layers=config.frozen_layers, max_tokens=config.max_tokens, dropout=config.dropout
        ).to(where)
        step = TextStep(tower, sampler, config)
        record: dict[str, Any] = {
            "starting_point": encoder,
            "starting_point_fingerprint": start.fingerprint,
            "settings": asdict(config),
            "sources": [asdict(s) for s in tree.sources],
            "tree": None if tree_file is None else tree_file.name,
            "terms": len(tree.terms),
            "concepts": len(concepts),
            "held_out": sum(c.held_out for c in concepts),
            "torch": torch.__version__,
        }
        done = _resume(output, step, record, continue_training)
        if done == 0:
            record["before"] = _measured(tower, concepts, first)
        log = output / "log.jsonl"
        _train(step, done, config, output, log, record, first)
        record["after"] = _measured(tower, concepts, first)
        if first:
            write_json(output / "measures.json", {k: record[k] for k in ("before", "after")})
            tower.save(output / "encoder", record)
    return output / "encoder"


def _train(
    step: TextStep, done: int, config: PretrainConfig, output: Path, log: Path, record: dict[str, Any], first: bool
) -> None:
    losses: list[float] = []
    started = time.monotonic()
    spent = float(record.get("seconds", 0.0))
    with progress_bar("Pre-training", config.steps - done) as advance:
        for number in range(done, config.steps):
            losses.append(step(number))
            advance(note=f"loss {losses[-1]:.3f}")
            last = number + 1 == config.steps
            if first and (number % 10 == 9 or last):
                line = {"step": number + 1, "loss": round(sum(losses) / len(losses), 5),
                        "learning_rate": config.learning_rate_at(number)}  # fmt: skip
                with log.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(line) + "\n")
                losses.clear()
            record["seconds"] = round(spent + time.monotonic() - started, 1)
            if first and ((number + 1) % config.checkpoint_every == 0 or last):
                save_checkpoint(output / "checkpoint.pt", step, number + 1, record)


def save_checkpoint(path: Path, step: TextStep, done: int, record: dict[str, Any]) -> None:
    """Write all that is needed to go on, whole."""
    with atomic_path(path) as temporary:
        torch.save(
            {
                "steps_done": done,
                "record": record,
                "tower": step.tower.state_dict(),
                "log_scale": step.log_scale.detach(),
                "optimizer": step.optimizer.state_dict(),
            },
            temporary,
        )


def _resume(output: Path, step: TextStep, record: dict[str, Any], continue_training: bool) -> int:
    """Steps done; ``record`` takes what the checkpoint knows."""
    path = output / "checkpoint.pt"
    if not continue_training or not path.is_file():
        if path.is_file():
            raise UserError(f"{path}: there is a pre-training here; go on with --c, or take another folder")
        output.mkdir(parents=True, exist_ok=True)
        (output / "log.jsonl").unlink(missing_ok=True)
        return 0
    try:
        content = torch.load(path, map_location=step.tower.device, weights_only=True)
        before = content["record"]
        for key in ("starting_point_fingerprint", "settings", "concepts"):
            if before[key] != record[key]:
                raise UserError(f"{path}: made with {key} {before[key]!r}, now {record[key]!r}")
        step.tower.load_state_dict(content["tower"])
        step.log_scale.data.copy_(content["log_scale"])
        step.optimizer.load_state_dict(content["optimizer"])
    except (KeyError, RuntimeError, OSError, EOFError) as error:
        raise ModelError(f"{path}: cannot be gone on from ({error})") from error
    record |= {k: before[k] for k in ("before", "seconds") if k in before}
    logger.info("going on from step %d", content["steps_done"])
    return int(content["steps_done"])


def _measured(tower: TextTower, concepts: Sequence[Concept], first: bool) -> dict[str, object]:
    if not first:  # one process measures, the others wait at the next gathering
        return {}
    found: Measures = measure(tower.encode, concepts)
    logger.info(
        "synonym → term %.3f, definition → term %.3f, part → whole %.3f, side confusion %.3f (first answers, %d candidates)",
        found.synonym.recall_at_1, found.definition.recall_at_1, found.part_whole.recall_at_1, found.side_confusion,
        found.candidates,
    )  # fmt: skip
    return found.to_json()


def set_learning_rate(optimizer: torch.optim.Optimizer, value: float) -> None:
    """Of all parameters."""
    for group in optimizer.param_groups:
        group["lr"] = value


def _parameter_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Weights decay, biases and norms do not."""
    named = [(n, p) for n, p in module.named_parameters() if p.requires_grad]
    return [
        {"params": [p for n, p in named if not n.endswith(_NO_DECAY)], "weight_decay": weight_decay},
        {"params": [p for n, p in named if n.endswith(_NO_DECAY)], "weight_decay": 0.0},
    ]
