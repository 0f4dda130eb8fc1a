"""Loads libraries that may crash: each in a process of its own, forked from one that has all it needs.

``python -m tests.support.trial RUNTIME`` reads paths from standard input, one a line, and answers each with ``-`` when
the library cannot be loaded, or with a digest of the GPU code for sm_90 that the CUDA runtime was handed.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

from tests.support.memory import parse

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SECONDS = 5
START = b"\x50\xed\x55\xba\x01\x00\x10\x00"


class Trials:
    """The process that forks, seen from tests."""

    def __init__(self, runtime: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.trial", runtime],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def load(self, path: Path) -> str:
        """What the process answers."""
        assert self._process.stdin
        assert self._process.stdout
        print(path, file=self._process.stdin, flush=True)
        return self._process.stdout.readline().strip()

    def close(self) -> None:
        self._process.communicate()


@contextlib.contextmanager
def trials(runtime: Path) -> Iterator[Trials]:
    one = Trials(runtime)
    try:
        yield one
    finally:
        one.close()


def _containers(handed: ctypes.CDLL) -> Iterator[bytes]:
    for number in range(handed.seen_containers()):
        address = handed.seen_container(number)
        size = int.from_bytes(ctypes.string_at(address + 8, 8), "little")
        yield ctypes.string_at(address, 16 + min(size, 2**20))


def _digest(handed: ctypes.CDLL) -> str:
    found = hashlib.sha256()
    for data in _containers(handed):
        if data[:8] != START:
            return ""
        for name, entry in parse(data[16:]):
            if name in ("sm_90", "sm_90a"):
                found.update(entry)
    return found.hexdigest()


def _try(handed: ctypes.CDLL, path: str, out: int) -> None:
    signal.alarm(SECONDS)
    try:
        ctypes.CDLL(path, mode=os.RTLD_NOW)
        os.write(out, _digest(handed).encode())
    finally:
        os._exit(0)


def main(runtime: str) -> None:
    handed = ctypes.CDLL(runtime, mode=os.RTLD_NOW | os.RTLD_GLOBAL)
    handed.seen_container.restype = ctypes.c_void_p
    for line in sys.stdin:
        source, sink = os.pipe()
        child = os.fork()
        if not child:
            _try(handed, line.strip(), sink)
        os.close(sink)
        with os.fdopen(source) as answer:
            text = answer.read()
        _, status = os.waitpid(child, 0)
        sys.stdout.write(f"{text if text and not status else '-'}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1])
