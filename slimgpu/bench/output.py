"""The first output of a started program: a line that it prints, or the answer to a request."""

from __future__ import annotations

import http.client
import re
import threading
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Final
from urllib.parse import urlsplit

from slimgpu.errors import NotFoundError, SlimgpuError
from slimgpu.rootfs.network import Network
from slimgpu.units import printable

if TYPE_CHECKING:
    from collections.abc import Callable

    from slimgpu.rootfs.running import Running

MOST: Final = 4096
"""Characters of an output that are kept."""
_LAST_LINES: Final = 12
_LONGEST_LINE: Final = 1 << 20
_POLL: Final = 0.002
_REQUEST_PAUSE: Final = 0.005
_REQUEST_SECONDS: Final = 60.0
_GOOD: Final = 200
_LOCAL: Final = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class Wanted:
    """What counts as the first output."""

    expect: str = ""
    """A regular expression of what the line or the answer has to hold, and what of it is compared; '' is all of it."""
    url: str = ""
    """Ask a server instead of reading lines: GET, or POST of ``data``; the first answer with status 200 counts."""
    data: str = ""
    timeout: float = 600.0
    """Seconds."""

    def part(self, text: str) -> str | None:
        """What counts of a line or an answer; None when it isn't what was wanted."""
        if not self.expect:
            return text[:MOST] or None
        found = re.search(self.expect, text)
        return None if found is None else found[0][:MOST]


@dataclass(frozen=True, slots=True)
class Output:
    """The first output and when it was there."""

    moment: float
    """`time.monotonic`."""
    text: str


class NoOutputError(SlimgpuError):
    """The program ended or went on without the output that was wanted."""


class Watch:
    """Reads what a program says from its start on, so that it never waits for a reader."""

    def __init__(self, program: Running, wanted: Wanted) -> None:
        self._program = program
        self._wanted = wanted
        self._last: deque[str] = deque(maxlen=_LAST_LINES)
        self._found: Output | None = None
        self._readers = [
            threading.Thread(target=self._read, args=(program.stdout, self._line), daemon=True),
            threading.Thread(target=self._read, args=(program.stderr, self._last.append), daemon=True),
        ]
        for reader in self._readers:
            reader.start()

    @staticmethod
    def _read(stream: IO[bytes], take: Callable[[str], object]) -> None:
        with suppress(OSError, ValueError):  # the program was ended
            while line := stream.readline(_LONGEST_LINE):
                take(line.decode(errors="replace").rstrip())

    def _line(self, line: str) -> None:
        moment = time.monotonic()
        self._last.append(line)
        if self._found is None and not self._wanted.url:
            self._take(moment, line)

    def _take(self, moment: float, text: str) -> None:
        part = self._wanted.part(text)
        if part is not None:
            self._found = Output(moment, part)

    def first(self) -> Output:
        """The first output, as soon as it is there; `NoOutputError` with the program's last words when it never is."""
        end = time.monotonic() + self._wanted.timeout
        while time.monotonic() < end:
            if self._wanted.url:
                self._ask()
            if self._found is not None:
                return self._found
            if self._program.poll() is not None:
                return self._after_the_end()
            time.sleep(_REQUEST_PAUSE if self._wanted.url else _POLL)
        raise self._failed(f"gave no first output within {self._wanted.timeout:g} s; allow more with --timeout")

    def again(self) -> float | None:
        """Seconds of a second answer; None for a program that answers no requests."""
        if not self._wanted.url:
            return None
        self._found, began = None, time.monotonic()
        self._ask()
        found: Output | None = self._found
        return None if found is None else found.moment - began

    def _after_the_end(self) -> Output:
        for reader in self._readers:
            reader.join(1.0)  # what it printed last; a child that lives on may hold the pipe open
        if self._found is not None:
            return self._found
        raise self._failed(f"ended with status {self._program.poll()} before its first output; check the command")

    def _ask(self) -> None:
        """Ask once; a server that isn't ready is no failure."""
        target = urlsplit(self._wanted.url)
        host, port = target.hostname or _LOCAL, target.port or 80
        connection = http.client.HTTPConnection(host, port)
        with suppress(OSError, http.client.HTTPException, NotFoundError):
            within = min(_REQUEST_SECONDS, self._wanted.timeout)
            connection.sock = Network(self._program.pid).connect((host, port), within)
            try:
                path = (target.path or "/") + (f"?{target.query}" if target.query else "")
                body = self._wanted.data.encode() or None
                headers = {"Content-Type": "application/json"} if body else {}
                connection.request("POST" if body else "GET", path, body, headers)
                answer = connection.getresponse()
                text = answer.read(_LONGEST_LINE).decode(errors="replace")
                if answer.status == _GOOD:
                    self._take(time.monotonic(), text)
            finally:
                connection.close()

    def _failed(self, what: str) -> NoOutputError:
        said = " | ".join(printable(line)[:200] for line in self._last if line)
        return NoOutputError(f"the program {what}" + (f" (its last words: {said})" if said else " (it said nothing)"))
