"""A large buffer in several files, which many threads write at once.

Linux lets one writer at a time into a file, and in a tmpfs copying pages is all that a write does: four threads that
write one file get no further than one of them. So the buffer is dealt out to files in stripes, and mapped together
again for those who read it.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from typing import TYPE_CHECKING, Final

from slimgpu.errors import DestinationError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import ExitStack
    from pathlib import Path

_FILES: Final = 16
_STRIPE: Final = 8 * 1024 * 1024
"""Bytes of a stripe, as long as that makes no more of them than `_MAPPINGS`."""
_MAPPINGS: Final = 8192
"""Of the 65,530 that Linux lets a process have (vm.max_map_count)."""

_MAP_FIXED: Final = 0x10
_MAP_NORESERVE: Final = 0x4000
"""Which Python names from 3.13 on: else Linux refuses a private mapping larger than memory and swap."""


class Stripes:
    """The buffer; how it is dealt out follows from its size alone."""

    def __init__(self, folder: Path, size: int) -> None:
        self._folder = folder
        self._size = max(size, 1)
        self._stripe = _STRIPE
        while self._size > self._stripe * _MAPPINGS:
            self._stripe *= 2
        self._handles: list[int] = []

    def create(self) -> None:
        """Make the files, which take no room until they are written."""
        for path in self._paths():
            with path.open("xb") as file:
                file.truncate(-(-self._size // self._stripe // _FILES) * self._stripe)

    def _paths(self) -> list[Path]:
        return [self._folder / f"data.{number}" for number in range(_FILES)]

    def open(self, stack: ExitStack) -> None:
        """Open the files for as long as ``stack`` is."""
        self._handles = [stack.enter_context(path.open("r+b", buffering=0)).fileno() for path in self._paths()]

    def write(self, data: memoryview, offset: int) -> None:
        """All of ``data`` at ``offset``; raises OSError."""
        done = 0
        for handle, start, size in self._places(offset, len(data)):
            write_at(handle, data[done : done + size], start)
            done += size

    def _places(self, offset: int, size: int) -> Iterator[tuple[int, int, int]]:
        """Handle of the file, offset in it, and bytes, of each piece of a part of the buffer."""
        end = offset + size
        while offset < end:
            stripe, skip = divmod(offset, self._stripe)
            piece = min(self._stripe - skip, end - offset)
            yield self._handles[stripe % _FILES], stripe // _FILES * self._stripe + skip, piece
            offset += piece

    def view(self) -> memoryview:
        """The whole buffer, in this process alone: what is written to it, nobody else sees.

        It stays valid when the files are closed.
        """
        whole = mmap.mmap(-1, self._size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE)
        address = ctypes.addressof(ctypes.c_char.from_buffer(whole))
        for handle, start, size in self._places(0, self._size):
            _map_over(address, size, handle, start)
            address += size
        return memoryview(whole)


def _map_over(address: int, size: int, handle: int, offset: int) -> None:
    """Put a part of a file in place of memory that is mapped, and goes with it: mmap(2), MAP_FIXED."""
    protection, flags = mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_PRIVATE | _MAP_NORESERVE | _MAP_FIXED
    if _mmap(address, size, protection, flags, handle, offset) != address:
        reason = os.strerror(ctypes.get_errno())
        raise DestinationError(f"the weights cannot be mapped ({reason}); raise the sysctl vm.max_map_count")


_mmap = ctypes.CDLL(None, use_errno=True).mmap
_mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
_mmap.restype = ctypes.c_void_p


def write_at(handle: int, data: memoryview, offset: int) -> None:
    """All of ``data`` at ``offset`` of a file."""
    written = 0
    while written < len(data):
        written += os.pwrite(handle, data[written:], offset + written)
