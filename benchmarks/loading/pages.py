"""The page cache: filling it with files, emptying it of them, and asking which of their pages are in it."""

from __future__ import annotations

import ctypes
import mmap
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

_READ = 1 << 20
_LIBC = ctypes.CDLL(None, use_errno=True)


def warm(paths: Iterable[Path]) -> None:
    """Read all of the files."""
    for path in paths:
        with path.open("rb", buffering=0) as file:
            while file.read(_READ):
                pass


def evict(paths: Iterable[Path]) -> None:
    """Write the files back and drop their pages; what a process has mapped stays."""
    for path in paths:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(handle)


def resident(paths: Iterable[Path]) -> float:
    """The share of the files' pages that are in the page cache."""
    counts = [_pages(path) for path in paths]
    total = sum(total for _, total in counts)
    return sum(there for there, _ in counts) / total if total else 0.0


def _pages(path: Path) -> tuple[int, int]:
    """Pages in the cache, and all pages."""
    size = path.stat().st_size
    if not size:
        return 0, 0
    count = -(-size // mmap.PAGESIZE)
    found = (ctypes.c_ubyte * count)()
    with path.open("rb") as file, mmap.mmap(file.fileno(), size, mmap.MAP_PRIVATE) as mapped:
        # A private mapping may be written to, so ctypes takes its address; nothing is.
        first = ctypes.c_char.from_buffer(mapped)
        address = ctypes.c_void_p(ctypes.addressof(first))
        failed = _LIBC.mincore(address, ctypes.c_size_t(size), found)
        error = ctypes.get_errno()
        del first
    if failed:
        raise OSError(error, os.strerror(error), str(path))
    return sum(one & 1 for one in found), count
