"""Pieces computed side by side."""

from __future__ import annotations

import multiprocessing
import threading
from collections.abc import Iterator

import pytest
import torch

from satunet.network.cpu import team as module
from satunet.network.cpu.team import scratch, side_by_side


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_results_come_in_order_from_threads_with_one_thread_each(two_threads: None) -> None:
    meet = threading.Barrier(2)

    def work(piece: int) -> tuple[int, int, str]:
        meet.wait(timeout=20)  # never, unless two of them run at the same time
        return piece, torch.get_num_threads(), threading.current_thread().name

    found = side_by_side(work, range(8))
    assert [piece for piece, _, _ in found] == list(range(8))
    assert {threads for _, threads, _ in found} == {1}
    assert len({name for _, _, name in found}) == 2
    assert torch.get_num_threads() == 2
    result: list[int] = []
    other = threading.Thread(target=lambda: result.append(torch.get_num_threads()))
    other.start()
    other.join()
    assert result == [2], "threads made later have torch's number, not the pool's"


def test_too_few_pieces_are_done_by_the_caller(two_threads: None) -> None:
    assert side_by_side(lambda _: threading.current_thread(), [0]) == [threading.current_thread()]
    assert side_by_side(lambda _: 1, []) == []


@pytest.fixture
def new_pools() -> Iterator[None]:
    module._pool.cache_clear()
    yield
    module._pool.cache_clear()


@pytest.mark.usefixtures("two_threads", "new_pools")
def test_where_threads_cannot_be_started_the_caller_does_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    start, started = threading.Thread.start, []

    def limited(self: threading.Thread) -> None:
        if started:
            raise RuntimeError("can't start new thread")
        started.append(self)
        start(self)

    monkeypatch.setattr(threading.Thread, "start", limited)
    assert side_by_side(lambda piece: (piece, threading.current_thread()), range(3)) == [
        (piece, threading.current_thread()) for piece in range(3)
    ]
    started[0].join(timeout=20)
    assert not started[0].is_alive(), "the one that was started does not wait for the other"
    assert torch.get_num_threads() == 2


@pytest.mark.usefixtures("two_threads", "new_pools")
def test_pieces_are_done_after_the_pool_has_ended() -> None:
    assert side_by_side(lambda piece: piece, range(3)) == [0, 1, 2]
    pool = module._pool(2)
    assert pool is not None
    pool.shutdown()
    assert side_by_side(lambda piece: piece, range(3)) == [0, 1, 2]


@pytest.mark.parametrize(("pieces", "own"), [(1, True), (2, False), (3, False)])
@pytest.mark.usefixtures("new_pools")
def test_half_of_the_threads_are_enough(pieces: int, own: bool) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        found = side_by_side(lambda _: threading.current_thread(), range(pieces))
    finally:
        torch.set_num_threads(before)
    assert all((thread is threading.current_thread()) == own for thread in found)


def test_an_error_reaches_the_caller_and_ends_nothing(two_threads: None) -> None:
    def work(piece: int) -> int:
        if piece == 2:
            raise MemoryError("no room for a piece")
        return piece

    with pytest.raises(MemoryError, match="no room"):
        side_by_side(work, range(5))
    assert side_by_side(lambda piece: piece + 1, range(3)) == [1, 2, 3]


def test_maps_of_the_caller_are_written_in_either_mode(two_threads: None) -> None:
    for mode in (torch.no_grad(), torch.inference_mode()):
        with mode:
            rows = torch.zeros(4, 3)
            side_by_side(lambda piece, rows=rows: rows[piece].add_(piece), range(4))  # type: ignore[misc]
            assert rows[:, 0].tolist() == [0, 1, 2, 3]


def test_scratch_is_kept_by_its_thread() -> None:
    first = scratch("a", 3, 4)
    assert first.shape == (3, 4)
    assert scratch("a", 2, 2).data_ptr() == first.data_ptr()
    assert scratch("b", 3, 4).data_ptr() != first.data_ptr()
    found: list[int] = []
    other = threading.Thread(target=lambda: found.append(scratch("a", 3, 4).data_ptr()))
    other.start()
    other.join()
    assert found != [first.data_ptr()]


def _in_fork(queue: multiprocessing.Queue[list[int]]) -> None:
    torch.set_num_threads(2)
    queue.put(side_by_side(lambda piece: piece * 2, range(4)))


def test_a_fork_has_threads_of_its_own(two_threads: None) -> None:
    assert side_by_side(lambda piece: piece, range(4)) == [0, 1, 2, 3]
    context = multiprocessing.get_context("fork")
    queue: multiprocessing.Queue[list[int]] = context.Queue()
    process = context.Process(target=_in_fork, args=(queue,))
    process.start()
    assert queue.get(timeout=60) == [0, 2, 4, 6]
    process.join(timeout=60)
    assert process.exitcode == 0
