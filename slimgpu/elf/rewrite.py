"""One way to change an ELF file: edits are queued in the coordinates of the original, and applied once.

Bytes can be replaced, fetched from elsewhere in the file and freed, and sections that are not loaded can be dropped.
What is mapped stays at its address; freed pages leave the file, see `slimgpu.elf.layout`.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from slimgpu.elf.layout import Layout, lay_out
from slimgpu.elf.tables import SEGMENT_SIZE, SYMBOL, Section, SectionFlag, SectionType, Span, Tables
from slimgpu.errors import UnusualFileError
from slimgpu.rootfs.splice import Splice, SpliceBuilder

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

_OWN: Final = -1
_FREE: Final = -2
_SYMBOL_SECTION: Final = 6
"""Where in a symbol the number of its section is."""
_RESERVED: Final = 0xFF00


@dataclass(frozen=True, slots=True)
class _Edit:
    start: int
    end: int
    source: int
    """An offset in the original, `_OWN` or `_FREE`."""
    data: bytes = b""


class Rewriter:
    """Edits of one file; none may overlap another."""

    def __init__(self, data: memoryview, tables: Tables) -> None:
        self._data = data
        self._tables = tables
        self._edits: list[_Edit] = []
        self._dropped: set[int] = set()

    def write(self, offset: int, data: bytes) -> None:
        """Replace bytes."""
        self._edits.append(_Edit(offset, offset + len(data), _OWN, data))

    def fetch(self, offset: int, source: int, length: int) -> None:
        """Put ``length`` bytes of the original at ``source`` to ``offset``."""
        self._edits.append(_Edit(offset, offset + length, source))

    def free(self, start: int, end: int) -> None:
        """Give up bytes that nothing reads: they become zeros, and whole pages of them leave the file."""
        if start < end:
            self._edits.append(_Edit(start, end, _FREE))

    def drop_sections(self, numbers: Iterable[int]) -> None:
        """Drop sections that are not loaded, with their headers."""
        self._dropped |= set(numbers)

    def finish(self) -> Splice | None:
        """The new file, None when nothing was asked for; `UnusualFileError` when it cannot be laid out."""
        if not self._edits and not self._dropped:
            return None
        numbers = _new_numbers(self._tables, self._dropped)
        edits = _sorted([*self._edits, *_renumbered_symbols(self._data, self._tables, numbers)])
        free = [(edit.start, edit.end) for edit in edits if edit.source == _FREE]
        layout = lay_out(self._data, self._tables, free, self._dropped)
        tables = _moved(self._tables, layout, numbers, free)
        return _assemble(_with_headers(edits, self._tables, tables, layout), layout, tables)


def _sorted(edits: Iterable[_Edit]) -> list[_Edit]:
    """Edits by place, free stretches that touch each other joined."""
    found: list[_Edit] = []
    for edit in sorted(edits, key=lambda edit: (edit.start, edit.end)):
        last = found[-1] if found else None
        if last is not None and edit.start < last.end:
            raise UnusualFileError("parts of it that would have to change overlap")
        if last is not None and edit.start == last.end and edit.source == last.source == _FREE:
            found[-1] = replace(last, end=edit.end)
        else:
            found.append(edit)
    return found


def _new_numbers(tables: Tables, dropped: set[int]) -> dict[int, int]:
    """The new number of each section that stays, by its old one."""
    kept = [number for number in range(len(tables.sections)) if number not in dropped]
    return {old: new for new, old in enumerate(kept)}


def _renumbered_symbols(data: memoryview, tables: Tables, numbers: dict[int, int]) -> Iterator[_Edit]:
    """Dynamic symbols name their section by its number."""
    if all(numbers.get(n) == n for n, section in enumerate(tables.sections) if section.allocated):
        return
    sections = [section for section in tables.sections if section.type == SectionType.DYNSYM]
    if len(sections) > 1:
        raise UnusualFileError("it has several tables of dynamic symbols")
    for section in sections:
        whole = section.size - section.size % SYMBOL.size
        symbols = SYMBOL.iter_unpack(data[section.offset : section.offset + whole])
        for position, (_, _, _, number, _, _) in enumerate(symbols):
            if number < _RESERVED and numbers.get(number, 0) != number:
                at = section.offset + position * SYMBOL.size + _SYMBOL_SECTION
                yield _Edit(at, at + 2, _OWN, numbers.get(number, 0).to_bytes(2, "little"))


def _moved(tables: Tables, layout: Layout, numbers: dict[int, int], free: Sequence[Span]) -> Tables:
    """The headers of the new file."""
    sections = []
    more = []
    for old in numbers:
        section = _relinked(tables.sections[old], numbers)
        first, *others = _parts(section, layout, free)
        sections.append(first)
        more += others
    return replace(
        tables,
        segments_offset=layout.segments_at,
        sections_offset=layout.sections_at,
        names=numbers[tables.names],
        segments=layout.segments,
        sections=(*sections, *more),  # at the end, so that no number changes
    )


def _relinked(section: Section, numbers: dict[int, int]) -> Section:
    refers = section.type in (SectionType.REL, SectionType.RELA) or section.flags & SectionFlag.INFO_LINK
    info = numbers.get(section.info, 0) if refers else section.info
    return replace(section, link=numbers.get(section.link, 0), info=info)


def _parts(section: Section, layout: Layout, free: Sequence[Span]) -> list[Section]:
    """The section's header, and more of the same name when cuts part it: a section's bytes lie in one stretch."""
    if section.type in (SectionType.NULL, SectionType.NOBITS) or not section.size:
        offset = section.offset if section.type == SectionType.NULL else layout.new_offset(section.offset)
        return [replace(section, offset=offset)]
    position = section.offset
    spans = []
    for cut in layout.cuts:
        if position < cut.end and cut.start < section.end:
            spans.append((position, cut.start))
            position = cut.end
    spans.append((position, section.end))
    trimmed = [span for span in (_trimmed(*span, free) for span in spans) if span[0] < span[1]]
    return [
        replace(
            section, offset=layout.new_offset(start), address=section.address + start - section.offset, size=end - start
        )
        for start, end in trimmed or [(section.offset, section.offset)]
    ]


def _trimmed(start: int, end: int, free: Sequence[Span]) -> Span:
    """The stretch without what is free at its ends."""
    number = bisect_right(free, (start, end))
    for first, last in free[max(0, number - 1) : number + 1]:
        if first <= start < last:
            start = min(last, end)
    number = bisect_right(free, (end, end))
    for first, last in free[max(0, number - 1) : number]:
        if first < end <= last:
            end = max(first, start)
    return start, end


def _with_headers(edits: Iterable[_Edit], old: Tables, new: Tables, layout: Layout) -> list[_Edit]:
    """The edits together with the file's header and its table of segments; zeros where that no longer is."""
    header, table = new.pack_header(), new.pack_segments()
    at, room = old.segments_offset, SEGMENT_SIZE * len(old.segments)
    table = table.ljust(room, b"\0") if layout.in_place else bytes(room)
    return _sorted([*edits, _Edit(0, len(header), _OWN, header), _Edit(at, at + room, _OWN, table)])


def _assemble(edits: Sequence[_Edit], layout: Layout, tables: Tables) -> Splice:
    out = SpliceBuilder()
    for chunk, place in zip(layout.chunks, layout.places, strict=True):
        out.zeros(place - out.size)
        _assemble_chunk(out, edits, chunk.start, chunk.end)
    if not layout.in_place:
        out.zeros(layout.segments_at - out.size)
        out.write(tables.pack_segments())
    out.zeros(layout.sections_at - out.size)
    out.write(tables.pack_sections())
    return out.finish()


def _assemble_chunk(out: SpliceBuilder, edits: Sequence[_Edit], start: int, end: int) -> None:
    """Append the original's bytes from ``start`` to ``end``, as edited."""
    position = start
    first = max(0, bisect_right(edits, start, key=lambda edit: edit.start) - 1)
    for number in range(first, len(edits)):
        edit = edits[number]
        low, high = max(edit.start, start), min(edit.end, end)
        if edit.start >= end:
            break
        if low >= high:
            continue
        out.copy(position, low - position)
        if edit.source == _OWN:
            out.write(edit.data[low - edit.start : high - edit.start])
        elif edit.source == _FREE:
            out.zeros(high - low)
        else:
            out.copy(edit.source + low - edit.start, high - low)
        position = high
    out.copy(position, end - position)
