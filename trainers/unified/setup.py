"""The constant inputs of a training: plan, label space, texts, store and split."""

from __future__ import annotations

import dataclasses
import json
import logging
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from satunet.datasets.raw import split_scan_id
from satunet.datasets.unified import UnifiedFolder
from satunet.errors import DatasetError, ModelError, UserError
from satunet.jobs.records import load_json, understanding
from satunet.labels import LabelSpace, text_variants
from satunet.models.folder import read_description
from satunet.models.results import SPLIT_FILE
from satunet.plan import UnifiedPlan
from satunet.preprocessing.store.index import ScanIndex
from satunet.preprocessing.store.scans import ScanStore, read_manifest
from satunet.text import TextBank, load_text_encoder

logger = logging.getLogger(__name__)


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
        known = tuple(s for s in store.scan_ids if split_scan_id(s)[0] in space.ids)
        if not known:
            raise DatasetError(f"{store.folder}: no scan of the datasets in the label space")
        if fold == "all":
            return cls(train=known, val=known)
        folds = load_json(file, what="a list of folds", error=DatasetError)
        if not isinstance(folds, list):
            raise DatasetError(f"{file}: must be a list of folds, each with lists of scans under 'train' and 'val'")
        if not isinstance(fold, int) or not 0 <= fold < len(folds):
            raise UserError(f"fold {fold!r}; {file} has {len(folds)} folds, and 'all' takes every scan")
        present = set(known)
        with understanding(file, "a list of folds with scans under 'train' and 'val'", DatasetError):
            train, val = (tuple(s for s in folds[fold][part] if s in present) for part in ("train", "val"))
        return cls(train=train, val=val)


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainingSetup:
    """Constant inputs of a training.

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

    @cached_property
    def index(self) -> ScanIndex:
        """Index of the store: facts about all scans, mapped into memory."""
        return ScanIndex.of(self.store)

    @classmethod
    def read(
        cls,
        plan: UnifiedPlan,
        fold: int | str,
        *,
        text_encoder: Path | None = None,
    ) -> TrainingSetup:
        """Read the results of planning and preprocessing, and encode the texts.

        Args:
            plan: Unified plan, perhaps with the network and text encoder of a model that training starts from.
            fold: Number of the fold, or ``"all"``.
            text_encoder: Folder of the text encoder to load instead of the one that the plan names.

        Raises:
            ModelError: The text encoder does not fit the plan's network.
            DatasetError: Nothing is preprocessed, or another plan was used for it.
            UserError: The split has no such fold.
        """
        folder = plan.unified_folder
        space = LabelSpace.load(folder.label_space)
        store = open_store(folder.store, plan)
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

    @classmethod
    def of_run(cls, folder: UnifiedFolder, fold: int | str) -> TrainingSetup:
        """Setup that a run was started with: its own plan, classes, texts and scans, whatever was planned since.

        Args:
            folder: The unified dataset.
            fold: Number of the fold, or ``"all"``.

        Raises:
            ModelError: A file of the result folder is missing or damaged.
            DatasetError: The scans are preprocessed with another plan now, or are gone.
        """
        plan, space, bank = read_description(folder.results)
        store = open_store(folder.store, plan)
        missing = [text for info in space.classes for text in text_variants(info) if text not in bank]
        if missing:
            raise ModelError(
                f"{folder.results}: its text bank has no embedding of {missing[0]!r}; the run cannot continue"
            )
        return cls(plan=plan, space=space, bank=bank, store=store, split=_own_split(folder.model(fold), store))


def open_store(folder: Path, plan: UnifiedPlan) -> ScanStore:
    """The preprocessed scans of a plan.

    Args:
        folder: The unified dataset's store.
        plan: The plan to train by.

    Raises:
        DatasetError: There are none, or another plan made them.
    """
    store = ScanStore(folder)
    manifest = read_manifest(store.folder)
    if manifest is not None and manifest["plan"] != plan.content_hash():
        wanted = json.loads(json.dumps(plan.preprocessing()))
        made = manifest["preprocessing"]
        other = [f"{k} {made.get(k)} instead of {v}" for k, v in wanted.items() if made.get(k) != v]
        raise DatasetError(
            f"{store.folder}: its scans were preprocessed with another plan: {'; '.join(other)}. Preprocess them with this "
            "one ('satunet preprocess'), or plan again as they were made"
        )
    return store


_SAME = (
    "configuration", "orientation", "dataset_orientation", "spacing_mm", "patch_size", "normalization", "network",
    "text_encoder", "datasets",
)  # fmt: skip


def differences(before: UnifiedPlan, now: UnifiedPlan) -> list[str]:
    """Differences of two plans that one result folder may not have, one phrase each; batch size and sampling may
    change.
    """
    found = []
    for name in _SAME:
        old, new = getattr(before, name), getattr(now, name)
        if old != new:
            brief = len(str(old)) + len(str(new)) < 100
            found.append(f"{name} {old} there, {new} now" if brief else name)
    return found


def _own_split(fold: Path, store: ScanStore) -> Split:
    """Scans that a fold was started with, as far as they are still there."""
    content = load_json(fold / SPLIT_FILE, what="the split of a training", error=ModelError)
    present = set(store.scan_ids)
    try:
        train, val = (tuple(map(str, content[part])) for part in ("train", "val"))
    except (KeyError, TypeError) as error:
        raise ModelError(f"{fold / SPLIT_FILE}: not the split of a training ({error!r})") from error
    gone = sorted({*train, *val} - present)
    if gone:
        logger.warning(
            "%s: %d scans of the run are not in %s any more, such as %s", fold, len(gone), store.folder, gone[0]
        )
    return Split(train=tuple(s for s in train if s in present), val=tuple(s for s in val if s in present))
