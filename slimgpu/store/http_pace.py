"""Answers that have to come at a least rate: a server that sends a byte a second never lets a socket time out.

How long a connection may be silent is how long it may take for `LEAST_RATE` times as many bytes, in the head of an
answer as in its body. Only the time that is spent waiting for bytes counts: whoever reads them may be slow.
"""

from __future__ import annotations

import http.client
import io
import time
from typing import TYPE_CHECKING, Any, Final

from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.poolmanager import pool_classes_by_scheme

if TYPE_CHECKING:
    import socket

    from _typeshed import WriteableBuffer
    from urllib3.poolmanager import PoolManager

LEAST_RATE: Final = 4096
"""Bytes a second, for each connection; 32 of them still fit through a megabit a second."""


class PacedReader(io.RawIOBase):
    """What comes from a connection, as long as it comes fast enough."""

    def __init__(self, raw: io.RawIOBase, window: float) -> None:
        """In every ``window`` of seconds of waiting, `LEAST_RATE` has to be kept up."""
        super().__init__()
        self._raw = raw
        self._window = window
        self._waited = 0.0
        self._came = 0

    def readable(self) -> bool:
        """See `io.IOBase.readable`."""
        return True

    def readinto(self, buffer: WriteableBuffer) -> int | None:
        """See `io.RawIOBase.readinto`; TimeoutError when too little has come."""
        before = time.monotonic()
        count = self._raw.readinto(buffer)
        self._waited += time.monotonic() - before
        self._came += count or 0
        if self._waited > self._window:
            if count and self._came < LEAST_RATE * self._window:
                raise TimeoutError(f"fewer than {LEAST_RATE} bytes a second came")
            self._waited, self._came = 0.0, 0
        return count

    def fileno(self) -> int:
        """See `io.IOBase.fileno`."""
        return self._raw.fileno()

    def close(self) -> None:
        """See `io.IOBase.close`."""
        super().close()
        self._raw.close()


class _Response(http.client.HTTPResponse):
    def __init__(
        self, sock: socket.socket, debuglevel: int = 0, method: str | None = None, url: str | None = None
    ) -> None:
        super().__init__(sock, debuglevel, method, url)
        window = sock.gettimeout()
        if window:
            self.fp = io.BufferedReader(PacedReader(self.fp.detach(), window))


class _Connection(HTTPConnection):
    response_class = _Response


class _SecureConnection(HTTPSConnection):
    response_class = _Response


class _Pool(HTTPConnectionPool):
    ConnectionCls = _Connection


class _SecurePool(HTTPSConnectionPool):
    ConnectionCls = _SecureConnection


class PacedAdapter(HTTPAdapter):
    """What a session sends requests with, straight or through an HTTP proxy."""

    def init_poolmanager(self, *arguments: Any, **named: Any) -> None:
        """See `HTTPAdapter.init_poolmanager`."""
        super().init_poolmanager(*arguments, **named)
        _pace(self.poolmanager)

    def proxy_manager_for(self, *arguments: Any, **named: Any) -> PoolManager:
        """See `HTTPAdapter.proxy_manager_for`."""
        manager: PoolManager = super().proxy_manager_for(*arguments, **named)
        _pace(manager)
        return manager


def _pace(manager: PoolManager) -> None:
    if manager.pool_classes_by_scheme is pool_classes_by_scheme:  # a SOCKS proxy has connections of its own
        manager.pool_classes_by_scheme = {"http": _Pool, "https": _SecurePool}
