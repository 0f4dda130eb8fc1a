"""How many connections a node has open, looked up in the kernel's table a hundred times a second.

Source: https://docs.kernel.org/networking/proc_net_tcp.html
"""

from __future__ import annotations

import os
import struct
import threading
from socket import inet_aton
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

_TABLE: Final = "/proc/thread-self/net/tcp"
_ESTABLISHED: Final = "01"
_READ: Final = 1 << 16
_PAUSE: Final = 0.01


class Connections:
    """Those to one address from the network namespace in which this is made; its table stays open."""

    def __init__(self, address: str) -> None:
        self._table = os.open(_TABLE, os.O_RDONLY)
        (number,) = struct.unpack("=I", inet_aton(address))
        self._wanted = f"{number:08X}:"
        self._lock = threading.Lock()
        self._most = 0

    def most(self) -> int:
        """How many there were at the most, now included."""
        with self._lock:
            self._most = max(self._most, self._now())
            return self._most

    def reset(self) -> None:
        """Begin with those that are open now."""
        with self._lock:
            self._most = self._now()

    def _now(self) -> int:
        os.lseek(self._table, 0, os.SEEK_SET)
        text = b"".join(iter(lambda: os.read(self._table, _READ), b"")).decode()
        rows = (line.split() for line in text.splitlines()[1:])
        return sum(1 for row in rows if row[2].startswith(self._wanted) and row[3] == _ESTABLISHED)


def watch(tables: Sequence[Connections]) -> None:
    """Look again and again, for ever."""
    pause = threading.Event()
    while not pause.wait(_PAUSE):
        for table in tables:
            table.most()
