"""All files of an artifact, decoded, in one buffer that processes share.

::

    <folder>/data    the files one after another, each on a page of its own; sparse until filled
    <folder>/state   one byte for each chunk: `MISSING`, `WHOLE` or `PLANES`
    <folder>/index   the index, behind its media type and a newline
    <folder>/fetch   locked by the process that fills it
    <folder>/keep    there when it is to stay although nobody uses it

A chunk's bytes are written before its state, so whoever sees the state sees the bytes: whatever process is killed, the
next one goes on from there. In a tmpfs the buffer is shared memory; on a disk it is that disk's page cache.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import shutil
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Final

from filelock import FileLock

from slimgpu.errors import DestinationError
from slimgpu.store.files import atomic_file

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from slimgpu.weights.index import Index

MISSING: Final = 0
WHOLE: Final = 1
PLANES: Final = 2
"""The chunk's planes one after another, for a GPU to merge (`slimgpu.weights.codec.decode_planes`)."""

_NO_RESERVE: Final = 0x4000
"""MAP_NORESERVE, which Python names from 3.13 on: else Linux refuses a private mapping larger than memory and swap."""


class Region:
    """A region that is open; any number of threads and processes may read and fill it."""

    def __init__(self, folder: Path, index: Index) -> None:
        self.folder = folder
        self.index = index
        self._open = ExitStack()
        try:
            lock = self._open.enter_context((folder / "state").open("r+b", buffering=0))
            fcntl.flock(lock, fcntl.LOCK_SH)  # nobody removes it while we use it
            self._handle = self._open.enter_context((folder / "data").open("r+b", buffering=0)).fileno()
            self.state = self._open.enter_context(mmap.mmap(lock.fileno(), max(len(index.chunks), 1)))
            """A byte for each chunk."""
        except BaseException:  # even Ctrl-C: with a lock that stays, nobody could remove it
            self._open.close()
            raise

    def view(self) -> memoryview:
        """The whole buffer, in this process alone: what is written to it, nobody else sees.

        Only what `state` says is there is what it should be. The view stays valid when the region is closed.
        """
        return memoryview(mmap.mmap(self._handle, max(self.index.total, 1), mmap.MAP_PRIVATE | _NO_RESERVE))

    def has(self, chunk: int) -> bool:
        """Whether the chunk is there, in either form."""
        return self.state[chunk] != MISSING

    def write(self, chunk: int, data: memoryview, state: int = WHOLE) -> None:
        """Fill in a chunk; `DestinationError` when the memory or the disk is full."""
        try:
            for place in self.index.places[chunk]:
                write_at(self._handle, data, place)
        except OSError as error:
            raise DestinationError(
                f"{self.folder.parent} is full ({error.strerror}); set SLIMGPU_MEMORY_DIR to a larger file system"
            ) from error
        self.state[chunk] = state

    def close(self) -> None:
        """Let go of the files."""
        self._open.close()


def write_at(handle: int, data: memoryview, offset: int) -> None:
    """All of ``data`` at ``offset`` of a file."""
    written = 0
    while written < len(data):
        written += os.pwrite(handle, data[written:], offset + written)


@contextmanager
def opened(folder: Path, media_type: str, raw_index: bytes, index: Index) -> Iterator[Region]:
    """The region in ``folder``, made now unless it is there; several processes may do so at once."""
    region = None
    try:
        try:
            folder.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            with tier_lock(folder.parent):
                if not (folder / "index").exists():
                    _create(folder, media_type, raw_index, index)
                region = Region(folder, index)
            os.utime(folder)  # which was used last, for whoever has to make room
        except OSError as error:
            raise DestinationError(
                f"{folder.parent} cannot hold the weights ({error.strerror or error}); set SLIMGPU_MEMORY_DIR to "
                "another file system"
            ) from error
        yield region
    finally:
        if region is not None:
            region.close()


def tier_lock(tier: Path) -> FileLock:
    """Held while a region of the tier is made, opened or removed."""
    return FileLock(tier / "lock")


def _create(folder: Path, media_type: str, raw_index: bytes, index: Index) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o700)
    with (folder / "data").open("wb") as file:
        file.truncate(max(index.total, 1))
    # Not sparse: where there is no room for a page, touching it in a mapping kills the process.
    (folder / "state").write_bytes(bytes(max(len(index.chunks), 1)))
    with atomic_file(folder / "index", sync=False) as file:
        file.write(media_type.encode() + b"\n" + raw_index)


def mark_kept(folder: Path) -> None:
    """The region is to stay when nobody uses it, within the bounds of its tier."""
    (folder / "keep").touch()


def forget_kept(folder: Path) -> None:
    """Undo `mark_kept`."""
    (folder / "keep").unlink(missing_ok=True)


def is_kept(folder: Path) -> bool:
    """See `mark_kept`."""
    return (folder / "keep").exists()


@contextmanager
def filling(folder: Path) -> Iterator[bool]:
    """Whether it is this process that may fill the region, as long as the block lasts."""
    lock = FileLock(folder / "fetch", timeout=0)
    try:
        lock.acquire()
    except TimeoutError:
        yield False
        return
    except OSError as error:
        raise DestinationError(
            f"{folder} cannot be locked ({error.strerror}); choose another SLIMGPU_MEMORY_DIR"
        ) from error
    try:
        yield True
    finally:
        lock.release()
