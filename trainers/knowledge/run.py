"""Code that both stages share: checkpoints, resuming, logs, measures, the record."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from satunet.compute.distributed import rank
from satunet.errors import ModelError, UserError
from satunet.jobs.files import atomic_path
from satunet.jobs.progress import progress_bar
from satunet.knowledge.concepts import Concept
from satunet.knowledge.retrieval import measure
from satunet.knowledge.tree import KnowledgeTree
from satunet.text import TextEncoder
from satunet.trainers.knowledge.options import PretrainConfig
from satunet.trainers.knowledge.tower import TextTower

logger = logging.getLogger(__name__)

_LOG_EVERY = 10
_MUST_MATCH = ("stage", "starting_point_fingerprint", "settings", "concepts")


def new_record(
    stage: str,
    encoder: TextEncoder,
    config: PretrainConfig,
    tree: KnowledgeTree,
    concepts: Sequence[Concept],
    tree_file: Path | None,
) -> dict[str, Any]:
    """Record of what an encoder was trained from; it is saved beside the weights."""
    return {
        "stage": stage,
        "starting_point": encoder.name,
        "starting_point_fingerprint": encoder.fingerprint,
        "settings": asdict(config),
        "sources": [asdict(s) for s in tree.sources],
        "tree": None if tree_file is None else tree_file.name,
        "terms": len(tree.terms),
        "concepts": len(concepts),
        "held_out": sum(c.held_out for c in concepts),
        "torch": str(torch.__version__),
    }


class Run:
    """One pre-training in one folder.

    Args:
        output: The folder.
        modules: Name → module that learns; together they are the state of the run.
        optimizer: Optimizer of all parameters.
        record: Record of what the run was made from; its seconds are added at the end.
        config: Settings.
    """

    def __init__(
        self,
        output: Path,
        modules: dict[str, nn.Module],
        optimizer: torch.optim.Optimizer,
        record: dict[str, Any],
        config: PretrainConfig,
    ) -> None:
        self.output, self.modules, self.optimizer = output, modules, optimizer
        self.record, self.config = record, config
        self.done = 0

    def begin(self, continue_training: bool) -> None:
        """Start anew, or resume from the checkpoint.

        Raises:
            UserError: There is a checkpoint, but resuming was not asked for or the settings differ.
            ModelError: The checkpoint is damaged.
        """
        path = self.output / "checkpoint.pt"
        if not path.is_file():
            self.output.mkdir(parents=True, exist_ok=True)
            if rank() == 0:
                (self.output / "log.jsonl").unlink(missing_ok=True)
            return
        if not continue_training:
            raise UserError(f"{path}: there is a pre-training here; continue with --c, or take another folder")
        try:
            content = torch.load(path, map_location="cpu", weights_only=True)
            before = content["record"]
            for key in _MUST_MATCH:
                if before[key] != self.record[key]:
                    raise UserError(f"{path}: made with {key} {before[key]!r}, now {self.record[key]!r}")
            for name, module in self.modules.items():
                module.load_state_dict(content["modules"][name])
            self.optimizer.load_state_dict(content["optimizer"])
            self.done = int(content["steps_done"])
        except UserError:
            raise
        except Exception as error:  # zip, pickle and torch raise many kinds on a damaged file
            raise ModelError(f"{path}: cannot be continued from ({type(error).__name__}: {error})") from error
        self.record |= {k: before[k] for k in ("before", "atlas_before", "seconds") if k in before}
        logger.info("continuing from step %d", self.done)

    def train(self, step: Callable[[int], dict[str, float]]) -> None:
        """Take all remaining steps; ``step`` returns losses by name."""
        losses: list[dict[str, float]] = []
        started, spent = time.monotonic(), float(self.record.get("seconds", 0.0))
        with progress_bar("Pre-training", self.config.steps - self.done) as advance:
            for number in range(self.done, self.config.steps):
                losses.append(step(number))
                advance(note=", ".join(f"{k} {v:.3f}" for k, v in losses[-1].items()))
                last = number + 1 == self.config.steps
                self.record["seconds"] = round(spent + time.monotonic() - started, 1)
                if (number + 1) % _LOG_EVERY == 0 or last:
                    self._log(number + 1, losses)
                    losses.clear()
                if (number + 1) % self.config.checkpoint_every == 0 or last:
                    self.done = number + 1
                    self._save()

    def _log(self, done: int, losses: list[dict[str, float]]) -> None:
        if rank() == 0:
            means = {k: round(sum(each[k] for each in losses) / len(losses), 5) for k in losses[0]}
            line = {"step": done, **means, "learning_rate": self.config.learning_rate_at(done - 1)}
            with (self.output / "log.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")

    def _save(self) -> None:
        if rank() != 0:
            return
        with atomic_path(self.output / "checkpoint.pt") as temporary:
            torch.save(
                {
                    "steps_done": self.done,
                    "record": self.record,
                    "modules": {name: module.state_dict() for name, module in self.modules.items()},
                    "optimizer": self.optimizer.state_dict(),
                },
                temporary,
            )


def measured(tower: TextTower, concepts: Sequence[Concept]) -> dict[str, object]:
    """The four measures; one process computes them, and the others wait at the next gathering."""
    if rank() != 0:
        return {}
    found = measure(tower.encode, concepts)
    logger.info(
        "first answers right, of %d candidates: synonym → term %.3f, definition → term %.3f, part → whole %.3f; side "
        "confusion %.3f", found.candidates, found.synonym.recall_at_1, found.definition.recall_at_1,
        found.part_whole.recall_at_1, found.side_confusion,
    )  # fmt: skip
    return found.rounded()


def set_learning_rate(optimizer: torch.optim.Optimizer, value: float) -> None:
    """Set the learning rate of all parameters."""
    for group in optimizer.param_groups:
        group["lr"] = value


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Groups with weight decay (matrices, convolutions) and without (biases, norms, temperatures)."""
    learned = [p for p in module.parameters() if p.requires_grad]
    return [
        {"params": [p for p in learned if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in learned if p.ndim < 2], "weight_decay": 0.0},
    ]
