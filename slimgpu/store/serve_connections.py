"""Connections of a server: a thread each up to a bound, no endless wait for a client, all closed in the end."""

from __future__ import annotations

import io
import socket
import sys
import time
from contextlib import suppress
from socketserver import BaseRequestHandler, TCPServer, ThreadingMixIn
from threading import BoundedSemaphore, Lock
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

_BUSY: Final = b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
_ENDS_WITHIN: Final = 5.0


class PatientReader(io.RawIOBase):
    """Reads a socket up to a deadline, however few bytes at a time the other side sends."""

    def __init__(self, connection: socket.socket) -> None:
        super().__init__()
        self._connection = connection
        self._timeout = connection.gettimeout()
        self._deadline = 0.0

    def buffered(self) -> io.BufferedReader:
        """The reader for a handler of requests."""
        return io.BufferedReader(self)

    def expect(self, seconds: float) -> None:
        """From now on, ``seconds`` are left for what follows."""
        self._deadline = time.monotonic() + seconds

    def readable(self) -> bool:
        """See `io.IOBase.readable`."""
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        """See `io.RawIOBase.readinto`; TimeoutError at the deadline."""
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self._connection.settimeout(left)
        try:
            return self._connection.recv_into(buffer)
        finally:
            self._connection.settimeout(self._timeout)


class BoundedServer(ThreadingMixIn, TCPServer):
    """A TCP server with a thread a connection, and at most ``bound`` of them."""

    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 128

    def __init__(self, host: str, port: int, handler: type[BaseRequestHandler], bound: int) -> None:
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._bound = bound
        self._slots = BoundedSemaphore(bound)
        self._lock = Lock()
        self._open: set[socket.socket] = set()
        super().__init__((host, port), handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Begin a thread for the connection, or tell the client to come again."""
        if not self._slots.acquire(blocking=False):
            with suppress(OSError):
                request.send(_BUSY)
            self.shutdown_request(request)
            return
        with self._lock:
            self._open.add(request)
        try:
            super().process_request(request, client_address)
        except BaseException:
            self._forget(request)
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Serve the connection to its end."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._forget(request)

    def _forget(self, request: socket.socket) -> None:
        with self._lock:
            self._open.discard(request)
        self._slots.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that has gone is no error of ours."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)

    def close(self) -> None:
        """Stop listening, cut all connections, and wait for their threads."""
        self.server_close()
        with self._lock:
            for connection in self._open:
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
        deadline = time.monotonic() + _ENDS_WITHIN
        for _ in range(self._bound):
            if not self._slots.acquire(timeout=max(0.0, deadline - time.monotonic())):
                return
