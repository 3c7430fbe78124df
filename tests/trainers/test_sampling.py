from __future__ import annotations

import dataclasses
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from satunet.datasets.raw import Dataset
from satunet.errors import DatasetError
from satunet.jobs.files import read_json, write_json
from satunet.jobs.records import save_record
from satunet.labels import build_label_space
from satunet.preprocessing.store.scans import file_hash
from satunet.trainers.unified.batches.batch import Sample
from satunet.trainers.unified.batches.sampling import (
    centre_of_class,
    choose_queries,
    crop_start,
    read_crop,
    sample_rng,
    scan_repeats,
    scan_weights,
)

from .helpers import config, make_trainer


def make_space():
    from pathlib import Path

    a = Dataset(id=1, name="Dataset001_A", folder=Path(), channel_names=("0",), modalities=("ct",),
                labels={"liver": (1,), "left kidney": (2,), "right kidney": (3,), "spleen": (4,)})  # fmt: skip
    b = Dataset(id=2, name="Dataset002_B", folder=Path(), channel_names=("0",), modalities=("mri",),
                labels={"stomach": (1,)})  # fmt: skip
    return build_label_space([a, b])


def test_a_scan_weighs_what_the_plan_says() -> None:
    datasets = ["a"] * 9 + ["b"] * 4 + ["c"]
    weights = scan_weights(datasets, {"a": 1 / 3, "b": 1.0, "c": 1.0, "not in this fold": 5.0})
    expected = np.array([1 / 3] * 9 + [1.0] * 4 + [1.0])
    assert np.allclose(weights, expected / expected.sum())
    with pytest.raises(DatasetError, match="no scan"):
        scan_weights([], {})
    with pytest.raises(DatasetError, match=r"dataset_weights.*b, c"):
        scan_weights(datasets, {"a": 1.0})
    for wrong in (0.0, -1.0, float("nan")):
        with pytest.raises(DatasetError, match="not negative"):
            scan_weights(datasets[:9], {"a": wrong})


def test_draws_follow_the_weights() -> None:
    weights = scan_weights(["a"] * 16 + ["b"], {"a": 1 / 4, "b": 1.0})
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


def test_repeats_of_the_published_recipe() -> None:
    assert scan_repeats(10, (50, 50, 50), (96, 96, 96), 32) == 1
    assert scan_repeats(64, (50, 50, 50), (96, 96, 96), 32) == 2
    assert scan_repeats(104, (288, 288, 288), (288, 288, 96), 32) == round(104 / 32 * 3)
    assert scan_repeats(1, (144, 96, 40), (96, 96, 96), 32) == 2  # round(1.5) is even in Python, as in SAT's code


def sample_of(scan: str) -> Sample:
    """A crop of which only the scan counts."""
    nothing = torch.zeros(1, 1, 1)
    return Sample(
        image=nothing, labels=nothing, embeddings=np.zeros((0, 1), np.float32), queries=(), modality=0, scan=scan
    )


def test_the_scans_that_training_draws_follow_the_formula(planned, monkeypatch: pytest.MonkeyPatch) -> None:
    from satunet.trainers.unified.batches.loading import StepBatches

    trainer = make_trainer(config(queries_per_scan=2, batch_size=4))
    trainer.initialize()
    scans = trainer.setup.store.scan_ids
    data = StepBatches(trainer.setup, scans, trainer.config)
    expected = {}
    for scan in scans:  # the formula, from label maps and the raw number of scans
        dataset = scan.split("__")[0]
        places = np.argwhere(np.asarray(trainer.setup.store.labels(scan)[:])[0])
        extent = places.max(0) + 1 - places.min(0)
        repeats = round(max(1, len(trainer.setup.space.classes_of(dataset)) / 2) * np.maximum(1, extent / 16).prod())
        expected[scan] = repeats / np.sqrt(sum(s.startswith(dataset) for s in scans))
    assert len({round(v, 6) for v in expected.values()}) > 1, "a formula that makes no difference tests nothing"
    monkeypatch.setattr(StepBatches, "_crop", lambda self, record, rng, patch: sample_of(record.scan))
    draws = Counter(data._sample(step, index).scan for step in range(2000) for index in range(4))
    total = sum(expected.values())
    chi_square = sum((draws[s] - 8000 * v / total) ** 2 / (8000 * v / total) for s, v in expected.items())
    assert chi_square < 30  # 99.9 % of a chi-square of 5 degrees of freedom lie below 20.5


def test_voxels_that_nobody_labelled_are_neither_target_nor_background(planned) -> None:
    from satunet.trainers.unified.batches.loading import StepBatches
    from satunet.trainers.unified.loss import IGNORED
    from satunet.trainers.unified.validation import score_scan

    trainer = make_trainer(config(augment=False, batch_size=2))
    trainer.initialize()
    scan = trainer.setup.store.scan_ids[0]
    dataset = trainer.setup.store.record(scan).dataset
    other = next(i for i in trainer.setup.store.record(scan).label_voxels)  # as if this id were "ignore"
    names = {n: i for n, i in trainer.setup.space.ids[dataset].items() if other not in i}
    space = dataclasses.replace(
        trainer.setup.space, ids=trainer.setup.space.ids | {dataset: names}, ignored={dataset: other}
    )
    setup = dataclasses.replace(trainer.setup, space=space)
    data = StepBatches(setup, [scan], trainer.config)
    batch = data[0]
    assert (batch.labels == IGNORED).any()
    assert not (batch.labels == other).any()
    counts = next(iter(score_scan(setup, trainer.network, scan, device=torch.device("cpu")).metrics.values()))
    labels = np.asarray(trainer.setup.store.labels(scan)[:])
    assert sum(counts[k] for k in ("TP", "FP", "FN", "TN")) == (labels != other).sum()


def test_what_was_read_longest_ago_leaves_the_memory_first(planned) -> None:
    from satunet.trainers.unified.batches.loading import StepBatches

    trainer = make_trainer(config())
    trainer.initialize()
    first, second, third = trainer.setup.store.scan_ids[:3]
    data = StepBatches(trainer.setup, [first, second, third], trainer.config)
    image, labels = data._arrays(first)
    data.cache_bytes = 0
    assert data._arrays(second)[0] is not data._arrays(second)[0] and list(data._cache) == [
        first
    ]  # too large: read lazily
    data._cache.clear()
    size = image.nbytes + labels.nbytes
    data.cache_bytes = 100 * size
    data._arrays(first), data._arrays(second), data._arrays(first)
    data.cache_bytes = max(8 * 5 * image.size, 2 * size + 1)
    filler = np.zeros(data.cache_bytes - 2 * size, np.uint8)
    data._cache["other"] = (filler, filler[:0])
    data._cache.move_to_end("other", last=False)
    data._arrays(third)
    assert list(data._cache) == [second, first, third]


def test_a_crop_without_a_class_is_drawn_where_somebody_looked(planned, monkeypatch: pytest.MonkeyPatch) -> None:
    from satunet.trainers.unified.batches import loading

    trainer = make_trainer(config(augment=False, foreground_share=0.0))
    trainer.initialize()
    scan = trainer.setup.store.scan_ids[0]
    dataset = trainer.setup.store.record(scan).dataset
    asked: list[str] = []
    monkeypatch.setattr(loading, "annotated_centre", lambda store, record, rng: asked.append(record.scan))
    loading.StepBatches(trainer.setup, [scan], trainer.config)[0]
    assert asked == []  # all of it is labelled
    space = dataclasses.replace(trainer.setup.space, ignored={dataset: 200})
    loading.StepBatches(dataclasses.replace(trainer.setup, space=space), [scan], trainer.config)[0]
    assert set(asked) == {scan}


def test_a_class_that_no_training_scan_shows_is_no_negative(planned, caplog: pytest.LogCaptureFixture) -> None:
    trainer = make_trainer(config(augment=False, batch_size=2, negative_share=1.0, tensorboard=False))
    trainer.initialize()
    space = trainer.setup.space
    rare = "spleen"
    folder = trainer.setup.store.folder
    manifest = read_json(folder / "manifest.json")
    for scan in trainer.setup.split.train:  # as if their patients had none
        record = trainer.setup.store.record(scan)
        voxels = {i: n for i, n in record.label_voxels.items() if i not in space.ids_of(record.dataset, rare)}
        save_record(folder / f"{scan}.json", dataclasses.replace(record, label_voxels=voxels))
        manifest["scans"][scan] = file_hash(folder / f"{scan}.json")
    write_json(folder / "manifest.json", manifest)
    trainer.on_train_start()
    asked = {n for step in range(40) for names in trainer.streams.training[step].names for n in names}
    assert asked == set(space.class_names) - {rare}
    assert f"no training scan of fold 0 shows 1 of the 6 classes, which are not trained: {rare}" in caplog.text
    validated = {n for step in range(10) for names in trainer.streams.validation[step].names for n in names}
    assert rare in validated


def test_half_of_the_crops_centre_on_a_class_and_all_show_foreground(planned) -> None:
    trainer = make_trainer(config())
    trainer.initialize()
    store, space = trainer.setup.store, trainer.setup.space
    scan = store.scan_ids[-1]
    record = trainer.setup.index.of_scans([scan])[0]
    low, high = np.array(record.foreground)
    assert (low > 0).any() or (high < record.shape).any()
    labels = np.asarray(store.labels(scan)[:])[0]
    patch = (4, 4, 4)
    names = space.classes_of(record.dataset)
    hit: Counter[str] = Counter()
    for step in range(1500):
        centre = centre_of_class(store, record, space, sample_rng(0, step, 0))
        assert centre is not None
        hit.update(n for n in names if labels[tuple(centre)] in space.ids_of(record.dataset, n))
        start = np.array(crop_start(record.shape, patch, sample_rng(1, step, 0), box=record.foreground))
        assert (start >= low).all() and (start + patch <= high).all()
    # Six classes, drawn evenly; "kidney" is hit with each of its two sides as well, and they with it by half.
    assert set(names) == {"kidney", "left kidney", "right kidney", "liver", "spleen", "stomach"}
    for name in ("liver", "spleen", "stomach"):
        assert hit[name] / 1500 == pytest.approx(1 / 6, abs=0.04)
    assert hit["kidney"] / 1500 == pytest.approx(3 / 6, abs=0.05)


@given(
    shape=st.tuples(*[st.integers(1, 40)] * 3),
    patch=st.tuples(*[st.integers(1, 30)] * 3),
    corners=st.tuples(*[st.tuples(st.integers(0, 39), st.integers(0, 39))] * 3),
    seed=st.integers(0, 100),
)
@settings(max_examples=200, deadline=None)
def test_foreground_crops_lie_in_the_box_or_around_it(shape, patch, corners, seed: int) -> None:
    low = [min(a, b, n - 1) for (a, b), n in zip(corners, shape, strict=True)]
    high = [min(max(a, b) + 1, n) for (a, b), n in zip(corners, shape, strict=True)]
    start = crop_start(shape, patch, np.random.default_rng(seed), box=(tuple(low), tuple(high)))
    for s, n, p, a, b in zip(start, shape, patch, low, high, strict=True):
        if n <= p:
            assert s <= 0 and s + p >= n
        else:
            assert 0 <= s <= n - p
            assert (a <= s and s + p <= b) if b - a >= p else (s <= a and b <= s + p)
