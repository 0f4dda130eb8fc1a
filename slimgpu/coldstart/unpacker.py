"""Processes that unpack layers: one interpreter would write one file at a time.

A process gets a layer's blob in shared memory, range by range and in order. Threads check it, inflate it and check
that, while its main thread writes files.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

from slimgpu.errors import SlimgpuError
from slimgpu.oci.digest import verified
from slimgpu.oci.image import CHUNK
from slimgpu.parallel import begin_worker, readahead
from slimgpu.rootfs.extract import Extracted, extract
from slimgpu.rootfs.tarstream import TarStream
from slimgpu.store.inflate import inflate

if TYPE_CHECKING:
    from collections.abc import Iterator
    from multiprocessing.connection import Connection

    from slimgpu.coldstart.memory import SharedMemory
    from slimgpu.weights.slots import Slot

RANGE: Final = 4 * 1024 * 1024
"""Bytes of a range, and of its place in memory."""


@dataclass(frozen=True, slots=True)
class Job:
    """A layer to unpack, for a process."""

    folder: str
    """Where to."""
    alone: bool
    """As `slimgpu.rootfs.extract.extract` takes it."""
    digest: str
    size: int
    diff_id: str

    @property
    def what(self) -> str:
        """For messages."""
        return f"layer {self.digest}"


@dataclass(frozen=True, slots=True)
class Unpacked:
    """What came of a `Job`."""

    extracted: Extracted
    length: int
    """Bytes of the tar."""


class Unpacker:
    """One process, as its owner sees it; messages to it may be sent by any thread."""

    def __init__(self, memory: SharedMemory) -> None:
        # Not fork: this process has threads, whose locks a forked child would inherit as they are.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([__name__])
        self.connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, memory), daemon=True, name="unpack")
        self._process.start()
        theirs.close()
        self._lent: dict[int, Slot] = {}

    def begin(self, job: Job) -> None:
        """Start with a layer; its ranges follow."""
        self._send(job)

    def take(self, slot: Slot, size: int) -> None:
        """The next range lies in the slot, which it has until it says otherwise."""
        assert slot.number is not None
        self._lent[slot.number] = slot
        self._send((slot.number, size))

    def _send(self, message: object) -> None:
        with suppress(OSError):  # it has ended, and `hear` says why
            self.connection.send(message)

    def hear(self) -> Slot | Unpacked | SlimgpuError:
        """What it says next: a slot that is free again, or how the layer went, an error being its last word."""
        try:
            said = self.connection.recv()
        except (EOFError, OSError) as error:
            raise _killed() from error
        if isinstance(said, (Unpacked, SlimgpuError)):
            return said
        return self._lent.pop(said)

    def end(self) -> list[Slot]:
        """Have it gone, whatever it is doing; gives the slots that it had."""
        self._process.kill()
        self._process.join()
        self.connection.close()
        return list(self._lent.values())


def _killed() -> SlimgpuError:
    return SlimgpuError(
        "a process that unpacked a layer was killed, most likely for lack of memory; run again with fewer workers (-j)"
    )


class Crew:
    """Processes, which are gone when the block ends."""

    def __init__(self, count: int, memory: SharedMemory) -> None:
        self._count = count
        self._memory = memory
        self._all: list[Unpacker] = []
        self.idle: list[Unpacker] = []
        """Those that may be given something to do; who gives it takes them out, and puts them back."""

    def __enter__(self) -> Self:
        try:
            for _ in range(self._count):
                self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for unpacker in self._all:
            unpacker.end()

    def _start(self) -> None:
        unpacker = Unpacker(self._memory)
        self._all.append(unpacker)
        self.idle.append(unpacker)

    def replace(self, unpacker: Unpacker) -> list[Slot]:
        """Another one in the place of one that has failed; gives the slots that it had."""
        self._all.remove(unpacker)
        lent = unpacker.end()
        self._start()
        return lent


def _serve(connection: Connection[Any, Any], memory: SharedMemory) -> None:
    """The process: unpack one layer after another, until the owner goes or one fails."""
    begin_worker()
    turn = threading.Lock()

    def say(message: object) -> None:
        with turn:
            connection.send(message)

    def received(job: Job) -> Iterator[bytes]:
        left = job.size
        while left:
            number, size = connection.recv()
            view = memory.view[number * RANGE : number * RANGE + size]
            for start in range(0, size, CHUNK):
                yield bytes(view[start : start + CHUNK])
            say(number)
            left -= size

    while True:
        job = connection.recv()
        try:
            said: Unpacked | SlimgpuError = _unpack(job, received(job))
        except SlimgpuError as error:
            say(error)
            os._exit(1)  # threads wait for ranges that nobody sends now
        say(said)


def _unpack(job: Job, stored: Iterator[bytes]) -> Unpacked:
    tar = inflate(readahead(verified(stored, job.digest, job.size, job.what)), job.what)
    if job.diff_id != job.digest:
        tar = verified(readahead(tar), job.diff_id, None, f"the unpacked {job.what}")
    stream = TarStream(readahead(tar), job.what)
    extracted = extract(stream, Path(job.folder), job.what, alone=job.alone)
    return Unpacked(extracted, stream.end())
