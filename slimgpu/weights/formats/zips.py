"""Where the uncompressed members of a zip archive lie.

`zipfile` gives no offsets of data, and reads a central directory of any length. This reader refuses what a hostile
archive could make expensive, and never inflates. Nothing before the archive and no split archives, as in torch.

Source: https://pkware.cachefly.net/webdocs/casestudies/APPNOTE.TXT
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Final

from slimgpu.weights.formats.broken import BrokenError
from slimgpu.weights.formats.cursor import Cursor, exactly
from slimgpu.weights.formats.tensor import MAX_TENSORS

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from slimgpu.weights.formats.tensor import Content

LOCAL_MAGIC: Final = b"PK\x03\x04"
_LOCAL: Final = struct.Struct("<4s5H3I2H")
_CENTRAL: Final = struct.Struct("<4s6H3I5H2I")
_END: Final = struct.Struct("<4s4H2IH")
_LOCATOR: Final = struct.Struct("<4sIQI")
_END64: Final = struct.Struct("<4sQ2H2I4Q")
_MAX_COMMENT: Final = 0xFFFF
_MAX_DIRECTORY: Final = 128 * 1024 * 1024
_MAX_NAME: Final = 4096
_FULL: Final = 0xFFFFFFFF
"""A 32-bit field whose value is in the zip64 part."""
_FULL_16: Final = 0xFFFF
_ENCRYPTED: Final = 1
_ZIP64: Final = 1


@dataclass(frozen=True, slots=True)
class Entry:
    """A line of the central directory."""

    name: bytes
    header: int
    """Offset of the local header."""
    size: int
    """Bytes of the content."""
    stored: bool
    """Whether the content lies in the archive as it is."""


@dataclass(frozen=True, slots=True)
class Member:
    """Where a stored member's content lies."""

    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class Archive:
    """An archive's members by name, in the order of its central directory."""

    entries: dict[bytes, Entry]
    end: int
    """Where the central directory starts."""


def first_name(content: Content) -> bytes:
    """The name in the archive's first local header; empty when there is none."""
    size = min(content.size, _LOCAL.size + _MAX_NAME)
    head = exactly(content, 0, size)
    if size < _LOCAL.size or not head.startswith(LOCAL_MAGIC):
        return b""
    return head[_LOCAL.size : _LOCAL.size + _LOCAL.unpack_from(head)[9]]


def read_archive(content: Content) -> Archive:
    """The central directory. Raises `BrokenError` when it is damaged, too long, or has a name twice."""
    entries, size, start = _end(content)
    if entries > MAX_TENSORS or size > _MAX_DIRECTORY:
        raise BrokenError(f"its archive has {entries} members in a directory of {size} bytes")
    found: dict[bytes, Entry] = {}
    cursor = Cursor(content, start, start + size)
    for _ in range(entries):
        entry = _entry(cursor)
        if entry.name in found:
            raise BrokenError("its archive has a name twice")
        found[entry.name] = entry
    return Archive(found, start)


def place(content: Content, archive: Archive, names: Iterable[bytes]) -> dict[bytes, Member]:
    """Where the contents of stored members lie.

    Raises `BrokenError` when one does not lie inside the archive, or when two share bytes.
    """
    found = {name: _member(content, archive, archive.entries[name]) for name in names}
    for before, after in pairwise(sorted(found.values(), key=lambda member: (member.offset, member.size))):
        if before.offset + before.size > after.offset:
            raise BrokenError("members of its archive overlap")
    return found


def _end(content: Content) -> tuple[int, int, int]:
    """Entries, bytes and offset of the central directory."""
    size = min(content.size, _END.size + _MAX_COMMENT)
    tail = exactly(content, content.size - size, size)
    at = tail.rfind(b"PK\x05\x06")
    while at >= 0 and len(tail) - at < _END.size + int.from_bytes(tail[at + 20 : at + 22], "little"):
        at = tail.rfind(b"PK\x05\x06", 0, at)
    if at < 0:
        raise BrokenError("the directory at the archive's end is missing")
    _, disk, first, _, entries, length, start, _ = _END.unpack_from(tail, at)
    place_of_end = content.size - size + at
    if _FULL_16 in (disk, first, entries) or _FULL in (length, start):
        disk, first, entries, length, start, place_of_end = _end64(content, place_of_end)
    if disk or first or start + length > place_of_end or entries * _CENTRAL.size > length:
        raise BrokenError("the directory at the archive's end is damaged")
    return entries, length, start


def _end64(content: Content, end: int) -> tuple[int, int, int, int, int, int]:
    if end < _LOCATOR.size + _END64.size:
        raise BrokenError("the directory at the archive's end is damaged")
    magic, _, where, _ = _LOCATOR.unpack(exactly(content, end - _LOCATOR.size, _LOCATOR.size))
    if magic != b"PK\x06\x07" or where > end - _LOCATOR.size - _END64.size:
        raise BrokenError("the directory at the archive's end is damaged")
    magic, _, _, _, disk, first, _, entries, length, start = _END64.unpack(exactly(content, where, _END64.size))
    if magic != b"PK\x06\x06":
        raise BrokenError("the directory at the archive's end is damaged")
    return disk, first, entries, length, start, where


def _entry(cursor: Cursor) -> Entry:
    fields = _CENTRAL.unpack(cursor.take(_CENTRAL.size))
    magic, flags, method, packed, size = fields[0], fields[3], fields[4], fields[8], fields[9]
    name_length, extra_length, comment_length, header = fields[10], fields[11], fields[12], fields[16]
    if magic != b"PK\x01\x02" or name_length > _MAX_NAME:
        raise BrokenError("the directory at the archive's end is damaged")
    name = cursor.take(name_length)
    wide = _wide(cursor.take(extra_length), [size, packed, header])
    cursor.skip(comment_length)
    size, packed, header = wide
    return Entry(name, header, size, stored=not method and not flags & _ENCRYPTED and size == packed)


def _wide(extra: bytes, values: list[int]) -> Iterator[int]:
    """The values, with those that 32 bits could not hold taken from the zip64 part of ``extra``, in this order."""
    part, at = b"", 0
    while at + 4 <= len(extra) and not part:
        kind, length = struct.unpack_from("<HH", extra, at)
        part = extra[at + 4 : at + 4 + length] if kind == _ZIP64 else b""
        at += 4 + length
    for value in values:
        if value != _FULL:
            yield value
            continue
        if len(part) < 8:  # noqa: PLR2004 - bytes of a 64-bit number
            raise BrokenError("the directory at the archive's end is damaged")
        yield int.from_bytes(part[:8], "little")
        part = part[8:]


def _member(content: Content, archive: Archive, entry: Entry) -> Member:
    length = _LOCAL.size + len(entry.name)
    head = exactly(content, entry.header, length) if entry.header + length <= archive.end else bytes(length)
    fields = _LOCAL.unpack_from(head)
    magic, name_length, extra_length = fields[0], fields[9], fields[10]
    offset = entry.header + length + extra_length
    same = magic == LOCAL_MAGIC and name_length == len(entry.name) and head[_LOCAL.size :] == entry.name
    if not same or offset + entry.size > archive.end:
        raise BrokenError("a member of its archive is not where the directory says")
    return Member(offset, entry.size)
