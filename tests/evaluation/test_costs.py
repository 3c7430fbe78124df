"""What predictions cost."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from satunet.evaluation.benchmark.costs import Meter, cost_of_runs, free_memory, record_run


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
