"""A TCP relay before a service, which counts what passes, and breaks off where a test says so."""

from __future__ import annotations

import socket
import threading
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_PIECE = 64 * 1024


@dataclass
class Relay:
    """Where it listens, and what passed."""

    host: str
    connections: int = 0
    sent: int = 0
    """Bytes from clients to the service."""
    breaks: list[int] = field(default_factory=list)
    """After so many bytes from clients, counted anew after each, the connection is reset."""
    since: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def passed(self, count: int) -> bool:
        """Count; whether the connection lives on."""
        with self.lock:
            self.sent += count
            self.since += count
            if self.breaks and self.since >= self.breaks[0]:
                self.breaks.pop(0)
                self.since = 0
                return False
            return True


@contextmanager
def relaying(upstream: str) -> Iterator[Relay]:
    """Relay to ``host:port`` until the block ends."""
    host, _, port = upstream.rpartition(":")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        relay = Relay(f"127.0.0.1:{listener.getsockname()[1]}")
        thread = threading.Thread(target=_accept, args=(listener, relay, (host, int(port))), daemon=True)
        thread.start()
        try:
            yield relay
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


def _accept(listener: socket.socket, relay: Relay, upstream: tuple[str, int]) -> None:
    while True:
        try:
            client, _ = listener.accept()
        except OSError:
            return
        relay.connections += 1
        service = socket.create_connection(upstream)
        for source, target, counted in ((client, service, relay), (service, client, None)):
            threading.Thread(target=_pump, args=(source, target, counted), daemon=True).start()


def _pump(source: socket.socket, target: socket.socket, relay: Relay | None) -> None:
    with suppress(OSError):
        while data := source.recv(_PIECE):
            if relay is not None and not relay.passed(len(data)):
                break
            target.sendall(data)
    for end in (source, target):
        with suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
        end.close()
