"""Label ids as brain atlases have them cost no memory in batches, and change nothing that is learned."""

from __future__ import annotations

import numpy as np
import torch

from satunet.trainers.unified.batches.batch import Batch, Sample
from satunet.trainers.unified.batches.sampling import Query
from satunet.trainers.unified.loss import IGNORED

LARGE = {0: 0, 1: 15_564, 2: 614_454_277, 3: 614_454_278}


def sample(seed: int, numbers: dict[int, int]) -> Sample:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, (6, 6, 6))  # id 3 is listed and not shown
    ids = np.array([numbers[n] for n in range(4)])[labels].astype(np.int32)
    ids[0, 0, :2] = IGNORED
    queries = [
        Query(name="a", ids=(numbers[1],), positive=True),
        Query(name="both", ids=(numbers[1], numbers[2], numbers[3]), positive=True),
        Query(name="absent", ids=(numbers[3],), positive=False),
    ]
    return Sample(
        image=torch.zeros(1, 6, 6, 6),
        labels=torch.from_numpy(ids),
        embeddings=rng.normal(size=(3, 8)).astype(np.float32),
        queries=queries,
        modality=0,
        scan="x",
    )


def test_large_ids_make_the_batch_that_small_ones_make() -> None:
    small = Batch.of([sample(seed, {n: n for n in range(4)}) for seed in (0, 1)])
    large = Batch.of([sample(seed, LARGE) for seed in (0, 1)])
    assert large.membership.shape[-1] <= 4
    assert torch.equal((large.labels == IGNORED), (small.labels == IGNORED))
    for b in range(2):
        for k in range(3):

            def inside(batch: Batch, b: int = b, k: int = k) -> torch.Tensor:
                ids = batch.membership[b, k].nonzero().squeeze(1)
                return torch.isin(batch.labels[b], ids) & (batch.labels[b] > 0)

            assert torch.equal(inside(large), inside(small))
    assert torch.equal(large.positive, small.positive)
