"""What a batch is made of, how it is shared, and the recipe of augmentation."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from satunet.errors import DatasetError, UserError
from satunet.trainers.unified.batches import batch as batch_module
from satunet.trainers.unified.batches.augmentation import Augmentation
from satunet.trainers.unified.batches.batch import Batch, Sample
from satunet.trainers.unified.batches.sampling import Query, annotated_centre, crop_start, only_shown, read_crop
from satunet.trainers.unified.loss import IGNORED

from .helpers import config, make_trainer


def make_sample(
    number: int, ids: list[tuple[int, ...]], labels: torch.Tensor | None = None, failed: tuple[str, ...] = ()
) -> Sample:
    generator = torch.Generator().manual_seed(number)
    shown = torch.randint(0, 4, (3, 4, 5), generator=generator, dtype=torch.int32) if labels is None else labels
    queries = [Query(name=f"c{i}", ids=i, positive=bool(torch.isin(shown, torch.tensor(i)).any())) for i in ids]
    return Sample(
        image=torch.rand(1, 3, 4, 5, generator=generator),
        labels=shown,
        embeddings=np.random.default_rng(number).normal(size=(len(ids), 6)).astype(np.float32),
        queries=queries,
        modality=number % 3,
        scan=f"scan{number}",
        failed=failed,
    )


def samples() -> list[Sample]:
    return [
        make_sample(0, [(1,), (2, 3)]),
        make_sample(1, [(3,)], failed=("broken",)),
        make_sample(2, [(1, 2, 3), (9,), (2,)]),
    ]


def assert_is_of(batch: Batch, made: list[Sample]) -> None:
    """Every value of a batch, from the samples it is of."""
    assert batch.scans == tuple(s.scan for s in made)
    assert batch.names == tuple(tuple(q.name for q in s.queries) for s in made)
    assert batch.modality.tolist() == [s.modality for s in made]
    for b, sample in enumerate(made):
        n = len(sample.queries)
        assert torch.equal(batch.image[b], sample.image)
        assert torch.equal(batch.labels[b], sample.labels)
        assert batch.valid[b].tolist() == [k < n for k in range(batch.valid.shape[1])]
        assert batch.valid.dtype == batch.positive.dtype == batch.membership.dtype == torch.bool
        np.testing.assert_array_equal(batch.queries[b, :n], sample.embeddings)
        assert not batch.queries[b, n:].any()
        for k, query in enumerate(sample.queries):
            assert batch.membership[b, k].nonzero().flatten().tolist() == sorted(query.ids)
            assert bool(batch.positive[b, k]) == query.positive
        assert not batch.membership[b, n:].any()


def test_a_batch_is_its_samples_side_by_side() -> None:
    batch = Batch.of(samples())
    assert_is_of(batch, samples())
    assert batch.failed == ("broken",)
    assert batch.membership.shape[2] == 10  # ids 0 to 9
    assert not batch.some_ignored


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_parts_of_a_batch_are_batches_of_its_samples(size: int) -> None:
    made = samples()
    made[2] = make_sample(2, [(1, 2, 3), (9,), (2,)], labels=torch.full((3, 4, 5), IGNORED, dtype=torch.int32))
    parts = list(Batch.of(made).split(size))
    assert [len(part.scans) for part in parts] == [len(made[i : i + size]) for i in range(0, 3, size)]
    for start, part in zip(range(0, 3, size), parts, strict=True):
        assert_is_of(part, made[start : start + size])
        assert part.some_ignored == any(bool((s.labels < 0).any()) for s in made[start : start + size])


def test_a_batch_moves_whole_but_for_what_the_cpu_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = Batch.of(samples())
    moved = batch.to(torch.device("meta"))
    for name in ("image", "labels", "queries", "membership", "positive", "modality"):
        assert getattr(moved, name).device.type == "meta", name
    assert moved.valid is batch.valid
    assert (moved.scans, moved.names) == (batch.scans, batch.names)
    pinned: list[int] = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: (pinned.append(id(self)), self.clone())[1])
    result = batch.pin_memory()
    names = ("image", "labels", "queries", "membership", "valid", "positive", "modality")
    assert pinned == [id(getattr(batch, name)) for name in names]
    assert_is_of(result, samples())
    assert all(getattr(result, name) is not getattr(batch, name) for name in names)


def test_huge_ids_are_renumbered_without_a_change_of_what_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    labels = torch.tensor([0, 1, 1, 700_000, 700_001, IGNORED], dtype=torch.int32).reshape(1, 2, 3)
    ids: list[tuple[int, ...]] = [(1,), (700_000, 700_001), (700_001, 5)]
    batch = Batch.of([make_sample(0, ids, labels)])
    assert batch.labels.dtype == torch.int32
    assert batch.membership.shape[2] <= 4
    assert batch.some_ignored
    assert torch.equal(batch.labels == IGNORED, (labels == IGNORED)[None])
    assert torch.equal(batch.labels == 0, (labels == 0)[None])
    inside = batch.labels.clamp_min(0)[0].long()
    for k, own in enumerate(ids):
        shown = batch.membership[0, k][inside] & (batch.labels[0] >= 0)
        assert torch.equal(shown, torch.isin(labels, torch.tensor(own))), own
    monkeypatch.setattr(batch_module, "_LONG_TABLE", 5)
    small = Batch.of(samples())
    for b, sample in enumerate(samples()):
        for k, query in enumerate(sample.queries):
            shown = small.membership[b, k][small.labels[b].long()]
            assert torch.equal(shown, torch.isin(sample.labels, torch.tensor(query.ids)))


def test_crops_of_many_channels_take_the_first() -> None:
    array = np.arange(2 * 5 * 6 * 7).reshape(2, 5, 6, 7)
    np.testing.assert_array_equal(read_crop(array, (1, 2, 3), (2, 2, 2)), array[0, 1:3, 2:4, 3:5])
    crop = read_crop(array, (-1, 0, 5), (3, 2, 4), fill=-9)
    np.testing.assert_array_equal(crop[1:, :, :2], array[0, :2, :2, 5:7])
    assert (crop[0] == -9).all() and (crop[:, :, 2:] == -9).all()


class Scan:
    """What a record says, as far as it is asked here."""

    def __init__(self, label_voxels: dict[int, int], dataset: str = "a", shape: tuple[int, ...] = (9, 9, 9)) -> None:
        self.label_voxels, self.dataset, self.shape, self.scan = label_voxels, dataset, shape, "scan"


def test_the_box_of_the_foreground() -> None:
    from satunet.preprocessing.store.locations import ANNOTATED, foreground_box

    places = {1: np.array([[2, 3, 4], [5, 3, 1]], np.int32), 2: np.array([[0, 8, 2]], np.int32)}
    assert foreground_box((9, 9, 9), places) == ((0, 3, 1), (6, 9, 5))
    more = places | {ANNOTATED: np.array([[8, 0, 8]], np.int32), 7: np.zeros((0, 3), np.int32)}
    assert foreground_box((9, 9, 9), more) == ((0, 3, 1), (6, 9, 5))
    nothing = {ANNOTATED: np.array([[8, 0, 8]], np.int32)}
    assert foreground_box((9, 9, 9), nothing) == ((0, 0, 0), (9, 9, 9))


def test_where_somebody_looked() -> None:
    from satunet.preprocessing.store.locations import ANNOTATED

    class Store:
        def __init__(self, places: dict[int, Any]) -> None:
            self.places = places

        def locations(self, scan: str) -> dict[int, Any]:
            assert scan == "scan"
            return self.places

    places = np.array([[1, 2, 3], [4, 5, 6], [7, 8, 9]], np.int32)
    rng = np.random.default_rng(0)
    store: Any = Store({1: places + 1, ANNOTATED: places})
    found = {tuple(annotated_centre(store, Scan({}), rng)) for _ in range(60)}  # type: ignore[arg-type]
    assert found == set(map(tuple, places.tolist()))
    for nothing in ({1: places}, {ANNOTATED: places[:0]}):
        other: Any = Store(nothing)
        assert annotated_centre(other, Scan({}), rng) is None  # type: ignore[arg-type]


def test_classes_that_no_scan_shows_are_not_asked() -> None:
    from .test_sampling import make_space

    space = make_space()
    shown = only_shown(space, {"Dataset001_A": {1, 3}, "Dataset777_Unknown": {2}})
    assert set(shown.classes_of("Dataset001_A")) == {"liver", "kidney", "right kidney"}
    assert shown.classes_of("Dataset002_B") == ()
    assert shown.class_names == space.class_names


def test_a_store_of_scans_that_cannot_be_read_ends_the_training(planned: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from satunet.trainers.unified.batches import loading

    trainer = make_trainer(config(batch_size=2))
    trainer.initialize()
    scans = trainer.setup.store.scan_ids

    def broken(self: Any, record: Any, *_: Any) -> Any:
        calls.append(record.scan)
        raise OSError("torn")

    calls: list[str] = []
    data = loading.StepBatches(trainer.setup, scans, trainer.config)
    monkeypatch.setattr(loading.StepBatches, "_crop", broken)
    with pytest.raises(DatasetError, match="20 scans in a row cannot be read"):
        data[0]
    assert len(calls) == 20


def test_no_scan_takes_the_place_of_one_for_which_memory_is_missing(
    planned: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from satunet.trainers.unified.batches import loading

    trainer = make_trainer(config(batch_size=2))
    trainer.initialize()

    def starved(*_: Any) -> Any:
        calls.append(1)
        raise MemoryError

    calls: list[int] = []
    data = loading.StepBatches(trainer.setup, trainer.setup.store.scan_ids, trainer.config)
    monkeypatch.setattr(loading.StepBatches, "_crop", starved)
    with pytest.raises(MemoryError):
        data[0]
    assert len(calls) == 1


def test_what_each_process_loads(planned: Any) -> None:
    from satunet.trainers.unified.batches.loading import StepBatches

    trainer = make_trainer(config(batch_size=None))
    trainer.initialize()
    scans = trainer.setup.store.scan_ids
    whole = StepBatches(trainer.setup, scans, trainer.config)
    assert whole.batch_size == trainer.setup.plan.batch_size > 0
    three = make_trainer(config(batch_size=3, queries_per_scan=5)).config
    shares = [StepBatches(trainer.setup, scans, three, rank=r, world_size=2) for r in range(2)]
    assert [list(s.places) for s in shares] == [[0, 2], [1]]
    assert [s.limit for s in shares] == [5, 5]
    together = StepBatches(trainer.setup, scans, three)[4]
    for share in shares:
        own = share[4]
        for b, place in enumerate(share.places):
            assert own.scans[b] == together.scans[place]
            assert torch.equal(own.image[b], together.image[place])
    with pytest.raises(UserError, match="4 processes share batches of 3"):
        StepBatches(trainer.setup, scans, three, rank=3, world_size=4)


def test_validation_is_neither_augmented_nor_reworded(planned: Any) -> None:
    from satunet.trainers.unified.batches.loading import StepBatches

    trainer = make_trainer(config(batch_size=2, augment=True))
    trainer.initialize()
    scans = trainer.setup.store.scan_ids
    validation = StepBatches(trainer.setup, scans, trainer.config, stream=1)
    vectors = trainer.setup.bank.matrix(list(trainer.setup.space.class_names))
    by_name = dict(zip(trainer.setup.space.class_names, vectors, strict=True))
    for step in range(6):
        batch = validation[step]
        for b, scan in enumerate(batch.scans):
            stored = np.asarray(trainer.setup.store.image(scan)[:])[0]
            values = batch.image[b, 0].numpy()
            assert np.isin(values[values != 0], stored).all(), "voxels as they are stored, around them 0"
            for k, name in enumerate(batch.names[b]):
                np.testing.assert_array_equal(batch.queries[b, k], by_name[name])


def test_the_recipe_of_augmentation_is_sats() -> None:
    """Each transform with its published chance and range, and none besides: SAT's data loader in its paper's code."""
    parts = Augmentation((8, 8, 8))._transform.transforms
    spatial, *others = parts
    assert spatial.patch_size == (8, 8, 8)
    assert (spatial.p_rotation, spatial.p_elastic_deform, spatial.p_scaling) == (0, 0, 0.2)
    assert tuple(spatial.scaling) == (0.7, 1.4)
    assert spatial.p_synchronize_scaling_across_axes == 1
    assert spatial.random_crop is False
    assert spatial.patch_center_dist_from_border == [0, 0, 0]
    assert spatial.bg_style_seg_sampling is False
    names = [type(p.transform).__name__ for p in others]
    assert [(n, p.apply_probability) for n, p in zip(names, others, strict=True)] == [
        ("GaussianNoiseTransform", 0.1),
        ("Sharpening", 0.2),
        ("MultiplicativeBrightnessTransform", 0.15),
        ("GammaTransform", 0.1),
        ("GammaTransform", 0.3),
    ]
    noise, sharpening, brightness, inverted, gamma = (p.transform for p in others)
    assert (noise.noise_variance, noise.p_per_channel, noise.synchronize_channels) == ((0, 0.1), 1, True)
    assert sharpening.strength == (0.1, 1.0)
    assert sharpening.p_per_channel == sharpening.p_same_for_each_channel == 1
    assert brightness.p_per_channel == 1
    assert tuple(brightness.multiplier_range.contrast_range) == (0.75, 1.25)
    assert (inverted.p_invert_image, gamma.p_invert_image) == (1, 0)
    for each in (inverted, gamma):
        assert tuple(each.gamma.contrast_range) == (0.7, 1.5)
        assert each.p_retain_stats == each.p_per_channel == 1


@pytest.mark.parametrize("shape", [(9, 7, 1), (9, 1, 7), (1, 9, 7), (1, 1, 9), (6, 5, 4)])
def test_sharpening_adds_a_laplacian_whatever_the_shape(shape: tuple[int, int, int]) -> None:
    from scipy.ndimage import laplace

    from satunet.trainers.unified.batches.sharpening import Sharpening

    image = np.random.default_rng(0).normal(size=(2, *shape)).astype(np.float32)
    expected = np.stack([channel - 0.5 * laplace(channel, mode="nearest") for channel in image])
    transform = Sharpening(strength=0.5, p_per_channel=1)
    sharpened = transform(image=torch.from_numpy(image.copy()))["image"]
    np.testing.assert_allclose(sharpened.numpy(), expected, rtol=1e-5, atol=1e-5)


def test_augmenting_changes_pairs_alike_and_no_generator() -> None:
    image = torch.zeros(1, 12, 12, 12)
    image[:, 3:9, 4:8, 2:9] = 1
    labels = (image > 0).to(torch.int16) * 5
    before = torch.random.get_rng_state(), np.random.get_state()[1].tolist()
    augmentation = Augmentation((12, 12, 12))
    changed = 0
    for seed in range(30):
        image_now, labels_now = augmentation(image.clone(), labels.clone(), np.random.default_rng(seed))
        again = augmentation(image.clone(), labels.clone(), np.random.default_rng(seed))
        assert torch.equal(image_now, again[0]) and torch.equal(labels_now, again[1])
        assert image_now.shape == image.shape and labels_now.shape == labels.shape
        assert (image_now.dtype, labels_now.dtype) == (image.dtype, labels.dtype)
        assert set(labels_now.unique().tolist()) <= {0, 5}
        inside, outside = image_now[labels_now == 5].mean(), image_now[labels_now == 0].mean()
        assert inside > outside, "labels stay on what they are of"
        changed += not torch.equal(labels_now, labels)
    assert 1 <= changed <= 15  # a zoom in a fifth of the samples
    after = torch.random.get_rng_state(), np.random.get_state()[1].tolist()
    assert torch.equal(before[0], after[0]) and before[1] == after[1]


def test_a_scan_smaller_than_the_patch_lies_in_its_middle() -> None:
    rng = np.random.default_rng(0)
    assert crop_start((5, 9, 4), (9, 9, 9), rng) == (-2, 0, -2)
    assert crop_start((1, 2, 3), (8, 8, 8), rng, centre=np.array([0, 0, 0], np.int32)) == (-3, -3, -2)
    crop = read_crop(np.ones((1, 5, 9, 4), np.int16), (-2, 0, -2), (9, 9, 9), fill=7)
    assert crop.dtype == np.int16
    assert (crop[2:7, :, 2:6] == 1).all()
    assert (crop != 7).sum() == 5 * 9 * 4
