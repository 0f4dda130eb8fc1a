"""Files that are made to take long, to grow, or to lose what they hold; and how results are written."""

from __future__ import annotations

import stat
import struct
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from slimgpu.elf import fatbin
from slimgpu.elf.arch import Sm
from slimgpu.elf.choice import Policy
from slimgpu.elf.read import read_elf
from slimgpu.elf.shrink import NOTHING, Shrunk, Wanted, shrink, shrink_file
from slimgpu.elf.tables import HEADER_SIZE, Section, Tables, read_tables
from slimgpu.errors import ImageError
from tests.support.gpu_code import Workshop, run

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

WANTED = Wanted(Policy((Sm(90),)))
SECTION = struct.Struct("<IIQQQQIIQQ")
PHDR = struct.Struct("<IIQQQQQQ")


pytestmark = pytest.mark.timeout(120)
"""What takes long here would take hours."""


def answered(data: bytes, wanted: Wanted = WANTED) -> Shrunk:
    result = shrink(memoryview(data), wanted)
    assert result.after <= len(data)
    return result


def section(data: bytes, name: str) -> tuple[Tables, int, Section]:
    tables = read_tables(memoryview(data))
    number = next(n for n, one in enumerate(tables.sections) if one.name == name)
    return tables, number, tables.sections[number]


def with_section(data: bytes, name: str, **fields: int) -> bytes:
    """The file with other numbers in a section's header."""
    tables, number, one = section(data, name)
    values = {"type": one.type, "flags": one.flags, "address": one.address, "offset": one.offset, "size": one.size}
    values |= {"link": one.link, "info": one.info, "alignment": one.alignment, "entry_size": one.entry_size} | fields
    at = tables.sections_offset + SECTION.size * number
    return data[:at] + SECTION.pack(one.name_offset, *values.values()) + data[at + SECTION.size :]


def with_segments(data: bytes, change: Callable[[list[int]], list[int]]) -> bytes:
    """The file with other program headers."""
    tables = read_tables(memoryview(data))
    out = bytearray(data)
    for number in range(len(tables.segments)):
        at = tables.segments_offset + PHDR.size * number
        PHDR.pack_into(out, at, *change(list(PHDR.unpack_from(out, at))))
    return bytes(out)


def with_sections(data: bytes, copies: int, name: str) -> bytes:
    """The file with a section's header many times, in a table at its end."""
    tables, number, _ = section(data, name)
    rows = [data[tables.sections_offset + 64 * n :][:64] for n in range(len(tables.sections))]
    rows += [rows[number]] * copies
    data += bytes(-len(data) % 8)
    out = bytearray(data + b"".join(rows))
    struct.pack_into("<Q", out, 40, len(data))
    struct.pack_into("<H", out, 60, len(rows))
    return bytes(out)


@pytest.fixture
def tiny(shop: Workshop) -> bytes:
    return shop.get("tiny_lld.so").read_bytes()


@pytest.mark.parametrize("name", [".comment", ".nv_fatbin", ".text", ".dynamic"])
@pytest.mark.parametrize("alignment", [0, 3, 24, 2**20, 2**40, 2**63, 2**64 - 1])
def test_alignments_do_not_blow_it_up(tiny: bytes, name: str, alignment: int) -> None:
    answered(with_section(tiny, name, alignment=alignment))


@pytest.mark.parametrize("alignment", [0, 1, 3, 2**30, 2**63])
def test_alignments_of_segments(tiny: bytes, alignment: int) -> None:
    answered(with_segments(tiny, lambda row: [*row[:7], alignment]))


@pytest.mark.parametrize("size", [0, 2**32, 2**63, 2**64 - 1])
def test_sizes_of_what_is_not_in_the_file(tiny: bytes, size: int) -> None:
    answered(with_section(tiny, ".bss", size=size))
    answered(with_section(tiny, ".nv_fatbin", type=8, size=size))


@pytest.mark.parametrize("name", [".nv_fatbin", ".dynsym", ".symtab", ".text"])
def test_sections_without_number(tiny: bytes, name: str) -> None:
    answered(with_sections(tiny, 60_000, name))


def test_names_without_end(tiny: bytes) -> None:
    data = tiny + b"x" * (15 << 20)
    tables, number, _ = section(data, ".shstrtab")
    assert number == tables.names
    long = with_section(data, ".shstrtab", offset=len(tiny) - 64, size=(15 << 20) + 64)
    answered(with_sections(long, 50_000, ".comment") if read_ok(long) else long)


def read_ok(data: bytes) -> bool:
    try:
        read_tables(memoryview(data))
    except ImageError:
        return False
    return True


def test_packed_relocations_without_end(shop: Workshop) -> None:
    data = shop.get("tiny_relr.so").read_bytes()
    _, _, relr = section(data, ".relr.dyn")
    out = bytearray(data)
    out[relr.offset : relr.end] = b"\xff" * relr.size
    answered(bytes(out))


def test_a_dynamic_section_that_is_not_mapped_as_it_says(tiny: bytes) -> None:
    moved = with_segments(tiny, lambda row: [*row[:3], row[3] + 16, *row[4:]] if row[0] == 2 else row)
    assert "dynamic section" in answered(moved).untouched


def test_a_dynamic_section_without_end(tiny: bytes) -> None:
    _, _, dynamic = section(tiny, ".dynamic")
    cut = with_segments(tiny, lambda row: [*row[:5], 32, 32, row[7]] if row[0] == 2 else row)
    assert dynamic.size > 32
    assert "no end" in answered(cut).untouched


def test_sections_of_gpu_code_that_overlap(tiny: bytes) -> None:
    assert "overlap" in answered(with_sections(tiny, 1, ".nv_fatbin")).untouched


def test_segments_that_overlap(tiny: bytes) -> None:
    same = with_segments(tiny, lambda row: [*row[:2], 0, 0, 0, *row[5:]] if row[0] == 1 else row)
    assert "overlap" in answered(same).untouched


def test_a_segment_for_the_gpu_code_alone_is_not_cut(tiny: bytes) -> None:
    """A segment that describes other bytes has to find them in one piece."""
    _, _, code = section(tiny, ".nv_fatbin")
    note = [4, 4, code.offset, code.address, code.address, code.size, code.size, 4]
    marked = with_segments(tiny, lambda row: note if row[0] == 0x6474E551 else row)
    result = answered(marked)
    assert "would be cut" in result.untouched


@pytest.mark.parametrize("size", [0, 1, 15, 16, HEADER_SIZE - 1, HEADER_SIZE, 100])
def test_files_that_end_in_their_header(tiny: bytes, size: int) -> None:
    assert answered(tiny[:size]).untouched


def test_zeros_at_the_end_are_nothing_that_is_lost(tiny: bytes) -> None:
    assert answered(tiny + bytes(10_000)).splice is not None
    assert "appended" in answered(tiny + bytes(10_000) + b"x").untouched


def test_a_library_without_anything_to_drop_stays(shop: Workshop) -> None:
    data = shop.get("stripped.so").read_bytes()
    result = shrink(memoryview(data), Wanted())
    assert (result.splice, result.untouched) == (None, "")


def test_nothing_wanted_is_nothing_done(shop: Workshop) -> None:
    data = shop.get("plain.so").read_bytes()
    result = shrink(memoryview(data), Wanted(symbols=False))
    assert (result.splice, result.untouched) == (None, "")
    assert dict(result.code_before) == dict(result.code_after)
    assert set(dict(result.code_before)) >= {"sm_75", "sm_90a", "compute_90"}


def test_symbols_alone_are_what_strip_takes(shop: Workshop, tmp_path: Path) -> None:
    ours, theirs = tmp_path / "ours.so", tmp_path / "theirs.so"
    result = shrink_file(shop.get("plain.so"), ours, Wanted())
    theirs.write_bytes(shop.get("plain.so").read_bytes())
    run("strip", "--strip-all", str(theirs))
    names = [{one.name for one in read_tables(memoryview(path.read_bytes())).sections} for path in (ours, theirs)]
    assert names[0] == names[1]
    assert result.symbols == result.before - result.after
    assert abs(ours.stat().st_size - theirs.stat().st_size) < 4096


@pytest.mark.parametrize("mode", [0o755, 0o644, 0o600, 0o4711])
def test_the_mode_stays(shop: Workshop, tmp_path: Path, mode: int) -> None:
    source, out = tmp_path / "library.so", tmp_path / "deep" / "out.so"
    source.write_bytes(shop.get("tiny.so").read_bytes())
    source.chmod(mode)
    shrink_file(source, out, WANTED)
    assert stat.S_IMODE(out.stat().st_mode) == mode
    shrink_file(source, source, WANTED)
    assert stat.S_IMODE(source.stat().st_mode) == mode
    assert source.read_bytes() == out.read_bytes()
    assert [path.name for path in out.parent.iterdir()] == ["out.so"]


def test_a_file_that_is_mapped_can_be_replaced(shop: Workshop, tmp_path: Path) -> None:
    """A running program keeps the library that it has open."""
    path = tmp_path / "library.so"
    path.write_bytes(shop.get("plain.so").read_bytes())
    program = (
        "import ctypes, os, sys\n"
        "ctypes.CDLL(sys.argv[1], mode=os.RTLD_GLOBAL)\n"
        "lib = ctypes.CDLL(sys.argv[2]); print('open', flush=True); sys.stdin.readline()\n"
        "print(lib.caught(2), lib.exported(1))\n"
    )
    command = [sys.executable, "-c", program, shop.get("libruntime.so"), path]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout
        assert child.stdout.readline() == "open\n"
        assert shrink_file(path, path, WANTED).splice
        answer, _ = child.communicate("\n")
    assert answer.split() == ["5", "57"]


def test_what_is_no_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    for source in (tmp_path, tmp_path / "empty", tmp_path / "none"):
        with pytest.raises(ImageError, match="no file with content"):
            shrink_file(source, tmp_path / "out", WANTED)
    assert not (tmp_path / "out").exists()


def test_the_same_bytes_give_the_same_result(shop: Workshop) -> None:
    data = shop.get("plain.so").read_bytes()
    first, second = shrink(memoryview(data), WANTED), shrink(memoryview(bytearray(data)), WANTED)
    assert first == second
    assert first.splice is not None
    assert first.splice.dump() == second.splice.dump() if second.splice else False


def overlapping(body: bytes, sections: int, name: bytes) -> bytes:
    """A library of which many sections are the same bytes."""
    names = b"\0" + name + b"\0.shstrtab\0"
    out = bytearray(4096) + body + names
    names_at = len(out) - len(names)
    out += bytes(-len(out) % 8)
    table = len(out)
    out += bytes(SECTION.size) + SECTION.pack(2 + len(name), 3, 0, 0, names_at, len(names), 0, 0, 1, 0)
    out += SECTION.pack(1, 1, 2, 4096, 4096, len(body), 0, 0, 16, 0) * sections
    count = sections + 2
    struct.pack_into("<16sHHIQQQIHHHHHH", out, 0, b"\x7fELF\2\1\1", 3, 62, 1, 0, 64, table, 0, 64, 56, 1, 64, count, 1)
    PHDR.pack_into(out, 64, 1, 4, 0, 0, 0, 4096 + len(body), 4096 + len(body), 4096)
    return bytes(out)


def nested(count: int) -> bytes:
    """Containers that each hold all that follow, and are broken at their ends."""
    out = bytearray()
    for number in range(count):
        out += fatbin.HEADER.pack(fatbin.MAGIC, 1, 16, (count - number) * 80 - 16)
        out += struct.pack("<HHIQIIHHIIIQQQ", 2, 0x101, 64, 16, 0, 0, 0, 0, 80, 0, 0, 0, 0, 0)
    return bytes(out) + bytes(64)


def one() -> bytes:
    entry = struct.pack("<HHIQIIHHIIIQQQ", 2, 0x101, 64, 0, 0, 0, 0, 0, 80, 0, 0, 0, 0, 0)
    return fatbin.HEADER.pack(fatbin.MAGIC, 1, 16, len(entry)) + entry


@pytest.mark.parametrize("wanted", [WANTED, NOTHING], ids=["h100", "nothing"])
@pytest.mark.parametrize(
    ("body", "sections", "name"),
    [
        (b"\1" * 2**24, 60_000, b".rodata"),
        (nested(200_000), 1, b".rodata"),
        (nested(1000), 20_000, b".rodata"),
        (one() * 50_000, 20_000, b".nv_fatbin"),
        (one() * 50_000, 20_000, b".rodata"),
    ],
)
def test_tables_that_say_the_same_again_and_again(
    tmp_path: Path, body: bytes, sections: int, name: bytes, wanted: Wanted
) -> None:
    data = overlapping(body, sections, name)
    answered(data, wanted)
    (tmp_path / "file").write_bytes(data)
    read_elf(tmp_path / "file", 0, len(data), "it")
