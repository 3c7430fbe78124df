"""Stage 2: the image features of a class and its text are pulled together (SAT, arXiv 2312.17183).

The image encoder is the segmentation network's own. Its feature maps are averaged over a class's mask at every stage,
concatenated and projected to the width of the text. The text is the class's name, to which an embedding of the modality
is added. Every pair of the same class in the same modality is a positive. A text step of stage 1 follows each atlas
step, so that the text encoder does not forget. The results are a text encoder, and weights of the image encoder from
which a segmentation network starts.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from satunet.compute.devices import autocast_for, pick_device
from satunet.compute.distributed import process_group, rank, world_size
from satunet.datasets.raw import MODALITIES
from satunet.datasets.unified import UnifiedFolder
from satunet.jobs.files import atomic_path, write_json
from satunet.knowledge.concepts import read_concepts
from satunet.knowledge.tree import KnowledgeTree
from satunet.labels import LabelSpace
from satunet.models.trained_scans import TRAINED_SCANS_FILE
from satunet.network.backbone import Encoder, ResidualEncoder, UNet
from satunet.network.config import NetworkConfig
from satunet.plan import UnifiedPlan
from satunet.text import TextBank, load_text_encoder
from satunet.trainers.config import TrainingConfig
from satunet.trainers.knowledge import shares as distributed
from satunet.trainers.knowledge.loss import contrastive_loss
from satunet.trainers.knowledge.options import AtlasConfig
from satunet.trainers.knowledge.pairs import PairSampler
from satunet.trainers.knowledge.run import Run, measured, new_record, parameter_groups, set_learning_rate
from satunet.trainers.knowledge.text import Temperature, TextStep, seed_step
from satunet.trainers.knowledge.tower import TextTower
from satunet.trainers.unified.batches.batch import Batch
from satunet.trainers.unified.batches.loading import StepBatches
from satunet.trainers.unified.checkpointing import scans_of
from satunet.trainers.unified.setup import Split, TrainingSetup, open_store

logger = logging.getLogger(__name__)

_MEASURED_STEPS = 8
_BACKBONE = "backbone.encoder."


class AtlasTower(nn.Module):
    """Image encoder, projection and embedding of modalities.

    Args:
        config: Settings of the segmentation network.
        text_dim: Width of the text encoder.
    """

    def __init__(self, config: NetworkConfig, text_dim: int) -> None:
        super().__init__()
        self.encoder = UNet(config).encoder  # initialised like that of the segmentation network
        width = sum(config.features_per_stage)
        self.projection = nn.Sequential(nn.Linear(width, text_dim), nn.GELU(), nn.Linear(text_dim, text_dim))
        self.modality = nn.Embedding(len(MODALITIES), text_dim)
        nn.init.normal_(self.modality.weight, std=0.02)

    def forward(self, image: Tensor, masks: Sequence[Tensor]) -> Tensor:
        """Features of classes.

        Args:
            image: (B, 1, X, Y, Z).
            masks: Masks of each scan, (N_b, X, Y, Z) of any type; no mask is empty.

        Returns:
            (N, text_dim) features of unit length, scan by scan; N is the sum of all N_b.
        """
        maps: list[Tensor] = self.encoder(image)
        pooled = [torch.cat([masked_mean(m[b], masks[b]) for m in maps], dim=1) for b in range(len(masks))]
        return nn.functional.normalize(self.projection(torch.cat(pooled)), dim=1)

    def add_modality(self, text: Tensor, modality: Tensor) -> Tensor:
        """(N, D) texts and (N,) modalities → (N, D) of unit length."""
        return nn.functional.normalize(text + self.modality(modality), dim=1)


def masked_mean(features: Tensor, masks: Tensor) -> Tensor:
    """Mean of a feature map over each mask.

    Args:
        features: (C, x, y, z) feature map, at any resolution.
        masks: (N, X, Y, Z) at full resolution; they are averaged down to that of the map, so that no class is lost.

    Returns:
        (N, C) float32.
    """
    x, y, z = features.shape[1:]
    weights = nn.functional.adaptive_avg_pool3d(masks[None].float(), (x, y, z))[0].flatten(1)
    weights = weights / weights.sum(1, keepdim=True).clamp_min(1e-12)
    return weights @ features.float().flatten(1).T


@dataclass(frozen=True, kw_only=True)
class AtlasResult:
    """Results of stage 2.

    Attributes:
        encoder: Folder of the text encoder.
        weights: Weights of the image encoder, for ``satunet train -pretrained_weights``.
    """

    encoder: Path
    weights: Path


@dataclass(frozen=True, kw_only=True, eq=False)
class _Classes:
    """Classes that a step sees: masks scan by scan, and the class of each."""

    image: Tensor
    masks: list[Tensor]
    names: list[str]
    modality: Tensor
    ids: Tensor


def pretrain_atlas(
    dataset_name: str,
    tree: KnowledgeTree,
    output: Path,
    *,
    encoder: str = "minilm",
    fold: int | str = 0,
    config: AtlasConfig | None = None,
    device: str = "auto",
    continue_training: bool = False,
    tree_file: Path | None = None,
) -> AtlasResult:
    """Pre-train text encoder and image encoder together.

    Args:
        dataset_name: Unified dataset that is planned and preprocessed.
        tree: Knowledge tree for the text steps.
        output: Folder for ``encoder/``, ``image_encoder.safetensors``, ``checkpoint.pt``, ``log.jsonl``.
        encoder: Text encoder to start from, preferably that of stage 1.
        fold: Fold whose training scans are used, never its validation scans; ``"all"`` means every scan.
        config: Settings.
        device: Device to compute on.
        continue_training: Whether to resume from the checkpoint in ``output``.
        tree_file: File of the knowledge tree, for the record.

    Raises:
        UserError: There is a checkpoint, but resuming was not asked for or the settings differ.
        PlanError, DatasetError: The dataset is not planned or not preprocessed.
    """
    config = config or AtlasConfig()
    setup = _setup(dataset_name, fold)
    space, split = setup.space, setup.split
    with process_group(pick_device(device)) as where:
        concepts = read_concepts(tree, held_out=config.held_out, seed=config.seed)
        start = load_text_encoder(encoder)
        torch.manual_seed(config.seed)
        tower = TextTower(
            start,
            frozen_layers=config.frozen_layers,
            max_tokens=config.max_tokens,
            dropout=config.dropout,
            precision=config.precision,
        ).to(where)
        atlas = AtlasTower(setup.plan.network, start.dim).to(where)
        modules: dict[str, nn.Module] = {
            "tower": tower,
            "atlas": atlas,
            "temperature": Temperature(config.temperature).to(where),
            "atlas_temperature": Temperature(config.temperature).to(where),
        }
        groups = [g for m in modules.values() for g in parameter_groups(m, config.weight_decay)]
        optimizer = torch.optim.AdamW(groups, lr=config.learning_rate)
        record = new_record("atlas", start, config, tree, concepts, tree_file)
        record |= {"dataset": dataset_name, "fold": fold, "scans": len(split.train), "classes": len(space.classes)}
        run = Run(output, modules, optimizer, record, config)
        run.begin(continue_training)
        sampler = PairSampler(concepts, batch=config.batch, hard=config.hard, seed=config.seed)
        text_step = TextStep(tower, modules["temperature"], sampler, optimizer, config)  # type: ignore[arg-type]
        step = _AtlasStep(modules, optimizer, _batches(setup, split.train, config), space, config)
        checked = _batches(setup, split.val or split.train, config, measuring=True)
        if "before" not in record:
            record["before"] = measured(tower, concepts)
            record["atlas_before"] = step.accuracy(checked)
        run.train(lambda number: {"atlas": step(number), "text": text_step(number)})
        record["after"], record["atlas_after"] = measured(tower, concepts), step.accuracy(checked)
        result = AtlasResult(encoder=output / "encoder", weights=output / "image_encoder.safetensors")
        if rank() == 0:
            keys = ("before", "after", "atlas_before", "atlas_after")
            write_json(output / "measures.json", {k: record[k] for k in keys})
            scans_of(setup).save(output / TRAINED_SCANS_FILE)  # a network that starts from these weights has seen them
            tower.save(result.encoder, record)
            _save_image_encoder(atlas.encoder, result.weights)
    return result


class _AtlasStep:
    """One optimizer step on classes of scans."""

    def __init__(
        self,
        modules: dict[str, nn.Module],
        optimizer: torch.optim.Optimizer,
        batches: StepBatches,
        space: LabelSpace,
        config: AtlasConfig,
    ) -> None:
        self.tower: TextTower = modules["tower"]  # type: ignore[assignment]
        self.atlas: AtlasTower = modules["atlas"]  # type: ignore[assignment]
        self.temperature: Temperature = modules["atlas_temperature"]  # type: ignore[assignment]
        self.optimizer, self.batches, self.space, self.config = optimizer, batches, space, config

    def __call__(self, step: int) -> float:
        """Train on the crops of a step; returns the loss."""
        seen = _classes(self.batches[step], self.space, self.tower.device)
        set_learning_rate(self.optimizer, self.config.learning_rate_at(step))
        seed_step(self.config.seed, step, 1)
        self.tower.train()
        self.atlas.train()
        device = self.tower.device
        sizes = distributed.sizes_of(len(seen.names), device)
        self.optimizer.zero_grad(set_to_none=True)
        if sum(sizes) < 2:
            return 0.0  # the crops of this step show at most one class, which has no negatives
        ids = distributed.gather(seen.ids, sizes)
        with autocast_for(device, self.config.precision):
            visual = self.atlas(seen.image, seen.masks) if seen.names else self._nothing()
            text = self.atlas.add_modality(self.tower(seen.names), seen.modality) if seen.names else self._nothing()
        loss = contrastive_loss(
            distributed.gather(visual, sizes), distributed.gather(text, sizes), ids, self.temperature()
        )
        loss.backward()
        learned = [*self.tower.parameters(), *self.atlas.parameters()]
        distributed.sum_gradients(learned, self.temperature.parameters())
        nn.utils.clip_grad_norm_([*learned, *self.temperature.parameters()], 1.0)
        self.optimizer.step()
        return float(loss.detach())

    def _nothing(self) -> Tensor:
        return torch.zeros(0, self.atlas.modality.embedding_dim, device=self.tower.device)

    @torch.no_grad()
    def accuracy(self, batches: StepBatches) -> dict[str, object]:
        """Share of classes in unseen crops whose nearest text, of all classes in that modality, is their own."""
        if rank() != 0:
            return {}
        self.atlas.eval()
        device = self.tower.device
        names = list(self.space.class_names)
        texts = torch.from_numpy(self.tower.encode(names)).to(device)
        right: list[bool] = []
        for step in range(_MEASURED_STEPS):
            seen = _classes(batches[step], self.space, device)
            if not seen.names:
                continue
            with autocast_for(device, self.config.precision):
                visual = self.atlas(seen.image, seen.masks).float()
            for feature, name, modality in zip(visual, seen.names, seen.modality, strict=True):
                candidates = self.atlas.add_modality(texts, modality.expand(len(names)))
                right.append(names[int((candidates @ feature).argmax())] == name)
        self.atlas.train()
        return {"classes_seen": len(right), "first_answer_right": float(np.mean(right)) if right else None}


def _classes(batch: Batch, space: LabelSpace, device: torch.device) -> _Classes:
    """Masks of the classes that crops show, as the loader drew them."""
    masks: list[Tensor] = []
    names: list[str] = []
    modality: list[int] = []
    kept: list[int] = []
    for b, drawn in enumerate(batch.names):
        shown = [k for k in range(len(drawn)) if batch.positive[b, k]]
        found = batch.membership[b, shown][:, batch.labels[b].long()]  # (n, X, Y, Z)
        present = found.flatten(1).any(1) if shown else torch.zeros(0, dtype=torch.bool)
        if not bool(present.any()):
            continue
        kept.append(b)
        masks.append(found[present].to(device))
        names += [drawn[k] for k, there in zip(shown, present, strict=True) if there]
        modality += [int(batch.modality[b])] * int(present.sum())
    ids = [space.index(n) * len(MODALITIES) + m for n, m in zip(names, modality, strict=True)]
    return _Classes(
        image=batch.image[kept].to(device),
        masks=masks,
        names=names,
        modality=torch.tensor(modality, dtype=torch.long, device=device),
        ids=torch.tensor(ids, dtype=torch.long, device=device),
    )


def _batches(
    setup: TrainingSetup, scans: Sequence[str], config: AtlasConfig, *, measuring: bool = False
) -> StepBatches:
    """Batches of crops, drawn as by the segmentation trainer."""
    given = TrainingConfig.from_recipe("sat", steps=config.steps, batch_size=config.scans, seed=config.seed)
    if measuring:  # done by one process, which takes whole batches
        return StepBatches(setup, scans, given, stream=1)
    return StepBatches(setup, scans, given, rank=rank(), world_size=world_size())


def _setup(dataset_name: str, fold: int | str) -> TrainingSetup:
    """Setup of the segmentation trainer without its embeddings: texts are encoded anew in every step."""
    unified = UnifiedFolder(name=dataset_name)
    plan = UnifiedPlan.load(unified.plan)
    space = LabelSpace.load(unified.label_space)
    store = open_store(unified.store, plan)
    split = Split.of_fold(fold, store=store, space=space, file=unified.splits)
    names = space.class_names
    bank = TextBank(
        encoder_name="none", encoder_fingerprint="none", texts=names, vectors=np.zeros((len(names), 1), np.float32)
    )
    return TrainingSetup(plan=plan, space=space, bank=bank, store=store, split=split)


def _save_image_encoder(encoder: Encoder | ResidualEncoder, path: Path) -> None:
    """Save the image encoder, with the names that its weights have in the segmentation network."""
    from safetensors.torch import save

    weights = {f"{_BACKBONE}{k}": v.detach().cpu().contiguous() for k, v in encoder.state_dict().items()}
    with atomic_path(path) as temporary:
        temporary.write_bytes(save(weights))
