"""What a training is made of, and what stays the same from its first step to its last."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from satunet.datasets.unified import UnifiedFolder
from satunet.errors import DatasetError, ModelError, UserError
from satunet.jobs.files import read_json
from satunet.labels import LabelSpace, text_variants
from satunet.plan import UnifiedPlan
from satunet.preprocessing.store import ScanStore
from satunet.text import TextBank, load_text_encoder


@dataclass(frozen=True, kw_only=True)
class Split:
    """Scans of a fold.

    Attributes:
        train: Names of the scans to train on.
        val: Names of the scans to validate on; with fold ``all``, the same ones.
    """

    train: tuple[str, ...]
    val: tuple[str, ...]

    @property
    def held_out(self) -> tuple[str, ...]:
        """Validation scans that are not trained on: the only case of a dataset is both."""
        trained = set(self.train)
        return tuple(scan for scan in self.val if scan not in trained)

    @classmethod
    def of_fold(cls, fold: int | str, *, store: ScanStore, space: LabelSpace, file: Path) -> Split:
        """The scans of a fold that are in the store, of datasets that the label space knows.

        Args:
            fold: Number of the fold, or ``"all"`` for every scan.
            store: Preprocessed scans.
            space: The label space.
            file: ``splits_final.json``.

        Raises:
            UserError: The split has no such fold.
            DatasetError: The store has no scan of these datasets.
        """
        known = tuple(s for s in store.scan_ids if store.record(s).dataset in space.ids)
        if not known:
            raise DatasetError(f"{store.folder}: no scan of the datasets in the label space")
        if fold == "all":
            return cls(train=known, val=known)
        folds = read_json(file)
        if not isinstance(fold, int) or not 0 <= fold < len(folds):
            raise UserError(f"fold {fold!r}; the split has {len(folds)} folds, and 'all' takes every scan")
        present = set(known)
        train, val = (tuple(s for s in folds[fold][part] if s in present) for part in ("train", "val"))
        return cls(train=train, val=val)


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainingSetup:
    """What a training is made of.

    Attributes:
        plan: The unified plan.
        space: Classes of the datasets.
        bank: Embeddings of every wording of every class.
        store: Preprocessed scans.
        split: Scans of the fold.
    """

    plan: UnifiedPlan
    space: LabelSpace
    bank: TextBank
    store: ScanStore
    split: Split

    @classmethod
    def read(
        cls,
        plan: UnifiedPlan,
        fold: int | str,
        *,
        folder: UnifiedFolder | None = None,
        text_encoder: Path | None = None,
    ) -> TrainingSetup:
        """Read what planning and preprocessing left, and encode the texts.

        Args:
            plan: Unified plan, perhaps with the network and text encoder of a model that training starts from.
            fold: Number of the fold, or ``"all"``.
            text_encoder: Folder of an encoder that cannot be had by the plan's name for it.

        Raises:
            ModelError: The text encoder does not fit the plan's network.
            DatasetError: Nothing is preprocessed.
            UserError: The split has no such fold.
        """
        folder = plan.unified_folder
        space = LabelSpace.load(folder.label_space)
        store = ScanStore(folder.store)
        encoder = load_text_encoder(str(text_encoder or plan.text_encoder))
        texts = [text for info in space.classes for text in text_variants(info)]
        bank = dataclasses.replace(TextBank.build(encoder, texts), encoder_name=plan.text_encoder)
        if bank.dim != plan.network.text_dim:
            raise ModelError(
                f"the text encoder {encoder.name!r} gives {bank.dim} values, the plan's network takes "
                f"{plan.network.text_dim}"
            )
        split = Split.of_fold(fold, store=store, space=space, file=folder.splits)
        return cls(plan=plan, space=space, bank=bank, store=store, split=split)
