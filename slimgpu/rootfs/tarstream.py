"""A tar that is read while it arrives: a window onto a stream, for a reader that only goes forward."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Final

from slimgpu.errors import ImageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from slimgpu.rootfs.entry import Entry

_BLOCK: Final = 512
"""What a tar is padded to, or not at its end."""


class TarStream:
    """What `slimgpu.rootfs.tarread.TarReader` reads headers from, and its caller the content of each entry in turn.

    A part can be had again until one behind its beginning has been asked for. In memory are one piece of the stream,
    and as much before it as the last part reaches back.
    """

    def __init__(self, pieces: Iterable[bytes], what: str) -> None:
        self._pieces = iter(pieces)
        self._what = what
        self._window = b""
        self._begin = 0
        """Where in the stream the window begins."""

    def __len__(self) -> int:
        """Nobody knows how long it is before its end: longer than any tar."""
        return sys.maxsize

    def __getitem__(self, part: slice) -> bytes:
        start, stop = part.start - self._begin, part.stop - self._begin
        if stop > len(self._window):
            self._slide(part.start, part.stop)
            start, stop = part.start - self._begin, part.stop - self._begin
        return self._window[start:stop]

    def stored(self, entry: Entry) -> Iterator[memoryview]:
        """The bytes that the tar holds of a regular file, without holes. Raises `ImageError` when it ends before."""
        at, end = entry.offset, entry.offset + entry.stored
        while at < end:
            self._slide(at, at + 1)
            piece = memoryview(self._window)[at - self._begin : end - self._begin]
            if not piece:
                raise ImageError(f"{self._what} ends inside {entry.path!r}; fetch or copy the image again")
            yield piece
            at += len(piece)

    def end(self) -> int:
        """Read to the end; gives how many bytes there were."""
        self._begin += len(self._window)
        self._window = b""
        for piece in self._pieces:
            self._begin += len(piece)
        return self._begin

    def _slide(self, start: int, stop: int) -> None:
        """Have the window begin at ``start`` and reach to ``stop``, or to the stream's end."""
        while start >= self._begin + len(self._window):
            self._begin += len(self._window)
            self._window = next(self._pieces, b"")
            if not self._window:
                if start >= self._begin + _BLOCK:  # what was stepped over is not all there
                    raise ImageError(f"{self._what} ends inside a file; fetch or copy the image again")
                return
        missing = stop - self._begin - len(self._window)
        if missing <= 0:
            return
        parts = [self._window[start - self._begin :]]
        self._begin = start
        while missing > 0 and (piece := next(self._pieces, b"")):
            parts.append(piece)
            missing -= len(piece)
        self._window = b"".join(parts)
