"""What an ELF file looks like in memory: a loader of its own, so that tests need not trust the code they test.

Every segment is mapped by whole pages and the rest of its last page is cleared, as the kernel and glibc do it.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from elftools.elf.elffile import ELFFile

if TYPE_CHECKING:
    from pathlib import Path

RELATIVE: Final = {"EM_X86_64": 8, "EM_AARCH64": 1027}
MAGIC: Final = 0xBA55ED50
_GROUPS: Final = (".nv_fatbin", "__nv_relfatbin", ".cask_resource")


@dataclass
class Image:
    """A library in memory, at base 0."""

    page: int
    pages: dict[int, bytearray] = field(default_factory=dict)
    parts: list[tuple[int, int]] = field(default_factory=list)
    """Start and end of what the segments ask for."""

    def read(self, address: int, size: int) -> bytes:
        """Bytes that have to be mapped."""
        out = bytearray()
        while len(out) < size:
            at = address + len(out)
            page = self.pages[at // self.page]
            out += page[at % self.page :][: size - len(out)]
        return bytes(out)

    def word(self, address: int) -> int:
        return struct.unpack("<Q", self.read(address, 8))[0]

    def has(self, address: int) -> bool:
        return any(start <= address < end for start, end in self.parts)


@dataclass
class Library:
    """The image, and where in it the parts are that shrinking may touch."""

    image: Image
    code: list[tuple[int, int]]
    """Sections of GPU code."""
    pointers: dict[int, int]
    """By the address of each pointer that the loader relocates by the base alone: what it points to."""
    written: dict[int, list[int]]
    """By the address of each such pointer: the addresses of the words that say what it points to."""
    header: tuple[int, int]
    segments: tuple[int, int]
    numbers: list[tuple[int, int]]
    """Where dynamic symbols say the number of their section, which only tools read."""


def load(path: Path) -> Library:
    """Map a file, and apply nothing."""
    with path.open("rb") as file:
        elf = ELFFile(file)
        data = path.read_bytes()
        page = 65536 if elf["e_machine"] == "EM_AARCH64" else 4096
        image = Image(page)
        loads = [segment.header for segment in elf.iter_segments("PT_LOAD")]
        for one in loads:
            _map(image, data, one)
        sections = [(s["sh_addr"], s["sh_addr"] + s["sh_size"]) for s in elf.iter_sections() if s.name in _GROUPS]
        pointers, written = _pointers(elf, image)
        symbols = elf.get_section_by_name(".dynsym")
        rows = range(symbols["sh_addr"], symbols["sh_addr"] + symbols["sh_size"], 24)
        numbers = [(at + 6, at + 8) for at in rows]
        first = next(one for one in loads if one.p_offset == 0)
        size = elf["e_phentsize"] * elf["e_phnum"]
        offset = elf["e_phoff"]
        tables = [one.p_vaddr + offset - one.p_offset for one in loads if 0 <= offset - one.p_offset < one.p_filesz]
        if not tables:  # glibc would find it in the last page of a segment, which it may clear
            assert all(offset >= -(-(one.p_offset + one.p_filesz) // page) * page for one in loads)
        table = tables[0] if tables else 0
        header = first.p_vaddr, first.p_vaddr + 64
        return Library(image, sections, pointers, written, header, (table, table + size), numbers)


def _map(image: Image, data: bytes, one: object) -> None:
    page = image.page
    start, filesz, memsz, offset = one.p_vaddr, one.p_filesz, one.p_memsz, one.p_offset  # type: ignore[attr-defined]
    assert (start - offset) % page == 0
    image.parts.append((start, start + memsz))
    for number in range(start // page, -(-(start + memsz) // page)):
        at = number * page - start + offset
        stored = number * page < start + filesz
        content = bytearray(data[at : at + page] if stored else b"")
        content += bytes(page - len(content))
        if memsz > filesz and stored and start + filesz < (number + 1) * page:
            rest = start + filesz - number * page
            content[rest:] = bytes(page - rest)
        image.pages[number] = content


def _pointers(elf: ELFFile, image: Image) -> tuple[dict[int, int], dict[int, list[int]]]:
    tags: dict[str, int] = {}
    for segment in elf.iter_segments("PT_DYNAMIC"):
        tags |= {tag.entry.d_tag: tag.entry.d_val for tag in segment.iter_tags()}
    pointers: dict[int, int] = {}
    written: dict[int, list[int]] = {}
    for at in range(tags.get("DT_RELA", 0), tags.get("DT_RELA", 0) + tags.get("DT_RELASZ", 0), 24):
        place, info, addend = struct.unpack("<QQQ", image.read(at, 24))
        if info == RELATIVE[elf["e_machine"]]:
            pointers[place] = addend
            written[place] = [at + 16, *([place] if image.word(place) == addend else [])]
    for place in _relr(image, tags.get("DT_RELR", 0), tags.get("DT_RELRSZ", 0)):
        pointers[place] = image.word(place)
        written[place] = [place]
    return pointers, written


def _relr(image: Image, address: int, size: int) -> list[int]:
    found, where = [], 0
    for at in range(address, address + size, 8):
        word = image.word(at)
        if word % 2 == 0:
            found.append(word)
            where = word + 8
        else:
            found += [where + 8 * bit for bit in range(63) if word >> (bit + 1) & 1]
            where += 63 * 8
    return found


def entries(image: Image, address: int) -> list[tuple[str, bytes]]:
    """What the container at an address holds: kind, architecture and all its bytes."""
    magic, _, header, size = struct.unpack("<IHHQ", image.read(address, 16))
    assert magic == MAGIC
    return parse(image.read(address + header, size))


def parse(data: bytes) -> list[tuple[str, bytes]]:
    """The entries of a container, from what follows its header."""
    found, at = [], 0
    while at < len(data):
        kind, _, header, payload = struct.unpack_from("<HHIQ", data, at)
        number, flags = struct.unpack_from("<I", data, at + 0x1C)[0], struct.unpack_from("<Q", data, at + 0x28)[0]
        suffix = "f" if flags & 0x200000 else "a" if flags & 0x100000 else ""
        name = {1: "compute_", 2: "sm_", 8: "lto_"}.get(kind, f"{kind}_")
        found.append((f"{name}{number}{suffix}", data[at : at + header + payload]))
        at += header + payload
    assert at == len(data)
    return found
