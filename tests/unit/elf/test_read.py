from __future__ import annotations

import os
import re
import struct
import subprocess
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slimgpu.elf.read import ElfFacts, is_elf, read_elf
from slimgpu.errors import ImageError


def facts(path: Path) -> ElfFacts:
    return read_elf(path, 0, path.stat().st_size, str(path))


def readelf(path: Path, tag: str) -> list[str]:
    text = subprocess.run(["readelf", "-dW", path], capture_output=True, text=True, check=True).stdout
    return re.findall(rf"\({tag}\).*\[(.*)\]", text)


_LIBRARIES = ["usr/lib/libbase.so.1", "opt/own/runpath.so", "opt/own/rpath.so", "opt/own/bare.so", "usr/bin/program"]
_SYSTEM = [Path(path) for path in ("/bin/ls", "/bin/bash", "/usr/bin/tar") if Path(path).exists()]


@pytest.mark.parametrize("name", [*_LIBRARIES, *map(str, _SYSTEM)])
def test_readelf_agrees(elf_root: Path, name: str) -> None:
    path = elf_root / name  # absolute names stay as they are
    found = facts(path)
    assert list(found.needed) == readelf(path, "NEEDED")
    assert [found.soname] == (readelf(path, "SONAME") or [""])
    assert [found.rpath] == (readelf(path, "RPATH") or [""])
    assert [found.runpath] == (readelf(path, "RUNPATH") or [""])
    headers = subprocess.run(["readelf", "-lW", path], capture_output=True, text=True, check=True).stdout
    assert [found.interpreter] == (re.findall(r"program interpreter: (.*)\]", headers) or [""])
    assert (found.bits, found.machine) == (64, "EM_X86_64")


@pytest.mark.parametrize("name", ["usr/bin/debug", "usr/bin/program", "/bin/ls"])
def test_sizes_of_what_strip_takes_away(elf_root: Path, name: str) -> None:
    path = elf_root / name
    text = subprocess.run(["readelf", "-SW", path], capture_output=True, text=True, check=True).stdout
    sizes = {m[1]: int(m[2], 16) for m in re.finditer(r"\] (\.\S+) +\S+ +\S+ \S+ (\S+)", text)}
    found = facts(path)
    assert found.debug == sum(size for name, size in sizes.items() if name.startswith(".debug_"))
    assert found.symbols == sizes.get(".symtab", 0) + sizes.get(".strtab", 0)


def test_a_static_program_needs_nothing(elf_root: Path) -> None:
    found = facts(elf_root / "usr/bin/static")
    assert (found.needed, found.interpreter) == ((), "")


def test_a_file_inside_a_tar_is_read_at_its_place(elf_root: Path, tmp_path: Path) -> None:
    data = (elf_root / "opt/own/runpath.so").read_bytes()
    (tmp_path / "spool").write_bytes(b"x" * 1234 + data + b"y" * 99)
    assert read_elf(tmp_path / "spool", 1234, len(data), "it") == facts(elf_root / "opt/own/runpath.so")


@pytest.mark.parametrize(
    ("magic", "answer"),
    [
        (b"\x7fELF" + bytes(14) + b"\x3e\x00", True),
        (b"\x7fELF" + bytes(14) + b"\xbe\x00", False),
        (b"\x7fELF", True),
        (b"\x7fEL", False),
        (b"", False),
    ],
)
def test_cubins_are_no_files_of_the_loader(magic: bytes, answer: bool) -> None:  # noqa: FBT001
    assert is_elf(magic) is answer


def outcome(data: bytes) -> ElfFacts | None:
    """Facts or None for a refusal; anything else is the test's failure."""
    handle = os.memfd_create("elf")
    try:
        os.write(handle, data)
        return read_elf(Path(f"/proc/self/fd/{handle}"), 0, len(data), "usr/lib/it.so")
    except ImageError as error:
        message = str(error)
        assert message.startswith("usr/lib/it.so is not a valid ELF file")
        return None
    finally:
        os.close(handle)


@pytest.mark.parametrize("value", [0x00, 0x01, 0x7F, 0x80, 0xFF])
def test_every_byte_of_the_headers(tiny: bytes, value: int) -> None:
    count, sections = struct.unpack_from("<H", tiny, 56)[0], struct.unpack_from("<Q", tiny, 40)[0]
    for at in [*range(64 + 56 * count), *range(sections, len(tiny))]:
        data = bytearray(tiny)
        data[at] = value
        outcome(bytes(data))


@pytest.mark.parametrize("value", [0x00, 0xFF, 0x7F])
def test_every_byte_of_the_dynamic_section(tiny: bytes, value: int) -> None:
    sections, entry, count = struct.unpack_from("<Q", tiny, 40)[0], *struct.unpack_from("<HH", tiny, 58)
    for number in range(count):
        at = sections + number * entry
        kind, _, _, offset, size = struct.unpack_from("<IQQQQ", tiny, at + 4)
        if kind == 6:
            for place in range(offset, offset + size):
                data = bytearray(tiny)
                data[place] = value
                outcome(bytes(data))
            return
    pytest.fail("the library has no dynamic section")


def test_truncated_at_every_byte(tiny: bytes) -> None:
    for length in [*range(1500), *range(1500, len(tiny), 97)]:
        found = outcome(tiny[:length])
        assert found is None or found.bits in (32, 64)


@given(st.data())
def test_random_changes(tiny: bytes, data: st.DataObject) -> None:
    changed = bytearray(tiny)
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(
            st.integers(0, len(tiny) - 8) | st.integers(0, 700) | st.integers(len(tiny) - 2000, len(tiny) - 8)
        )
        piece = data.draw(st.binary(min_size=1, max_size=8))
        changed[at : at + len(piece)] = piece
    outcome(bytes(changed))


@given(st.binary(max_size=400))
def test_random_bytes_behind_the_magic(data: bytes) -> None:
    outcome(b"\x7fELF\x02\x01\x01" + data)


def _with(data: bytes, changes: dict[int, tuple[str, int]]) -> bytes:
    changed = bytearray(data)
    for at, (form, value) in changes.items():
        struct.pack_into(form, changed, at, value)
    return bytes(changed)


def test_numbers_of_headers_that_would_take_forever(tiny: bytes) -> None:
    """A section count of 2**60 in headers of no size: each read succeeds, and there is always one more."""
    sections = struct.unpack_from("<Q", tiny, 40)[0]
    endless = _with(tiny, {58: ("<H", 0), 60: ("<H", 0), sections + 32: ("<Q", 2**60)})
    assert outcome(endless) is None
    assert outcome(_with(tiny, {60: ("<H", 0), sections + 32: ("<Q", 2**60)})) is None
    assert outcome(_with(tiny, {54: ("<H", 0), 56: ("<H", 0xFFFF), sections + 44: ("<I", 0xFFFFFFFF)})) is None


def test_many_dynamic_segments_over_one_long_table() -> None:
    """65,000 program headers, each a dynamic segment over the same 60,000 tags: 4 * 10**9 tags to read."""
    count, tags = 65_000, 60_000
    table = 64 + 56 * count
    header = b"\x7fELF\x02\x01\x01" + bytes(9)
    header += struct.pack("<HHIQQQIHHHHHH", 3, 62, 1, 0, 64, 0, 0, 64, 56, count, 64, 0, 0)
    segment = struct.pack("<IIQQQQQQ", 2, 6, table, table, table, 16 * tags, 16 * tags, 8)
    tag = struct.pack("<QQ", 0x6FFFFFFB, 1)
    outcome(header + segment * count + tag * tags + bytes(16))


def _dynamic_file(tags: bytes, names: bytes = b"\0.dynstr\0", segments: int = 1, sections: int = 0) -> bytes:
    """A library of dynamic segments over the same tags, whose names are in ``names``."""
    table = 64 + 56 * segments
    texts = table + 64 * (3 + sections)
    dynamic = texts + len(names)
    header = b"\x7fELF\x02\x01\x01" + bytes(9)
    header += struct.pack("<HHIQQQIHHHHHH", 3, 62, 1, 0, 64, table, 0, 64, 56, segments, 64, 3 + sections, 1)
    segment = struct.pack("<IIQQQQQQ", 2, 6, dynamic, dynamic, dynamic, len(tags), len(tags), 8)
    strings = struct.pack("<IIQQQQIIQQ", 1, 3, 0, 0, texts, len(names), 0, 0, 1, 0)
    own = struct.pack("<IIQQQQIIQQ", 0, 6, 0, 0, dynamic, len(tags), 1, 0, 8, 16)
    return header + segment * segments + bytes(64) + strings + bytes(64) * sections + own + names + tags


_NEEDED = struct.pack("<QQ", 1, 1)


def test_a_dynamic_segment_without_an_end() -> None:
    found = outcome(_dynamic_file(_NEEDED * 3 + struct.pack("<QQ", 0x6FFFFFFB, 1) * 2_000_000))
    assert found is not None
    assert found.needed == (".dynstr",) * 3


def test_many_segments_over_many_sections() -> None:
    assert outcome(_dynamic_file(_NEEDED + bytes(16), segments=3, sections=3)) is not None
    assert outcome(_dynamic_file(_NEEDED + bytes(16), segments=2000, sections=2000)) is None


def test_a_long_name_that_is_read_again_and_again() -> None:
    names = b"\0" + b"a" * 100_000 + b"\0"
    assert outcome(_dynamic_file(_NEEDED + bytes(16), names)) == ElfFacts(64, "EM_X86_64", needed=("a" * 1024,))
    assert outcome(_dynamic_file(_NEEDED * 4000 + bytes(16), names)) is None


def test_sizes_that_lie_take_no_memory(tiny: bytes) -> None:
    sections, entry, count = struct.unpack_from("<Q", tiny, 40)[0], *struct.unpack_from("<HH", tiny, 58)
    changes = {sections + number * entry + 32: ("<Q", 2**62) for number in range(1, count)}
    tracemalloc.start()
    try:
        outcome(_with(tiny, changes))
        assert tracemalloc.get_traced_memory()[1] < 5 * 10**6
    finally:
        tracemalloc.stop()


def test_debug_sections_are_never_larger_than_the_file(elf_root: Path) -> None:
    data = (elf_root / "usr/bin/debug").read_bytes()
    sections, entry, count = struct.unpack_from("<Q", data, 40)[0], *struct.unpack_from("<HH", data, 58)
    for number in range(1, count):
        found = outcome(_with(data, {sections + number * entry + 32: ("<Q", 2**40)}))
        assert found is None or found.debug + found.symbols <= len(data)
