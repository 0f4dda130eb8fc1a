"""Memory that this process and those which it starts share, without a name that could outlive them."""

from __future__ import annotations

import mmap
import os
from multiprocessing.reduction import DupFd
from typing import Any


class SharedMemory:
    """Given to a process when it is started, it is the same memory there."""

    def __init__(self, size: int, handle: int | None = None) -> None:
        """``handle`` is an open file for memory that is there already."""
        self._size = size
        self._handle = os.memfd_create("slimgpu-pull") if handle is None else handle
        if handle is None:
            os.ftruncate(self._handle, size)
        self.view = memoryview(mmap.mmap(self._handle, size))
        """All of it; pages take room once they are used."""

    def close(self) -> None:
        """Nobody gets it any more; it goes with the last view of it."""
        os.close(self._handle)

    def __reduce__(self) -> tuple[Any, ...]:
        return _received, (DupFd(self._handle), self._size)


def _received(handle: Any, size: int) -> SharedMemory:
    return SharedMemory(size, handle.detach())
