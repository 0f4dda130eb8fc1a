"""Blobs over many connections at once, each in order to the process that reads it.

Readers fetch ranges into shared memory. A blob's ranges may arrive in any order, and are passed on in theirs. What is
in memory at once is bounded: each blob that a process reads has a fair share of it, and those that no process has
begun have half of it at most, so that there is always room for what somebody waits for.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from slimgpu.coldstart.unpacker import RANGE, Job, Unpacker
from slimgpu.errors import SlimgpuError
from slimgpu.weights.schedule import Range, Schedule
from slimgpu.weights.slots import ClosedError, Slot, Slots

if TYPE_CHECKING:
    from collections.abc import Sequence

    from slimgpu.coldstart.memory import SharedMemory
    from slimgpu.progress import Task
    from slimgpu.store.ranges import RangeSource

_AHEAD: Final = 8
"""Ranges in memory for each process."""


@dataclass(eq=False)
class Incoming:
    """A blob on its way."""

    job: Job
    once_more: bool = False
    """Whether an earlier attempt came to something wrong."""
    given_up: bool = False
    reader: Unpacker | None = None
    asked: int = 0
    """Bytes from the beginning that have been asked for."""
    passed: int = 0
    """Bytes from the beginning that the reader has been given."""
    held: int = 0
    """Ranges that have been asked for, and whose memory is not free again."""
    here: dict[int, Slot] = field(default_factory=dict)
    """By offset, what has arrived."""
    missing: int = 0
    """Bytes that have not arrived."""
    began: float = 0.0
    """When it was first asked for."""
    arrived: float = 0.0
    read: float = 0.0
    """When its reader got the first of it."""


def slot_count(processes: int, connections: int) -> int:
    """Ranges that memory has to hold: what readers are at, beside what has arrived or is to."""
    return _AHEAD * processes + connections


class Flow:
    """All blobs of one pull, between its sources and its processes."""

    def __init__(
        self, sources: Sequence[RangeSource], memory: SharedMemory, processes: int, connections: int, task: Task
    ) -> None:
        self._sources = sources
        self._room = _AHEAD * processes
        self._connections = max(connections, len(sources))
        self._task = task
        self._slots = Slots(
            slot_count(processes, self._connections),
            RANGE,
            lambda number: memory.view[number * RANGE : (number + 1) * RANGE],
        )
        self._schedule = Schedule((), len(sources), grows=True)
        self._blobs: list[Incoming] = []
        self._waiting: list[Incoming] = []
        """Those that have not been asked for to their end, in the order in which processes will take them."""
        self._lock = threading.Lock()

    def start(self) -> None:
        """Begin to fetch what is, or will be, added."""
        for number in range(self._connections):
            source = number % len(self._sources)
            threading.Thread(target=self._work, args=(source,), daemon=True, name=f"pull-{number}").start()

    def stop(self) -> None:
        """Fetch no more."""
        self._schedule.stop()
        self._slots.close()

    def add(self, blob: Incoming) -> None:
        """One more blob."""
        blob.missing = blob.job.size
        self._blobs.append(blob)
        blob.began = blob.arrived = time.monotonic()
        if blob.job.size:
            self._waiting.append(blob)

    def give(self, blob: Incoming, reader: Unpacker) -> None:
        """Have the blob read by a process from now on."""
        reader.begin(blob.job)
        with self._lock:
            blob.reader = reader
            blob.read = time.monotonic()
            self._pass_on(blob)

    def free(self, blob: Incoming, slot: Slot) -> None:
        """The blob's reader has read a range."""
        self._slots.give(slot)
        blob.held -= 1

    def give_up(self, blob: Incoming) -> None:
        """Nobody wants the blob any more; what its reader has is yet to be freed."""
        with self._lock:
            blob.given_up, blob.reader = True, None
            for slot in blob.here.values():
                self.free(blob, slot)
            blob.here.clear()
        if blob in self._waiting:
            self._waiting.remove(blob)

    def advance(self) -> None:
        """Ask for as much as there is room for; raises the error that ended the fetching."""
        self._schedule.wait(0)
        held = sum(blob.held for blob in self._blobs)
        while held < self._room and (blob := self._neediest(held)) is not None:
            self._ask(blob)
            held += 1

    def _neediest(self, held: int) -> Incoming | None:
        """The blob whose process has the least ahead of it, else the next that one will take."""
        begun = [blob for blob in self._waiting if blob.reader is not None]
        if begun:
            return min(begun, key=lambda blob: blob.held)
        return self._waiting[0] if self._waiting and held < self._room // 2 else None

    def _ask(self, blob: Incoming) -> None:
        offset, size = blob.asked, min(RANGE, blob.job.size - blob.asked)
        if not blob.asked:
            blob.began = time.monotonic()
        blob.asked += size
        blob.held += 1
        if blob.asked == blob.job.size:
            self._waiting.remove(blob)
        self._schedule.add(Range(self._blobs.index(blob), offset, size, []))

    def _work(self, source: int) -> None:
        try:
            while (each := self._schedule.take(source)) is not None:
                self._read(each, source, self._slots.take(each.size))
        except ClosedError:
            pass
        except BaseException as error:  # noqa: BLE001 - raised by `advance`
            self._schedule.fail(error)

    def _read(self, each: Range, source: int, slot: Slot) -> None:
        blob = self._blobs[each.blob]
        try:
            self._sources[source].read_into(blob.job.digest, each.offset, slot.memory[: each.size])
        except SlimgpuError as error:
            self._slots.give(slot)
            self._schedule.give_back(each, source, error)
            return
        self._schedule.answered(source)
        with self._lock:
            if each.done or blob.given_up:  # another connection was faster
                self._slots.give(slot)
                blob.held -= blob.given_up and not each.done
            else:
                self._arrive(blob, each, slot)
            self._schedule.complete(each, source)

    def _arrive(self, blob: Incoming, each: Range, slot: Slot) -> None:
        blob.here[each.offset] = slot
        blob.missing -= each.size
        blob.arrived = time.monotonic()
        self._task.advance(each.size)
        self._pass_on(blob)

    @staticmethod
    def _pass_on(blob: Incoming) -> None:
        while blob.reader is not None and (slot := blob.here.pop(blob.passed, None)) is not None:
            size = min(RANGE, blob.job.size - blob.passed)
            blob.reader.take(slot, size)
            blob.passed += size
