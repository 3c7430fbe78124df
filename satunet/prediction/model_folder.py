"""A trained model on disk: plan, label space, text bank, weights."""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass
from pathlib import Path

from satunet.errors import ModelError
from satunet.labels import LabelSpace
from satunet.network.model import PromptedUNet
from satunet.plan import UnifiedPlan
from satunet.text import TextBank

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, eq=False)
class ModelFolder:
    """A model, loaded.

    Attributes:
        path: The folder.
        plan: What it was trained with.
        space: Classes it knows.
        bank: Embeddings of their texts.
        network: In evaluation mode, on the CPU.
        weights_hash: Hash of the weights file.
        fold: Which fold's weights.
    """

    path: Path
    plan: UnifiedPlan
    space: LabelSpace
    bank: TextBank
    network: PromptedUNet
    weights_hash: str
    fold: int | str

    @classmethod
    def load(
        cls, path: Path, *, fold: int | str | None = None, checkpoint: str = "checkpoint_final.pth"
    ) -> ModelFolder:
        """Read a result folder of the unified trainer.

        Args:
            path: The folder with ``plans.json`` and ``fold_*``.
            fold: Fold; if not given, the only one there, or ``all``.
            checkpoint: File in the fold's folder.

        Raises:
            ModelError: Something is missing, damaged, or does not belong together; nothing is loaded in part.
        """
        from satunet.trainers.sat_trainer import load_weights, read_checkpoint

        if not (path / "plans.json").is_file():
            raise ModelError(f"{path}: no model here; expected is a folder with plans.json and fold_<number>")
        plan = UnifiedPlan.load(path / "plans.json")
        chosen = fold if fold is not None else _only_fold(path)
        file = path / f"fold_{chosen}" / checkpoint
        weights = read_checkpoint(file)["network_weights"]
        network = PromptedUNet(plan.network)
        load_weights(network, weights, str(file))
        network.eval()
        network.deep_supervision = False
        digest = hashlib.sha256()
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
        return cls(
            path=path,
            plan=plan,
            space=LabelSpace.load(path / "label_space.json"),
            bank=TextBank.load(path / "text_bank.safetensors"),
            network=network,
            weights_hash=digest.hexdigest()[:16],
            fold=chosen,
        )

    @property
    def modalities(self) -> tuple[str, ...]:
        """Modalities it was trained on."""
        return tuple(sorted({m for c in self.space.classes for m in c.modalities}))


def _only_fold(path: Path) -> str:
    folds = sorted(p.name[5:] for p in path.glob("fold_*") if p.is_dir())
    if "all" in folds:
        return "all"
    if len(folds) == 1:
        return folds[0]
    raise ModelError(f"{path}: give the fold; there are {', '.join(folds) or 'none'}")
