"""The wire format of Protocol Buffers: which field lies where, without its content being read.

Source: https://protobuf.dev/programming-guides/encoding/
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from slimgpu.weights.formats.broken import BrokenError
from slimgpu.weights.formats.cursor import Cursor

if TYPE_CHECKING:
    from collections.abc import Iterator

    from slimgpu.weights.formats.tensor import Content

VARINT: Final = 0
LENGTH: Final = 2
_FIXED: Final = {1: 8, 5: 4}
_MAX_FIELDS: Final = 2_000_000
"""Of the messages that are looked into; an initializer has about ten."""
_MAX_VARINT: Final = 10
"""Bytes."""


class Field(NamedTuple):
    """One field of a message."""

    number: int
    wire: int
    """`VARINT`, `LENGTH` or a fixed size."""
    value: int
    """Of a varint; 0 for others."""
    start: int
    """Of the content, from the file's start."""
    end: int


class Reader:
    """Reads messages of one file; all of them together have a limited number of fields."""

    def __init__(self, content: Content) -> None:
        self._content = content
        self._left = _MAX_FIELDS

    def fields(self, start: int, end: int) -> Iterator[Field]:
        """The fields of the message at ``start``, in their order. Raises `BrokenError` when it is none."""
        cursor = Cursor(self._content, start, end)
        while cursor.left:
            self._left -= 1
            if self._left < 0:
                raise BrokenError(f"it has more than {_MAX_FIELDS} fields")
            number, wire = divmod(_varint(cursor), 8)
            if not number:
                raise BrokenError("a field has no number")
            at = cursor.position
            value = 0
            if wire == VARINT:
                value = _varint(cursor)
            elif wire == LENGTH:
                length = _varint(cursor)
                at = cursor.position
                cursor.skip(length)
            elif wire in _FIXED:
                cursor.skip(_FIXED[wire])
            else:
                raise BrokenError(f"a field has the wire type {wire}")
            yield Field(number, wire, value, at, cursor.position)

    def data(self, field: Field, limit: int) -> bytes:
        """The content of a field of at most ``limit`` bytes."""
        if field.end - field.start > limit:
            raise BrokenError(f"a text has {field.end - field.start} bytes, and at most {limit} are read")
        return Cursor(self._content, field.start, field.end).take(field.end - field.start)

    def varints(self, field: Field, limit: int) -> list[int]:
        """The values of a repeated number, packed or not; at most ``limit`` bytes of them."""
        if field.wire == VARINT:
            return [field.value]
        cursor = Cursor(self._content, field.start, field.end)
        if field.wire != LENGTH or cursor.left > limit:
            raise BrokenError("a list of numbers is too long or none")
        values = []
        while cursor.left:
            values.append(_varint(cursor))
        return values


def _varint(cursor: Cursor) -> int:
    value = 0
    for place in range(_MAX_VARINT):
        byte = cursor.byte()
        value |= (byte & 0x7F) << (7 * place)
        if byte < 0x80:  # noqa: PLR2004 - no further byte
            return value & (2**64 - 1)
    raise BrokenError("a number has more than ten bytes")
