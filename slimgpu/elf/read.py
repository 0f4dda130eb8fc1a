"""What an ELF file says to the dynamic loader, and how much of it the loader never reads.

Source: System V ABI, https://refspecs.linuxfoundation.org/elf/gabi4+/contents.html
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

from elftools.common.exceptions import ELFError
from elftools.construct import ConstructError
from elftools.elf.dynamic import DynamicSegment
from elftools.elf.elffile import ELFFile
from elftools.elf.segments import InterpSegment, Segment

from slimgpu.elf.fatbin import START
from slimgpu.elf.sections import NAMES
from slimgpu.elf.strip import is_debug
from slimgpu.elf.tables import SectionFlag, merged
from slimgpu.errors import ImageError
from slimgpu.rootfs.content import PIECE, FileBytes

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

MAGIC: Final = b"\x7fELF"
EM_CUDA: Final = 190
_DATA_MASK: Final = SectionFlag.ALLOC | SectionFlag.EXEC
_MAX_TEXT: Final = 1024
_MAX_NEEDED: Final = 4096
_MAX_TAGS: Final = 65_536
_FREE_READS: Final = 10_000
_MAX_READS: Final = 2**22
"""A library with 46,000 exported symbols (LLVM) takes 6 % of it."""


@dataclass(frozen=True, slots=True)
class ElfFacts:
    """The loader's view of one file; sizes in bytes."""

    bits: int
    machine: str
    soname: str = ""
    needed: tuple[str, ...] = ()
    rpath: str = ""
    runpath: str = ""
    interpreter: str = ""
    debug: int = 0
    """Of the debug sections."""
    symbols: int = 0
    """Of the symbol table that only debuggers and linkers read, with its strings."""
    code: int = 0
    """Of the sections that hold GPU code for choice by the driver."""
    scattered: bool = False
    """Whether there is GPU code in other sections."""


def is_elf(magic: bytes) -> bool:
    """Whether a file that starts so is an ELF file for the CPU (and not a cubin)."""
    return magic.startswith(MAGIC) and int.from_bytes(magic[18:20], "little") != EM_CUDA


def read_elf(path: Path, offset: int, size: int, what: str) -> ElfFacts:
    """The facts of the ELF file in ``path`` at ``offset``.

    Raises `ImageError` naming ``what`` when it is malformed, or made to take forever: a dynamic segment without end,
    a name of a gigabyte, tables that refer to each other.
    """
    with FileBytes(path) as data:
        window = _Metered(_Window(data, offset, size), min(_FREE_READS + size, _MAX_READS))
        try:
            elf = ELFFile(window)
            return _facts(elf, size, scattered=_has_code(data, offset, size, elf))
        except (
            ELFError,
            ConstructError,
            ValueError,
            KeyError,
            IndexError,
            AttributeError,
            TypeError,
        ) as error:
            raise ImageError(f"{what} is not a valid ELF file: {error}") from error
        except (AssertionError, RecursionError, OverflowError, MemoryError, UnicodeError) as error:
            raise ImageError(f"{what} is not a valid ELF file") from error


def _has_code(data: FileBytes, offset: int, size: int, elf: ELFFile) -> bool:
    """Whether containers of GPU code lie among the data of the file."""
    for first, last in merged(_data_spans(elf, size)):
        for position in range(first, last, PIECE):
            if START in data.read(offset + position, min(PIECE + len(START), last - position)):
                return True
    return False


def _data_spans(elf: ELFFile, size: int) -> Iterator[tuple[int, int]]:
    for section in elf.iter_sections():
        is_data = section["sh_type"] == "SHT_PROGBITS" and section["sh_flags"] & _DATA_MASK == SectionFlag.ALLOC
        if is_data and section.name not in NAMES:
            yield min(section["sh_offset"], size), min(section["sh_offset"] + section["sh_size"], size)


def _facts(elf: ELFFile, size: int, *, scattered: bool) -> ElfFacts:
    segments = list(elf.iter_segments())  # once: elftools reads the whole section table for a dynamic segment
    dynamic = _dynamic(segments)
    debug = symbols = code = 0
    for section in elf.iter_sections():
        if is_debug(section.name):
            debug += section["sh_size"]
        elif section.name in (".symtab", ".strtab"):
            symbols += section["sh_size"]
        elif section.name in NAMES:
            code += section["sh_size"]
    return ElfFacts(
        bits=elf.elfclass,
        machine=str(elf["e_machine"]),
        soname=_first(dynamic, "DT_SONAME"),
        needed=tuple(dynamic.get("DT_NEEDED", ())),
        rpath=_first(dynamic, "DT_RPATH"),
        runpath=_first(dynamic, "DT_RUNPATH"),
        interpreter=_interpreter(segments),
        debug=min(debug, size),
        symbols=min(symbols, size - min(debug, size)),
        code=min(code, size),
        scattered=scattered,
    )


_TEXT_TAGS: Final = {
    "DT_NEEDED": "needed",
    "DT_SONAME": "soname",
    "DT_RPATH": "rpath",
    "DT_RUNPATH": "runpath",
}


def _dynamic(segments: Iterable[Segment]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for segment in segments:
        if not isinstance(segment, DynamicSegment):
            continue
        for tag in islice(segment.iter_tags(), _MAX_TAGS):
            name = tag.entry.d_tag
            if name in _TEXT_TAGS:
                texts = found.setdefault(name, [])
                if len(texts) < _MAX_NEEDED:
                    texts.append(str(getattr(tag, _TEXT_TAGS[name]))[:_MAX_TEXT])
    return found


def _first(dynamic: dict[str, list[str]], tag: str) -> str:
    return dynamic.get(tag, [""])[0]


def _interpreter(segments: Iterable[Segment]) -> str:
    for segment in segments:
        if isinstance(segment, InterpSegment):
            return str(segment.get_interp_name())[:_MAX_TEXT]
    return ""


class _Metered(io.BufferedReader):
    """Ends with `ELFError` after so many reads; elftools reads each field and each 64 bytes of text by themselves."""

    def __init__(self, raw: io.RawIOBase, reads: int) -> None:
        super().__init__(raw, 64 * 1024)
        self._left = reads

    def read(self, size: int | None = -1, /) -> bytes:
        self._left -= 1
        if self._left < 0:
            raise ELFError("its tables have no end")
        return super().read(size)


class _Window(io.RawIOBase):
    """A part of a file as a seekable file of its own."""

    def __init__(self, data: FileBytes, offset: int, size: int) -> None:
        self._data = data
        self._offset = offset
        self._size = size
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = max(0, base + offset)
        return self._position

    def readinto(self, buffer: Any) -> int:
        count = max(0, min(len(buffer), self._size - self._position))
        data = self._data.read(self._offset + self._position, count)
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)
