"""All files of an artifact, decoded, in one buffer that processes share.

::

    <folder>/data.*   the files one after another, each on a page of its own, in `slimgpu.weights.stripes`
    <folder>/state    one byte for each chunk: `MISSING`, `WHOLE` or `PLANES` (`slimgpu.weights.buffer`)
    <folder>/index    the index, behind its media type and a newline
    <folder>/fetch    locked by the process that fills it, whose number is in it
    <folder>/keep     there when it is to stay although nobody uses it

A chunk's bytes are written before its state, so whoever sees the state sees the bytes: whatever process is killed, the
next one goes on from there. In a tmpfs the buffer is shared memory; on a disk it is that disk's page cache.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from contextlib import contextmanager
from typing import TYPE_CHECKING

from filelock import FileLock

from slimgpu.errors import DestinationError
from slimgpu.store.files import atomic_file
from slimgpu.weights.buffer import MISSING, WHOLE, Buffer, create, full

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from slimgpu.weights.index import Index


class Region(Buffer):
    """A region that is open; any number of threads and processes may read and fill it."""

    def __init__(self, folder: Path, index: Index) -> None:
        super().__init__(folder, index.total, len(index.chunks))
        self.index = index
        try:
            fcntl.flock(self._state, fcntl.LOCK_SH)  # nobody removes it while we use it
        except BaseException:  # even Ctrl-C: with a lock that stays, nobody could remove it
            self.close()
            raise

    def has(self, chunk: int) -> bool:
        """Whether the chunk is there, in either form."""
        return self.state[chunk] != MISSING

    def write(self, chunk: int, data: memoryview, state: int = WHOLE) -> None:
        """Fill in a chunk; `DestinationError` when the memory or the disk is full."""
        self.fill(chunk, self.index.places[chunk], data, state)


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
    create(folder, index.total, len(index.chunks))
    with atomic_file(folder / "index", sync=False) as file:
        file.write(media_type.encode() + b"\n" + raw_index)


def mark_kept(folder: Path) -> None:
    """The region is to stay when nobody uses it, within the bounds of its tier."""
    try:
        (folder / "keep").touch()
    except OSError as error:
        raise full(folder, error) from error


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
        _sign(folder)
        yield True
    finally:
        lock.release()


def _sign(folder: Path) -> None:
    try:
        (folder / "fetch").write_text(str(os.getpid()))
    except OSError as error:
        raise full(folder, error) from error


def filler(folder: Path) -> str:
    """What the process that fills the region calls itself; in another container that may be another one here."""
    return (folder / "fetch").read_text() or "?"
