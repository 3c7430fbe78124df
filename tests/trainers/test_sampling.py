from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from satunet.datasets import Dataset
from satunet.errors import DatasetError
from satunet.labels import build_label_space
from satunet.trainers.sampling import choose_queries, crop_start, read_crop, sample_rng, scan_weights


class Record:
    def __init__(self, dataset: str) -> None:
        self.dataset = dataset


def make_space():
    from pathlib import Path

    a = Dataset(id=1, name="Dataset001_A", folder=Path(), channel_names=("0",), modalities=("ct",),
                labels={"liver": (1,), "left kidney": (2,), "right kidney": (3,), "spleen": (4,)})  # fmt: skip
    b = Dataset(id=2, name="Dataset002_B", folder=Path(), channel_names=("0",), modalities=("mri",),
                labels={"stomach": (1,)})  # fmt: skip
    return build_label_space([a, b])


def test_a_scan_weighs_what_the_plan_says() -> None:
    records = [Record("a")] * 9 + [Record("b")] * 4 + [Record("c")]
    weights = scan_weights(records, {"a": 1 / 3, "b": 1.0, "c": 1.0, "not in this fold": 5.0})
    expected = np.array([1 / 3] * 9 + [1.0] * 4 + [1.0])
    assert np.allclose(weights, expected / expected.sum())
    with pytest.raises(DatasetError, match="no scan"):
        scan_weights([], {})
    with pytest.raises(DatasetError, match=r"dataset_weights.*b, c"):
        scan_weights(records, {"a": 1.0})
    for wrong in (0.0, -1.0, float("nan")):
        with pytest.raises(DatasetError, match="not negative"):
            scan_weights(records[:9], {"a": wrong})


def test_draws_follow_the_weights() -> None:
    weights = scan_weights([Record("a")] * 16 + [Record("b")], {"a": 1 / 4, "b": 1.0})
    drawn = Counter(int(sample_rng(0, step, 0).choice(17, p=weights)) for step in range(4000))
    assert drawn[16] / 4000 == pytest.approx(1 / 5, abs=0.03)  # 16 · 1/4 against 1


def test_samples_depend_on_seed_step_index_and_stream_only() -> None:
    draws = {
        key: sample_rng(*key).integers(1 << 62)
        for key in [(0, 1, 2, 0), (1, 1, 2, 0), (0, 2, 2, 0), (0, 1, 3, 0), (0, 1, 2, 1)]
    }
    assert len(set(draws.values())) == 5
    assert sample_rng(0, 1, 2).integers(1 << 62) == draws[0, 1, 2, 0]


@given(
    shape=st.tuples(*[st.integers(1, 40)] * 3),
    patch=st.tuples(*[st.integers(1, 30)] * 3),
    seed=st.integers(0, 100),
    centred=st.booleans(),
)
@settings(max_examples=200, deadline=None)
def test_crops_stay_inside_or_hold_the_whole_scan(shape, patch, seed: int, centred: bool) -> None:
    rng = np.random.default_rng(seed)
    centre = np.array([rng.integers(n) for n in shape], dtype=np.int32) if centred else None
    start = crop_start(shape, patch, rng, centre)
    for s, n, p in zip(start, shape, patch, strict=True):
        assert (0 <= s <= n - p) if n > p else (s <= 0 and s + p >= n)
    if centred:
        assert all(s <= c < s + p for s, c, p in zip(start, centre, patch, strict=True))
    volume = rng.random((1, *shape))
    crop = read_crop(volume, start, patch, fill=-5)
    assert crop.shape == tuple(patch)
    inside = np.prod([min(n, p) for n, p in zip(shape, patch, strict=True)])
    assert np.count_nonzero(crop != -5) == inside


@given(st.frozensets(st.integers(1, 4)), st.integers(1, 8), st.integers(0, 1000))
@settings(max_examples=200, deadline=None)
def test_queries_are_annotated_positive_first_and_negatives_are_few(present, limit: int, seed: int) -> None:
    space = make_space()
    queries = choose_queries(space, "Dataset001_A", present, limit, 0.5, np.random.default_rng(seed))
    names = [q.name for q in queries]
    assert len(names) == len(set(names)) <= limit
    assert "stomach" not in names  # the dataset does not annotate it
    positives = [q for q in queries if q.positive]
    assert queries[: len(positives)] == positives
    assert all(present.intersection(q.ids) for q in positives)
    assert not any(present.intersection(q.ids) for q in queries[len(positives) :])
    expected = sum(
        bool(present.intersection(space.ids_of("Dataset001_A", n))) for n in space.classes_of("Dataset001_A")
    )
    assert len(positives) == min(limit, expected)
    negatives = len(queries) - len(positives)
    assert negatives <= max(1 if not positives else 0, round(0.5 * len(positives)))
    assert positives or negatives == 1


def test_every_class_of_a_full_crop_is_drawn_in_time() -> None:
    space = make_space()
    seen = {q.name for step in range(60)
            for q in choose_queries(space, "Dataset001_A", frozenset({1, 2, 3, 4}), 2, 0.5, sample_rng(0, step, 0))}  # fmt: skip
    assert seen == set(space.classes_of("Dataset001_A"))
