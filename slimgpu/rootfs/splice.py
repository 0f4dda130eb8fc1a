"""Content that is made of stretches of another file and of bytes of its own, so that it need not be stored."""

from __future__ import annotations

import struct
from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Final, Self

from slimgpu.errors import ImageError

_PIECE: Final = 1024 * 1024
_OWN: Final = -1
"""Stands for the offset of a stretch that is taken from the literal bytes."""
_ZEROS: Final = -2
_ZERO_BLOCK: Final = bytes(64 * 1024)

Read = Callable[[int, int], bytes | memoryview]
"""Gives the bytes of the original from an offset on, as many as asked for."""


@dataclass(frozen=True, slots=True)
class Splice:
    """New content in order: ``runs`` of (offset, length), in bytes of the original, of ``literal``, or of zeros."""

    runs: tuple[tuple[int, int], ...]
    literal: bytes = b""

    @property
    def size(self) -> int:
        """Bytes of the new content."""
        return sum(length for _, length in self.runs)

    def content(self, read: Read) -> Iterator[bytes | memoryview]:
        """The new content in pieces."""
        own = 0
        for offset, length in self.runs:
            if offset == _OWN:
                yield self.literal[own : own + length]
                own += length
            elif offset == _ZEROS:
                yield from _zeros(length)
            else:
                yield from _pieces(read, offset, length)

    def dump(self) -> bytes:
        """The splice as bytes."""
        flat = array("q", (number for run in self.runs for number in run))
        return struct.pack("<Q", len(flat)) + flat.tobytes() + self.literal

    @classmethod
    def load(cls, data: bytes) -> Self:
        """What `dump` wrote."""
        (count,) = struct.unpack_from("<Q", data)
        numbers = struct.unpack_from(f"<{count}q", data, 8)
        return cls(tuple(zip(numbers[::2], numbers[1::2], strict=True)), data[8 + 8 * count :])


def literal(data: bytes) -> Splice:
    """Content that owes nothing to the original."""
    return Splice(((_OWN, len(data)),) if data else (), data)


class SpliceBuilder:
    """A splice under construction, from its first byte to its last."""

    def __init__(self) -> None:
        self._runs: list[tuple[int, int]] = []
        self._literal = bytearray()
        self.size = 0

    def copy(self, offset: int, length: int) -> None:
        """Append bytes of the original."""
        if self._runs and self._runs[-1][0] >= 0 and sum(self._runs[-1]) == offset:
            offset, before = self._runs.pop()
            self._append(offset, before + length, length)
        else:
            self._append(offset, length, length)

    def write(self, data: bytes) -> None:
        """Append bytes of its own."""
        self._literal += data
        self._grow(_OWN, len(data))

    def add(self, part: tuple[int, int] | bytes) -> None:
        """Append bytes of its own, or an (offset, length) of the original."""
        if isinstance(part, bytes):
            self.write(part)
        else:
            self.copy(*part)

    def zeros(self, length: int) -> None:
        """Append zeros."""
        self._grow(_ZEROS, length)

    def finish(self) -> Splice:
        """The splice."""
        return Splice(tuple(self._runs), bytes(self._literal))

    def _grow(self, kind: int, length: int) -> None:
        before = self._runs.pop()[1] if self._runs and self._runs[-1][0] == kind else 0
        self._append(kind, before + length, length)

    def _append(self, offset: int, length: int, added: int) -> None:
        if length:
            self._runs.append((offset, length))
        self.size += added


def _pieces(read: Read, offset: int, length: int) -> Iterator[bytes | memoryview]:
    end = offset + length
    while offset < end:
        piece = read(offset, min(_PIECE, end - offset))
        if not piece:
            raise ImageError("the original of a rewritten file ends early; empty the cache directory and run again")
        offset += len(piece)
        yield piece


def _zeros(length: int) -> Iterable[bytes]:
    whole, rest = divmod(length, len(_ZERO_BLOCK))
    yield from (_ZERO_BLOCK for _ in range(whole))
    if rest:
        yield _ZERO_BLOCK[:rest]
