"""Memory that is used again."""

from __future__ import annotations

import copy
import gc
import pickle
import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from satunet.network.cpu.arena import Arena


def test_memory_comes_back_when_the_last_view_of_it_is_gone() -> None:
    arena = Arena()
    first = arena.empty(10, 20, dtype=torch.float32)
    place, view = first.data_ptr(), first.permute(1, 0)[3:5]
    del first
    assert arena.empty(10, 20, dtype=torch.float32).data_ptr() != place, "a view of it is still held"
    view.zero_()
    del view
    again = arena.empty(10, 20, dtype=torch.float32)
    assert again.data_ptr() == place
    assert again.dtype == torch.float32
    assert again.is_contiguous()


def test_what_is_free_is_shared_out_and_joined_again() -> None:
    arena = Arena()
    whole = arena.empty(1 << 20, dtype=torch.uint8)
    del whole
    parts = [arena.empty(1 << 18, dtype=torch.uint8) for _ in range(4)]
    assert arena.size == 1 << 20
    del parts[1], parts[1]  # neighbours
    both = arena.empty(1 << 19, dtype=torch.uint8)
    assert arena.size == 1 << 20
    del parts, both
    assert arena.empty(1 << 20, dtype=torch.uint8).numel() == arena.size == 1 << 20


@settings(deadline=None, max_examples=50)
@given(
    steps=st.lists(
        st.tuples(st.integers(0, 3000), st.sampled_from([torch.float32, torch.bfloat16, torch.uint8]), st.booleans()),
        max_size=40,
    )
)
def test_no_two_tensors_share_memory(steps: list[tuple[int, torch.dtype, bool]]) -> None:
    arena, held = Arena(), list[tuple[Tensor, int]]()
    for number, (count, dtype, free) in enumerate(steps):
        tensor = arena.empty(count, dtype=dtype)
        assert tensor.shape == (count,)
        assert tensor.data_ptr() % 64 == 0 or not count
        held.append((tensor.fill_(number), number))
        del tensor
        if free:
            held.pop(number // 2 % len(held))
        assert all((kept == value).all() for kept, value in held)
    most = arena.size
    held.clear()
    again = [arena.empty(50, dtype=torch.uint8) for _ in range(most // 64)]
    assert arena.size == most
    assert len({tensor.data_ptr() for tensor in again}) == len(again)


@pytest.mark.parametrize("inference", [False, True])
def test_tensors_are_written_in_any_mode(inference: bool) -> None:
    with torch.inference_mode(inference):
        tensor = Arena().empty(3, 4, dtype=torch.bfloat16)
        assert tensor.fill_(2).sum() == 24
    tensor.add_(1)
    assert tensor.sum() == 36


def test_what_is_idle_goes_before_more_is_taken() -> None:
    arena = Arena()
    for size in (1 << 16, 1 << 18, 1 << 20):
        kept = arena.empty(100, dtype=torch.uint8).fill_(size % 251)
        large = arena.empty(size, dtype=torch.uint8)
        del large
        assert (kept == size % 251).all()
        del kept
    assert arena.size < 1.1 * (1 << 20)


def test_a_copy_starts_empty() -> None:
    arena = Arena()
    arena.empty(1000, dtype=torch.uint8)
    assert copy.deepcopy(arena).size == pickle.loads(pickle.dumps(arena)).size == 0


def test_tensors_outlive_their_arena() -> None:
    tensor = Arena().empty(1000, dtype=torch.float32).fill_(7)
    gc.collect()
    assert (tensor == 7).all()


def test_threads_share_an_arena() -> None:
    arena, wrong = Arena(), []

    def work(number: int) -> None:
        for step in range(200):
            tensor = arena.empty(100 + 10 * step, dtype=torch.float32).fill_(number)
            if not (tensor == number).all():
                wrong.append((number, step))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert arena.size < 4 * 200 * 8400
