"""What a run tells about itself."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from satunet.jobs.files import read_json
from satunet.trainers.unified.setup import Split
from satunet.trainers.unified.validation import count_voxels, summarize
from satunet.trainers.unified.watching.pictures import prediction_figure
from satunet.trainers.unified.watching.statistics import Statistics, read_progress

from .helpers import config, fold_folder, make_trainer


def test_tensorboard_has_losses_times_samples_and_a_picture(planned: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    trainer = make_trainer(config(steps=4, tensorboard=True, batch_size=2))
    losses: list[float] = []
    trainer.on_step = lambda step, loss: losses.append(loss)
    trainer.run_training()
    trainer.reporter.close()
    events = EventAccumulator(str(fold_folder() / "tensorboard"))
    events.Reload()
    tags = set(events.Tags()["scalars"])
    assert [e.value for e in events.Scalars("train/loss")] == pytest.approx(losses)
    datasets = trainer.plan.datasets
    assert {f"train_loss_of_dataset/{d}" for d in datasets} & tags
    assert "train_loss_of_class/liver" in tags
    assert {
        "step_time/data",
        "step_time/forward",
        "step_time/backward",
        "time/data",
        "throughput/patches_per_s",
    } <= tags
    drawn = {d: events.Scalars(f"samples_drawn/{d}")[-1].value for d in datasets if f"samples_drawn/{d}" in tags}
    assert sum(drawn.values()) == 4 * 2
    assert events.Tags()["images"] == ["validation/prediction"]
    assert (fold_folder() / "prediction.png").stat().st_size > 5000
    lines = read_progress(fold_folder() / "progress.jsonl")
    assert [line["epoch"] for line in lines] == [0, 1]
    assert lines[-1]["samples_drawn"] == drawn
    assert lines[-1]["train_losses"] == pytest.approx(np.mean(losses[2:]))


def test_other_loggers_of_nnunet_hear_the_same(planned: Path) -> None:
    heard: dict[str, float] = {}

    class Listening:
        def update_config(self, config: dict) -> None: ...

        def log(self, key: str, value: float, step: int) -> None:
            heard[key] = value

        def log_summary(self, key: str, value: float) -> None:
            heard[key] = value

    trainer = make_trainer(config(steps=2))
    trainer.logger.loggers.append(Listening())
    trainer.run_training()
    trainer.perform_actual_validation()
    assert {"train_losses", "mean_fg_dice", "time/forward", "final_val/foreground_dice"} <= heard.keys()


def test_sums_of_processes_add_up() -> None:
    scans, names = ["A__x__0", "B__y__0"], [["liver", "spleen"], ["liver"]]
    one, two = Statistics(), Statistics()
    one.add(scans, names, torch.tensor([[1.0, 2.0], [3.0, 0.0]]), {"forward": 2.0, "data": 2.0})
    two.add(["A__x__0"], [["liver"]], torch.tensor([[6.0]]), {"forward": 2.0, "data": 2.0})
    both = Statistics.merged([one, two])
    assert both.means("dataset") == {"A": 3.0, "B": 3.0}
    assert both.means("class") == {"liver": pytest.approx(10 / 3), "spleen": 2.0}
    assert (both.patches, both.queries, both.scans) == (3, 4, {"A": 2, "B": 1})
    assert both.rates()["throughput/patches_per_s"] == pytest.approx(3 / 4)


def test_the_final_validation_counts_voxels_of_whole_scans(planned: Path) -> None:
    trainer = make_trainer(config(steps=40, steps_per_epoch=40, warmup_steps=4, learning_rate=1e-2, batch_size=2))
    trainer.run_training()
    trainer.perform_actual_validation()
    summary = read_json(fold_folder() / "validation" / "summary.json")
    _, scans = trainer.do_split()
    assert len(summary["metric_per_case"]) == len(scans)
    # The same by the plain way: all windows are one here, because the scans are hardly larger than the patch.
    seen = 0
    for case in summary["metric_per_case"]:
        scan = case["reference_file"].removesuffix("_seg.b2nd")
        labels = np.asarray(trainer.setup.store.labels(scan)[:])[0]
        dataset = trainer.setup.store.record(scan).dataset
        assert set(case["metrics"]) == set(trainer.setup.space.classes_of(dataset))
        for name, counts in case["metrics"].items():
            reference = np.isin(labels, trainer.setup.space.ids_of(dataset, name))
            assert counts["n_ref"] == counts["TP"] + counts["FN"] == reference.sum()
            assert sum(counts[k] for k in ("TP", "FP", "FN", "TN")) == labels.size
            seen += counts["n_pred"]
    assert seen > 0
    assert summary["foreground_mean"]["Dice"] == pytest.approx(
        np.nanmean([row["Dice"] for row in summary["mean"].values()])
    )
    assert set(summary["mean_per_dataset"]) == set(trainer.plan.datasets)


def test_scans_that_were_trained_on_are_not_validated(planned: Path) -> None:
    from satunet.jobs.files import write_json

    trainer = make_trainer(config(steps=1, steps_per_epoch=1))
    trainer.initialize()
    train, val = trainer.do_split()
    file = trainer.plan.unified_folder.splits
    write_json(file, [{"train": train, "val": [*val, train[0]]}])
    shared = {"store": trainer.setup.store, "space": trainer.setup.space, "file": file}
    assert Split.of_fold(0, **shared).held_out == tuple(val)
    write_json(file, [{"train": train, "val": [train[0]]}])
    trainer = make_trainer(config(steps=1, steps_per_epoch=1))
    trainer.run_training()
    trainer.perform_actual_validation()
    assert not (fold_folder() / "validation").exists()
    assert "nothing to validate on" in Path(str(trainer.log_file)).read_text()


def test_a_validation_goes_on_where_it_stopped(planned: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from satunet.trainers.unified import validation

    trainer = make_trainer(config(steps=1, steps_per_epoch=1))
    trainer.run_training()
    scans = trainer.do_split()[1]
    asked: list[str] = []
    score = validation.score_scan
    monkeypatch.setattr(
        validation, "score_scan", lambda s, n, scan, **how: (asked.append(scan), score(s, n, scan, **how))[1]
    )
    folder = fold_folder() / "validation"

    def validate(names: list[str]) -> dict | None:
        return validation.validate(trainer.setup, trainer.network, names, folder, device=torch.device("cpu"))

    validate(scans[:1])
    (trainer.setup.store.folder / f"{scans[1]}.b2nd").write_bytes(b"damaged")
    summary = validate(scans)
    assert asked == scans
    assert summary is not None
    assert list(summary["failed"]) == [scans[1]]
    assert trainer.failed_scans == {}
    trainer.perform_actual_validation()
    assert trainer.failed_scans == {scans[1]: 1}  # so that the command ends with code 1
    batch = trainer.streams.validation[0]
    trainer.validation_step(dataclasses.replace(batch, failed=(scans[0],)))
    assert set(trainer.failed_scans) == set(scans)


def test_summaries_are_nnunets() -> None:
    cases = [
        {
            "scan": "A__1__0000",
            "metrics": {"liver": count_voxels(10, 10, 5, 100), "spleen": count_voxels(0, 0, 0, 100)},
        },
        {"scan": "A__2__0000", "metrics": {"liver": count_voxels(0, 10, 0, 100), "spleen": count_voxels(4, 4, 4, 100)}},
        {"scan": "B__1__0000", "metrics": {"liver": count_voxels(8, 8, 8, 100)}},
    ]
    summary = summarize(cases)
    assert summary["mean"]["liver"]["Dice"] == pytest.approx((0.5 + 0 + 1) / 3)
    assert summary["mean"]["spleen"]["Dice"] == 1.0  # absent in both: not counted
    assert summary["foreground_mean"]["Dice"] == pytest.approx((0.5 + 1) / 2)
    assert summary["mean_per_dataset"]["A"]["mean"]["liver"]["Dice"] == pytest.approx(0.25)
    assert cases[0]["metrics"]["liver"] | {"IoU": 0} == {
        "Dice": 0.5, "IoU": 0, "FN": 5, "FP": 5, "TN": 85, "TP": 5, "n_pred": 10, "n_ref": 10
    }  # fmt: skip


def test_a_picture_shows_the_patients_right_on_the_left() -> None:
    image = np.zeros((8, 8, 4), dtype=np.float32)
    mask = np.zeros((1, 8, 8, 4), dtype=bool)
    mask[0, 6, 6, 2] = True  # right, anterior
    figure = prediction_figure(image, mask, np.zeros_like(mask), ["x"], "title")
    labels = figure.axes[1].images[0].get_array()
    assert np.argwhere(labels.sum(axis=2) > 0).tolist() == [[1, 1]]
    assert figure.axes[2].images[0].get_array().sum() == 0
