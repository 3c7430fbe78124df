"""A model on disk: one format for imported, trained and shipped models.

A model folder::

    model.json                its card: hash of the weights, text encoder, licence, provenance
    plans.json                the plan (nnU-Net's format)
    label_space.json          the classes it knows
    text_bank.safetensors     embeddings of their texts
    weights.safetensors       the network
    trained_scans.json        optional: digests of the scans it was trained on
    confidence.json           optional: calibration of its confidence (in a result folder: beside the weights)
    text_encoder/             optional: the encoder, if it cannot be obtained by name

A result folder of our trainer (``plans.json``, ``label_space.json``, ``text_bank.safetensors``, ``fold_*/*.pth``) is
accepted in its place; :mod:`satunet.models.writing` turns one into a model folder. A model folder can be moved and
contains no pickle; its weights are checked against their hash whenever it is loaded.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from torch import Tensor

from satunet.confidence.calibration import CONFIDENCE_FILE, Calibration
from satunet.datasets.raw import MODALITIES
from satunet.errors import LabelSpaceError, ModelError, PlanError
from satunet.jobs.fresh import content_hash
from satunet.jobs.records import from_plain, load_json, to_plain
from satunet.labels import LabelSpace
from satunet.models.checkpoints import (
    empty_network,
    hash_weights,
    load_checkpoint,
    load_weights,
    network_weights,
)
from satunet.models.shipped import resolve_model
from satunet.network.model import PromptedUNet
from satunet.plan import UnifiedPlan
from satunet.text import TEXT_ENCODER_FOLDER, TextBank, TextEncoder, load_text_encoder
from satunet.text.transformer import TransformerEncoder

logger = logging.getLogger(__name__)

MODEL_VERSION = 1
MODEL_FILE = "model.json"
WEIGHTS_FILE = "weights.safetensors"
DEFAULT_CHECKPOINT = "checkpoint_final.pth"


@dataclass(frozen=True, kw_only=True)
class ClassScore:
    """Scores of a class, on scans that the model was not trained on.

    Attributes:
        class_name: The class.
        modality: Modality of the scans.
        dsc: Mean Dice similarity coefficient.
        nsd: Mean normalised surface Dice at 1 mm.
        scans: Number of scans that show the class.
        dataset: Dataset of these scans.
        kept_out: Whether the dataset was trained on, without the patients of these scans; else none of it was.
    """

    class_name: str
    modality: str
    dsc: float
    nsd: float
    scans: int
    dataset: str
    kept_out: bool


@dataclass(frozen=True, kw_only=True)
class Source:
    """Data that a model was trained on.

    Attributes:
        name: Name of the data.
        what: Kind and amount: images with labels, or label maps from which images were synthesised.
        licence: Licence, as stated.
        address: Address of the source.
    """

    name: str
    what: str
    licence: str
    address: str


@dataclass(frozen=True, kw_only=True)
class EncoderIdentity:
    """The text encoder that made a model's embeddings.

    Attributes:
        name: Name of the model.
        fingerprint: Hash of its files.
    """

    name: str
    fingerprint: str


@dataclass(frozen=True, kw_only=True)
class ModelCard:
    """Facts about a model besides plan, classes and weights: the record in ``model.json``.

    Attributes:
        format: Format name, which distinguishes the file from other programs' ``model.json``.
        name: Name to display.
        weights_hash: :func:`~satunet.models.checkpoints.hash_weights` of the network, 64 hexadecimal digits.
        text_encoder: The text encoder.
        licence: Licence of the weights; ``None`` if it was not stated.
        fold: Fold the weights were trained on, or ``"all"``; its validation scans were not seen.
        provenance: Origin of the weights: source files with their hashes, datasets, training, date.
        scores: Scores of its classes. If there are any, the model offers only the classes that have one.
        sources: Sources that it was trained on.
        files: Name → SHA-256 of the other files of the folder; empty in older models.
    """

    RECORD_VERSION: ClassVar[int] = MODEL_VERSION

    format: Literal["satunet model"] = "satunet model"
    name: str
    weights_hash: str
    text_encoder: EncoderIdentity
    licence: str | None = None
    fold: int | str = "all"
    provenance: Mapping[str, Any] = field(default_factory=dict)
    scores: tuple[ClassScore, ...] = ()
    sources: tuple[Source, ...] = ()
    files: Mapping[str, str] = field(default_factory=dict)

    def check_files(self, folder: Path) -> None:
        """Check that the other files of the folder are those that were written with the card.

        Raises:
            ModelError: A file is missing or damaged.
        """
        for name, digest in self.files.items():
            try:
                found = content_hash(folder / Path(name).name)
            except OSError as error:
                raise ModelError(f"{folder / name}: cannot be read ({error.strerror or error})") from error
            if found != digest:
                raise ModelError(
                    f"{folder / name}: damaged: it is not the file that {MODEL_FILE} names (whoever changed it on purpose "
                    f"removes it from 'files' there)"
                )

    @classmethod
    def load(cls, path: Path) -> ModelCard:
        """Read a ``model.json``.

        Raises:
            ModelError: The file is not a model card, or is one of another version.
        """
        content = load_json(path, what="a model card", error=ModelError)
        if not isinstance(content, Mapping) or content.get("format") != "satunet model":
            found = content.get("format") if isinstance(content, Mapping) else None
            raise ModelError(f"{path}: not a satunet model: its format is {found!r}, expected 'satunet model'")
        return from_plain(content, cls, source=path, error=ModelError)


@dataclass(frozen=True, kw_only=True, eq=False)
class ModelDescription:
    """A model without its weights: its plan, classes, texts and card.

    Attributes:
        path: The folder.
        plan: Plan that it was trained with.
        space: Classes it knows.
        bank: Embeddings of their texts.
        card: Card of the model; ``None`` for a result folder.
    """

    path: Path
    plan: UnifiedPlan
    space: LabelSpace
    bank: TextBank
    card: ModelCard | None = None

    @classmethod
    def read(cls, path: Path | str) -> ModelDescription:
        """Read plan, classes and texts of a model or result folder.

        Raises:
            ModelError: Something is missing, damaged, or does not belong together.
        """
        path = resolve_model(path)
        card = _card_of(path)
        plan, space, bank = read_description(path)
        return ModelDescription(path=path, plan=plan, space=space, bank=bank, card=card)

    @property
    def modalities(self) -> tuple[str, ...]:
        """Modalities it was trained on, in the order of :data:`satunet.datasets.raw.MODALITIES`."""
        known = {m for c in self.space.classes for m in c.modalities}
        return tuple(m for m in MODALITIES if m in known)

    def text_encoder(self) -> TextEncoder:
        """The encoder for texts that are not in the bank: the folder's own if it has one, else the plan's by name.

        Raises:
            ModelError: The encoder cannot be loaded, or is not the one that made the bank.
        """
        own = self.path / TEXT_ENCODER_FOLDER
        if not own.is_dir():
            return self._encoder_by_name()
        encoder = load_text_encoder(str(own))
        if encoder.fingerprint != self.bank.encoder_fingerprint:
            raise ModelError(
                f"{own}: this text encoder ({encoder.fingerprint}) is not the one that the model's texts were encoded "
                f"with ({self.bank.encoder_fingerprint})"
            )
        return encoder

    def _encoder_by_name(self) -> TextEncoder:
        # The name comes from whoever made the model: the encoder is searched on this machine only, never downloaded.
        encoder = load_text_encoder(self.plan.text_encoder)
        if isinstance(encoder, TransformerEncoder):
            encoder.fetch = False
        return encoder


@dataclass(frozen=True, kw_only=True, eq=False)
class ModelFolder(ModelDescription):
    """A loaded model.

    Attributes:
        network: Network in evaluation mode, on the CPU.
        weights_hash: Hash of names, shapes and values of the weights, independent of the format of their file.
        fold: Fold of the weights.
        checkpoint: Name of the weights' file.
        calibration: Calibration of its confidence; ``None`` if there is none.
    """

    network: PromptedUNet
    weights_hash: str
    fold: int | str
    checkpoint: str = DEFAULT_CHECKPOINT
    calibration: Calibration | None = None

    @cached_property
    def identity(self) -> dict[str, str]:
        """Short hashes of everything that determines the model's results: weights, plan, texts, calibration."""
        plan = json.dumps(self.plan.to_nnunet(), sort_keys=True, default=str)
        texts = hashlib.sha256("\n".join(self.bank.texts).encode())
        texts.update(np.ascontiguousarray(self.bank.vectors).tobytes())
        known = {
            "weights": self.weights_hash,
            "plan": hashlib.sha256(plan.encode()).hexdigest()[:16],
            "texts": texts.hexdigest()[:16],
        }
        if self.calibration is not None:
            confidence = json.dumps(to_plain(self.calibration), sort_keys=True)
            known["confidence"] = hashlib.sha256(confidence.encode()).hexdigest()[:16]
        return known

    @classmethod
    def load(
        cls, path: Path | str, *, fold: int | str | None = None, checkpoint: str = DEFAULT_CHECKPOINT
    ) -> ModelFolder:
        """Read a model folder, or a result folder of the unified trainer.

        Args:
            path: The folder, or the name of a model that comes with satunet.
            fold: Fold of a result folder; if not given, ``all`` or the only one there.
            checkpoint: Checkpoint file in the fold's folder, for a result folder.

        Raises:
            ModelError: Something is missing, damaged, or does not belong together; nothing is loaded in part.
        """
        path = resolve_model(path)
        card = _card_of(path)
        plan, space, bank = read_description(path)
        if card is not None:
            if fold is not None and str(fold) != str(card.fold):
                raise ModelError(
                    f"{path}: this model holds the weights of fold {card.fold}, but fold {fold} was asked for"
                )
            chosen, file = card.fold, path / WEIGHTS_FILE
            weights = read_safetensors(file)
        else:
            chosen, file = checkpoint_of(path, fold=fold, checkpoint=checkpoint)
            weights = network_weights(load_checkpoint(file), source=file)
        digest = hash_weights(weights)
        if card is not None and digest != card.weights_hash:
            raise ModelError(f"{file}: the weights are not those that {MODEL_FILE} names; the file is damaged")
        network = empty_network(plan.network)
        load_weights(network, weights, source=file)
        network.eval()
        network.deep_supervision = False
        return cls(
            path=path,
            plan=plan,
            space=space,
            bank=bank,
            network=network,
            weights_hash=digest[:16],
            fold=chosen,
            checkpoint=file.name,
            card=card,
            calibration=_calibration_of(file.parent, digest[:16]),
        )


def _calibration_of(folder: Path, weights_hash: str) -> Calibration | None:
    """The calibration in the folder of the weights; ``None`` if it was made for other weights."""
    found = Calibration.load(folder)
    if found is not None and found.weights_hash != weights_hash:
        logger.warning(
            "%s: calibrated for the weights %s, these are %s; masks get no confidence",
            folder / CONFIDENCE_FILE, found.weights_hash, weights_hash,
        )  # fmt: skip
        return None
    return found


def _card_of(path: Path) -> ModelCard | None:
    """The card of a model folder, with its files checked against it; ``None`` for any other folder."""
    if not is_model_folder(path):
        return None
    card = ModelCard.load(path / MODEL_FILE)
    card.check_files(path)
    return card


def is_model_folder(path: Path) -> bool:
    """Whether this is a model folder (rather than a result folder of the trainer)."""
    return (path / MODEL_FILE).is_file()


def read_description(path: Path) -> tuple[UnifiedPlan, LabelSpace, TextBank]:
    """Plan, classes and texts of a model or result folder.

    Raises:
        ModelError: One is missing or damaged, or they do not belong to the same model.
    """
    if not (path / "plans.json").is_file():
        raise ModelError(
            f"{path}: no model here; expected a model folder ({MODEL_FILE}, plans.json, {WEIGHTS_FILE}) or a result "
            "folder with plans.json and fold_<number>"
        )
    try:
        plan = UnifiedPlan.load(path / "plans.json")
        space = LabelSpace.load(path / "label_space.json")
    except (PlanError, LabelSpaceError) as error:
        raise ModelError(f"{path}: not a model of satunet: {error}") from error
    bank = TextBank.load(path / "text_bank.safetensors")
    check_bank(bank, plan, path)
    return plan, space, bank


def read_safetensors(file: Path) -> dict[str, Tensor]:
    """Tensors of a safetensors file.

    Raises:
        ModelError: The file does not exist, or is truncated or otherwise damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(file)
    except FileNotFoundError as error:
        raise ModelError(f"{file}: no such file") from error
    except (OSError, SafetensorError, ValueError) as error:
        raise ModelError(f"{file}: truncated, or not a safetensors file ({error})") from error


def checkpoint_of(path: Path, *, fold: int | str | None, checkpoint: str) -> tuple[int | str, Path]:
    """Fold and checkpoint file of a result folder.

    Raises:
        ModelError: There is no such checkpoint, or several folds and none was chosen.
    """
    chosen = fold if fold is not None else _only_fold(path)
    file = path / f"fold_{chosen}" / checkpoint
    if not file.is_file():
        raise ModelError(f"{file}: no such checkpoint; there {_available(path)}")
    return chosen, file


def check_bank(bank: TextBank, plan: UnifiedPlan, path: Path) -> None:
    """Check that texts and plan belong to the same model.

    Raises:
        ModelError: They do not.
    """
    if bank.dim != plan.network.text_dim:
        raise ModelError(
            f"{path}: the text bank's embeddings have {bank.dim} values, the plan's network takes "
            f"{plan.network.text_dim}; these files do not belong to the same model"
        )
    if bank.encoder_name != plan.text_encoder:
        raise ModelError(
            f"{path}: the text bank was made with the encoder {bank.encoder_name!r}, the plan names "
            f"{plan.text_encoder!r}; these files do not belong to the same model"
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
