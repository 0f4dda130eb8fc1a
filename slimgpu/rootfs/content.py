"""The content of files that lie in a spooled layer, read by position: no seeking, so threads can share it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final, Self

from slimgpu.errors import ImageError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from slimgpu.rootfs.entry import Entry

PIECE: Final = 1024 * 1024


class FileBytes:
    """A file whose slices are read on demand; it stays open until it is closed."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self._length = os.fstat(self._handle).st_size

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._handle)

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, part: slice) -> bytes:
        start, stop, _ = part.indices(self._length)
        return self.read(start, max(0, stop - start))

    def read(self, offset: int, size: int) -> bytes:
        """Exactly ``size`` bytes, or fewer at the end of the file."""
        data = os.pread(self._handle, size, offset)
        while len(data) < size:
            more = os.pread(self._handle, size - len(data), offset + len(data))
            if not more:
                break
            data += more
        return data

    def content(self, entry: Entry) -> Iterator[bytes]:
        """A regular file's bytes in pieces of at most `PIECE`, the holes of a sparse file as zeros."""
        if entry.extents is None:
            yield from self._pieces(entry.offset, entry.size)
            return
        position, offset = 0, entry.offset
        for start, length in entry.extents:
            yield from zeros(start - position)
            yield from self._pieces(offset, length)
            position, offset = start + length, offset + length
        yield from zeros(entry.size - position)

    def stored(self, entry: Entry) -> Iterator[bytes]:
        """The bytes that the tar holds of a regular file, without holes."""
        return self._pieces(entry.offset, entry.stored)

    def _pieces(self, offset: int, size: int) -> Iterator[bytes]:
        end = offset + size
        while offset < end:
            piece = os.pread(self._handle, min(PIECE, end - offset), offset)
            if not piece:
                raise ImageError(f"{self._path} ends early; remove it and run again to fetch the layer anew")
            offset += len(piece)
            yield piece


def zeros(count: int) -> Iterator[bytes]:
    """``count`` zero bytes in pieces."""
    block = bytes(min(PIECE, max(0, count)))
    while count > 0:
        yield block[:count]
        count -= PIECE
