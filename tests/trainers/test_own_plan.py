"""A run keeps what it was started with: plan, classes, texts, scans, settings; and what a killed one leaves is of use."""

from __future__ import annotations

import dataclasses
import logging
import os
from pathlib import Path
from typing import Any

import pytest

from satunet.datasets.paths import preprocessed_dir
from satunet.errors import DatasetError, ModelError, UserError
from satunet.jobs.files import only_writer, read_json, write_json
from satunet.labels import LabelSpace
from satunet.models.folder import ModelFolder
from satunet.models.results import begin_again, end_run, last_checkpoint
from satunet.plan import UnifiedPlan
from satunet.preprocessing.store.scans import write_manifest
from satunet.trainers.unified.run import run_training
from satunet.trainers.unified.trainer import SATTrainer
from satunet.trainers.unified.watching.statistics import read_progress

from .helpers import NAME, config, fold_folder, losses_of, make_trainer

OPTIONS: dict[str, Any] = {"device": "cpu", "validate": False}


def unified() -> Path:
    return preprocessed_dir() / NAME


def plan_again(**changes: Any) -> UnifiedPlan:
    """Another plan in place of the one there, and a store that says it was made by it."""
    file = unified() / "satunetPlans.json"
    plan = dataclasses.replace(UnifiedPlan.load(file), **changes)
    plan.save(file)
    folder = unified() / plan.data_identifier
    write_manifest(folder, plan, read_json(folder / "manifest.json")["scans"], complete=True)
    return plan


def test_a_store_that_another_plan_made_is_refused(planned: Path) -> None:
    file = unified() / "satunetPlans.json"
    dataclasses.replace(UnifiedPlan.load(file), spacing_mm=(6.0, 6.0, 6.0)).save(file)
    with pytest.raises(DatasetError, match=r"another plan: spacing_mm \[4.0, 4.0, 4.0\] instead of \[6.0, 6.0, 6.0\]"):
        run_training(NAME, config=config(), **OPTIONS)


def test_another_plan_does_not_change_networks_that_are_trained(planned: Path) -> None:
    run_training(NAME, config=config(steps=2), **OPTIONS)
    plan_again(spacing_mm=(6.0, 6.0, 6.0))
    for fold in (0, 1):
        with pytest.raises(UserError, match=r"fold_0 was trained with another plan \(spacing_mm .*--name"):
            run_training(NAME, fold=fold, config=config(), **OPTIONS)
    assert ModelFolder.load(fold_folder().parent, fold=0).plan.spacing_mm == (4, 4, 4)
    fold_folder().parent.rename(planned / "elsewhere")
    run_training(NAME, fold=1, config=config(steps=2), **OPTIONS)


def test_a_class_more_is_another_label_space(planned: Path) -> None:
    run_training(NAME, config=config(steps=2), **OPTIONS)
    file = unified() / "label_space.json"
    space = LabelSpace.load(file)
    more = dataclasses.replace(space.classes[0], name="zebra")
    dataclasses.replace(space, classes=(*space.classes, more)).save(file)
    with pytest.raises(UserError, match="label space of 6 classes there, 7 now"):
        run_training(NAME, fold=1, config=config(), **OPTIONS)


def test_batch_and_sampling_may_be_planned_again(planned: Path) -> None:
    run_training(NAME, config=config(steps=2), **OPTIONS)
    plan_again(batch_size=3, queries_per_scan=5)
    run_training(NAME, fold=1, config=config(steps=2), **OPTIONS)


def test_a_run_goes_on_with_its_own_plan_classes_and_scans(planned: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    first = run_training(NAME, config=config(), minutes=1e-9, **OPTIONS)
    assert first.current_epoch == 1
    splits = read_json(unified() / "splits_final.json")
    write_json(unified() / "splits_final.json", [{"train": splits[0]["val"], "val": splits[0]["train"]}])
    file = unified() / "label_space.json"
    space = LabelSpace.load(file)
    more = dataclasses.replace(space.classes[0], name="zebra")
    dataclasses.replace(space, classes=(*space.classes, more)).save(file)
    plan = plan_again(patch_size=(32, 32, 32), text_encoder="anatomy")
    again = run_training(NAME, config=config(), continue_training=True, **OPTIONS)
    assert again.plan == first.plan != plan
    assert again.setup.space == first.setup.space
    assert again.setup.split == first.setup.split
    assert again.setup.bank.encoder_fingerprint == first.setup.bank.encoder_fingerprint
    assert "keeps the plan it was started with, which is not today's: patch_size (16, 16, 16) there" in caplog.text
    assert read_json(fold_folder() / "split.json") == {k: [*getattr(first.setup.split, k)] for k in ("train", "val")}


def test_a_run_does_not_go_on_with_scans_of_another_plan(planned: Path) -> None:
    run_training(NAME, config=config(), minutes=1e-9, **OPTIONS)
    plan_again(spacing_mm=(6.0, 6.0, 6.0))
    with pytest.raises(DatasetError, match="preprocessed with another plan"):
        run_training(NAME, config=config(), continue_training=True, **OPTIONS)


def test_a_scan_that_is_gone_is_said(planned: Path, caplog: pytest.LogCaptureFixture) -> None:
    first = run_training(NAME, config=config(), minutes=1e-9, **OPTIONS)
    gone = first.setup.split.train[0]
    (first.setup.store.folder / f"{gone}.json").unlink()
    again = run_training(NAME, config=config(), continue_training=True, **OPTIONS)
    assert gone not in again.setup.split.train
    assert f"1 scans of the run are not in {again.setup.store.folder} any more, such as {gone}" in caplog.text
    assert gone in read_json(fold_folder() / "split.json")["train"], "it was trained on nevertheless"


def test_two_trainings_of_a_fold_exclude_each_other(planned: Path) -> None:
    with only_writer(fold_folder()):
        with pytest.raises(UserError, match="fold_0: another training of this fold is running"):
            run_training(NAME, config=config(steps=2), **OPTIONS)
        run_training(NAME, fold=1, config=config(steps=2), **OPTIONS)
    run_training(NAME, config=config(steps=2), **OPTIONS)


def test_a_run_killed_before_its_latest_checkpoint_keeps_best_and_the_epochs_line(
    planned: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = losses_of(make_trainer(config()))
    lines = read_progress(fold_folder() / "progress.jsonl")
    (fold_folder() / "checkpoint_final.pth").unlink()
    save = SATTrainer.save_checkpoint

    def killed(self: SATTrainer, filename: str | Path) -> None:
        if self.current_epoch == 1 and Path(filename).name == "checkpoint_latest.pth":
            raise KeyboardInterrupt
        save(self, filename)

    with monkeypatch.context() as patch:
        patch.setattr(SATTrainer, "save_checkpoint", killed)
        with pytest.raises(KeyboardInterrupt):
            make_trainer(config()).run_training()
    assert [line["epoch"] for line in read_progress(fold_folder() / "progress.jsonl")] == [0, 1]
    again = make_trainer(config())
    again.load_checkpoint(fold_folder() / "checkpoint_latest.pth")
    assert again.current_epoch == 1
    assert losses_of(again) == pytest.approx(whole[2:], rel=1e-6)
    found = read_progress(fold_folder() / "progress.jsonl")
    assert [line["epoch"] for line in found] == [0, 1, 2]
    assert [line["ema_fg_dice"] for line in found] == pytest.approx([line["ema_fg_dice"] for line in lines])


def test_a_run_killed_in_its_first_epoch_goes_on_from_the_best_checkpoint_and_keeps_the_epochs_line(
    planned: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = SATTrainer.save_checkpoint

    def killed(self: SATTrainer, filename: str | Path) -> None:
        save(self, filename)
        if Path(filename).name == "checkpoint_best.pth":
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(SATTrainer, "save_checkpoint", killed)
        with pytest.raises(KeyboardInterrupt):
            make_trainer(config()).run_training()
    again = make_trainer(config())
    again.load_checkpoint(fold_folder() / "checkpoint_best.pth")
    again.run_training()
    assert [line["epoch"] for line in read_progress(fold_folder() / "progress.jsonl")] == [0, 1, 2]


def test_a_damaged_latest_checkpoint_says_that_the_best_is_there(planned: Path) -> None:
    run_training(NAME, config=config(), minutes=1e-9, **OPTIONS)
    (fold_folder() / "checkpoint_latest.pth").write_bytes(b"PK\x03\x04 half")
    with pytest.raises(ModelError, match=r"checkpoint_latest\.pth: .*; .*checkpoint_best\.pth is there: remove"):
        run_training(NAME, config=config(), continue_training=True, **OPTIONS)
    (fold_folder() / "checkpoint_latest.pth").unlink()
    assert run_training(NAME, config=config(), continue_training=True, **OPTIONS).current_epoch == 3


def test_a_clock_that_was_set_back_does_not_drop_a_run(tmp_path: Path) -> None:
    final, latest = (tmp_path / f"checkpoint_{name}.pth" for name in ("final", "latest"))
    begin_again(tmp_path)
    latest.touch()
    assert last_checkpoint(tmp_path) == latest
    final.touch()
    end_run(tmp_path)
    latest.unlink()
    begin_again(tmp_path)
    assert last_checkpoint(tmp_path) == final, "the new run has no checkpoint yet"
    latest.touch()
    os.utime(latest, (1, 1))
    assert last_checkpoint(tmp_path) == latest
    end_run(tmp_path)
    assert last_checkpoint(tmp_path) == final
