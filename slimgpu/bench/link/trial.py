"""The helpers with which a link is tried out: a server that only sends, and a client that only receives.

A client asks with a number of 8 bytes for so many bytes; none is a question that is answered with one byte.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from contextlib import suppress
from statistics import median
from typing import Final

from slimgpu.bench.link.helper import say, serve

_FILE: Final = 64 << 20
_PIECE: Final = 1 << 20
_NUMBER: Final = 8
_ANSWERS: Final = 11


def send(host: str, port: str) -> None:
    """Be the server."""
    file = os.memfd_create("link")
    block = os.urandom(_PIECE)
    for offset in range(0, _FILE, _PIECE):
        os.pwrite(file, block, offset)
    listener = socket.create_server((host, int(port)), backlog=128)
    threading.Thread(target=_accept, args=(listener, file), daemon=True).start()
    say(int(port))
    serve(str)


def _accept(listener: socket.socket, file: int) -> None:
    while True:
        client, _ = listener.accept()
        threading.Thread(target=_send, args=(client, file), daemon=True).start()


def _send(client: socket.socket, file: int) -> None:
    with client, suppress(OSError):
        left = int.from_bytes(client.recv(_NUMBER, socket.MSG_WAITALL), "big")
        if not left:
            client.sendall(b"!")
        offset = 0
        while left:
            sent = os.sendfile(client.fileno(), file, offset, min(left, _FILE - offset))
            left, offset = left - sent, (offset + sent) % _FILE


def fetch(host: str, port: str, connections: str, length: str) -> None:
    """Be the client: take ``length`` bytes over each connection, and say the seconds, and those to an answer before."""
    address = (host, int(port))
    answer = median(_answer(address) for _ in range(_ANSWERS))
    count = int(connections)
    got = [0] * count

    def take(number: int) -> None:
        got[number] = _take(address, int(length))

    threads = [threading.Thread(target=take, args=(number,)) for number in range(count)]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    say({"seconds": time.perf_counter() - began, "answer": answer, "bytes": sum(got)})


def _take(address: tuple[str, int], length: int) -> int:
    """The bytes that came."""
    piece, count = bytearray(_PIECE), 0
    with socket.create_connection(address) as connection:
        connection.sendall(length.to_bytes(_NUMBER, "big"))
        while got := connection.recv_into(piece):
            count += got
    return count


def _answer(address: tuple[str, int]) -> float:
    """Seconds from connecting to the first byte: two round trips and the server's own time."""
    began = time.perf_counter()
    with socket.create_connection(address) as connection:
        connection.sendall(bytes(_NUMBER))
        connection.recv(1)
    return time.perf_counter() - began
