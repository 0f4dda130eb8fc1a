"""The local disk's copies of blobs, or of parts of them: a source for this machine and its neighbours.

::

    <root>/blobs/<hex>         a blob; sparse until all of it has been fetched
    <root>/blobs/<hex>.parts   which parts are there: offset and length of each, 8 bytes each, little-endian

A part's bytes are written before its record, and a record is appended in one write, so a killed process leaves nothing
wrong. What a power loss tears is found by the chunks' digests, which every reader checks. Nothing here is synced.
"""

from __future__ import annotations

import os
import struct
from typing import TYPE_CHECKING, Final

from slimgpu.weights.region import write_at

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_RECORD: Final = struct.Struct("<QQ")


class BlobKeeper:
    """A folder of blobs that any number of processes share, see `slimgpu.weights.fetch.Keeper`."""

    def __init__(self, root: Path, limit: int) -> None:
        """``limit`` is how many bytes all blobs may take; the least recently used ones go."""
        self._root = root / "blobs"
        self._limit = limit

    def read_into(self, digest: str, offset: int, buffer: memoryview) -> bool:
        """See `Keeper.read_into`."""
        if not self.covers(digest, offset, len(buffer)):
            return False
        try:
            with self.path(digest).open("rb", buffering=0) as file:
                file.seek(offset)
                return file.readinto(buffer) == len(buffer)
        except FileNotFoundError:  # another process made room
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
        except FileNotFoundError:
            return []
        whole = len(data) // _RECORD.size * _RECORD.size
        return sorted((offset, offset + size) for offset, size in _RECORD.iter_unpack(data[:whole]))

    def keep(self, digest: str, offset: int, data: memoryview) -> None:
        """See `Keeper.keep`; what doesn't fit, or on a disk that is full, is not kept."""
        if self.covers(digest, offset, len(data)):
            return
        try:
            self._write(digest, offset, data)
        except OSError:
            self.forget(digest)

    def _write(self, digest: str, offset: int, data: memoryview) -> None:
        self._root.mkdir(parents=True, exist_ok=True, mode=0o700)
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
        self.path(digest).with_suffix(".parts").unlink(missing_ok=True)
        self.path(digest).unlink(missing_ok=True)

    def make_room(self) -> None:
        """Drop the least recently used blobs until all of them take no more than the limit."""
        blobs = sorted(self._blobs(), key=lambda found: found[1], reverse=True)
        used = 0
        for path, _, size in blobs:
            used += size
            if used > self._limit:
                self.forget(f"sha256:{path.name}")

    def _blobs(self) -> Iterator[tuple[Path, float, int]]:
        """Path, time of last use and bytes on the disk of each blob."""
        for parts in self._root.glob("*.parts"):
            try:
                found = parts.with_suffix("").stat()
            except FileNotFoundError:
                continue
            yield parts.with_suffix(""), max(found.st_mtime, found.st_atime), found.st_blocks * 512
