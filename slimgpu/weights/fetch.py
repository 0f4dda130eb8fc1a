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
from slimgpu.weights.crew import NobodyError
from slimgpu.weights.schedule import RANGE, Range, Schedule, ranges
from slimgpu.weights.slots import SLOTS, ClosedError, Slots
from slimgpu.weights.unpack import DAMAGED, FULL, Piece, unpack

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from slimgpu.progress import Task
    from slimgpu.store.ranges import RangeSource
    from slimgpu.weights.crew import Crew
    from slimgpu.weights.index import Index
    from slimgpu.weights.slots import Slot
    from slimgpu.weights.unpack import Fault

_FIRST_READERS: Final = 8
_MORE_READERS: Final = 4
_MAX_READERS: Final = 32
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

    def __init__(  # noqa: PLR0913 - what a fetch is between, and how it is done
        self,
        index: Index,
        sources: Sequence[RangeSource],
        target: Target,
        *,
        keeper: Keeper | None = None,
        planes: bool = False,
        jobs: int | None = None,
        crew: Crew | None = None,
        stop: threading.Event | None = None,
    ) -> None:
        """``planes`` leaves merging them to the target's readers.

        ``jobs`` is the number of decoders, as many as there are cores unless given; ``crew`` has processes instead;
        ``stop``, once set, ends the fetch before everything is there.
        """
        self._index = index
        self._sources = sources
        self._target = target
        self._keeper = keeper
        self._planes = planes
        self._readers = max(_MAX_READERS, len(sources))
        self._crew = crew
        self._jobs = crew.count if crew is not None else jobs or default_jobs()
        self._stop = stop or threading.Event()
        self._gate = _Gate()
        self._slots = Slots(SLOTS, RANGE, crew.slot if crew is not None else None)

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
            self._slots.close()
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
                self._read(stages, each, source, self._slots.take(each.size))
        except ClosedError:
            pass
        except BaseException as error:  # noqa: BLE001 - raised by `run`
            stages.schedule.fail(error)

    def _read(self, stages: _Stages, each: Range, source: int, slot: Slot) -> None:
        digest = self._index.blobs[each.blob].digest
        try:
            content = slot.memory[: each.size]
            kept = self._keeper is not None and self._keeper.read_into(digest, each.offset, content)
            if not kept:
                self._sources[source].read_into(digest, each.offset, content)
                stages.schedule.answered(source)
            with suppress(RuntimeError):  # the fetch is over
                stages.decoders.submit(self._finish, stages, each, source, slot, kept)
        except SlimgpuError as error:
            self._slots.give(slot)
            stages.schedule.give_back(each, source, error)

    def _finish(self, stages: _Stages, each: Range, source: int, slot: Slot, kept: bool) -> None:  # noqa: FBT001
        try:
            is_new = self._check(each, source, slot, kept=kept)
        except ClosedError:
            return
        except DestinationError as error:  # which no source can mend
            stages.schedule.fail(error)
        except SlimgpuError as error:
            self._slots.give(slot)
            stages.schedule.give_back(each, source, error)
        except BaseException as error:  # noqa: BLE001 - raised by `run`
            stages.schedule.fail(error)
        else:
            if is_new and self._keeper is not None and self._slots.lend():
                stages.keepers.submit(self._keep, each, slot)
            else:
                self._slots.give(slot)
            stages.schedule.complete(each, source)  # after which the fetch may be over

    def _check(self, each: Range, source: int, slot: Slot, *, kept: bool) -> bool:
        """Deliver a range, from the source if the cache was wrong; whether the cache lacks it."""
        digest = self._index.blobs[each.blob].digest
        if kept and self._keeper is not None:
            try:
                self._deliver(each, slot, "the cache")
            except ImageError:
                self._keeper.forget(digest)
                self._sources[source].read_into(digest, each.offset, slot.memory[: each.size])
            else:
                return False
        self._deliver(each, slot, self._sources[source].name)
        return True

    def _keep(self, each: Range, slot: Slot) -> None:
        assert self._keeper is not None
        try:
            self._keeper.keep(self._index.blobs[each.blob].digest, each.offset, slot.memory[: each.size])
        finally:
            self._slots.take_back(slot)

    def _deliver(self, each: Range, slot: Slot, source: str) -> None:
        fault = self._unpack([self._piece(each, number) for number in each.chunks], slot)
        if fault is None:
            return
        if fault.kind == FULL:
            raise DestinationError(fault.text)
        chunk = self._index.describe(fault.chunk)
        if fault.kind == DAMAGED:
            raise ImageError(f"{chunk}: {fault.text}")
        raise DigestError(
            f"{chunk} from {source} does not have the digest that its index names; the copy there is damaged, so push "
            "the artifact again with slimgpu weights push --check"
        )

    def _piece(self, each: Range, number: int) -> Piece:
        chunk = self._index.chunks[number]
        start, places = chunk.offset - each.offset, self._index.places[number]
        return Piece(number, start, chunk.stored, chunk.digest, chunk.transform, chunk.packed, chunk.size, places)

    def _unpack(self, pieces: Sequence[Piece], slot: Slot) -> Fault | None:
        if self._crew is not None and slot.number is not None:
            with suppress(NobodyError):
                return self._crew.unpack(pieces, slot.number, planes=self._planes)
        return unpack(pieces, slot.memory, self._write, planes=self._planes)

    def _write(self, piece: Piece, data: memoryview, state: int) -> None:
        with self._gate.turn():
            self._target.write(piece.chunk, data, state)


@dataclass(frozen=True, slots=True)
class _Stages:
    """Who does what in one fetch."""

    schedule: Schedule
    decoders: Executor
    keepers: Executor


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
                raise ClosedError
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
