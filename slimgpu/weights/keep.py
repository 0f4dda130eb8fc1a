"""The local disk's copies of blobs, or of parts of them: a source for this machine and its neighbours.

::

    <root>/blobs/<hex>         a blob; sparse until all of it has been fetched
    <root>/blobs/<hex>.parts   which parts are there: offset and length of each, 8 bytes each, little-endian

A part's bytes are written before its record, and a record is appended in one write, so a killed process leaves nothing
wrong. What a power loss tears is found by the chunks' digests, which every reader checks. Nothing here is synced.
"""

from __future__ import annotations

import fcntl
import os
import struct
import threading
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING, Final

from slimgpu.weights.stripes import write_at

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_RECORD: Final = struct.Struct("<QQ")
_LOCK: Final = "blobs.lock"
_OFTEN: Final = 8
"""What is kept may be so much of the limit beyond it: an eighth."""


class BlobKeeper:
    """A folder of blobs that any number of processes share, see `slimgpu.weights.fetch.Keeper`."""

    def __init__(self, root: Path, limit: int) -> None:
        """``limit`` is how many bytes all blobs may take; the least recently used ones go."""
        self._root = root / "blobs"
        self._limit = limit
        self._lock = threading.Lock()
        self._kept = 0
        """Bytes since room was made."""

    def read_into(self, digest: str, offset: int, buffer: memoryview) -> bool:
        """See `Keeper.read_into`."""
        with suppress(OSError), ExitStack() as stack:
            with self._locked(fcntl.LOCK_SH):
                if not self.covers(digest, offset, len(buffer)):
                    return False
                file = stack.enter_context(self.path(digest).open("rb", buffering=0))
            file.seek(offset)
            if file.readinto(buffer) == len(buffer):
                with suppress(OSError):
                    os.utime(file.fileno())  # its last use, which most file systems note once a day
                return True
        return False

    def covers(self, digest: str, offset: int, size: int) -> bool:
        """Whether these bytes of the blob are there."""
        at = offset
        for start, end in self._parts(digest):
            if start <= at < end:
                at = end
            if at >= offset + size:
                return True
        return False

    def path(self, digest: str) -> Path:
        """Where the blob lies, if any of it is there."""
        return self._root / digest.partition(":")[2]

    def _parts(self, digest: str) -> list[tuple[int, int]]:
        """Start and end of what is there, sorted, without what merely touches merged."""
        try:
            data = self.path(digest).with_suffix(".parts").read_bytes()
        except OSError:
            return []
        whole = len(data) // _RECORD.size * _RECORD.size
        return sorted((offset, offset + size) for offset, size in _RECORD.iter_unpack(data[:whole]))

    def keep(self, digest: str, offset: int, data: memoryview) -> None:
        """See `Keeper.keep`; what doesn't fit, or on a disk that is full, is not kept."""
        there = self.path(digest).exists() and self.covers(digest, offset, len(data))
        if there or len(data) > self._limit:
            return
        try:
            with self._locked(fcntl.LOCK_SH):
                self._write(digest, offset, data)
        except OSError:
            self.forget(digest)
        with self._lock:
            self._kept += len(data)
            if self._kept <= self._limit // _OFTEN:
                return
        self.make_room()

    def _write(self, digest: str, offset: int, data: memoryview) -> None:
        path = self.path(digest)
        handle = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
        try:
            write_at(handle, data, offset)
        finally:
            os.close(handle)
        with path.with_suffix(".parts").open("ab", buffering=0) as parts:
            parts.write(_RECORD.pack(offset, len(data)))

    def forget(self, digest: str) -> None:
        """See `Keeper.forget`."""
        with suppress(OSError), self._locked(fcntl.LOCK_EX):
            self.path(digest).with_suffix(".parts").unlink(missing_ok=True)
            self.path(digest).unlink(missing_ok=True)

    @contextmanager
    def _locked(self, how: int) -> Iterator[None]:
        """Blobs go together with their records: not between the write of a part and that of its record."""
        self._root.mkdir(parents=True, exist_ok=True, mode=0o700)
        with (self._root / _LOCK).open("w") as lock:
            fcntl.flock(lock, how)
            yield

    def make_room(self) -> None:
        """Drop the least recently used blobs until all of them take no more than the limit."""
        with self._lock:
            self._kept = 0
        blobs = sorted(self._blobs(), key=lambda found: found[1], reverse=True)
        used = 0
        for path, _, size in blobs:
            used += size
            if used > self._limit:
                self.forget(f"sha256:{path.name}")

    def _blobs(self) -> Iterator[tuple[Path, float, int]]:
        """Path, time of last use and bytes on the disk of each blob, also of those that a killed process began."""
        for path in self._root.glob("*"):
            with suppress(FileNotFoundError):
                found = path.stat()
                if path.suffix not in (".parts", ".lock"):
                    yield path, found.st_mtime, found.st_blocks * 512
