"""Reading a file's headers from front to back, a block at a time, and never past their end."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from slimgpu.weights.formats.broken import BrokenError

if TYPE_CHECKING:
    from slimgpu.weights.formats.tensor import Content

_BLOCK: Final = 64 * 1024


class Cursor:
    """A place between ``position`` and ``end`` of a file; `BrokenError` for what would lie behind the end."""

    def __init__(self, content: Content, position: int, end: int) -> None:
        self._content = content
        self.position = position
        self.end = end
        self._block = b""
        self._block_at = 0

    @property
    def left(self) -> int:
        """Bytes before the end."""
        return self.end - self.position

    def skip(self, size: int) -> None:
        """Step over ``size`` bytes unread."""
        if size > self.end - self.position:
            raise BrokenError("it ends early")
        self.position += size

    def take(self, size: int) -> bytes:
        """The next ``size`` bytes, at most a block of 64 KiB."""
        start = self.position
        self.skip(size)
        at = start - self._block_at
        if not 0 <= at <= len(self._block) - size:
            self._block = exactly(self._content, start, min(_BLOCK, self._content.size - start))
            self._block_at, at = start, 0
        return self._block[at : at + size]

    def byte(self) -> int:
        """The next byte."""
        at = self.position - self._block_at
        if self.position >= self.end or not 0 <= at < len(self._block):
            return self.take(1)[0]
        self.position += 1
        return self._block[at]

    def number(self, size: int) -> int:
        """An unsigned little-endian number of ``size`` bytes."""
        return int.from_bytes(self.take(size), "little")


def exactly(content: Content, offset: int, size: int) -> bytes:
    """``size`` bytes that lie in the file. Raises `BrokenError` when it has shrunk meanwhile."""
    data = content.read(offset, size)
    if len(data) != size:
        raise BrokenError("it ends early")
    return data
