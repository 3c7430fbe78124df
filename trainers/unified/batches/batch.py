"""The crops and queries of one training step."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from torch import Tensor

from satunet.trainers.unified.batches.sampling import Query

_LONG_TABLE = 1 << 16
"""Label id from which a table of all ids would be too long: brain atlases have ids above 600 million."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Sample:
    """One crop and its queries.

    Attributes:
        image: (1, X, Y, Z) float32.
        labels: (X, Y, Z) label ids, :data:`~satunet.trainers.unified.loss.IGNORED` where nobody labelled.
        embeddings: (K, D) float32 embeddings of the queries' wordings.
        queries: Classes asked for, K of them.
        modality: Position in :data:`satunet.datasets.raw.MODALITIES`.
        scan: Name of the scan.
        failed: Scans that could not be read, whose place this one took.
    """

    image: Tensor
    labels: Tensor
    embeddings: NDArray[np.float32]
    queries: Sequence[Query]
    modality: int
    scan: str
    failed: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, eq=False)
class Batch:
    """Crops of one step with their queries. B crops, K queries at most, D values of an embedding, L label ids.

    Attributes:
        image: Crops.
        labels: Label ids, :data:`~satunet.trainers.unified.loss.IGNORED` where nobody labelled.
        queries: Embeddings of the queries.
        membership: Whether a label id belongs to a query.
        valid: Whether this is a query; the others fill up the batch. Stays on the CPU, so that nothing waits for a GPU.
        positive: Whether the crop shows the query's class.
        modality: Positions in :data:`satunet.datasets.raw.MODALITIES`.
        names: Classes asked for, crop by crop.
        scans: Names of the scans, crop by crop.
        failed: Scans that could not be read and were replaced.
        some_ignored: Whether any voxel is ignored; known here, so that nothing waits for a GPU.
    """

    image: Float[Tensor, "b 1 x y z"]
    labels: Int[Tensor, "b x y z"]
    queries: Float[Tensor, "b k d"]
    membership: Bool[Tensor, "b k l"]
    valid: Bool[Tensor, "b k"]
    positive: Bool[Tensor, "b k"]
    modality: Int[Tensor, " b"]
    names: tuple[tuple[str, ...], ...]
    scans: tuple[str, ...]
    failed: tuple[str, ...]
    some_ignored: bool

    @classmethod
    def of(cls, samples: Sequence[Sample]) -> Batch:
        """Stack samples; crops with fewer queries are padded with queries that are not valid."""
        count = max(len(s.queries) for s in samples)
        ids = max([0, *(int(s.labels.max()) for s in samples), *(i for s in samples for q in s.queries for i in q.ids)])
        if ids >= _LONG_TABLE:
            return cls.of([_renumbered(sample) for sample in samples])
        size = len(samples)
        queries = torch.zeros(size, count, samples[0].embeddings.shape[1])
        membership = torch.zeros(size, count, ids + 1, dtype=torch.bool)
        valid = torch.zeros(size, count, dtype=torch.bool)
        positive = torch.zeros(size, count, dtype=torch.bool)
        for b, sample in enumerate(samples):
            queries[b, : len(sample.queries)] = torch.from_numpy(sample.embeddings)
            for k, query in enumerate(sample.queries):
                membership[b, k, list(query.ids)] = True
                valid[b, k] = True
                positive[b, k] = query.positive
        labels = torch.stack([s.labels for s in samples])
        return cls(
            image=torch.stack([s.image for s in samples]),
            labels=labels,
            queries=queries,
            membership=membership,
            valid=valid,
            positive=positive,
            modality=torch.tensor([s.modality for s in samples]),
            names=tuple(tuple(q.name for q in s.queries) for s in samples),
            scans=tuple(s.scan for s in samples),
            failed=tuple(f for s in samples for f in s.failed),
            some_ignored=bool((labels < 0).any()),
        )

    def split(self, size: int) -> Iterator[Batch]:
        """Parts of at most ``size`` crops, in order."""
        if size >= len(self.scans):
            yield self
            return
        for start in range(0, len(self.scans), size):
            part = slice(start, start + size)
            labels = self.labels[part]
            yield dataclasses.replace(
                self,
                **{name: getattr(self, name)[part] for name in ("image", "queries", "membership", "valid", "positive")},
                labels=labels,
                modality=self.modality[part],
                names=self.names[part],
                scans=self.scans[part],
                some_ignored=self.some_ignored and bool((labels < 0).any()),
            )

    def to(self, device: torch.device) -> Batch:
        """The batch on a device, :attr:`valid` excepted."""
        moved: dict[str, Any] = {
            name: getattr(self, name).to(device, non_blocking=True)
            for name in ("image", "labels", "queries", "membership", "positive", "modality")
        }
        return dataclasses.replace(self, **moved)

    def pin_memory(self) -> Batch:
        """The batch in page-locked memory; called by torch's loader, before the batch goes to a GPU."""
        pinned: dict[str, Any] = {
            name: value.pin_memory()
            for name in ("image", "labels", "queries", "membership", "valid", "positive", "modality")
            if isinstance(value := getattr(self, name), Tensor)
        }
        return dataclasses.replace(self, **pinned)


def _renumbered(sample: Sample) -> Sample:
    """The sample with the ids that its crop shows numbered from 1; a class that it does not show has none."""
    shown, places = torch.unique(sample.labels, return_inverse=True)
    numbers = {int(label): place for place, label in enumerate((i for i in shown.tolist() if i > 0), start=1)}
    table = torch.tensor([numbers.get(int(label), int(label)) for label in shown.tolist()], dtype=sample.labels.dtype)
    queries = [
        dataclasses.replace(query, ids=tuple(numbers[i] for i in query.ids if i in numbers)) for query in sample.queries
    ]
    return dataclasses.replace(sample, labels=table[places], queries=queries)
