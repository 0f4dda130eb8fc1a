"""GPU code in files, read by other means than slimgpu's: its reader and this one have to agree with each other."""

from __future__ import annotations

import mmap
import os
import re
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from elftools.elf.elffile import ELFFile

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

SECTIONS = (".nv_fatbin", "__nv_relfatbin", ".cask_resource")
"""The sections that slimgpu prunes. NVIDIA's cuobjdump lists them in this order."""
MAGIC = bytes.fromhex("50ed55ba01001000")
HEADER = 16
PLACEHOLDER = 256
_HEAD = 20
"""Bytes of the empty cubin that stands for code of which nothing can run."""

_SIZE = struct.Struct("<8xQ")
_ENTRY = struct.Struct("<HHIQIIIIIIQ")
_TABLES = (("e_phoff", "e_phnum", "e_phentsize"), ("e_shoff", "e_shnum", "e_shentsize"))
_DRIVER = re.compile(r"cu[A-Z]\w+$")
"""The names of the driver's functions, in libcuda."""
_CHUNK = 1 << 20
_FORMS = {1: "ptx", 2: "elf", 8: "lto"}
_DEBUG = (".symtab", ".strtab", ".debug_", ".zdebug_", ".gdb_index", ".gnu_debugdata", ".stab", ".gnu.debuglto_")


@dataclass(frozen=True, slots=True)
class Entry:
    """One piece of GPU code; offsets in the file."""

    start: int
    size: int
    """With its header."""
    form: str
    """``elf``, ``ptx``, ``lto`` or ``other``."""
    arch: str
    """As cuobjdump names it: ``sm_90a``, for PTX too."""

    @property
    def end(self) -> int:
        """Where it ends."""
        return self.start + self.size


@dataclass(frozen=True, slots=True)
class Container:
    """The same code for several GPUs."""

    start: int
    end: int
    entries: tuple[Entry, ...]


@dataclass(frozen=True, slots=True)
class Span:
    """A section by its place in the file."""

    name: str
    start: int
    end: int
    address: int
    allocated: bool


class Reading:
    """An open ELF file, seen by pyelftools and `struct`."""

    def __init__(self, path: Path) -> None:
        with path.open("rb") as file:
            self.data = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
            elf = ELFFile(file)
            self.sections = [
                Span(s.name, s["sh_offset"], s["sh_offset"] + s["sh_size"], s["sh_addr"], bool(s["sh_flags"] & 2))
                for s in elf.iter_sections()
                if s["sh_type"] not in ("SHT_NULL", "SHT_NOBITS")
            ]
            segments = list(elf.iter_segments())
            self._tables = {(elf[at], elf[at] + elf[n] * elf[size]) for at, n, size in _TABLES}
            dynamic = elf.get_section_by_name(".dynsym")
            symbols = dynamic.iter_symbols() if dynamic is not None else ()
            self.driver_calls = {s.name for s in symbols if s["st_shndx"] == "SHN_UNDEF" and _DRIVER.match(s.name)}
        self.is_program = any(s["p_type"] == "PT_INTERP" for s in segments)
        self._loads = [(s["p_vaddr"], s["p_filesz"], s["p_offset"]) for s in segments if s["p_type"] == "PT_LOAD"]

    @property
    def size(self) -> int:
        """Of the file."""
        return len(self.data)

    def offset(self, address: int) -> int:
        """Where in the file the byte is that is mapped to an address."""
        for start, size, offset in self._loads:
            if start <= address < start + size:
                return int(offset + address - start)
        raise ValueError(f"nothing is mapped to {address:#x}")

    def code(self) -> list[Span]:
        """The sections that hold GPU code which is pruned, in cuobjdump's order."""
        return [span for name in SECTIONS for span in self.sections if span.name == name and span.allocated]

    def symbol_spans(self) -> list[tuple[int, int]]:
        """Sections that only debuggers and linkers read."""
        return [(s.start, s.end) for s in self.sections if not s.allocated and s.name.startswith(_DEBUG)]

    def needed(self) -> int:
        """Bytes of what is mapped, of all other sections but symbols, and of headers: not what lies between these."""
        symbols = set(self.symbol_spans())
        spans = {(offset, offset + size) for _, size, offset in self._loads} | {(s.start, s.end) for s in self.sections}
        counted, end = 0, 0
        for start, stop in sorted((spans | self._tables) - symbols):
            counted += max(0, stop - max(start, end))
            end = max(end, stop)
        return counted

    def containers(self, *names: str) -> list[Container]:
        """All of them, or those of some sections."""
        spans = [span for span in self.code() if not names or span.name in names]
        return [container for span in spans for container in self._containers(span)]

    def _containers(self, span: Span) -> Iterator[Container]:
        position = self.data.find(MAGIC, span.start, span.end)
        while position >= 0:
            end = position + HEADER + _SIZE.unpack_from(self.data, position)[0]
            yield Container(position, end, tuple(self._entries(position + HEADER, end)))
            position = self.data.find(MAGIC, end, span.end)

    def _entries(self, position: int, end: int) -> Iterator[Entry]:
        while position < end:
            form, _, header, payload, _, _, _, number, _, _, flags = _ENTRY.unpack_from(self.data, position)
            suffix = "f" if flags & 0x200000 else "a" if flags & 0x100000 else ""
            yield Entry(position, header + payload, _FORMS.get(form, "other"), f"sm_{number}{suffix}")
            position += header + payload


def moved_words(before: Reading, after: Reading) -> tuple[int, list[str]]:
    """Compares all that is mapped, but for GPU code: how many words differ that pointed to GPU code, and what else."""
    code = [(span.address, span.address + span.end - span.start) for span in before.code()]
    moved, wrong = 0, []
    for span in before.sections:
        if not span.allocated or span.name in SECTIONS:
            continue
        for start in range(span.start, span.end, _CHUNK):
            old = before.data[start : min(start + _CHUNK, span.end)]
            at = after.offset(span.address + start - span.start)
            new = after.data[at : at + len(old)]
            if old == new:
                continue
            words = zip(_words(old), _words(new), strict=True)
            changed = [value for value, now in words if value != now]
            moved += len(changed)
            if not all(any(low <= value < high for low, high in code) for value in changed):
                wrong.append(f"bytes of {span.name} differ that point to no GPU code")
    return moved, wrong


def _words(data: bytes) -> tuple[int, ...]:
    padded = data + bytes(-len(data) % 8)
    return struct.unpack(f"<{len(padded) // 8}Q", padded)


def flat(containers: Iterable[Container]) -> list[Entry]:
    """The entries of all containers in order."""
    return [entry for container in containers for entry in container.entries]


def elf_files(root: Path) -> Iterator[tuple[Path, bytes]]:
    """Every ELF file below a directory that is no link, with its first bytes."""
    for folder, _, names in os.walk(root):
        for path in (Path(folder, name) for name in names):
            if path.is_symlink() or not path.is_file():
                continue
            with path.open("rb") as file:
                head = file.read(_HEAD)
            if head[:4] == b"\x7fELF":
                yield path, head
