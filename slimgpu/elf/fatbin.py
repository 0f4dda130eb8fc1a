"""Containers of GPU code ("fat binaries"), as nvcc puts them into sections of a library or into files of their own.

There is no public specification. The layout was read from libraries of CUDA 11 to 13 and agrees with what NVIDIA's
cuobjdump lists in them, and with the header ``fatbinary_section.h`` of the CUDA toolkit for the magic number.

A container is ``u32 magic, u16 version, u16 header size, u64 size`` and entries of that many bytes. An entry's header:

====== ==== ====================================================================
offset type field
====== ==== ====================================================================
0x00   u16  form: 1 PTX, 2 cubin, 8 LTO-IR, 0x100 several forms in one stream
0x04   u32  header size
0x08   u64  payload size, padded to 8
0x10   u32  compressed size, 0 when it is not compressed
0x14   u32  offset of the options in the entry, 0 when there are none
0x1C   u32  number of the architecture
0x20   u32  offset of the name in the entry
0x24   u32  length of the name
0x28   u64  flags, see `Flag`
0x38   u64  size before compression
====== ==== ====================================================================
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from enum import IntFlag
from typing import TYPE_CHECKING, Final

import lz4.block
import zstandard

from slimgpu.elf.arch import Sm, Variant
from slimgpu.elf.choice import Code
from slimgpu.errors import UnusualFileError

if TYPE_CHECKING:
    from collections.abc import Iterator

MAGIC: Final = b"\x50\xed\x55\xba"
START: Final = MAGIC + b"\x01\x00\x10\x00"
"""How every container known begins: version 1, a header of 16 bytes."""
HEADER: Final = struct.Struct("<4sHHQ")
ALIGNMENT: Final = 8
_ENTRY: Final = struct.Struct("<HHIQIIHHIIIQQQ")
_CUBIN: Final = struct.Struct("<16sHHIQQQIHHHHHH")
"""An ELF header."""
_NAMES: Final = b"\0.shstrtab\0".ljust(16, b"\0")
_NAMES_SECTION: Final = struct.Struct("<IIQQQQIIQQ").pack(1, 3, 0, 0, _CUBIN.size, 11, 0, 0, 1, 0)
_EMPTY: Final = _NAMES + bytes(len(_NAMES_SECTION)) + _NAMES_SECTION
"""What follows the header of a cubin without code: cuobjdump refuses a whole library for one without sections."""
PLACEHOLDER: Final = _ENTRY.size + _CUBIN.size + len(_EMPTY)
_KERNEL: Final = re.compile(rb"\.entry\s+([\w$]+)", re.ASCII)
_MAX_TEXT: Final = 256 * 1024 * 1024
_FREE_TEXT: Final = 1024 * 1024
_MAX_RATIO: Final = 1000
"""Of decompressed to compressed bytes beyond `_FREE_TEXT`; PTX shrinks to a tenth."""
_MAX_ENTRIES: Final = 4096
"""Of one container; the largest seen has 24."""


class Flag(IntFlag):
    """An entry's flags, as far as they matter here."""

    LZ4 = 0x2000
    ZSTD = 0x8000
    SPECIFIC = 0x100000
    FAMILY = 0x200000


@dataclass(frozen=True, slots=True)
class Entry:
    """One piece of GPU code; offsets and sizes in bytes."""

    offset: int
    """Where its header starts."""
    header: int
    """Bytes of the header."""
    payload: int
    """Bytes of the payload with its padding."""
    compressed: int
    """Bytes of the payload without, 0 when it is not compressed."""
    flags: int
    unpacked: int
    """Bytes after decompression."""
    code: Code

    @property
    def size(self) -> int:
        """Header and payload."""
        return self.header + self.payload


@dataclass(frozen=True, slots=True)
class Container:
    """Entries that are the same code for different GPUs."""

    offset: int
    size: int
    """Header and entries."""
    entries: tuple[Entry, ...]


def read_container(data: memoryview, offset: int, end: int) -> Container:
    """The container at ``offset``, which has to lie before ``end``.

    Raises `UnusualFileError` when a size leads out of it or it differs in any way from those that are known.
    """
    if end - offset < HEADER.size:
        raise UnusualFileError("a container of GPU code is cut off")
    magic, version, header, size = HEADER.unpack_from(data, offset)
    if (magic, version, header) != (MAGIC, 1, HEADER.size):
        raise UnusualFileError("a container of GPU code has a header that is not known")
    if size > end - offset - header:
        raise UnusualFileError("a container of GPU code is larger than what holds it")
    entries = tuple(_entries(data, offset + header, offset + header + size))
    return Container(offset, header + size, entries)


def _entries(data: memoryview, offset: int, end: int) -> Iterator[Entry]:
    for _ in range(_MAX_ENTRIES):
        if offset == end:
            return
        if end - offset < _ENTRY.size:
            break
        entry = _entry(data, offset)
        if entry.header < _ENTRY.size or entry.size > end - offset or entry.compressed > entry.payload:
            break
        if _refers_outside(data, entry):
            raise UnusualFileError("an entry of a container of GPU code refers to what is not in it")
        yield entry
        offset += entry.size
    raise UnusualFileError("the entries of a container of GPU code do not fill it")


def _entry(data: memoryview, offset: int) -> Entry:
    form, _, header, payload, compressed, _, _, _, number, _, _, flags, _, unpacked = _ENTRY.unpack_from(data, offset)
    code = Code(form, Sm(number, _variant(flags)))
    return Entry(offset, header, payload, compressed, flags, unpacked, code)


def _refers_outside(data: memoryview, entry: Entry) -> bool:
    """Whether its options or its name, which move with it, are not in its header."""
    _, _, _, _, _, options, _, _, _, name, length, _, _, _ = _ENTRY.unpack_from(data, entry.offset)
    return bool(max(options, name + length) > entry.header)


def _variant(flags: int) -> Variant:
    if flags & Flag.FAMILY:
        return Variant.FAMILY
    return Variant.SPECIFIC if flags & Flag.SPECIFIC else Variant.PLAIN


def payload(data: memoryview, entry: Entry, limit: int) -> bytes:
    """An entry's code, decompressed; `UnusualFileError` when it is damaged or over ``limit`` bytes."""
    start = entry.offset + entry.header
    stored = bytes(data[start : start + (entry.compressed or entry.payload)])
    if max(entry.unpacked, len(stored)) > min(limit, _FREE_TEXT + len(stored) * _MAX_RATIO):
        raise UnusualFileError("GPU code is longer than any compiler makes it")
    try:
        if entry.flags & Flag.LZ4:
            return bytes(lz4.block.decompress(stored, uncompressed_size=entry.unpacked))
        if entry.flags & Flag.ZSTD:
            with zstandard.ZstdDecompressor().stream_reader(stored) as reader:  # a frame's own size may be a lie
                return reader.read(entry.unpacked)
    except (lz4.block.LZ4BlockError, zstandard.ZstdError, MemoryError, OverflowError) as error:
        raise UnusualFileError(f"GPU code cannot be decompressed: {error}") from error
    return stored


def placeholder(entry: Entry) -> bytes:
    """An entry of `PLACEHOLDER` bytes for the same architecture as a cubin that no target can run, without its code.

    The driver chooses by the headers and answers that there is no code for the GPU, as it did before; a container
    without entries is nothing that any compiler makes.
    """
    flags = entry.flags & ~(Flag.LZ4 | Flag.ZSTD)
    number = entry.code.sm.number & 0xFFFF
    size = PLACEHOLDER - _ENTRY.size
    head = _ENTRY.pack(entry.code.form, 0x0101, _ENTRY.size, size, 0, 0, 8, 1, number, 0, 0, flags, 0, 0)
    ident = b"\x7fELF\x02\x01\x01\x41\x08"
    sections = _CUBIN.size + len(_NAMES)
    mode = number << 8 | 0x06000002
    return head + _CUBIN.pack(ident, 2, 190, 1, 0, 0, sections, mode, _CUBIN.size, 56, 0, 64, 2, 1) + _EMPTY


def kernels(data: memoryview, entry: Entry) -> list[str]:
    """The names of the kernels in PTX code."""
    text = payload(data, entry, _MAX_TEXT)
    return [name.decode() for name in _KERNEL.findall(text)]
