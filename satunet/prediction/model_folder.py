"""A trained model on disk: plan, label space, text bank, weights."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from satunet.checkpoints import hash_weights, load_checkpoint, load_weights, network_weights
from satunet.datasets import MODALITIES
from satunet.errors import LabelSpaceError, ModelError, PlanError
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
        weights_hash: Hash of names, shapes and values of the weights, whatever file they came in.
        fold: Which fold's weights.
        checkpoint: Name of the file in the fold's folder.
    """

    path: Path
    plan: UnifiedPlan
    space: LabelSpace
    bank: TextBank
    network: PromptedUNet
    weights_hash: str
    fold: int | str
    checkpoint: str = "checkpoint_final.pth"

    @classmethod
    def load(
        cls, path: Path | str, *, fold: int | str | None = None, checkpoint: str = "checkpoint_final.pth"
    ) -> ModelFolder:
        """Read a result folder of the unified trainer.

        Args:
            path: The folder with ``plans.json`` and ``fold_*``.
            fold: Fold; if not given, ``all``, or the only one there.
            checkpoint: File in the fold's folder.

        Raises:
            ModelError: Something is missing, damaged, or does not belong together; nothing is loaded in part.
        """
        path = Path(path)
        if not (path / "plans.json").is_file():
            raise ModelError(f"{path}: no model here; expected is a folder with plans.json and fold_<number>")
        try:
            plan = UnifiedPlan.load(path / "plans.json")
            space = LabelSpace.load(path / "label_space.json")
        except (PlanError, LabelSpaceError) as error:
            raise ModelError(f"{path}: not a model of satunet: {error}") from error
        bank = TextBank.load(path / "text_bank.safetensors")
        _check_bank(bank, plan, path)
        chosen = fold if fold is not None else _only_fold(path)
        file = path / f"fold_{chosen}" / checkpoint
        if not file.is_file():
            raise ModelError(f"{file}: no such checkpoint; there {_available(path)}")
        weights = network_weights(load_checkpoint(file), source=file)
        network = PromptedUNet(plan.network)
        load_weights(network, weights, source=file)
        network.eval()
        network.deep_supervision = False
        return cls(
            path=path,
            plan=plan,
            space=space,
            bank=bank,
            network=network,
            weights_hash=hash_weights(weights)[:16],
            fold=chosen,
            checkpoint=checkpoint,
        )

    @property
    def modalities(self) -> tuple[str, ...]:
        """Modalities it was trained on, in the order of :data:`satunet.datasets.MODALITIES`."""
        known = {m for c in self.space.classes for m in c.modalities}
        return tuple(m for m in MODALITIES if m in known)


def _check_bank(bank: TextBank, plan: UnifiedPlan, path: Path) -> None:
    if bank.dim != plan.network.text_dim:
        raise ModelError(
            f"{path}: the text bank's embeddings have {bank.dim} values, the plan's network takes "
            f"{plan.network.text_dim}; these files are not of one model"
        )
    if bank.encoder_name != plan.text_encoder:
        raise ModelError(
            f"{path}: the text bank was made with the encoder {bank.encoder_name!r}, the plan names "
            f"{plan.text_encoder!r}; these files are not of one model"
        )


def _only_fold(path: Path) -> str:
    folds = sorted(p.name[5:] for p in path.glob("fold_*") if p.is_dir())
    if "all" in folds:
        return "all"
    if len(folds) == 1:
        return folds[0]
    raise ModelError(f"{path}: give the fold; there are {', '.join(folds) or 'none'}")


def _available(path: Path) -> str:
    found = sorted(str(p.relative_to(path)) for p in path.glob("fold_*/*.pth"))
    return f"are {', '.join(found)}" if found else "is none in this model folder; is the training finished?"
