"""Fetching chunks: many ranges at once, from several sources, each chunk checked before it counts.

Every thread takes the next range in load order, reads it, checks and decodes its chunks and hands them to the target.
While some wait for the network others decode, so there is no queue between the two, and memory is a buffer for each
thread.
"""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, Protocol

from slimgpu.errors import DigestError, SlimgpuError
from slimgpu.weights.codec import decode, decode_planes
from slimgpu.weights.digests import sha256
from slimgpu.weights.region import PLANES, WHOLE
from slimgpu.weights.schedule import RANGE, Range, Schedule, ranges
from slimgpu.weights.transforms import RAW, ZSTD

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from slimgpu.progress import Task
    from slimgpu.store.ranges import RangeSource
    from slimgpu.weights.index import Chunk, Index

_FIRST_THREADS: Final = 8
_MORE_THREADS: Final = 4
MAX_THREADS: Final = 32
_INTERVAL: Final = 0.1
"""Seconds after which the rate is looked at."""
_FASTER: Final = 1.05


class Target(Protocol):
    """Where decoded chunks go; called from any thread, and for a chunk perhaps twice, with the same bytes."""

    def has(self, chunk: int) -> bool:
        """Whether the chunk is there already."""

    def write(self, chunk: int, data: memoryview, state: int) -> None:
        """Take a chunk; ``data`` is only valid during the call."""


class Keeper(Protocol):
    """A cache of stored ranges."""

    def read_into(self, digest: str, offset: int, buffer: memoryview) -> bool:
        """Fill ``buffer``; False when not all of it is there."""

    def keep(self, digest: str, offset: int, data: memoryview) -> None:
        """Keep a range, whose chunks were right."""

    def forget(self, digest: str) -> None:
        """Drop a blob that turned out to be wrong."""


class Fetcher:
    """One fetch; `run` is called once."""

    def __init__(
        self,
        index: Index,
        sources: Sequence[RangeSource],
        target: Target,
        *,
        keeper: Keeper | None = None,
        planes: bool = False,
        threads: int = MAX_THREADS,
        stop: threading.Event | None = None,
    ) -> None:
        """``planes`` leaves merging them to the target's readers; ``threads`` is the most for all sources.

        ``stop``, once set, ends the fetch before everything is there.
        """
        self._index = index
        self._sources = sources
        self._target = target
        self._keeper = keeper
        self._planes = planes
        self._threads = max(threads, len(sources))
        self._stop = stop or threading.Event()
        self._gate = _Gate()
        self._longest = max((chunk.size for chunk in index.chunks), default=1)

    def run(self, chunks: Iterable[int], task: Task) -> None:
        """Bring all of ``chunks`` to the target; ``task`` advances by stored bytes.

        Raises the last error when no source has a range, and OSError when the target is full.
        """
        schedule = Schedule(
            ranges(self._index, (number for number in chunks if not self._target.has(number))), len(self._sources)
        )
        try:
            self._supervise(schedule, task)
        finally:
            schedule.stop()
            self._gate.close()

    def _supervise(self, schedule: Schedule, task: Task) -> None:
        """Start threads, more of them as long as that makes it faster, and wait for the end."""
        threads, best, before = 0, 0.0, 0
        wanted = max(min(_FIRST_THREADS, self._threads), len(self._sources))
        is_over, done, left = schedule.wait(0)
        since = time.monotonic()
        while not is_over and not self._stop.is_set():
            while threads < min(wanted, max(left, len(self._sources))):
                arguments = (schedule, threads % len(self._sources))
                threading.Thread(target=self._work, args=arguments, daemon=True, name=f"fetch-{threads}").start()
                threads += 1
            is_over, done, left = schedule.wait(_INTERVAL)
            task.advance(done - before)
            now = time.monotonic()
            rate = (done - before) / (now - since)
            if rate > best * _FASTER:
                best, wanted = rate, min(wanted + _MORE_THREADS, self._threads)
            before, since = done, now

    def _work(self, schedule: Schedule, source: int) -> None:
        buffer = memoryview(bytearray(RANGE))
        out = memoryview(bytearray(self._longest))
        try:
            while (each := schedule.take(source)) is not None:
                room = buffer[: each.size] if each.size <= RANGE else memoryview(bytearray(each.size))
                self._attempt(schedule, each, source, room, out)
        except _ClosedError:
            pass
        except BaseException as error:  # noqa: BLE001 - raised by `run`
            schedule.fail(error)

    def _attempt(self, schedule: Schedule, each: Range, source: int, buffer: memoryview, out: memoryview) -> None:
        digest = self._index.blobs[each.blob].digest
        try:
            if not self._recall(each, digest, buffer, out):
                self._sources[source].read_into(digest, each.offset, buffer)
                self._deliver(each, buffer, out, self._sources[source].name)
                if self._keeper is not None:
                    self._keeper.keep(digest, each.offset, buffer)
        except SlimgpuError as error:
            schedule.give_back(each, source, error)
        else:
            schedule.complete(each, source)

    def _recall(self, each: Range, digest: str, buffer: memoryview, out: memoryview) -> bool:
        """Whether the range was in the cache, and right."""
        if self._keeper is None or not self._keeper.read_into(digest, each.offset, buffer):
            return False
        try:
            self._deliver(each, buffer, out, "the cache")
        except SlimgpuError:
            self._keeper.forget(digest)
            return False
        return True

    def _deliver(self, each: Range, buffer: memoryview, out: memoryview, source: str) -> None:
        for number in each.chunks:
            chunk = self._index.chunks[number]
            stored = buffer[chunk.offset - each.offset :][: chunk.stored]
            if sha256(stored) != chunk.digest:
                raise DigestError(
                    f"chunk {number} from {source} does not have the digest that its index names; push or copy the "
                    "artifact again"
                )
            room = out[: chunk.size]
            state = self._decode(chunk, stored, room)
            with self._gate.turn():
                self._target.write(number, room, state)

    def _decode(self, chunk: Chunk, stored: memoryview, room: memoryview) -> int:
        if self._planes and chunk.transform not in (RAW, ZSTD):
            decode_planes(stored, chunk.transform, chunk.packed, room)
            return PLANES
        decode(stored, chunk.transform, chunk.packed, room)
        return WHOLE


class _ClosedError(Exception):
    """The fetch is over; what a slow thread still has is not wanted."""


class _Gate:
    """Closing waits for those who are inside, and lets nobody else in: the target may go after that."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._inside = 0
        self._closed = False

    @contextmanager
    def turn(self) -> Iterator[None]:
        with self._changed:
            if self._closed:
                raise _ClosedError
            self._inside += 1
        try:
            yield
        finally:
            with self._changed:
                self._inside -= 1
                self._changed.notify_all()

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.wait_for(lambda: not self._inside)
