"""Who points into stretches of a library's memory, as far as the dynamic loader knows.

Sources: System V ABI, chapter 5, "Dynamic Section" and "Relocation"; the RELR format,
https://groups.google.com/g/generic-abi/c/bX460iggiKg; processor supplements for the numbers of the relocations.
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from slimgpu.elf.tables import SYMBOL, SectionType, SegmentType, Span, dynamic_tags
from slimgpu.errors import UnusualFileError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    from slimgpu.elf.tables import Tables

_RELATIVE: Final = {62: 8, 183: 1027}
"""The relocation that stores the library's base plus a number, by machine."""
_RELA: Final = struct.Struct("<QQq")
_WORD: Final = 8
_ROWS: Final = 2**16
"""How many relocations are taken apart at once."""
_MAX_PACKED: Final = 2**24
"""Relocations in a RELR table; the largest libraries have 400,000 of all kinds."""
_DT_SYMTAB, _DT_RELA, _DT_RELASZ, _DT_REL = 6, 7, 8, 17
_DT_STRTAB, _DT_STRSZ = 5, 10
_DT_PLTRELSZ, _DT_JMPREL, _DT_RELRSZ, _DT_RELR = 2, 23, 35, 36
_NUMBERS: Final = frozenset(
    {1, 2, 8, 9, 10, 11, 14, 15, 18, 19, 20, 27, 28, 29, 30, 33, 35, 37}
    | {*range(0x6FFFFD00, 0x6FFFFE00), *range(0x6FFFFFF9, 0x6FFFFFFC), 0x6FFFFFFD, 0x6FFFFFFF}
)
"""Tags whose values are sizes, counts and offsets of names; those of all others may be addresses."""
_TABLES: Final = frozenset({4, 5, 6, 7, 23, 25, 26, 32, 36, 0x6FFFFEF5, 0x6FFFFFF0, 0x6FFFFFFC, 0x6FFFFFFE})
"""Tags that lead to tables of the loader's."""
_NAMED: Final = frozenset({1, 14, 15, 29, 0x6FFFFEFA, 0x6FFFFEFB, 0x6FFFFEFC, 0x7FFFFFFD, 0x7FFFFFFF})
"""Tags whose values are offsets of names."""
_ANDROID: Final = range(0x6000000F, 0x60000013)
"""Packed relocations of Android's linker."""
_TLS: Final = 6
"""The type of symbols whose values are no addresses."""


@dataclass(frozen=True, slots=True)
class Pointers:
    """What refers to stretches of memory."""

    movable: dict[int, list[int]]
    """By the address that is pointed to, where in the file the address is written; 8 bytes each."""
    fixed: tuple[Span, ...]
    """Stretches that are referred to in other ways, or into which the loader writes."""


def pointers_into(data: memoryview, tables: Tables, spans: Collection[Span]) -> Pointers:
    """Everything that refers to addresses in ``spans``.

    A program that nothing relocates has none that could be changed. Raises `UnusualFileError` when the dynamic section
    or its tables are not as linkers make them.
    """
    if all(segment.type != SegmentType.DYNAMIC for segment in tables.segments):
        return Pointers({}, ())
    return _Search(data, tables, spans).run()


class _Search:
    def __init__(self, data: memoryview, tables: Tables, spans: Collection[Span]) -> None:
        self._data = data
        self._tables = tables
        self._loads = tables.loads
        self._load = self._loads[0]
        self._spans = sorted(spans)
        self._ends = [end for _, end in self._spans]
        self._movable: dict[int, list[int]] = {}
        self._fixed: list[Span] = []

    def run(self) -> Pointers:
        found = list(dynamic_tags(self._data, self._tables))
        tags = dict(found)
        if _DT_REL in tags or any(tag in _ANDROID for tag in tags):
            raise UnusualFileError("its relocations have a form that is not read")
        names = len(self._table(tags.get(_DT_STRTAB, 0), tags.get(_DT_STRSZ, 0)))
        if any(value >= names for tag, value in found if tag in _NAMED):
            raise UnusualFileError("a name in its dynamic section is not among its names")
        values = self._symbols(tags, names)
        starts = {section.address for section in self._tables.sections if section.allocated}
        for tag, value in tags.items():
            if tag not in _NUMBERS:
                self._fix(value)
            if value and tag in _TABLES and value not in starts:
                raise UnusualFileError("its dynamic section refers to what no section starts with")
        self._relocations(tags.get(_DT_RELA, 0), tags.get(_DT_RELASZ, 0), values)
        self._relocations(tags.get(_DT_JMPREL, 0), tags.get(_DT_PLTRELSZ, 0), values)
        for address in self._relr(tags.get(_DT_RELR, 0), tags.get(_DT_RELRSZ, 0)):
            self._relative_in_place(address)
        return Pointers(self._movable, tuple(self._fixed))

    def _inside(self, start: int, end: int) -> bool:
        """Whether a stretch has bytes in one of the spans."""
        number = bisect_right(self._ends, start)
        return number < len(self._spans) and self._spans[number][0] < end

    def _fix(self, start: int, size: int = 1) -> None:
        if self._inside(start, start + size):
            self._fixed.append((start, start + size))

    def _symbols(self, tags: dict[int, int], names: int) -> list[int]:
        """The values of the dynamic symbols; what those that are defined here cover is fixed."""
        address = tags.get(_DT_SYMTAB)
        for section in self._tables.sections:
            if section.type == SectionType.DYNSYM and section.address == address:
                table = self._table(address, section.size - section.size % SYMBOL.size)
                symbols = list(SYMBOL.iter_unpack(table))
                if any(symbol[0] >= names for symbol in symbols):
                    raise UnusualFileError("a dynamic symbol's name is not among its names")
                for _, info, _, number, value, size in symbols:
                    if number and info & 0xF != _TLS:
                        self._fix(value, max(1, size))
                return [symbol[4] for symbol in symbols]
        raise UnusualFileError("its dynamic symbols are not where its sections say")

    def _table(self, address: int, size: int) -> memoryview:
        offset = self._offset(address)
        if offset + size > self._load.end:
            raise UnusualFileError("a table of its dynamic section leads out of its segment")
        return self._data[offset : offset + size]

    def _offset(self, address: int) -> int:
        """Where the byte at an address is in the file; what is asked for next is mostly in the same segment."""
        load = self._load
        if not load.address <= address < load.address + load.stored:
            found = next((one for one in self._loads if one.address <= address < one.address + one.stored), None)
            if found is None:
                raise UnusualFileError("its dynamic section or a relocation leads out of the file")
            load = self._load = found
        return load.offset + address - load.address

    def _relocations(self, address: int, size: int, symbols: Sequence[int]) -> None:
        table = self._table(address, size - size % _RELA.size) if size else b""
        for start in range(0, len(table), _ROWS * _RELA.size):
            self._rows(address + start, table[start : start + _ROWS * _RELA.size], symbols)

    def _rows(self, address: int, table: bytes | memoryview, symbols: Sequence[int]) -> None:
        """Go through rows of a table column by column, as there may be hundreds of thousands."""
        words = struct.unpack(f"<{len(table) // _WORD}Q", table)
        places, kinds, addends = words[0::3], words[1::3], words[2::3]
        relative = _RELATIVE[self._tables.machine]
        first, last = self._spans[0][0], self._ends[-1]
        for place in [place for place in places if first - _WORD < place < last]:
            self._fix(place, _WORD)
        for row in [row for row, addend in enumerate(addends) if first <= addend < last]:
            if kinds[row] == relative:
                self._point(addends[row], self._offset(address) + row * _RELA.size + 2 * _WORD, places[row])
        for row in [row for row, kind in enumerate(kinds) if kind != relative]:
            symbol = kinds[row] >> 32
            if symbol >= len(symbols):
                raise UnusualFileError("a relocation names a symbol that there is not")
            self._fix(addends[row])
            self._fix((addends[row] + symbols[symbol]) % 2**64)

    def _point(self, target: int, written_at: int, place: int) -> None:
        """A pointer whose value is in a relocation; some linkers write it to its place as well."""
        if not self._inside(target, target + 1):
            return
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
        offset = self._offset(address)
        value = self._word(offset)
        if self._inside(value, value + 1):
            self._movable.setdefault(value, []).append(offset)
        self._fix(address, _WORD)

    def _relr(self, address: int, size: int) -> Iterator[int]:
        """The addresses that a RELR table names: an even word is an address, an odd one a bitmap of what follows."""
        if not size:
            return
        position = count = 0
        for word in self._table(address, size - size % _WORD).cast("Q"):
            count += word.bit_count() if word & 1 else 1
            if count > _MAX_PACKED:
                raise UnusualFileError("it has more relocations than any library")
            if not word & 1:
                yield word
                position = word + _WORD
                continue
            yield from (position + _WORD * bit for bit in range(63) if word >> (bit + 1) & 1)
            position += _WORD * 63
