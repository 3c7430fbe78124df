"""One thread of a process works with networks."""

from __future__ import annotations

import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from satunet.compute.threads import in_network_thread


def test_calls_of_all_threads_are_done_by_one_thread_and_one_at_a_time() -> None:
    inside: list[int] = []

    def work(number: int) -> tuple[int, int]:
        inside.append(number)
        time.sleep(0.01)
        assert inside == [number]
        inside.remove(number)
        return number, threading.get_ident()

    with ThreadPoolExecutor(4) as callers:
        found = list(callers.map(lambda n: in_network_thread(work, n), range(8)))
    assert [number for number, _ in found] == list(range(8))
    assert len({thread for _, thread in found}) == 1
    assert found[0][1] != threading.get_ident()


def test_a_call_from_within_is_part_of_the_call() -> None:
    assert in_network_thread(lambda: in_network_thread(threading.get_ident)) == in_network_thread(threading.get_ident)


def test_an_error_reaches_its_caller_alone() -> None:
    with pytest.raises(ZeroDivisionError):
        in_network_thread(lambda: 1 / 0)
    assert in_network_thread(divmod, 7, 2) == (3, 1)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_a_forked_process_has_its_own_thread() -> None:
    in_network_thread(int)
    child = os.fork()
    if child == 0:
        threading.Timer(20, lambda: os._exit(1)).start()  # the thread of the parent does not exist here
        os._exit(0 if in_network_thread(divmod, 7, 2) == (3, 1) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
