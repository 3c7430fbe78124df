"""Batches for the trainer: a map from step to batch, read by torch's DataLoader."""

from __future__ import annotations

import dataclasses
import logging
import math
import os
import re
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from satunet.datasets.raw import MODALITIES
from satunet.errors import DatasetError, SatunetError, UserError
from satunet.jobs.workers import is_out_of_memory
from satunet.labels import text_variants
from satunet.preprocessing.store.index import IndexedScan
from satunet.trainers.config import TrainingConfig
from satunet.trainers.unified.batches.augmentation import Augmentation
from satunet.trainers.unified.batches.batch import Batch, Sample
from satunet.trainers.unified.batches.sampling import (
    Query,
    annotated_centre,
    centre_of_class,
    choose_queries,
    crop_start,
    even_weights,
    fitted_patch,
    only_shown,
    read_crop,
    sample_rng,
    scan_repeats,
    scan_weights,
)
from satunet.trainers.unified.loss import IGNORED
from satunet.trainers.unified.setup import TrainingSetup

logger = logging.getLogger(__name__)

CACHE_BYTES = 1 << 30
"""Memory for decompressed scans in bytes, over all workers."""
_MAX_FAILURES = 20
_ORDER = 1000
"""Offset from a stream of samples to the stream of draws for a whole step."""


class StepBatches(Dataset[Batch]):
    """Step → batch, always the same one.

    Args:
        setup: Scans, classes, their embeddings and the plan.
        scans: Scans to draw from.
        config: Batch, queries, augmentation, seed.
        stream: 0 for training; validation takes 1, without augmentation and other wordings.
        rank: Rank, which decides the positions of the batch that this process fills: ``rank``, ``rank + world_size``, …
        world_size: Processes that share a batch.
        cache_bytes: Largest size of the decompressed scans that are kept.

    Raises:
        UserError: Fewer patches per batch than processes.
    """

    def __init__(
        self,
        setup: TrainingSetup,
        scans: Sequence[str],
        config: TrainingConfig,
        *,
        stream: int = 0,
        rank: int = 0,
        world_size: int = 1,
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
        self.store, self.space, self.bank, self.plan = setup.store, setup.space, setup.bank, setup.plan
        self.config = config
        self.stream = stream
        self.scans = setup.index.of_scans(scans)
        datasets = self.scans.datasets
        # A class that no scan of the fold shows would only be a negative query, and be learned as absent everywhere.
        self._asked = setup.space if stream else only_shown(setup.space, self.scans.shown())
        self.batch_size = config.batch_size or self.plan.batch_size
        self.limit = config.queries_per_scan or self.plan.queries_per_scan
        self.weights = scan_weights(datasets, self.plan.dataset_weights, self._repeats(datasets))
        if config.dataset_draws == "even":
            self.weights = even_weights(self.weights, datasets)
        self.rank, self.world_size = rank, world_size
        self.places = range(rank, self.batch_size, world_size)
        self.cache_bytes = cache_bytes
        if not self.places:
            raise UserError(
                f"{world_size} processes share batches of {self.batch_size} patches; give --batch_size {world_size} "
                "or a multiple of it (the batch size is that of all processes together)"
            )
        self.variants = {c.name: [v for v in text_variants(c) if v in self.bank] for c in self.space.classes}
        names = np.array(datasets)
        self._of_dataset = {} if config.patches == "plan" else {d: names == d for d in set(datasets)}
        self.fitted = {} if config.patches == "plan" else self._fitted_patches()
        self._augmentations: dict[tuple[int, int, int], Augmentation] = {}
        self._cache: OrderedDict[str, tuple[NDArray[Any], NDArray[Any]]] = OrderedDict()

    def __len__(self) -> int:
        return self.config.steps

    @property
    def not_asked(self) -> list[str]:
        """Classes that no query is drawn for."""
        asked = {name for classes in self._asked.ids.values() for name in classes}
        return [name for name in self.space.class_names if name not in asked]

    def __getitem__(self, step: int) -> Batch:
        if self.config.patches == "plan":
            return Batch.of([self._sample(step, index) for index in self.places])
        dataset = self._dataset_of(step)
        count = self.batch_size
        if self.config.patches == "fill":
            count = count * math.prod(self.plan.crop_size) // math.prod(self.fitted[dataset])
        return Batch.of([self._sample(step, i, dataset) for i in range(self.rank, count, self.world_size)])

    def _fitted_patches(self) -> dict[str, tuple[int, int, int]]:
        """Dataset → the smallest patch that holds its scans, up to the plan's."""
        shapes = self.scans.shapes
        return {
            d: fitted_patch(shapes[inside].max(axis=0).tolist(), self.plan.crop_size, self.plan.network.divisor)
            for d, inside in self._of_dataset.items()
        }

    def _dataset_of(self, step: int) -> str:
        """Dataset of a step whose patches fit; drawn evenly, each comes once in as many steps as there are datasets."""
        names = sorted(self.fitted)
        if self.config.dataset_draws == "even":
            turn, place = divmod(step, len(names))
            order = sample_rng(self.config.seed, turn, 0, _ORDER + self.stream).permutation(len(names))
            return names[int(order[place])]
        shares = np.array([self.weights[self._of_dataset[name]].sum() for name in names])
        return names[int(sample_rng(self.config.seed, step, 0, _ORDER + self.stream).choice(len(names), p=shares))]

    def _repeats(self, datasets: Sequence[str]) -> list[int]:
        labels = {d: len(self.space.classes_of(d)) for d in set(datasets)}
        extents = self.scans.extents.tolist()
        return [
            scan_repeats(labels[d], extent, self.plan.crop_size, self.limit)
            for d, extent in zip(datasets, extents, strict=True)
        ]

    def _sample(self, step: int, index: int, dataset: str | None = None) -> Sample:
        """A crop of a step; of any dataset if none is given."""
        rng = sample_rng(self.config.seed, step, index, self.stream)
        failed: list[str] = []
        weights, patch = self.weights, self.plan.crop_size
        if dataset is not None:
            weights, patch = np.where(self._of_dataset[dataset], weights, 0.0), self.fitted[dataset]
            weights = weights / weights.sum()
        while True:
            record = self.scans[int(rng.choice(len(self.scans), p=weights))]
            try:
                return dataclasses.replace(self._crop(record, rng, patch), failed=tuple(failed))
            except Exception as error:  # blosc2 and numpy raise many kinds on a damaged file
                if is_out_of_memory(error):  # another scan would change the training, and not help
                    raise
                failed.append(record.scan)
                logger.error("%s cannot be read (%s: %s); another scan takes its place", record.scan,
                             type(error).__name__, error)  # fmt: skip
                if len(failed) >= _MAX_FAILURES:
                    raise DatasetError(
                        f"{_MAX_FAILURES} scans in a row cannot be read, the last is {record.scan}"
                    ) from error

    def _crop(self, record: IndexedScan, rng: np.random.Generator, patch: tuple[int, int, int]) -> Sample:
        centre = None
        if rng.random() < self.config.foreground_share:
            centre = centre_of_class(self.store, record, self.space, rng)
        if centre is None and record.dataset in self.space.ignored:
            centre = annotated_centre(self.store, record, rng)
        start = crop_start(record.shape, patch, rng, centre, record.foreground)
        image_array, label_array = self._arrays(record.scan)
        image = torch.from_numpy(read_crop(image_array, start, patch).astype(np.float32))[None]
        labels = torch.from_numpy(read_crop(label_array, start, patch).astype(np.int32))[None]
        if self.config.augment and self.stream == 0:
            if patch not in self._augmentations:
                self._augmentations[patch] = Augmentation(patch)
            image, labels = self._augmentations[patch](image, labels, rng)
        if (ignored := self.space.ignored.get(record.dataset)) is not None:
            labels = labels.masked_fill(labels == ignored, IGNORED)
        present = frozenset(torch.unique(labels).tolist()) - {0, IGNORED}
        queries = choose_queries(self._asked, record.dataset, present, self.limit, self.config.negative_share, rng)
        texts = [self._wording(query, rng) for query in queries]
        return Sample(
            image=image,
            labels=labels[0],
            embeddings=self.bank.matrix(texts),
            queries=queries,
            modality=MODALITIES.index(record.modality),
            scan=record.scan,
        )

    def _wording(self, query: Query, rng: np.random.Generator) -> str:
        variants = self.variants[query.name]
        if self.stream or not self.config.text_variants or rng.random() < 0.5:
            return query.name
        return variants[int(rng.integers(len(variants)))]

    def _arrays(self, scan: str) -> tuple[Any, Any]:
        """Image and labels: decompressed and kept while there is room, lazy for scans that would fill it."""
        if scan in self._cache:
            self._cache.move_to_end(scan)
            return self._cache[scan]
        image, labels = self.store.image(scan), self.store.labels(scan)
        if 5 * int(np.prod(image.shape)) > self.cache_bytes // 8:
            return image, labels
        arrays = (np.asarray(image[:]), np.asarray(labels[:]))
        self._cache[scan] = arrays
        while sum(a.nbytes + b.nbytes for a, b in self._cache.values()) > self.cache_bytes:
            self._cache.popitem(last=False)
        return arrays


def batches(dataset: StepBatches, steps: Sequence[int], workers: int, *, pin_memory: bool = False) -> Iterator[Batch]:
    """Batches of ``steps``, in order, loaded in ``workers`` processes (0: in this one)."""
    loader: DataLoader[Batch] = DataLoader(
        dataset,
        batch_size=None,
        sampler=steps,
        num_workers=workers,
        pin_memory=pin_memory,
        prefetch_factor=2 if workers else None,
        multiprocessing_context="spawn" if workers else None,
    )
    return _told(iter(loader))  # its processes start now


def _told(loaded: Iterator[Batch]) -> Iterator[Batch]:
    """The batches; if a loading process was killed, a satunet error is raised.

    Raises:
        SatunetError: A process that loads was killed.
    """
    try:
        yield from loaded
    except RuntimeError as error:
        if not re.search(r"DataLoader worker .*(killed|exited unexpectedly)", str(error)):
            raise
        raise SatunetError(
            f"a process that loads scans has died ({str(error).splitlines()[0]:.150}); out of memory is the usual cause, "
            "in a container out of shared memory (docker run --ipc=host). Fewer processes need less (--workers); --c "
            "continues from the last epoch"
        ) from error


def worker_count(config: TrainingConfig, device: torch.device) -> int:
    """Processes that load data: as configured, or by the machine."""
    if config.workers is not None:
        return config.workers
    # Without a GPU the cores are busy with the network itself.
    share = (os.cpu_count() or 2) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return 0 if device.type == "cpu" else max(2, min(12, share - 1))
