from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slimgpu.errors import SlimgpuError
from slimgpu.parallel import default_jobs, ordered_map, process_pool, readahead

if TYPE_CHECKING:
    from collections.abc import Iterator


class BrokenError(Exception):
    pass


def endless() -> Iterator[int]:
    number = 0
    while True:
        yield number
        number += 1


@given(st.lists(st.integers(), max_size=40), st.integers(1, 6), st.integers(1, 50))
def test_results_come_in_order(items: list[int], workers: int, window: int) -> None:
    with ThreadPoolExecutor(workers) as pool:
        assert list(ordered_map(pool, lambda item: item * 2, items, window)) == [item * 2 for item in items]


def test_no_more_than_the_window_is_drawn() -> None:
    drawn: list[int] = []

    def items() -> Iterator[int]:
        for number in endless():
            drawn.append(number)
            yield number

    with ThreadPoolExecutor(3) as pool:
        results = ordered_map(pool, str, items(), 5)
        assert [next(results) for _ in range(10)] == [str(number) for number in range(10)]
        assert len(drawn) <= 15
        results.close()  # type: ignore[attr-defined]


def test_an_error_comes_at_its_place_and_cancels_the_rest() -> None:
    done = []

    def work(number: int) -> int:
        if number == 3:
            raise BrokenError
        done.append(number)
        return number

    with ThreadPoolExecutor(1) as pool:
        results = ordered_map(pool, work, endless(), 4)
        assert [next(results) for _ in range(3)] == [0, 1, 2]
        with pytest.raises(BrokenError):
            next(results)
    assert max(done) < 10


@given(st.lists(st.integers(), max_size=40), st.integers(1, 5))
def test_readahead_gives_the_same(items: list[int], depth: int) -> None:
    assert list(readahead(items, depth)) == items


def test_readahead_produces_before_it_is_asked() -> None:
    produced = threading.Semaphore(0)

    def items() -> Iterator[int]:
        for number in range(5):
            produced.release()
            yield number

    reader = readahead(items(), depth=2)
    assert next(reader) == 0
    for _ in range(4):  # the one that was read, two in the queue, and one that waits for a place
        assert produced.acquire(timeout=30)
    assert list(reader) == [1, 2, 3, 4]


def test_readahead_never_runs_further_than_its_depth() -> None:
    drawn = []

    def items() -> Iterator[int]:
        for number in endless():
            drawn.append(number)
            yield number

    reader = readahead(items(), depth=3)
    for number in range(50):
        assert next(reader) == number
        assert len(drawn) <= number + 1 + 3 + 2
    reader.close()  # type: ignore[attr-defined]


def test_an_error_of_the_producer_is_raised_at_its_place() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise BrokenError("here")

    reader = readahead(items())
    assert next(reader) == 1
    with pytest.raises(BrokenError, match="here"):
        next(reader)


@pytest.mark.parametrize("taken", [0, 1, 5])
def test_closing_ends_the_thread_and_the_producer(taken: int) -> None:
    before = threading.active_count()
    reader = readahead(endless(), depth=2)
    for _ in range(taken):
        next(reader)
    reader.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before


def test_the_number_of_workers_is_what_the_process_may_use() -> None:
    allowed = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, [min(allowed)])
        assert default_jobs() == 1
    finally:
        os.sched_setaffinity(0, allowed)
    assert default_jobs() == len(allowed)


def test_a_worker_that_is_killed_ends_in_one_sentence() -> None:
    killed = pytest.raises(SlimgpuError, match=r"a worker process was killed.*run again with fewer workers")
    with killed, process_pool(2, "os") as pool:
        pool.submit(signal.raise_signal, signal.SIGKILL).result()


def interrupted_pool(pids: list[int]) -> None:
    with process_pool(2, "os") as pool:
        pids += [pool.submit(os.getpid).result() for _ in range(2)]
        for _ in range(8):
            pool.submit(time.sleep, 3600)
        raise KeyboardInterrupt


@pytest.mark.timeout(120)
def test_workers_end_at_once_when_the_block_fails() -> None:
    pids: list[int] = []
    with pytest.raises(KeyboardInterrupt):
        interrupted_pool(pids)
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]


@pytest.mark.timeout(120)
def test_workers_end_with_their_owner() -> None:
    source = """
import os, signal, time
from slimgpu.parallel import process_pool
if __name__ == "__main__":
    with process_pool(1, "os") as pool:
        print(pool.submit(os.getpid).result(), flush=True)
        pool.submit(time.sleep, 3600)
        signal.raise_signal(signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL
    while Path(f"/proc/{done.stdout.strip()}").exists():
        time.sleep(0.05)
