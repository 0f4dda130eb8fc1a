"""The header, program headers and section headers of 64-bit little-endian ELF files, read strictly and written back.

Source: System V ABI, https://refspecs.linuxfoundation.org/elf/gabi4+/contents.html, chapters 4 and 5; for what the
loader insists on, glibc's elf/dl-load.c.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from itertools import pairwise
from typing import TYPE_CHECKING, Final

from slimgpu.errors import UnusualFileError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

PAGES: Final = {62: 4096, 183: 65536}
"""The machines that are rewritten (x86-64, AArch64), with the largest page that their kernels map files by."""
_HEADER: Final = struct.Struct("<16sHHIQQQIHHHHHH")
_SEGMENT: Final = struct.Struct("<IIQQQQQQ")
_SECTION: Final = struct.Struct("<IIQQQQIIQQ")
SYMBOL: Final = struct.Struct("<IBBHQQ")
"""Name, type and binding, visibility, section, value, size."""
SEGMENT_SIZE: Final = _SEGMENT.size
SECTION_SIZE: Final = _SECTION.size
HEADER_SIZE: Final = _HEADER.size
_TAG: Final = struct.Struct("<QQ")
_MAX_TAGS: Final = 4096
_DT_NULL: Final = 0
_DT_FLAGS_1: Final = 0x6FFFFFFB
_DF_1_PIE: Final = 0x08000000
_BLOCK: Final = 1024 * 1024
_MAX_ADDRESS: Final = 2**62
_MAX_SEGMENTS: Final = 192
"""The most seen is 17; a file that was cut has up to 64 more."""
_MAX_NAMES: Final = 16 * 1024 * 1024
"""Bytes of the names of all sections."""
_MAX_NAME: Final = 4096
_RESERVED: Final = 0xFF00
"""From this number on, section numbers mean something else."""


Span = tuple[int, int]
"""Start and end of a stretch, of the file or of memory."""


class Type(IntEnum):
    """Kinds of files (``ET_``)."""

    EXEC = 2
    DYN = 3


class SegmentType(IntEnum):
    """Kinds of segments (``PT_``)."""

    LOAD = 1
    DYNAMIC = 2
    INTERP = 3
    PHDR = 6


class SectionType(IntEnum):
    """Kinds of sections (``SHT_``)."""

    NULL = 0
    PROGBITS = 1
    SYMTAB = 2
    STRTAB = 3
    RELA = 4
    NOBITS = 8
    REL = 9
    DYNSYM = 11
    GROUP = 17
    SYMTAB_SHNDX = 18


class SectionFlag(IntFlag):
    """Properties of sections (``SHF_``)."""

    ALLOC = 0x2
    EXEC = 0x4
    INFO_LINK = 0x40


@dataclass(frozen=True, slots=True)
class Segment:
    """A program header."""

    type: int
    flags: int
    offset: int
    address: int
    physical: int
    stored: int
    """Bytes in the file."""
    loaded: int
    """Bytes in memory."""
    alignment: int

    @property
    def end(self) -> int:
        """Where its bytes end in the file."""
        return self.offset + self.stored


@dataclass(frozen=True, slots=True)
class Section:
    """A section header with its name."""

    name: str
    name_offset: int
    type: int
    flags: int
    address: int
    offset: int
    size: int
    link: int
    info: int
    alignment: int
    entry_size: int

    @property
    def end(self) -> int:
        """Where its bytes end in the file."""
        return self.offset if self.type == SectionType.NOBITS else self.offset + self.size

    @property
    def allocated(self) -> bool:
        """Whether it is in memory at run time."""
        return bool(self.flags & SectionFlag.ALLOC)


@dataclass(frozen=True, slots=True)
class Tables:
    """An ELF file's headers."""

    ident: bytes
    type: int
    machine: int
    version: int
    entry: int
    segments_offset: int
    sections_offset: int
    flags: int
    names: int
    """Which section holds the names of sections."""
    segments: tuple[Segment, ...]
    sections: tuple[Section, ...]

    @property
    def page(self) -> int:
        """Bytes of the largest page."""
        return PAGES[self.machine]

    @property
    def loads(self) -> list[Segment]:
        """The segments that are mapped, by address."""
        return [segment for segment in self.segments if segment.type == SegmentType.LOAD]

    @property
    def is_library(self) -> bool:
        """Whether nothing but the dynamic loader maps it: the kernel has its own ways with programs."""
        return self.type == Type.DYN and all(segment.type != SegmentType.INTERP for segment in self.segments)

    def file_offset(self, address: int) -> int | None:
        """Where the byte that is mapped to ``address`` lies in the file; None when none is."""
        for load in self.loads:
            if load.address <= address < load.address + load.stored:
                return load.offset + address - load.address
        return None

    def pack_header(self) -> bytes:
        """The ELF header."""
        return _HEADER.pack(
            self.ident,
            self.type,
            self.machine,
            self.version,
            self.entry,
            self.segments_offset,
            self.sections_offset,
            self.flags,
            _HEADER.size,
            _SEGMENT.size,
            len(self.segments),
            _SECTION.size,
            len(self.sections),
            self.names,
        )

    def pack_segments(self) -> bytes:
        """The program header table."""
        return b"".join(
            _SEGMENT.pack(s.type, s.flags, s.offset, s.address, s.physical, s.stored, s.loaded, s.alignment)
            for s in self.segments
        )

    def pack_sections(self) -> bytes:
        """The section header table."""
        return b"".join(
            _SECTION.pack(
                s.name_offset, s.type, s.flags, s.address, s.offset, s.size, s.link, s.info, s.alignment, s.entry_size
            )
            for s in self.sections
        )


def is_zero(data: memoryview) -> bool:
    """Whether there is nothing but zeros."""
    return all(not data[start : start + _BLOCK].tobytes().strip(b"\0") for start in range(0, len(data), _BLOCK))


def dynamic_tags(data: memoryview, tables: Tables) -> Iterator[tuple[int, int]]:
    """The tags of the dynamic section with their values; `UnusualFileError` when it is not as linkers make it."""
    segments = [segment for segment in tables.segments if segment.type == SegmentType.DYNAMIC]
    if len(segments) != 1 or tables.file_offset(segments[0].address) != segments[0].offset:
        raise UnusualFileError("it has no dynamic section, or one that is not mapped as it says")
    size = min(segments[0].stored, _MAX_TAGS * _TAG.size)
    table = data[segments[0].offset : segments[0].offset + size - size % _TAG.size]
    for tag, value in _TAG.iter_unpack(table):
        if tag == _DT_NULL:
            return
        yield tag, value
    raise UnusualFileError("its dynamic section has no end")


def is_program(data: memoryview, tables: Tables) -> bool:
    """Whether the dynamic section says so, as that of a static program that can be anywhere in memory does."""
    return any(tag == _DT_FLAGS_1 and value & _DF_1_PIE for tag, value in dynamic_tags(data, tables))


def read_tables(data: memoryview) -> Tables:
    """The headers of the file in ``data``.

    Raises `UnusualFileError` for everything that a library or program as compilers and linkers make them does not have:
    other classes and machines, tables that lead out of the file, segments that overlap or are not aligned.
    """
    if len(data) < _HEADER.size:
        raise UnusualFileError("it is too short for an ELF file")
    fields = _HEADER.unpack_from(data)
    (
        ident,
        kind,
        machine,
        version,
        entry,
        phoff,
        shoff,
        flags,
        header_size,
        ph_size,
        ph_count,
        sh_size,
        sh_count,
        names,
    ) = fields
    _require(ident[:4] == b"\x7fELF", "it is no ELF file")
    _require(ident[4] == 2 and ident[5] == 1, "it is not 64-bit little-endian")  # noqa: PLR2004 - ELFCLASS64
    _require(ident[6] == 1 and version == 1 and header_size == _HEADER.size, "its header is of an unknown version")
    _require(kind in tuple(Type), "it is neither a library nor a program")
    _require(machine in PAGES, f"it is for machine {machine}, neither x86-64 nor AArch64")
    _require(
        ph_size == _SEGMENT.size and 0 < ph_count <= _MAX_SEGMENTS,
        "its program headers are not of the usual size or number",
    )
    _require(sh_size == _SECTION.size and 0 < sh_count < _RESERVED, "it has no section headers of the usual size")
    segments = tuple(Segment(*values) for values in _table(data, _SEGMENT, phoff, ph_count))
    raw = list(_table(data, _SECTION, shoff, sh_count))
    _require(names < sh_count, "it does not say where its sections' names are")
    tables = Tables(
        ident, kind, machine, version, entry, phoff, shoff, flags, names, segments, tuple(_sections(data, raw, names))
    )
    _check_segments(tables, len(data))
    _check_sections(tables, len(data))
    return tables


def merged(spans: Iterable[Span]) -> list[Span]:
    """The same stretches in order, those that overlap joined."""
    found: list[Span] = []
    for start, end in sorted(spans):
        if found and start <= found[-1][1]:
            found[-1] = (found[-1][0], max(end, found[-1][1]))
        else:
            found.append((start, end))
    return found


def _require(condition: object, complaint: str) -> None:
    if not condition:
        raise UnusualFileError(complaint)


def _table(data: memoryview, row: struct.Struct, offset: int, count: int) -> Iterator[tuple[int, ...]]:
    end = offset + row.size * count
    _require(end <= len(data), "its headers lead out of the file")
    return row.iter_unpack(data[offset:end])


def _sections(data: memoryview, raw: Sequence[tuple[int, ...]], names: int) -> Iterator[Section]:
    offset, size = raw[names][4], raw[names][5]
    _require(offset + size <= len(data) and size <= _MAX_NAMES, "the names of its sections lead out of the file")
    text = bytes(data[offset : offset + size])
    for name, *rest in raw:
        end = text.find(b"\0", name, name + _MAX_NAME)
        _require((name < max(1, size) and end >= 0) or name == 0, "a section's name leads out of the file")
        yield Section(text[name:end].decode("latin-1") if end >= 0 else "", name, *rest)


def _check_segments(tables: Tables, size: int) -> None:
    for segment in tables.segments:
        _require(segment.end <= size or not segment.stored, "a segment leads out of the file")
        _require(segment.address + segment.loaded <= _MAX_ADDRESS, "a segment leads out of memory")
        _require(segment.physical <= _MAX_ADDRESS, "a segment leads out of memory")
    loads = tables.loads
    _require(loads, "no segment is loaded")
    for load in loads:
        _require(load.stored <= load.loaded, "a segment has more bytes in the file than in memory")
        _require((load.offset - load.address) % tables.page == 0, "a segment is not aligned to pages")
        _require(load.alignment > 0 and load.alignment & (load.alignment - 1) == 0, "a segment's alignment is odd")
        _require((load.offset - load.address) % load.alignment == 0, "a segment is not aligned as it says")
    for first, second in pairwise(loads):
        _require(first.address + first.loaded <= second.address, "its segments overlap or are not sorted")


def _check_sections(tables: Tables, size: int) -> None:
    for section in tables.sections:
        _require(section.end <= size, f"section {section.name!r} leads out of the file")
        _require(section.address <= _MAX_ADDRESS, f"section {section.name!r} leads out of memory")
        _require(section.type != SectionType.NULL or not section.size, f"section {section.name!r} has no type")
        _require(section.link < len(tables.sections), f"section {section.name!r} refers to none that there is")
