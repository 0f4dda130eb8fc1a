"""Fetching chunks: many ranges at once, from several sources, each chunk checked before it counts.

Readers take the next range in load order and read it to one of a few buffers; decoders check it, decode it and hand its
chunks to the target; a keeper puts it on the disk. Readers are as many as the network wants, decoders as many as there
are cores, and the buffers bound the memory of all of them.
"""

from __future__ import annotations

import threading
import time
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

from slimgpu.errors import DestinationError, DigestError, ImageError, SlimgpuError
from slimgpu.parallel import default_jobs
from slimgpu.weights.codec import decode, decode_planes
from slimgpu.weights.digests import sha256
from slimgpu.weights.planes import memory
from slimgpu.weights.region import PLANES, WHOLE
from slimgpu.weights.schedule import RANGE, Range, Schedule, ranges
from slimgpu.weights.transforms import RAW, ZSTD

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from slimgpu.progress import Task
    from slimgpu.store.ranges import RangeSource
    from slimgpu.weights.index import Chunk, Index

_FIRST_READERS: Final = 8
_MORE_READERS: Final = 4
_MAX_READERS: Final = 32
_BUFFERS: Final = 24
"""Ranges in memory at once: what is read, waits to be decoded, or to be kept."""
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
        jobs: int | None = None,
        stop: threading.Event | None = None,
    ) -> None:
        """``planes`` leaves merging them to the target's readers.

        ``jobs`` is the number of decoders, as many as there are cores unless given; ``stop``, once set, ends the fetch
        before everything is there.
        """
        self._index = index
        self._sources = sources
        self._target = target
        self._keeper = keeper
        self._planes = planes
        self._readers = max(_MAX_READERS, len(sources))
        self._jobs = jobs or default_jobs()
        self._stop = stop or threading.Event()
        self._gate = _Gate()
        self._buffers = _Buffers(_BUFFERS)
        self._room = _Room()

    def run(self, chunks: Iterable[int], task: Task, delivered: threading.Event | None = None) -> None:
        """Bring all of ``chunks`` to the target, and what is to be kept to the keeper; ``task`` counts stored bytes.

        ``delivered`` is set when the target has everything and is not used any more.

        Raises the last error when no source has a range, and the target's own (OSError, `DestinationError`) at once.
        """
        schedule = Schedule(
            ranges(self._index, (number for number in chunks if not self._target.has(number))), len(self._sources)
        )
        stages = _Stages(schedule, ThreadPoolExecutor(self._jobs, "decode"), ThreadPoolExecutor(1, "keep"))
        try:
            self._supervise(stages, task)
        finally:
            schedule.stop()
            self._buffers.close()
            self._gate.close()
            stages.decoders.shutdown(wait=False, cancel_futures=True)
            if delivered is not None:
                delivered.set()
            stages.keepers.shutdown()

    def _supervise(self, stages: _Stages, task: Task) -> None:
        """Start threads, more of them as long as that makes it faster, and wait for the end."""
        threads, best, before = 0, 0.0, 0
        wanted = max(min(_FIRST_READERS, self._readers), len(self._sources))
        is_over, done, left = stages.schedule.wait(0)
        since = time.monotonic()
        while not is_over and not self._stop.is_set():
            while threads < min(wanted, max(left, len(self._sources))):
                arguments = (stages, threads % len(self._sources))
                threading.Thread(target=self._work, args=arguments, daemon=True, name=f"fetch-{threads}").start()
                threads += 1
            is_over, done, left = stages.schedule.wait(_INTERVAL)
            task.advance(done - before)
            now = time.monotonic()
            rate = (done - before) / (now - since)
            if rate > best * _FASTER:
                best, wanted = rate, min(wanted + _MORE_READERS, self._readers)
            before, since = done, now

    def _work(self, stages: _Stages, source: int) -> None:
        try:
            while (each := stages.schedule.take(source)) is not None:
                self._read(stages, each, source, self._buffers.take(each.size))
        except _ClosedError:
            pass
        except BaseException as error:  # noqa: BLE001 - raised by `run`
            stages.schedule.fail(error)

    def _read(self, stages: _Stages, each: Range, source: int, buffer: memoryview) -> None:
        digest = self._index.blobs[each.blob].digest
        try:
            content = buffer[: each.size]
            kept = self._keeper is not None and self._keeper.read_into(digest, each.offset, content)
            if not kept:
                self._sources[source].read_into(digest, each.offset, content)
            with suppress(RuntimeError):  # the fetch is over
                stages.decoders.submit(self._finish, stages, each, source, buffer, kept)
        except SlimgpuError as error:
            self._buffers.give(buffer)
            stages.schedule.give_back(each, source, error)

    def _finish(self, stages: _Stages, each: Range, source: int, buffer: memoryview, kept: bool) -> None:  # noqa: FBT001
        try:
            is_new = self._check(each, source, buffer[: each.size], kept=kept)
        except _ClosedError:
            return
        except DestinationError as error:  # which no source can mend
            stages.schedule.fail(error)
        except SlimgpuError as error:
            self._buffers.give(buffer)
            stages.schedule.give_back(each, source, error)
        except BaseException as error:  # noqa: BLE001 - raised by `run`
            stages.schedule.fail(error)
        else:
            if is_new and self._keeper is not None and self._buffers.lend():
                stages.keepers.submit(self._keep, each, buffer)
            else:
                self._buffers.give(buffer)
            stages.schedule.complete(each, source)  # after which the fetch may be over

    def _check(self, each: Range, source: int, buffer: memoryview, *, kept: bool) -> bool:
        """Deliver a range, from the source if the cache was wrong; whether the cache lacks it."""
        digest = self._index.blobs[each.blob].digest
        if kept and self._keeper is not None:
            try:
                self._deliver(each, buffer, "the cache")
            except ImageError:
                self._keeper.forget(digest)
                self._sources[source].read_into(digest, each.offset, buffer)
            else:
                return False
        self._deliver(each, buffer, self._sources[source].name)
        return True

    def _keep(self, each: Range, buffer: memoryview) -> None:
        assert self._keeper is not None
        try:
            self._keeper.keep(self._index.blobs[each.blob].digest, each.offset, buffer[: each.size])
        finally:
            self._buffers.take_back(buffer)

    def _deliver(self, each: Range, buffer: memoryview, source: str) -> None:
        for number in each.chunks:
            chunk = self._index.chunks[number]
            stored = buffer[chunk.offset - each.offset :][: chunk.stored]
            if sha256(stored) != chunk.digest:
                raise DigestError(
                    f"{self._index.describe(number)} from {source} does not have the digest that its index names; the "
                    "copy there is damaged, so push the artifact to another repository"
                )
            room = self._room.of(chunk.size)
            state = self._decoded(number, stored, room)
            with self._gate.turn():
                self._target.write(number, room, state)

    def _decoded(self, number: int, stored: memoryview, room: memoryview) -> int:
        try:
            return self._decode(self._index.chunks[number], stored, room)
        except ImageError as error:
            raise ImageError(f"{self._index.describe(number)}: {error}") from error

    def _decode(self, chunk: Chunk, stored: memoryview, room: memoryview) -> int:
        if self._planes and chunk.transform not in (RAW, ZSTD):
            decode_planes(stored, chunk.transform, chunk.packed, room)
            return PLANES
        decode(stored, chunk.transform, chunk.packed, room)
        return WHOLE


class _ClosedError(Exception):
    """The fetch is over; what a slow thread still has is not wanted."""


@dataclass(frozen=True, slots=True)
class _Stages:
    """Who does what in one fetch."""

    schedule: Schedule
    decoders: Executor
    keepers: Executor


class _Room(threading.local):
    """Memory that each decoder keeps for a chunk."""

    def __init__(self) -> None:
        self._memory = memory(0)

    def of(self, size: int) -> memoryview:
        if len(self._memory) < size:
            self._memory = memory(size)
        return self._memory[:size]


class _Buffers:
    """So many buffers for ranges as may be in memory at once, made when they are first needed."""

    def __init__(self, count: int) -> None:
        self._count = self._left = count
        self._lent = 0
        self._free: list[memoryview] = []
        self._changed = threading.Condition()
        self._closed = False

    def lend(self) -> bool:
        """Whether the keeper may have one more: a slow disk must not slow down readers."""
        with self._changed:
            may = self._lent < self._count // 3
            self._lent += may
            return may

    def take_back(self, buffer: memoryview) -> None:
        """What was lent is free again."""
        with self._changed:
            self._lent -= 1
        self.give(buffer)

    def take(self, size: int) -> memoryview:
        """A buffer of ``size`` bytes, as soon as there is one."""
        with self._changed:
            self._changed.wait_for(lambda: self._left or self._closed)
            if self._closed:
                raise _ClosedError
            self._left -= 1
            if size > RANGE:
                return memory(size)
            return self._free.pop() if self._free else memory(RANGE)

    def give(self, buffer: memoryview) -> None:
        """The buffer is free again."""
        with self._changed:
            self._left += 1
            if len(buffer) <= RANGE:
                self._free.append(buffer)
            self._changed.notify()

    def close(self) -> None:
        """Nobody gets another one."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()


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
