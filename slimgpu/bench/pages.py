"""The page cache: filling it with files, emptying it of them, and asking which of their pages are in it.

A directory stands for all files below it; links are not followed, and a file of several names counts once. Names and
attributes of files stay in memory when their pages go. All of these raise OSError for what can't be read.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

from slimgpu.parallel import Workers, default_jobs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

R = TypeVar("R")

_READ: Final = 1 << 20
_LIBC: Final = ctypes.CDLL(None, use_errno=True)


def warm(paths: Iterable[Path]) -> None:
    """Read all of the files."""
    _for_each(_read, _files(paths).values())


def evict(paths: Iterable[Path]) -> None:
    """Write the files back and drop their pages; what a process has mapped stays.

    It writes back all of their file systems, as that takes one wait and not one for each file.
    """
    found = _files(paths)
    for path in {device: path for (device, _), path in found.items()}.values():
        _write_back(path)
    _for_each(_drop, found.values())


def resident(paths: Iterable[Path]) -> float:
    """The share of the files' pages that are in the page cache; 0 when they have none.

    The kernel answers for files that the caller owns or may write to, and calls all others resident.
    """
    counts = _for_each(_pages, _files(paths).values())
    total = sum(total for _, total in counts)
    return sum(there for there, _ in counts) / total if total else 0.0


def _for_each(function: Callable[[Path], R], files: Iterable[Path]) -> list[R]:
    with Workers(default_jobs(), "pages") as workers:
        return list(workers.map(function, files))


def _files(paths: Iterable[Path]) -> dict[tuple[int, int], Path]:
    """All regular files, by device and inode."""
    found = {}
    for path in paths:
        for file in _below(path) if path.is_dir() else (path.resolve(),):
            facts = file.lstat()
            if stat.S_ISREG(facts.st_mode):
                found[facts.st_dev, facts.st_ino] = file
    return found


def _below(folder: Path) -> Iterator[Path]:
    def refuse(error: OSError) -> None:
        raise error

    for parent, _, names in os.walk(folder, onerror=refuse):
        yield from (Path(parent, name) for name in names)


def _read(path: Path) -> None:
    with path.open("rb", buffering=0) as file:
        while file.read(_READ):
            pass


def _write_back(path: Path) -> None:
    """All that waits to be written to the file system of ``path``."""
    handle = os.open(path, os.O_RDONLY)
    try:
        if _LIBC.syncfs(handle):
            _fail(path)
    finally:
        os.close(handle)


def _drop(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(handle)


def _pages(path: Path) -> tuple[int, int]:
    """Pages in the cache, and all pages."""
    with path.open("rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        if not size:
            return 0, 0
        count = -(-size // mmap.PAGESIZE)
        found = (ctypes.c_ubyte * count)()
        with mmap.mmap(file.fileno(), size, mmap.MAP_PRIVATE) as mapped:
            # A private mapping may be written to, so ctypes takes its address; nothing is.
            first = ctypes.c_char.from_buffer(mapped)
            failed = _LIBC.mincore(ctypes.c_void_p(ctypes.addressof(first)), ctypes.c_size_t(size), found)
            del first
        if failed:
            _fail(path)
    return bytes(found).count(1), count  # Linux sets no bit but the lowest


def _fail(path: Path) -> None:
    error = ctypes.get_errno()
    raise OSError(error, os.strerror(error), str(path))
