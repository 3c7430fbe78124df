"""The same job in worker processes and on a real Dask cluster of processes."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import pytest

from satunet.demo.synthetic import make_synthetic_datasets
from satunet.errors import UserError
from satunet.jobs import workers
from satunet.jobs.workers import Outcome, Workers, is_out_of_memory, outcomes, reason_of
from satunet.network.config import NetworkConfig
from satunet.plan import UnifiedPlan
from satunet.preprocessing.run import preprocess_datasets


def die_at_three(number: int) -> tuple[int, int]:
    if number == 3:
        os._exit(9)
    if number == 4:
        raise ValueError("four")
    return number * number, os.getpid()


def span(size: int) -> tuple[float, float]:
    started = time.monotonic()
    time.sleep(0.3)
    return started, time.monotonic()


def test_a_dead_worker_ends_its_item_alone() -> None:
    found = {o.item: o for o in outcomes(die_at_three, list(range(6)), Workers(processes=2))}
    assert {i: o.result[0] for i, o in found.items() if o.result} == {0: 0, 1: 1, 2: 4, 5: 25}
    assert "the worker process died (exit code 9)" in str(found[3].error)
    assert isinstance(found[4].error, ValueError)
    assert os.getpid() not in {o.result[1] for o in found.values() if o.result}


def test_large_items_do_not_meet() -> None:
    workers = Workers(processes=2, memory_gb=1.0)
    spans = {o.item: o.result for o in outcomes(span, [700, 701, 10, 2000], workers, needs=lambda n: n * 10**6)}
    assert len(spans) == 4

    def apart(a: int, b: int) -> bool:
        return spans[a][1] <= spans[b][0] or spans[b][1] <= spans[a][0]

    assert apart(700, 701)
    assert all(apart(2000, other) for other in (700, 701, 10))


def test_wrong_numbers_of_workers() -> None:
    with pytest.raises(UserError, match="processes"):
        Workers(processes=-1)
    with pytest.raises(UserError, match="memory"):
        Workers(memory_gb=0)


@pytest.mark.slow
def test_preprocessing_on_a_dask_cluster_writes_the_same_store(nnunet_env: Path) -> None:
    distributed = pytest.importorskip("distributed")
    network = NetworkConfig.auto(
        features_per_stage=(8, 16), strides=((1, 1, 1), (2, 2, 2)), kernel_sizes=((3, 3, 3),) * 2, text_dim=24
    )
    plan = UnifiedPlan(spacing_mm=(3.5, 3.5, 3.5), patch_size=(16, 16, 16), network=network)
    names = make_synthetic_datasets(nnunet_env / "raw", cases=3)
    (nnunet_env / "raw" / names[0] / "imagesTr" / "case_01_0000.nii.gz").write_bytes(b"bad")
    store = nnunet_env / "preprocessed" / plan.dataset_name / plan.data_identifier

    def content() -> dict[str, bytes]:
        return {p.name: p.read_bytes() for p in store.iterdir() if p.name not in (".lock", "checked.json")}

    time.sleep(2.1)  # what was written just now has a stamp that says when it was seen
    here = preprocess_datasets(plan, names, processes=0)
    expected = content()
    for path in store.iterdir():
        path.unlink()
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None) as cluster:
        there = preprocess_datasets(plan, names, processes=Workers(scheduler=cluster.scheduler_address))
    assert sorted(there.done_items) == sorted(here.done_items)
    assert list(there.failures) == list(here.failures)
    assert content() == expected
    assert threading.active_count() < 50


def test_a_scheduler_that_does_not_answer_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("distributed")
    monkeypatch.setattr("satunet.jobs.workers._CONNECT_SECONDS", 1)
    with pytest.raises(UserError, match=r"no Dask scheduler answers at 'tcp://127\.0\.0\.1:1'"):
        list(outcomes(span, [1], Workers(scheduler="tcp://127.0.0.1:1")))


def test_a_pool_that_breaks_between_two_items_is_made_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[int]] = []

    def broken_once(function: Any, items: list[int], *_: Any) -> Iterator[Outcome[int, int]]:
        asked.append(list(items))
        for item in items:
            broken = len(asked) == 1 and item > 1
            yield Outcome(item=item, error=BrokenProcessPool()) if broken else Outcome(item=item, result=function(item))

    monkeypatch.setattr(workers, "_in_one_pool", broken_once)
    found = {o.item: o.result for o in outcomes(abs, [1, 2, 3], Workers(processes=2))}
    assert found == {1: 1, 2: 2, 3: 3}
    assert asked == [[1, 2, 3], [2, 3]]


def test_workers_that_die_before_they_begin_end_no_job_and_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(function: Any, items: list[int], *_: Any) -> Iterator[Outcome[int, int]]:
        yield from (Outcome(item=item, error=BrokenProcessPool()) for item in items)

    monkeypatch.setattr(workers, "_in_one_pool", broken)
    found = list(outcomes(abs, [1, 2], Workers(processes=2)))
    assert [o.item for o in found] == [1, 2]
    assert all("died before they began" in str(o.error) for o in found)


def test_no_memory_is_known_by_whoever_says_it() -> None:
    told = RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 4 bytes")
    outer = ValueError("x")
    outer.__cause__ = MemoryError()
    assert all(map(is_out_of_memory, (MemoryError(), told, outer, OSError(12, "Cannot allocate memory"))))
    for said in ("could not create a primitive", "Failed to allocate memory for image."):  # oneDNN, ITK
        assert is_out_of_memory(RuntimeError(said))
    assert not is_out_of_memory(RuntimeError("could not create a primitive descriptor iterator"))  # an odd shape
    assert not any(map(is_out_of_memory, (RuntimeError("shape"), ValueError("out of memory"), OSError(28, "full"))))


def test_reasons_are_a_line_for_people() -> None:
    assert reason_of(RuntimeError("could not create a primitive")) == "out of memory (could not create a primitive)"
    assert reason_of(MemoryError()) == "out of memory (MemoryError)"
    assert reason_of(RuntimeError("CUDA out of memory")) == "CUDA out of memory"
    assert reason_of(UserError("a.nii: no image")) == "a.nii: no image"
    assert reason_of(KeyError("x")) == "KeyError: 'x'"
    assert reason_of(ValueError()) == "ValueError"
