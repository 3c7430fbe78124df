"""The trainer on two tiny synthetic datasets: learning, resuming, bad scans, checkpoints."""

from __future__ import annotations

import dataclasses
import logging
import os
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch

from satunet.datasets.paths import results_dir
from satunet.errors import ModelError, UserError
from satunet.jobs.files import read_json, write_json
from satunet.jobs.records import load_record, save_record
from satunet.models.checkpoints import load_checkpoint, load_weights
from satunet.trainers.config import TrainingChoices, TrainingConfig
from satunet.trainers.unified.run import run_training, train_unified
from satunet.trainers.unified.trainer import SATTrainer

from .helpers import NAME, config, fold_folder, losses_of, make_trainer


@pytest.mark.progress_png
def test_a_resumed_run_has_the_curve_of_an_unbroken_one(planned: Path) -> None:
    whole = losses_of(make_trainer(config()))
    assert len(whole) == 6
    folder = results_dir() / NAME / "SATTrainer__satunetPlans__3d_fullres"
    unbroken = load_checkpoint(folder / "fold_0" / "checkpoint_final.pth")["network_weights"]
    first = make_trainer(config())

    class StopError(Exception):
        pass

    def stop(step: int, loss: float) -> None:
        if step == 4:  # in the middle of the third epoch
            raise StopError

    first.on_step = stop
    (folder / "fold_0" / "checkpoint_final.pth").unlink()
    with pytest.raises(StopError):
        first.run_training()
    second = make_trainer(config())
    second.load_checkpoint(folder / "fold_0" / "checkpoint_latest.pth")
    assert second.current_epoch == 2
    assert losses_of(second) == pytest.approx(whole[4:], rel=1e-6)
    resumed = load_checkpoint(folder / "fold_0" / "checkpoint_final.pth")["network_weights"]
    assert all(torch.allclose(resumed[k], unbroken[k], atol=1e-6) for k in unbroken)
    assert {"progress.png", "training_config.json"} <= {p.name for p in (folder / "fold_0").iterdir()}
    train, val = second.do_split()
    assert read_json(folder / "fold_0" / "split.json") == {"train": sorted(train), "val": val}
    assert {"plans.json", "dataset.json", "label_space.json", "text_bank.safetensors"} <= {
        p.name for p in folder.iterdir()
    }


def test_a_run_begun_again_goes_on_and_is_not_taken_for_the_finished_one(
    planned: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)

    def go_on(**changes: Any) -> SATTrainer:
        caplog.clear()
        return run_training(NAME, config=config(**changes), device="cpu", continue_training=True, validate=False)

    losses_of(make_trainer(config()))
    again = make_trainer(config(seed=1))
    again.on_step = lambda step, loss: 1 // (4 - step)  # ends in the third epoch
    with pytest.raises(ZeroDivisionError):
        again.run_training()
    go_on(seed=1)
    assert "checkpoint_latest.pth at epoch 2" in caplog.text
    go_on(seed=1)
    assert "is trained already" in caplog.text and "does not continue" not in caplog.text
    latest = fold_folder() / "checkpoint_latest.pth"  # as a kill leaves it between the final checkpoint and the end
    latest.write_bytes((fold_folder() / "checkpoint_final.pth").read_bytes())
    os.utime(latest, (1, 1))
    go_on(seed=1)
    assert "is trained already" in caplog.text and not latest.exists()
    go_on(seed=1, steps=8)
    assert "the run ended after epoch 3, it does not continue to 4" in caplog.text


def test_a_scan_that_cannot_be_read_is_replaced_and_counted(planned: Path, caplog: pytest.LogCaptureFixture) -> None:
    trainer = make_trainer(config())
    trainer.initialize()
    victim = trainer.do_split()[0][0]
    (trainer.setup.store.folder / f"{victim}.b2nd").write_bytes(b"damaged")
    losses = losses_of(trainer)
    assert np.isfinite(losses).all()
    assert trainer.failed_scans.get(victim, 0) > 0


def test_a_loss_that_is_not_finite_is_skipped_and_reported(planned: Path) -> None:
    trainer = make_trainer(config(steps=2))
    trainer.on_train_start()
    batch = next(trainer.dataloader_train)
    before = {k: v.clone() for k, v in trainer.network.state_dict().items()}
    result = trainer.train_step(dataclasses.replace(batch, image=torch.full_like(batch.image, torch.nan)))
    assert np.isnan(result["loss"])
    assert trainer.bad_steps.count == 1
    assert all(torch.equal(v, before[k]) for k, v in trainer.network.state_dict().items())
    assert batch.scans[0] in Path(trainer.log_file).read_text()


def test_a_run_that_goes_on_in_another_way_says_so(planned: Path) -> None:
    trainer = make_trainer(config(steps=2))
    trainer.run_training()
    other = make_trainer(config(steps=2, learning_rate=0.5, seed=3))
    other.load_checkpoint(Path(str(trainer.output_folder)) / "checkpoint_final.pth")
    assert "learning_rate 0.5 instead of 0.001, seed 3 instead of 0" in Path(str(other.log_file)).read_text()
    content = load_checkpoint(Path(str(trainer.output_folder)) / "checkpoint_final.pth")
    with pytest.raises(ModelError, match=r"cannot continue from it.*-pretrained_weights"):
        other.load_checkpoint({"network_weights": content["network_weights"]})


def test_batches_do_not_depend_on_workers(planned: Path) -> None:
    from satunet.trainers.unified.batches.loading import batches

    trainer = make_trainer(config())
    trainer.on_train_start()
    here = list(batches(trainer.streams.training, range(3), 0))
    there = list(batches(trainer.streams.training, range(3), 2))
    for a, b in zip(here, there, strict=True):
        assert a.names == b.names
        assert torch.equal(a.image, b.image)
        assert torch.equal(a.membership, b.membership)


def test_checkpoints_are_strict(planned: Path, tmp_path: Path) -> None:
    trainer = make_trainer(config())
    trainer.initialize()
    weights = dict(trainer.network.state_dict())
    weights["extra"] = weights.pop(next(iter(weights)))
    with pytest.raises(ModelError, match=r"1 missing: .*1 not part of this network: extra"):
        load_weights(trainer.network, weights, source="x.pth")
    (tmp_path / "x.pth").write_bytes(b"PK\x03\x04 truncated")
    with pytest.raises(ModelError, match=r"x\.pth"):
        load_checkpoint(tmp_path / "x.pth")
    torch.save({"network_weights": print}, tmp_path / "code.pth")
    with pytest.raises(ModelError, match="other than weights"):
        load_checkpoint(tmp_path / "code.pth")


def test_pretrained_weights_are_the_starting_point(planned: Path) -> None:
    model = train_unified(NAME, fold=0, config=config(steps=2), device="cpu")
    start = model / "fold_0" / "checkpoint_final.pth"
    tuned = train_unified(
        NAME, fold=1, config=config(steps=1, learning_rate=1e-9), device="cpu", pretrained_weights=start
    )
    a = load_checkpoint(start)["network_weights"]
    b = load_checkpoint(tuned / "fold_1" / "checkpoint_final.pth")["network_weights"]
    assert all(torch.allclose(a[k].float(), b[k].float(), atol=1e-5) for k in a)
    with pytest.raises(UserError, match="either"):
        train_unified(NAME, config=config(), continue_training=True, pretrained_weights=start, device="cpu")


def test_only_who_says_that_a_run_has_begun_is_told_that_it_has_not(
    planned: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def warnings(continue_training: bool | Literal["if_begun"], fold: int) -> list[str]:
        caplog.clear()
        options: dict[str, Any] = {"fold": fold, "config": config(steps=1), "device": "cpu", "validate": False}
        train_unified(NAME, continue_training=continue_training, **options)
        return [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]

    assert warnings("if_begun", 0) == []
    assert [message.partition(";")[2] for message in warnings(True, 1)] == [" starting from the beginning"]
    monkeypatch.setattr(SATTrainer, "run_training", lambda self: pytest.fail("it was trained again"))
    assert warnings("if_begun", 0) == warnings(True, 1) == []


def test_no_mirroring_and_labels_follow_the_image() -> None:
    from satunet.trainers.unified.batches.augmentation import Augmentation

    augment = Augmentation((16, 16, 16))
    image = torch.zeros(1, 16, 16, 16)
    image[0, :4] = 10
    labels = (image > 5).to(torch.int32)
    for seed in range(40):
        turned, ids = augment(image.clone(), labels.clone(), np.random.default_rng(seed))
        assert set(torch.unique(ids).tolist()) <= {0, 1}
        assert turned[0, :4].mean() > turned[0, 12:].mean()
        assert ids[0, :3].float().mean() > ids[0, 8:].float().mean()


def test_augmentation_is_a_function_of_its_generator() -> None:
    from satunet.trainers.unified.batches.augmentation import Augmentation

    augment = Augmentation((8, 8, 8))
    image, labels = torch.rand(1, 8, 8, 8), torch.zeros(1, 8, 8, 8, dtype=torch.int32)
    torch.manual_seed(3)
    state = torch.get_rng_state()
    a = augment(image.clone(), labels, np.random.default_rng(7))[0]
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(4)
    assert torch.equal(a, augment(image.clone(), labels, np.random.default_rng(7))[0])


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"steps": 0}, "at least 1"),
        ({"negative_share": 2.0}, r"\[0, 1\]"),
        ({"seed": -1}, "seed must be at least 0, got -1"),
        ({"workers": -1}, "workers must be at least 0, got -1"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"queries_per_scan": 0}, "queries_per_scan must be at least 1, got 0"),
        ({"weight_decay": -0.1}, "weight_decay must be at least 0"),
    ],
)
def test_wrong_values_are_refused(changes: dict, reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        config(**changes)


def test_a_saved_configuration_with_a_wrong_value_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "training_config.json"
    save_record(file, config())
    assert load_record(file, TrainingConfig) == config()
    write_json(file, read_json(file) | {"optimizer": "lion"})
    with pytest.raises(UserError, match=r"training_config\.json.*optimizer"):
        load_record(file, TrainingConfig)


def test_choices_change_what_they_name_and_nothing_else() -> None:
    assert TrainingChoices().config() == TrainingConfig()
    begun = TrainingChoices(recipe="short", steps=100, seed=7).config()
    assert begun == TrainingConfig.from_recipe("short", steps=100, seed=7)
    assert TrainingChoices().config(begun) == begun
    assert TrainingChoices(recipe="short", workers=0).config(begun) == dataclasses.replace(begun, workers=0)
    with pytest.raises(UserError, match="started with the recipe 'short' and cannot continue with 'sat'"):
        TrainingChoices(recipe="sat").config(begun)
    chosen = {f.name for f in dataclasses.fields(TrainingChoices)}
    assert chosen == {f.name for f in dataclasses.fields(TrainingConfig)}


def test_a_run_goes_on_with_its_own_settings(planned: Path, caplog: pytest.LogCaptureFixture) -> None:
    values = dataclasses.asdict(config(steps=4, seed=5)) | {"recipe": "short"}
    first = run_training(NAME, config=TrainingChoices(**values), device="cpu", validate=False, minutes=1e-9)
    assert first.current_epoch == 1
    again = run_training(
        NAME, config=TrainingChoices(bad_steps=3), device="cpu", validate=False, continue_training=True
    )
    assert again.config == dataclasses.replace(first.config, bad_steps=3)
    assert again.current_epoch == 2
    assert "from here on: bad_steps 3 instead of 20" in caplog.text


def test_learning_rates_of_the_recipes() -> None:
    sat = TrainingConfig.from_recipe("sat")
    assert sat.learning_rate_at(0) == pytest.approx(1e-4 / 20_000)
    assert sat.learning_rate_at(19_999) == pytest.approx(1e-4)
    assert sat.learning_rate_at(110_000) == pytest.approx(0.5e-4)
    assert sat.learning_rate_at(200_000) == pytest.approx(0)
    nnunet = TrainingConfig.from_recipe("nnunet")
    assert nnunet.learning_rate_at(125_000) == pytest.approx(1e-2 * 0.5**0.9)
    assert TrainingConfig.from_recipe("sat", steps=1000).warmup_steps == 100
