from __future__ import annotations

import io
import socket
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
import requests

from slimgpu.store.http_pace import LEAST_RATE, PacedReader
from slimgpu.store.http_session import new_session

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.timeout(60)


@contextmanager
def _sending(send: Callable[[socket.socket], None]) -> Iterator[socket.socket]:
    """The end of a connection to whose other end a thread does ``send``."""
    here, there = socket.socketpair()
    with here, there:
        thread = threading.Thread(target=send, args=(there,))
        thread.start()
        try:
            yield here
        finally:
            here.shutdown(socket.SHUT_RDWR)
            thread.join()


def _drip(there: socket.socket) -> None:
    try:
        while True:
            there.sendall(b"x")
            threading.Event().wait(0.01)
    except OSError:
        return


def test_drops_are_not_enough() -> None:
    with _sending(_drip) as here, here.makefile("rb", buffering=0) as raw:
        reader = io.BufferedReader(PacedReader(raw, 0.1))
        with pytest.raises(TimeoutError, match="fewer than 4096 bytes a second came"):
            reader.read(LEAST_RATE)


def test_who_reads_slowly_is_not_taken_for_a_slow_server() -> None:
    data = bytes(1000)
    with _sending(lambda there: there.sendall(data)) as here, here.makefile("rb", buffering=0) as raw:
        reader = PacedReader(raw, 0.05)
        for _ in range(10):
            threading.Event().wait(0.06)
            assert reader.readinto(bytearray(100)) == 100


def test_a_server_that_keeps_the_pace_may_take_as_long_as_it_likes() -> None:
    def send(there: socket.socket) -> None:
        for _ in range(20):
            there.sendall(bytes(LEAST_RATE))
            threading.Event().wait(0.02)

    with _sending(send) as here, here.makefile("rb", buffering=0) as raw:
        assert len(io.BufferedReader(PacedReader(raw, 0.1)).read(20 * LEAST_RATE)) == 20 * LEAST_RATE


def test_a_proxy_that_drips_is_given_up_and_a_connection_is_used_again() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, new_session(retries=0) as session:
        session.trust_env = False
        host = f"127.0.0.1:{listener.getsockname()[1]}"

        def serve() -> None:
            kept, _ = listener.accept()
            with kept:
                for _ in range(2):
                    kept.recv(9999)
                    kept.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
                proxied, _ = listener.accept()
                with proxied:
                    _drip(proxied)

        thread = threading.Thread(target=serve)
        thread.start()
        assert [session.get(f"http://{host}/", timeout=30).content for _ in range(2)] == [b"ok"] * 2
        with pytest.raises(requests.exceptions.RequestException):
            session.get("http://registry.invalid/", proxies={"http": f"http://{host}"}, timeout=0.2)
        thread.join()
