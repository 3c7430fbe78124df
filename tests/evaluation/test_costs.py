"""What predictions cost."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from satunet.evaluation.benchmark.costs import Meter, free_memory, peak_memory, record_run, seconds_per_scan


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
    record_run(tmp_path, scans=3, seconds=6.0, memory_bytes=100)
    record_run(tmp_path, scans=1, seconds=10.0, memory_bytes=None)
    assert seconds_per_scan([tmp_path, tmp_path / "none"]) == 4.0
    assert peak_memory([tmp_path, tmp_path / "none"]) == 100
    assert seconds_per_scan([tmp_path / "none"]) is None
