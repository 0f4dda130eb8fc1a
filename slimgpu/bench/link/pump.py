"""One direction of a proxied connection: bytes from socket to socket, as fast as buckets let them."""

from __future__ import annotations

import fcntl
import math
import os
import socket
import threading
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Final

from slimgpu.bench.link.delay import PACKET, hold

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_PIPE: Final = 1 << 20
_CREDIT_SECONDS: Final = 0.002
"""What a bucket may catch up after it slept too long."""
_F_SETPIPE_SZ: Final = 1031


class Bucket:
    """Hands out bytes at a rate, or only the first ``count`` of them; several threads may take from one."""

    def __init__(self, bits_per_second: float, count: float = math.inf) -> None:
        self._left = count
        self._seconds_each = 8 / bits_per_second
        self.piece = min(_PIPE, max(PACKET, int(bits_per_second / 8 * _CREDIT_SECONDS)))
        """What to take at most at once, so that a slow link doesn't come in lumps."""
        self._paid_until = time.monotonic()
        self._lock = threading.Lock()

    def take(self, count: int) -> None:
        """Wait until ``count`` bytes more are due."""
        if self._left <= 0:
            return
        with self._lock:
            self._left -= count
            now = time.monotonic()
            self._paid_until = max(self._paid_until, now - _CREDIT_SECONDS) + count * self._seconds_each
            pause = self._paid_until - now
        if pause > 0:
            time.sleep(pause)


class Tally:
    """Bytes, and the most connections at the same time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open = 0
        self.count = 0
        self.most = 0

    def add(self, count: int) -> None:
        """Count bytes."""
        with self._lock:
            self.count += count

    @contextmanager
    def open(self) -> Iterator[None]:
        """Count a connection as long as the block lasts."""
        with self._lock:
            self._open += 1
            self.most = max(self.most, self._open)
        try:
            yield
        finally:
            with self._lock:
                self._open -= 1

    def reset(self) -> None:
        """Count from zero; connections that are open count on."""
        with self._lock:
            self.count, self.most = 0, self._open


def pump(
    source: socket.socket, sink: socket.socket, buckets: Sequence[Bucket] = (), tally: Tally | None = None
) -> None:
    """Move all that comes, through a pipe, without reading it; what fails ends both connections."""
    out, into = os.pipe()
    most = min((bucket.piece for bucket in buckets), default=_PIPE)
    with suppress(OSError):
        fcntl.fcntl(into, _F_SETPIPE_SZ, _PIPE)
    try:
        while count := os.splice(source.fileno(), into, most):
            for bucket in buckets:
                bucket.take(count)
            if tally:
                tally.add(count)
            while count:
                count -= os.splice(out, sink.fileno(), count)
        sink.shutdown(socket.SHUT_WR)
    except OSError:
        for end in (source, sink):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
    finally:
        os.close(out)
        os.close(into)


def pump_late(client: socket.socket, server: socket.socket, trip: float) -> None:
    """Move requests a round trip later, as they are small; the first waits for the handshake, too."""

    def read() -> bytes:
        return client.recv(PACKET, socket.MSG_DONTWAIT)

    with suppress(OSError):
        hold(client.fileno(), read, server.sendall, trip, time.monotonic() + 2 * trip)
    with suppress(OSError):
        server.shutdown(socket.SHUT_WR)
