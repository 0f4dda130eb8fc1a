"""Latency: what goes to a server is held for a whole round trip, and what comes back goes straight.

Requests and acknowledgements are small, so Python keeps up with them. Where packets are held, TCP sees the true round
trip in its handshake, its slow start and its window.
"""

from __future__ import annotations

import fcntl
import os
import select
import struct
import time
from collections import deque
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

PACKET: Final = 65536
_BATCH: Final = 64
_MOST_DELAYED: Final = 1 << 16
"""Pieces that are held before the sender has to wait."""
_TUNSETIFF: Final = 0x400454CA
_IFF_TUN_NO_PI: Final = 0x1001


def open_tun(name: str) -> int:
    """A device in the present network namespace whose packets are read from, and written to, what this gives.

    Source: https://docs.kernel.org/networking/tuntap.html
    """
    tun = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(tun, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _IFF_TUN_NO_PI))
    return tun


def hold_packets(tun: int, seconds: float) -> None:
    """Give each packet back to its device after ``seconds``, for ever."""
    hold(tun, lambda: os.read(tun, PACKET), lambda packet: os.write(tun, packet), seconds)


def hold(
    source: int, read: Callable[[], bytes], write: Callable[[bytes], object], seconds: float, first: float = 0
) -> None:
    """Hand on each piece after ``seconds``, none before the clock says ``first``; `read` must not block."""
    waiting: deque[tuple[float, bytes]] = deque()
    ended = False
    while not ended or waiting:
        while waiting and waiting[0][0] <= time.monotonic():
            write(waiting.popleft()[1])
        pause = max(0.0, waiting[0][0] - time.monotonic()) if waiting else None
        if ended or len(waiting) > _MOST_DELAYED:
            time.sleep(pause or 0)
        elif select.select([source], [], [], pause)[0]:
            ended = _take_all(read, waiting, seconds, first)


def _take_all(read: Callable[[], bytes], waiting: deque[tuple[float, bytes]], seconds: float, first: float) -> bool:
    """Queue what has come; tells whether it was the last."""
    for _ in range(_BATCH):
        try:
            piece = read()
        except BlockingIOError:
            return False
        if not piece:
            return True
        waiting.append((max(first, time.monotonic() + seconds), piece))
    return False
