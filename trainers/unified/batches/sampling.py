"""Drawing scans, crops and queries, as a pure function of the seed, the step and the position in the batch.

Nothing here depends on the number of workers or ranks, or on what was drawn before, so a resumed run sees exactly the
samples that an uninterrupted one would have seen.

- A scan is drawn with the weight 1/sqrt(scans of its dataset) × the dataset's factor × its repeats, which are
  round(max(1, labels / queries per crop) × product over axes of max(1, foreground / patch)) (SAT, arXiv 2312.17183).
- Half of the crops are centred on a voxel of a class drawn from the scan, the others lie anywhere in the foreground,
  the box of all labels; in a scan with parts that are not labelled (nnU-Net's ``ignore``), they are centred on a
  labelled voxel, as in nnU-Net.
- Queries are the classes present in the crop, then classes that the dataset annotates and the crop does not show,
  at most half as many. A class that the dataset does not annotate is never a query, because its location is unknown.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from satunet.errors import DatasetError
from satunet.labels import LabelSpace
from satunet.preprocessing.store.index import IndexedScan
from satunet.preprocessing.store.locations import ANNOTATED, Foreground
from satunet.preprocessing.store.scans import ScanRecord, ScanStore

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Query:
    """A class asked for in a crop.

    Attributes:
        name: The class.
        ids: Label ids in the scan's dataset.
        positive: Whether the crop shows it.
    """

    name: str
    ids: tuple[int, ...]
    positive: bool


def sample_rng(seed: int, step: int, index: int, stream: int = 0) -> np.random.Generator:
    """Generator of one sample; ``stream`` keeps training and validation apart."""
    return np.random.default_rng([seed, stream, step, index])


def scan_repeats(labels: int, extent: Sequence[int], patch: Sequence[int], limit: int) -> int:
    """Number of times that a scan is listed: large scans and scans with many classes need more crops to be seen once.

    Args:
        labels: Classes that its dataset annotates.
        extent: (X, Y, Z) voxels of its foreground box.
        patch: Size of a crop.
        limit: Largest number of queries per crop.
    """
    factor = max(1.0, labels / limit)
    for n, p in zip(extent, patch, strict=True):
        factor *= max(1.0, n / p)
    return round(factor)


def scan_weights(
    datasets: Sequence[str], dataset_weights: Mapping[str, float], repeats: Sequence[int] | None = None
) -> NDArray[np.float64]:
    """Probability of each scan.

    Args:
        datasets: Dataset of each scan.
        dataset_weights: The plan's: dataset → weight of each of its scans.
        repeats: Repeats of each scan, see :func:`scan_repeats`; 1 if not given.

    Raises:
        DatasetError: No scan, or one of a dataset that the plan does not weigh.
    """
    if not datasets:
        raise DatasetError("there is no scan to train on in this fold")
    unknown = sorted(set(datasets) - set(dataset_weights))
    if unknown:
        raise DatasetError(f"the plan has no 'dataset_weights' of {', '.join(unknown)}; plan again, or add them")
    weights = np.array([dataset_weights[d] for d in datasets], dtype=np.float64)
    if not (np.isfinite(weights).all() and (weights >= 0).all() and weights.any()):
        raise DatasetError("the plan's 'dataset_weights' must be numbers that are not negative, and not all zero")
    if repeats is not None:
        weights = weights * np.asarray(repeats, dtype=np.float64)
    probabilities: NDArray[np.float64] = weights / weights.sum()
    return probabilities


def even_weights(weights: NDArray[np.float64], datasets: Sequence[str]) -> NDArray[np.float64]:
    """Probability of each scan if all datasets are drawn equally often, and the scans of each by their weights.

    Args:
        weights: Weights of the scans; a dataset whose weights are all 0 is not drawn.
        datasets: The dataset of each.
    """
    totals: dict[str, float] = {}
    for dataset, weight in zip(datasets, weights, strict=True):
        totals[dataset] = totals.get(dataset, 0.0) + float(weight)
    even = np.array([w / totals[d] if totals[d] else 0.0 for d, w in zip(datasets, weights, strict=True)])
    probabilities: NDArray[np.float64] = even / even.sum()
    return probabilities


def fitted_patch(extent: Sequence[int], largest: Sequence[int], divisor: Sequence[int]) -> tuple[int, int, int]:
    """The smallest patch that contains the scans and is divisible by the strides, up to a largest one.

    Args:
        extent: (X, Y, Z) voxels to hold.
        largest: The plan's patch.
        divisor: Factor by which the strides of the network divide a patch.
    """
    x, y, z = (min(p, -(-n // d) * d) for n, p, d in zip(extent, largest, divisor, strict=True))
    return x, y, z


def crop_start(
    shape: Sequence[int],
    patch: Sequence[int],
    rng: np.random.Generator,
    centre: NDArray[np.int32] | None = None,
    box: Foreground | None = None,
) -> tuple[int, int, int]:
    """First voxel of a crop; negative where the scan is smaller than the patch and lies centred in it.

    Args:
        shape: (X, Y, Z) of the scan.
        patch: Size of the crop.
        rng: Generator.
        centre: Voxel to centre on, as far as the scan's border allows; anywhere if not given.
        box: Box in which a crop without a centre lies, or around which it lies if the box is smaller.
    """
    start = []
    for axis, (n, p) in enumerate(zip(shape, patch, strict=True)):
        if n <= p:
            start.append(-((p - n) // 2))
        elif centre is None:
            low, high = (0, n - p) if box is None else sorted((box[0][axis], box[1][axis] - p))
            start.append(int(rng.integers(max(0, low), min(n - p, high) + 1)))
        else:
            start.append(int(np.clip(int(centre[axis]) - p // 2, 0, n - p)))
    x, y, z = start
    return x, y, z


def read_crop(array: Any, start: Sequence[int], patch: Sequence[int], fill: float = 0) -> NDArray[Any]:
    """A crop of a lazy or plain (1, X, Y, Z) array; what lies outside is ``fill``.

    Returns:
        (X, Y, Z) of the patch.
    """
    shape = array.shape[1:]
    inside = [slice(max(0, s), min(n, s + p)) for s, p, n in zip(start, patch, shape, strict=True)]
    data: NDArray[Any] = np.asarray(array[(slice(0, 1), *inside)])[0]
    if data.shape == tuple(patch):
        return data
    result: NDArray[Any] = np.full(tuple(patch), fill, dtype=data.dtype)
    place = tuple(slice(i.start - s, i.stop - s) for i, s in zip(inside, start, strict=True))
    result[place] = data
    return result


def only_shown(space: LabelSpace, shown: Mapping[str, Set[int]]) -> LabelSpace:
    """The label space without the classes that no scan shows: the names stay, no dataset annotates them any more.

    Args:
        space: The label space.
        shown: Dataset → label ids that one of its scans to train on shows.
    """
    names = {
        name
        for dataset, present in shown.items()
        for name, ids in space.ids.get(dataset, {}).items()
        if not present.isdisjoint(ids)
    }
    ids = {d: {name: i for name, i in classes.items() if name in names} for d, classes in space.ids.items()}
    return dataclasses.replace(space, ids=ids)


def choose_queries(
    space: LabelSpace,
    dataset: str,
    present: frozenset[int],
    limit: int,
    negative_share: float,
    rng: np.random.Generator,
) -> list[Query]:
    """Queries of a crop.

    Args:
        space: The label space.
        dataset: Dataset of the scan.
        present: Label ids in the crop.
        limit: Largest number of queries.
        negative_share: Largest number of negatives, as a share of the positives; one negative if there is no positive.
        rng: Generator.
    """
    positives: list[tuple[str, tuple[int, ...]]] = []
    negatives: list[tuple[str, tuple[int, ...]]] = []
    for name in space.classes_of(dataset):
        ids = space.ids_of(dataset, name)
        (positives if present.intersection(ids) else negatives).append((name, ids))
    chosen = [Query(name=n, ids=i, positive=True) for n, i in _shuffled(positives, rng)[:limit]]
    room = limit - len(chosen)
    wanted = min(room, round(negative_share * len(chosen)) if chosen else 1)
    return chosen + [Query(name=n, ids=i, positive=False) for n, i in _shuffled(negatives, rng)[:wanted]]


def centre_of_class(
    store: ScanStore, record: ScanRecord | IndexedScan, space: LabelSpace, rng: np.random.Generator
) -> NDArray[np.int32] | None:
    """A voxel of a class drawn evenly from those the scan shows; ``None`` if it shows none."""
    shown = [
        ids
        for name in space.classes_of(record.dataset)
        if (ids := [i for i in space.ids_of(record.dataset, name) if i in record.label_voxels])
    ]
    if not shown:
        return None
    ids = shown[int(rng.integers(len(shown)))]
    voxels = np.array([record.label_voxels[i] for i in ids], dtype=float)
    label = ids[int(rng.choice(len(ids), p=voxels / voxels.sum()))]
    places = store.locations(record.scan)[label]
    place: NDArray[np.int32] = places[int(rng.integers(len(places)))]
    return place


def annotated_centre(
    store: ScanStore, record: ScanRecord | IndexedScan, rng: np.random.Generator
) -> NDArray[np.int32] | None:
    """An annotated voxel of a scan with unlabelled parts; ``None`` for any other scan."""
    places = store.locations(record.scan).get(ANNOTATED)
    if places is None or not len(places):
        return None
    place: NDArray[np.int32] = places[int(rng.integers(len(places)))]
    return place


def _shuffled(items: list[Any], rng: np.random.Generator) -> list[Any]:
    return [items[i] for i in rng.permutation(len(items))]
