"""Processes that unpack ranges: threads of one interpreter wait for each other, from a few gigabytes a second on.

What arrives from the network is written to memory that the processes share; one of them gets the numbers of a range,
checks it, decodes it to the region, and says what came of it. Nothing but numbers goes between them. They take a
moment to start, until when the fetch unpacks by itself, as it does when one of them is killed.
"""

from __future__ import annotations

import json
import mmap
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
from contextlib import suppress
from io import BufferedRWPair  # noqa: TC003 - a field of a tuple
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Self

from slimgpu.weights.unpack import Fault

if TYPE_CHECKING:
    from collections.abc import Sequence

    from slimgpu.weights.buffer import Buffer
    from slimgpu.weights.unpack import Piece

_MOST: Final = 16
_ANSWER: Final = 30.0
"""Seconds in which a range is unpacked, or else its process has been stopped."""
_ONE_THREAD: Final = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
"""Numpy's BLAS starts a thread a core, which spin for a while, and must not be there when a process forks."""
_CODE: Final = "import sys; sys.path[:] = {path!r}; from slimgpu.weights.unpacker import main; main()"


class NobodyError(Exception):
    """No process is ready."""


class Crew:
    """The processes for one buffer, from the start of the block to its end."""

    def __init__(self, buffer: Buffer, count: int, slots: int, size: int) -> None:
        """``slots`` is how many ranges are in memory at once, and ``size`` how long each may be."""
        self._size = size
        self._file = os.memfd_create("slimgpu-ranges")
        os.ftruncate(self._file, slots * size)
        self._memory = memoryview(mmap.mmap(self._file, slots * size))
        self.count = min(count, _MOST)
        pairs = [socket.socketpair() for _ in range(self.count)]
        self._theirs = [theirs for _, theirs in pairs]
        self._ours = [ours for ours, _ in pairs]
        handles = [theirs.fileno() for theirs in self._theirs]
        self._description = [str(buffer.folder), buffer.total, buffer.chunks, self._file, size, handles]
        self._ready: queue.SimpleQueue[_Process] = queue.SimpleQueue()
        self._starting = threading.Thread(target=self._start, daemon=True, name="crew")
        self._first: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self._starting.start()
        return self

    def __exit__(self, *_: object) -> None:
        for ours in self._ours:
            with suppress(OSError):
                ours.shutdown(socket.SHUT_RDWR)  # whoever waits for an answer sees the end
            ours.close()
        self._starting.join()
        if self._first is not None:
            os.killpg(self._first.pid, signal.SIGKILL)  # what they are at, nobody wants any more
            self._first.wait()
        os.close(self._file)

    def _start(self) -> None:
        """One process that forks the others, since they all take the same time to start."""
        command = [sys.executable, "-c", _CODE.format(path=sys.path), json.dumps(self._description)]
        with suppress(OSError):  # no more processes may be started
            self._first = subprocess.Popen(  # noqa: S603 - this interpreter, and our own module
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=[self._file, *(theirs.fileno() for theirs in self._theirs)],
                start_new_session=True,  # Ctrl-C is for us
                env={**os.environ, **_ONE_THREAD},
            )
        for theirs in self._theirs:
            theirs.close()
        for ours in self._ours:
            with suppress(OSError, ValueError):  # it was killed, or the end came first
                pipe = ours.makefile("rwb")
                self._ready.put(_Process(json.loads(pipe.readline()), pipe))
                ours.settimeout(_ANSWER)

    def slot(self, number: int) -> memoryview:
        """The memory of a slot."""
        return self._memory[number * self._size : (number + 1) * self._size]

    def unpack(self, pieces: Sequence[Piece], slot: int, *, planes: bool) -> Fault | None:
        """What `slimgpu.weights.unpack.unpack` does, with the range in a slot; `NobodyError` when nobody can."""
        try:
            process = self._ready.get_nowait()
        except queue.Empty:
            raise NobodyError from None
        fault = process.ask([slot, planes, pieces])
        self._ready.put(process)
        return fault and Fault(*fault)


class _Process(NamedTuple):
    number: int
    pipe: BufferedRWPair

    def ask(self, question: object) -> Any:
        """Its answer; when there is none it is gone, and `NobodyError` is raised."""
        try:
            self.pipe.write(json.dumps(question).encode() + b"\n")
            self.pipe.flush()
            return json.loads(self.pipe.readline())
        except (OSError, ValueError) as error:
            with suppress(ProcessLookupError):
                os.kill(self.number, signal.SIGKILL)  # should it go on, then with a slot that has become another's
            raise NobodyError from error
