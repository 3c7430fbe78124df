"""Patches that fit the scans, datasets drawn evenly, averaged weights, and the loss of single voxels in a training."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from satunet.errors import UserError
from satunet.models.checkpoints import load_checkpoint
from satunet.trainers.unified.averaging import WeightAverage
from satunet.trainers.unified.batches.sampling import even_weights, fitted_patch, sample_rng

from .helpers import config, fold_folder, losses_of, make_trainer

_SIDES = st.tuples(*[st.integers(1, 200)] * 3)


@given(_SIDES, st.tuples(*[st.integers(1, 8)] * 3), st.tuples(*[st.sampled_from((1, 2, 4, 8, 16))] * 3))
def test_a_fitted_patch_is_the_smallest_that_the_strides_allow(extent, steps, divisor) -> None:
    largest = [n * d for n, d in zip(steps, divisor, strict=True)]
    patch = fitted_patch(extent, largest, divisor)
    for n, p, most, d in zip(extent, patch, largest, divisor, strict=True):
        allowed = range(d, most + 1, d)
        assert p == min((a for a in allowed if a >= n), default=most)


def test_a_dataset_of_many_scans_is_drawn_as_often_as_one_of_few() -> None:
    even = even_weights(np.array([0.1, 0.1, 0.2, 0.6]), ["a", "a", "a", "b"])
    np.testing.assert_allclose(even, [0.125, 0.125, 0.25, 0.5])
    np.testing.assert_allclose(even_weights(np.array([0.0, 1.0, 1.0]), ["a", "b", "b"]), [0, 0.5, 0.5])


def _data(planned: Path, **changes):
    trainer = make_trainer(config(**changes))
    trainer.on_train_start()
    return trainer, trainer.streams.training


def _scans(data):
    return [data.scans[number] for number in range(len(data.scans))]


def test_a_step_takes_patches_of_one_dataset_that_hold_its_scans(planned: Path) -> None:
    trainer, data = _data(planned, patches="fit", dataset_draws="even", batch_size=2, steps=8)
    plan, names = trainer.plan, sorted({r.dataset for r in _scans(data)})
    assert len(names) > 1
    drawn = []
    for step in range(8):
        batch = data[step]
        (dataset,) = {scan.split("__")[0] for scan in batch.scans}
        drawn.append(dataset)
        shapes = [r.shape for r in _scans(data) if r.dataset == dataset]
        wanted = [min(-(-max(side) // d) * d, p) for side, d, p in
                  zip(zip(*shapes, strict=True), plan.network.divisor, plan.crop_size, strict=True)]  # fmt: skip
        assert list(batch.labels.shape) == [2, *wanted]
        assert torch.equal(batch.image, data[step].image), "a function of the step"
    for start in range(0, 8, len(names)):
        assert sorted(drawn[start : start + len(names)]) == names, "each once a turn"


def test_small_patches_fill_the_voxels_of_the_plans_batch(planned: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer, data = _data(planned, patches="fill", batch_size=2)
    patch = trainer.plan.crop_size
    small = (patch[0] // 2, patch[1] // 2, patch[2])
    data.fitted = dict.fromkeys(data.fitted, small)
    assert tuple(data[0].labels.shape) == (8, *small)
    seen: list[int] = []
    forward = trainer.network.encode_image
    monkeypatch.setattr(trainer.network, "encode_image", lambda image: (seen.append(len(image)), forward(image))[1])
    trainer.train_step(data[0])
    assert seen == [8], "a step of as many voxels is one pass"
    data.rank, data.world_size = 1, 2
    half = data[0]
    data.rank, data.world_size = 0, 1
    assert half.scans == data[0].scans[1::2]


def test_without_fitting_the_share_of_a_dataset_is_that_of_its_weights(planned: Path) -> None:
    _, data = _data(planned, patches="fit", batch_size=1, steps=400)
    names = sorted(data.fitted)
    shares = np.array(
        [sum(w for r, w in zip(_scans(data), data.weights, strict=True) if r.dataset == n) for n in names]
    )
    counted = Counter(data._dataset_of(step) for step in range(400))
    spread = 4 * np.sqrt(shares * (1 - shares) * 400)
    assert (np.abs([counted[n] - 400 * s for n, s in zip(names, shares, strict=True)]) <= spread).all()
    # Datasets are drawn by another stream than what is drawn inside of them, and validation by another than training.
    drawn = [data._dataset_of(step) for step in range(40)]
    inside = [sample_rng(data.config.seed, step, 0) for step in range(40)]
    assert drawn != [names[int(rng.choice(len(names), p=shares))] for rng in inside]
    data.stream = 1
    assert drawn != [data._dataset_of(step) for step in range(40)]


def test_the_average_is_what_one_computes_by_hand() -> None:
    layer = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.constant_(layer.weight, 1.0)
    average, wanted = WeightAverage(layer, 0.5), 1.0
    for step in range(12):
        torch.nn.init.constant_(layer.weight, float(step))
        average.update(step)
        kept = min(0.5, (1 + step) / (10 + step))
        wanted = kept * wanted + (1 - kept) * step
    assert average.average.weight.item() == pytest.approx(wanted)
    with average.applied():
        assert layer.weight.item() == pytest.approx(wanted)
    assert layer.weight.item() == 11


def test_a_run_with_averaged_weights_goes_on_as_if_never_interrupted(planned: Path) -> None:
    changes = {"weight_average": 0.9, "voxel_weight": 0.3, "patches": "fit", "dataset_draws": "even",
               "precision": "float32"}  # fmt: skip
    whole = losses_of(make_trainer(config(**changes)))
    final = load_checkpoint(fold_folder() / "checkpoint_final.pth")
    assert "last_weights" not in final["satunet"]
    first = make_trainer(config(**changes))
    first.deadline = 0.0
    begun = losses_of(first)
    assert len(begun) < len(whole)
    latest = load_checkpoint(fold_folder() / "checkpoint_latest.pth")
    last = latest["satunet"]["last_weights"]
    assert any(not torch.equal(last[k], v) for k, v in latest["network_weights"].items())
    second = make_trainer(config(**changes))
    second.load_checkpoint(fold_folder() / "checkpoint_latest.pth")
    assert begun + losses_of(second) == pytest.approx(whole, rel=1e-5)
    again = load_checkpoint(fold_folder() / "checkpoint_final.pth")
    for name, value in final["network_weights"].items():
        torch.testing.assert_close(again["network_weights"][name], value, rtol=1e-4, atol=1e-6)


def test_voxels_are_classified_in_the_first_seven_tenths() -> None:
    settings = config(steps=10, voxel_weight=0.3)
    assert [settings.voxel_weight_at(step) for step in (0, 6, 7, 9)] == [0.3, 0.3, 0.0, 0.0]
    assert config().voxel_weight_at(0) == 0


def test_the_voxel_loss_of_a_step_in_parts_is_that_of_the_whole(planned: Path) -> None:
    def first_loss(**changes) -> float:
        return losses_of(make_trainer(config(precision="float32", batch_size=4, steps=2, **changes)))[0]

    plain = first_loss()
    whole, parts = first_loss(voxel_weight=0.3), first_loss(voxel_weight=0.3, patches_at_once=2)
    assert whole > plain * 1.02
    assert math.isclose(parts, whole, rel_tol=0.02), "but for the voxels that are drawn"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [({"weight_average": 1.0}, r"\[0, 1\), got 1\.0"), ({"voxel_weight": -1.0}, "voxel_weight must be at least 0")],
)
def test_wrong_values_are_refused(changes: dict, reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        config(**changes)
