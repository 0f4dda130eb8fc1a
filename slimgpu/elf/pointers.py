"""Who points into a stretch of a library's memory, as far as the dynamic loader knows.

Sources: System V ABI, chapter 5, "Dynamic Section" and "Relocation"; the RELR format,
https://groups.google.com/g/generic-abi/c/bX460iggiKg; processor supplements for the numbers of the relocations.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from slimgpu.elf.tables import SectionType, SegmentType
from slimgpu.errors import UnusualFileError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from slimgpu.elf.tables import Tables

_RELATIVE: Final = {62: 8, 183: 1027}
"""The relocation that stores the library's base plus a number, by machine."""
_RELA: Final = struct.Struct("<QQq")
_SYMBOL: Final = struct.Struct("<IBBHQQ")
_TAG: Final = struct.Struct("<QQ")
_WORD: Final = 8
_MAX_TAGS: Final = 4096
_DT_NULL, _DT_SYMTAB, _DT_RELA, _DT_RELASZ, _DT_REL = 0, 6, 7, 8, 17
_DT_PLTRELSZ, _DT_JMPREL, _DT_RELRSZ, _DT_RELR = 2, 23, 35, 36
_ANDROID: Final = range(0x6000000F, 0x60000013)
"""Packed relocations of Android's linker."""


@dataclass(frozen=True, slots=True)
class Pointers:
    """What refers to a stretch of memory."""

    movable: dict[int, list[int]]
    """By the address that is pointed to, where in the file the address is written; 8 bytes each."""
    fixed: frozenset[int]
    """Addresses that are referred to in other ways, or at which the loader writes."""


def pointers_into(data: memoryview, tables: Tables, start: int, end: int) -> Pointers:
    """Everything that refers to addresses from ``start`` up to ``end``.

    Raises `UnusualFileError` when the dynamic section or its tables are not as linkers make them.
    """
    return _Search(data, tables, start, end).run()


class _Search:
    def __init__(self, data: memoryview, tables: Tables, start: int, end: int) -> None:
        self._data = data
        self._tables = tables
        self._start = start
        self._end = end
        self._movable: dict[int, list[int]] = {}
        self._fixed: set[int] = set()

    def run(self) -> Pointers:
        tags = dict(_dynamic(self._data, self._tables))
        if _DT_REL in tags or any(tag in _ANDROID for tag in tags):
            raise UnusualFileError("its relocations have a form that is not read")
        symbols = self._symbols(tags)
        self._fix(value for section, value in symbols if section)
        self._fix(tags.values())
        values = [value for _, value in symbols]
        self._relocations(tags.get(_DT_RELA, 0), tags.get(_DT_RELASZ, 0), values)
        self._relocations(tags.get(_DT_JMPREL, 0), tags.get(_DT_PLTRELSZ, 0), values)
        for address in self._relr(tags.get(_DT_RELR, 0), tags.get(_DT_RELRSZ, 0)):
            self._relative_in_place(address)
        return Pointers(self._movable, frozenset(self._fixed))

    def _fix(self, addresses: Iterable[int]) -> None:
        self._fixed.update(address for address in addresses if self._start <= address < self._end)

    def _symbols(self, tags: dict[int, int]) -> list[tuple[int, int]]:
        """Section number and value of each dynamic symbol."""
        address = tags.get(_DT_SYMTAB)
        for section in self._tables.sections:
            if section.type == SectionType.DYNSYM and section.address == address:
                data = self._table(address, section.size - section.size % _SYMBOL.size)
                return [(number, value) for _, _, _, number, value, _ in _SYMBOL.iter_unpack(data)]
        raise UnusualFileError("its dynamic symbols are not where its sections say")

    def _table(self, address: int, size: int) -> memoryview:
        offset = self._tables.file_offset(address)
        if offset is None or size > len(self._data) - offset:
            raise UnusualFileError("a table of its dynamic section leads out of the file")
        return self._data[offset : offset + size]

    def _relocations(self, address: int, size: int, symbols: Sequence[int]) -> None:
        if not size:
            return
        table = self._table(address, size - size % _RELA.size)
        at = self._tables.file_offset(address)
        assert at is not None
        relative = _RELATIVE[self._tables.machine]
        for position, (place, info, addend) in enumerate(_RELA.iter_unpack(table)):
            if info == relative:
                if self._start <= addend < self._end:
                    self._point(addend, at + position * _RELA.size + 16, place)
            else:
                symbol = info >> 32
                self._fix([addend + (symbols[symbol] if symbol < len(symbols) else 0)])
            if self._start <= place < self._end:
                self._fixed.add(place)

    def _point(self, target: int, written_at: int, place: int) -> None:
        """A pointer whose value is in a relocation; some linkers write it to its place as well."""
        found = self._movable.setdefault(target, [])
        found.append(written_at)
        offset = self._tables.file_offset(place)
        if offset is not None and self._word(offset) == target:
            found.append(offset)

    def _word(self, offset: int) -> int:
        if offset + _WORD > len(self._data):
            raise UnusualFileError("a relocation leads out of the file")
        return int.from_bytes(self._data[offset : offset + _WORD], "little")

    def _relative_in_place(self, address: int) -> None:
        offset = self._tables.file_offset(address)
        if offset is None:
            raise UnusualFileError("a relocation leads out of the file")
        value = self._word(offset)
        if self._start <= value < self._end:
            self._movable.setdefault(value, []).append(offset)
        if self._start <= address < self._end:
            self._fixed.add(address)

    def _relr(self, address: int, size: int) -> Iterator[int]:
        """The addresses that a RELR table names: an even word is an address, an odd one a bitmap of what follows."""
        if not size:
            return
        position = 0
        for (word,) in struct.iter_unpack("<Q", self._table(address, size - size % _WORD)):
            if not word & 1:
                yield word
                position = word + _WORD
                continue
            yield from (position + _WORD * bit for bit in range(63) if word >> (bit + 1) & 1)
            position += _WORD * 63


def _dynamic(data: memoryview, tables: Tables) -> Iterator[tuple[int, int]]:
    segments = [segment for segment in tables.segments if segment.type == SegmentType.DYNAMIC]
    if len(segments) != 1:
        raise UnusualFileError("it has no dynamic section")
    size = min(segments[0].stored, _MAX_TAGS * _TAG.size)
    table = data[segments[0].offset : segments[0].offset + size - size % _TAG.size]
    for tag, value in _TAG.iter_unpack(table):
        if tag == _DT_NULL:
            return
        yield tag, value
