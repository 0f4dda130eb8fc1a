"""Executors that end early on failure, and the two ways work flows: in order with a bound, ahead of the reader."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import queue
import signal
import threading
from collections import deque
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import TYPE_CHECKING, Generic, TypeVar

from slimgpu.errors import SlimgpuError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from concurrent.futures import Executor, Future
    from types import TracebackType

    from slimgpu.progress import Task

T = TypeVar("T")
R = TypeVar("R")


def default_jobs() -> int:
    """The number of cores this process may use."""
    return len(os.sched_getaffinity(0))


class CancelledError(Exception):
    """Work was given up because other work beside it failed; only the first failure is told."""


class Workers(ThreadPoolExecutor):
    """Threads whose work is given up when the ``with`` block fails, so that Ctrl-C does not wait for gigabytes.

    Work notices at its next `Task.advance` on a task that `watch` gave.
    """

    def __init__(self, count: int, name: str) -> None:
        super().__init__(count, name)
        self._given_up = threading.Event()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self._given_up.set()
        self.shutdown(wait=True, cancel_futures=kind is not None)

    def watch(self, task: Task) -> Task:
        """The same task, which raises `CancelledError` once the work is given up."""
        return _WatchedTask(task, self._given_up)


class _WatchedTask:
    def __init__(self, task: Task, given_up: threading.Event) -> None:
        self._task = task
        self._given_up = given_up

    def advance(self, amount: int) -> None:
        if self._given_up.is_set():
            raise CancelledError
        self._task.advance(amount)


@contextmanager
def process_pool(count: int, module: str) -> Iterator[ProcessPoolExecutor]:
    """Worker processes that have ``module`` loaded, and that end at once when the block fails.

    They must write nothing. Raises `SlimgpuError` when one of them was killed.
    """
    # Not fork: this process has threads, whose locks a forked child would inherit as they are.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([module])
    pool = ProcessPoolExecutor(count, context, begin_worker)
    try:
        yield pool
    except BaseException as error:
        for process in list((pool._processes or {}).values()):  # noqa: SLF001 - terminate_workers() is Python 3.14's
            process.terminate()
        if isinstance(error, BrokenProcessPool):
            raise SlimgpuError(
                "a worker process was killed, most likely for lack of memory; run again with fewer workers (-j)"
            ) from error
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def begin_worker() -> None:
    """Ctrl-C reaches every process of the terminal, and it is the pool's owner that ends the work; it may be killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_owner, daemon=True).start()


def _end_with_owner() -> None:
    owner = multiprocessing.parent_process()
    if owner is not None:
        multiprocessing.connection.wait([owner.sentinel])
        os._exit(1)


def ordered_map(executor: Executor, function: Callable[[T], R], items: Iterable[T], window: int) -> Iterator[R]:
    """``map`` with at most ``window`` items under way, results in the order of ``items``.

    Unlike `Executor.map` it draws from ``items`` only as results are taken, so memory stays bounded.
    """
    pending: deque[Future[R]] = deque()
    try:
        for item in items:
            pending.append(executor.submit(function, item))
            if len(pending) >= window:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        for future in pending:
            future.cancel()


class _Failure:
    def __init__(self, error: BaseException) -> None:
        self.error = error


class _End:
    pass


class _Feed(Generic[T]):
    """The bounded queue between a producing thread and its reader."""

    def __init__(self, depth: int) -> None:
        self._queue: queue.Queue[T | _Failure | _End] = queue.Queue(maxsize=depth)
        self._abandoned = threading.Event()

    def produce(self, items: Iterable[T]) -> None:
        try:
            for item in items:
                if not self._put(item):
                    return
            self._put(_End())
        except BaseException as error:  # noqa: BLE001 - handed to the reader, who raises it
            self._put(_Failure(error))

    def _put(self, item: T | _Failure | _End) -> bool:
        while not self._abandoned.is_set():
            try:
                self._queue.put(item, timeout=0.1)
            except queue.Full:
                continue
            return True
        return False

    def read(self) -> Iterator[T]:
        while True:
            item = self._queue.get()
            if isinstance(item, _End):
                return
            if isinstance(item, _Failure):
                raise item.error
            yield item

    def abandon(self) -> None:
        self._abandoned.set()


def readahead(items: Iterable[T], depth: int = 4) -> Iterator[T]:
    """Yield ``items`` while a thread already produces up to ``depth`` of the next ones.

    An error of the producer is raised here, at its place in the sequence. Closing the generator ends the
    thread before the next item.
    """
    feed: _Feed[T] = _Feed(depth)
    thread = threading.Thread(target=feed.produce, args=(items,), daemon=True, name="readahead")
    thread.start()
    try:
        yield from feed.read()
    finally:
        feed.abandon()
        thread.join()
