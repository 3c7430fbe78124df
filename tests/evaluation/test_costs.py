"""What predictions cost."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from satunet.datasets.raw import load_dataset
from satunet.evaluation.benchmark.competitors.brought import CommandCompetitor
from satunet.evaluation.benchmark.costs import Meter, cost_of_runs, free_memory, record_run, threads_for_all
from satunet.evaluation.benchmark.tasks import make_task
from satunet.images.image import write_label_map
from satunet.jobs.files import write_json
from satunet.trainers.specialist.trainer import specialist_folder

from .conftest import GRID, NAMES, Stage


@pytest.mark.skipif(sys.platform != "linux", reason="resident memory is read where Linux tells it")
def test_memory_of_one_is_not_counted_for_the_next() -> None:
    free_memory()
    with Meter() as before:
        pass
    # Small arrays, which the C library keeps when they are freed, as it keeps a network's small tensors.
    network = [np.ones(12_000) for _ in range(3000)]
    network[::2] = [array + 1 for array in network[::2]]
    with Meter() as during:
        pass
    del network
    free_memory()
    with Meter() as after:
        pass
    assert before.memory_bytes is not None
    assert during.memory_bytes is not None
    assert after.memory_bytes is not None
    assert during.memory_bytes - before.memory_bytes > 250e6
    assert after.memory_bytes - before.memory_bytes < 60e6


def test_runs_add_up(tmp_path: Path) -> None:
    record_run(tmp_path, cases=1, scans=3, seconds=6.0, memory_bytes=100, threads=2)
    record_run(tmp_path, cases=1, scans=1, seconds=10.0, memory_bytes=None, threads=2)
    record_run(tmp_path, cases=0, scans=0, seconds=99.0, memory_bytes=900, threads=2)  # predicted nothing: no run
    places = [tmp_path, tmp_path / "none"]
    assert cost_of_runs(places, channel_by_channel=True) == {
        "seconds_per_case": 8.0, "seconds_per_scan": 4.0, "memory_bytes": 100, "threads": 2,
    }  # fmt: skip
    assert cost_of_runs(places)["seconds_per_scan"] is None  # a scan is a case
    assert set(cost_of_runs([tmp_path / "none"]).values()) == {None}
    record_run(tmp_path, cases=1, scans=1, seconds=1.0, memory_bytes=None, threads=4)
    assert cost_of_runs(places)["threads"] is None  # not the same in all runs


def test_everybody_has_the_same_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr("nnunetv2.configuration.default_num_processes", 2)
    usual = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        with Meter() as meter:
            assert torch.get_num_threads() == meter.threads == 2
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(usual)


def train_specialist_of(name: str, *, weights: int, steps: int | None, fold: int = 0) -> Path:
    """What a finished training of a dataset's specialist leaves."""
    import torch

    folder = specialist_folder(name) / f"fold_{fold}"
    folder.mkdir(parents=True)
    torch.save({"network_weights": {"w": torch.zeros(weights)}}, folder / "checkpoint_final.pth")
    if steps is not None:
        write_json(folder / "training_config.json", {"steps": steps})
    return folder / "checkpoint_final.pth"


def test_many_specialists_cost_the_sum(stage: Stage) -> None:
    files = [train_specialist_of(NAMES[0], weights=100, steps=30), train_specialist_of(NAMES[1], weights=20, steps=5)]
    train_specialist_of(NAMES[0], weights=100, steps=30, fold=1)  # another fold of one network
    tasks = [make_task(load_dataset(n), stage.network()) for n in NAMES[:2]]
    specialist = stage.specialist()
    for task, seconds in zip(tasks, (6.0, 1.0), strict=True):
        record_run(specialist.folder(task), cases=len(task.cases), scans=len(task.cases), seconds=seconds, memory_bytes=7,
                   threads=1)  # fmt: skip
    cost = specialist.cost([*tasks, replace(tasks[0], fold=1)])
    assert cost is not None
    assert (cost.models, cost.parameters, cost.training_steps) == (2, 120, 35)
    assert cost.disk_bytes == sum(f.stat().st_size for f in files)
    assert cost.seconds_per_case == pytest.approx((6 + 1) / (3 + 1))
    assert cost.seconds_per_scan is None
    train_specialist_of(NAMES[2], weights=1, steps=None)
    unknown = specialist.cost([*tasks, make_task(load_dataset(NAMES[2]), stage.network())])
    assert unknown is not None
    assert (unknown.models, unknown.parameters, unknown.training_steps) == (3, 121, None)


def test_a_network_that_finds_nothing_has_no_time(stage: Stage) -> None:
    for name in NAMES[:2]:
        train_specialist_of(name, weights=4, steps=10)

    def nothing(name: str, cases: Any, output: Path, *, while_predicting: Any, **_: Any) -> dict[str, str]:
        with while_predicting:
            for case, _ in cases:
                write_label_map(output / f"{case}.nii.gz", np.zeros(GRID.shape, dtype=np.uint8), like=GRID)
        return {}

    stage.predict_cases = nothing
    tables, _ = stage.run([NAMES[0]], stage.specialist())
    assert tables.costs["nnU-Net"].parameters == 4
    assert tables.costs["nnU-Net"].seconds_per_case is None
    assert (tables.costs["satunet"].seconds_per_case or 0) > 0
    stage.predict_cases = stage.moved_cases
    tables, _ = stage.run([NAMES[1]], stage.specialist())
    assert (tables.costs["nnU-Net"].seconds_per_case or 0) > 0


def test_a_command_that_writes_nothing_has_no_time_and_others_have_the_same_threads(stage: Stage) -> None:
    place = stage.root / "bench" / "predictions"
    script = "import os, sys; open(os.path.join(sys.argv[1], 'threads.txt'), 'w').write(os.environ['OMP_NUM_THREADS'])"
    command = CommandCompetitor(name="theirs", command=f'{sys.executable} -c "{script}" {{output}}', output=place)
    task = make_task(load_dataset(NAMES[0]), stage.network())
    command.predict(task)
    assert (command.folder(task) / "threads.txt").read_text() == str(threads_for_all())
    assert command.cost([task]) is None


def test_a_case_of_several_channels_costs_several_scans(stage: Stage) -> None:
    task = make_task(load_dataset(NAMES[0]), stage.network())
    channels = replace(task, dataset=replace(task.dataset, channel_names=("CT", "CT"), modalities=("ct", "ct")))
    unified = stage.unified()
    record_run(unified.folder(task), cases=3, scans=6, seconds=12.0, memory_bytes=None, threads=1)
    both = unified.cost([channels])
    assert (both.seconds_per_case, both.seconds_per_scan) == (4.0, 2.0)
    assert unified.cost([task]).seconds_per_scan is None  # one channel: a scan is a case
