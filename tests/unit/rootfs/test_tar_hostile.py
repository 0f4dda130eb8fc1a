from __future__ import annotations

import io
import tarfile
import tracemalloc
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slimgpu.errors import ImageError
from slimgpu.rootfs.content import FileBytes
from slimgpu.rootfs.entry import Entry, Kind
from slimgpu.rootfs.tarread import TarReader
from tests.support.trees import File, Hardlink, Special, Symlink, tar_of

if TYPE_CHECKING:
    from pathlib import Path

_ARCHIVE = tar_of(
    {
        "a": None,
        "a/file": b"content" * 100,
        "a/" + "long" * 40: b"x",
        "a/link": Symlink("file"),
        "a/hard": Hardlink("a/file"),
        "a/é": File(b"y", uid=2**31, xattrs=(("user.a", b"\0\xff"),), mtime=1_500_000_000),
        "null": Special(Kind.CHARACTER, (1, 3)),
    }
)


def _gnu() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for name in ("short", "long" * 40):
            member = tarfile.TarInfo(name)
            member.size = 700
            member.uid = 2**31
            archive.addfile(member, io.BytesIO(bytes(700)))
    return buffer.getvalue()


def outcome(data: bytes) -> list[Entry] | None:
    """Entries or None for a refusal; anything else is the test's failure."""
    try:
        return list(TarReader(data, "the layer"))
    except ImageError as error:
        message = str(error)
        assert "the layer" in message
        return None


def header(name: bytes = b"f", flag: bytes = b"0", size: bytes = b"00000000000", link: bytes = b"") -> bytearray:
    """A ustar header to be spoiled; `summed` gives it its checksum."""
    block = bytearray(512)
    block[: len(name)] = name
    block[100:136] = b"0000644\0000000000\0000000000\000" + size + b"\0"
    block[136:148] = b"00000000000\0"
    block[156:157] = flag
    block[157 : 157 + len(link)] = link
    block[257:265] = b"ustar\00000"
    return block


def summed(block: bytearray) -> bytes:
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def pax(*records: bytes, flag: bytes = b"x") -> bytes:
    body = b""
    for record in records:
        length = len(record) + 2
        while len(b"%d" % length) + len(record) + 2 != length:
            length = len(b"%d" % length) + len(record) + 2
        body += b"%d %b\n" % (length, record)
    return summed(header(b"pax", flag, b"%011o" % len(body))) + body + bytes(-len(body) % 512)


@given(st.binary(max_size=3000))
def test_random_bytes(data: bytes) -> None:
    outcome(data)


@given(st.binary(max_size=600), st.integers(0, 600))
def test_random_bytes_with_a_right_checksum(data: bytes, cut: int) -> None:
    block = header()
    block[:cut] = data[:cut].ljust(min(cut, 512), b"\0")[:512]
    outcome(summed(bytearray(block[:512].ljust(512, b"\0"))) + data)


@given(
    st.sampled_from([_ARCHIVE, _gnu()]),
    st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=4),
    st.booleans(),
)
def test_mutated_archives(archive: bytes, changes: list[tuple[int, int]], mend: bool) -> None:  # noqa: FBT001
    data = bytearray(archive)
    for where, value in changes:
        at = where % len(data)
        data[at] = value
        start = at - at % 512
        if mend:
            data[start : start + 512] = summed(data[start : start + 512])
    outcome(bytes(data))


@pytest.mark.parametrize("value", [0x00, 0x2D, 0x30, 0x37, 0x38, 0x7F, 0x80, 0xFF])
@pytest.mark.parametrize("archive", [_ARCHIVE, _gnu()], ids=["pax", "gnu"])
def test_every_header_byte_changed(archive: bytes, value: int) -> None:
    """With the checksum made right again, so that the field itself is looked at."""
    whole = outcome(archive)
    assert whole
    for start in {e.offset - 512 for e in whole} | {0, 512, 1024}:
        for at in range(start, start + 512):
            data = bytearray(archive)
            data[at] = value
            data[start : start + 512] = summed(data[start : start + 512])
            outcome(bytes(data))


@pytest.mark.parametrize("archive", [_ARCHIVE, _gnu()], ids=["pax", "gnu"])
def test_truncated_at_every_byte(archive: bytes) -> None:
    whole = outcome(archive)
    assert whole is not None
    last = max(e.offset + (e.size + 511) // 512 * 512 for e in whole)
    for length in range(last + 1):
        found = outcome(archive[:length])
        # What is read of a shorter archive is a beginning of the whole one, cut after a file's last byte.
        assert found is None or found == whole[: len(found)]
        assert found is None or all(entry.offset + entry.size <= length for entry in found)


def test_truncation_inside_a_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "cut.tar"
    path.write_bytes(tar_of({"f": b"x" * 5000})[:4000])
    with FileBytes(path) as data, pytest.raises(ImageError, match="byte 0: the archive ends inside a file"):
        list(TarReader(data, "layer 3"))


@pytest.mark.parametrize(
    "name",
    [b"..", b"../x", b"a/../../x", b"/../x", b"a/b/../../../x", b"./../x", b"../../../../etc/passwd"],
)
@pytest.mark.parametrize("flag", [b"0", b"5"])
def test_names_that_leave_the_root(name: bytes, flag: bytes) -> None:
    with pytest.raises(ImageError, match=r"layer 3: .* leaves the image's root"):
        list(TarReader(summed(header(name, flag)), "layer 3"))


def test_hard_links_that_leave_the_root() -> None:
    with pytest.raises(ImageError, match="leaves the image's root"):
        list(TarReader(summed(header(b"x", b"1", link=b"../../etc/shadow")), "layer 3"))


@pytest.mark.parametrize(
    ("name", "path"),
    [
        (b"/etc/passwd", "etc/passwd"),
        (b"//etc//passwd", "etc/passwd"),
        (b"./a/./b", "a/b"),
        (b"a/b/../c", "a/c"),
        (b"./", ""),
        (b"/", ""),
        (b"a/", "a"),
    ],
)
def test_names_below_the_root(name: bytes, path: str) -> None:
    assert [entry.path for entry in TarReader(summed(header(name, b"5")), "it")] == [path]


def test_a_symlinks_text_stays_as_it_is() -> None:
    entry = next(iter(TarReader(summed(header(b"x", b"2", link=b"../../etc/./shadow/")), "it")))
    assert entry.link == "../../etc/./shadow/"


def test_a_file_whose_name_ends_in_a_slash_is_a_directory() -> None:
    assert next(iter(TarReader(summed(header(b"dir/")), "it"))).kind is Kind.DIRECTORY


def test_a_zero_byte_in_a_pax_name() -> None:
    for record in (b"path=a\0b", b"linkpath=a\0b"):
        with pytest.raises(ImageError, match="zero byte"):
            list(TarReader(pax(record) + summed(header(b"x", b"2", link=b"y")), "it"))


@pytest.mark.parametrize("record", [b"path=", b"linkpath="])
def test_a_path_longer_than_any_file_system_takes(record: bytes) -> None:
    data = pax(record + b"a/" * 100_000 + b"b") + summed(header(b"x", b"2", link=b"y"))
    with pytest.raises(ImageError, match="path of 200001 characters"):
        list(TarReader(data, "it"))


@pytest.mark.parametrize(
    "record",
    [
        b"uid=-1",
        b"uid=4294967296",
        b"gid=x",
        b"size=-5",
        b"size=99999999999999999999",
        b"mtime=1e5",
        b"mtime=nan",
        b"mtime=99999999999999999",
        b"mtime=--1",
        b"uid=1_0",
        b"uid=\xd9\xa1",
        b"mtime="[:5],
    ],
)
def test_malformed_pax_values(record: bytes) -> None:
    with pytest.raises(ImageError):
        list(TarReader(pax(record) + summed(header()), "it"))


@pytest.mark.parametrize(
    "body",
    [
        b"5 a=b\n",
        b"7 a=b\n",
        b"6 a=b",
        b"0 a=b\n",
        b"x a=b\n",
        b"6 abc\n",
        b"99999999999999999999 a=b\n",
        b"-6 a=b\n",
        b" 6 a=b\n",
        b"6  a=b\n"[:6],
        b"1 \n",
        b"2 \n",
    ],
)
def test_malformed_pax_records(body: bytes) -> None:
    data = summed(header(b"pax", b"x", b"%011o" % len(body))) + body.ljust(512, b"\0") + summed(header())
    with pytest.raises(ImageError):
        list(TarReader(data, "it"))


def test_an_empty_pax_value_takes_the_record_back() -> None:
    data = pax(b"mtime=5", flag=b"g") + summed(header(b"a")) + pax(b"mtime=") + summed(header(b"b"))
    assert [entry.mtime for entry in TarReader(data, "it")] == [5 * 10**9, 0]


def test_a_pax_header_speaks_of_one_entry_and_a_global_one_of_all() -> None:
    data = pax(b"uid=7", flag=b"g") + pax(b"gid=8") + summed(header(b"a")) + summed(header(b"b"))
    assert [(entry.uid, entry.gid) for entry in TarReader(data, "it")] == [(7, 8), (7, 0)]


@pytest.mark.parametrize("flag", [b"x", b"g", b"L", b"K"])
def test_huge_extended_headers_take_no_memory(tmp_path: Path, flag: bytes) -> None:
    path = tmp_path / "huge.tar"
    with path.open("wb") as file:
        file.write(summed(header(b"pax", flag, b"%011o" % (2**32))))
        file.truncate(2**32 + 10**6)
    tracemalloc.start()
    try:
        with FileBytes(path) as data, pytest.raises(ImageError, match="extended header of 4294967296 bytes"):
            list(TarReader(data, "it"))
        assert tracemalloc.get_traced_memory()[1] < 10**6
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("size", [b"-0000000001", b"\xff" * 11, b"\x80" + b"\xff" * 10, b"77777777777", b"zzzzzzzzzzz"])
def test_sizes_beyond_the_archive(size: bytes) -> None:
    with pytest.raises(ImageError):
        list(TarReader(summed(header(size=size)) + bytes(512), "it"))


def test_a_wrong_checksum() -> None:
    block = bytearray(summed(header()))
    block[0:1] = b"g"
    with pytest.raises(ImageError, match="checksum"):
        list(TarReader(bytes(block), "it"))


def test_a_checksum_of_signed_bytes_as_old_writers_made() -> None:
    block = header("é".encode("latin-1"))
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % (sum(block) - 256)
    assert [entry.path for entry in TarReader(bytes(block), "it")] == ["\udce9"]


def test_unknown_kinds_are_stepped_over_with_their_content() -> None:
    data = summed(header(b"v", b"V", b"%011o" % 600)) + b"\xff" * 1024 + summed(header(b"f"))
    assert [entry.path for entry in TarReader(data, "it")] == ["f"]


def test_what_follows_a_zero_block_is_not_read() -> None:
    assert list(TarReader(bytes(512) + b"rubbish", "it")) == []


@pytest.mark.parametrize("flag", [b"1", b"2", b"5", b"6"])
def test_a_size_on_what_has_no_content_is_ignored(flag: bytes) -> None:
    data = summed(header(b"x", flag, b"00000001000", link=b"y")) + summed(header(b"f"))
    assert [(entry.path, entry.size) for entry in TarReader(data, "it")] == [("x", 0), ("f", 0)]
