from __future__ import annotations

import io
import os
import tarfile
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slimgpu.errors import ImageError
from slimgpu.rootfs import tarwrite
from slimgpu.rootfs.entry import Entry, Kind
from slimgpu.rootfs.tarread import TarReader

_KINDS = {
    tarfile.REGTYPE: Kind.FILE,
    tarfile.LNKTYPE: Kind.HARDLINK,
    tarfile.SYMTYPE: Kind.SYMLINK,
    tarfile.CHRTYPE: Kind.CHARACTER,
    tarfile.BLKTYPE: Kind.BLOCK,
    tarfile.DIRTYPE: Kind.DIRECTORY,
    tarfile.FIFOTYPE: Kind.FIFO,
}
_TYPES = {kind: flag for flag, kind in _KINDS.items()}

_name_bytes = st.binary(min_size=1, max_size=120).map(lambda b: b.replace(b"\0", b"0").replace(b"/", b"-"))
_part = (st.text(st.characters(codec="utf-8", exclude_characters="\0/"), min_size=1, max_size=60)).map(str.encode)
_component = st.one_of(_part, _name_bytes).filter(lambda b: b not in (b".", b".."))
_path = st.lists(_component, min_size=1, max_size=5).map(lambda parts: os.fsdecode(b"/".join(parts)))
_owner = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=40)
_xattr_name = st.from_regex(r"(user|security)\.[a-z._é]{1,60}", fullmatch=True)
_xattrs = st.dictionaries(_xattr_name, st.binary(max_size=300), max_size=3).map(lambda d: tuple(sorted(d.items())))
_mtime = st.one_of(
    # tarfile writes what is nearer to 1970 as 1e-05, which POSIX does not know
    st.integers(-(10**10) * 10**9, 10**11 * 10**9).filter(lambda time: abs(time) > 10**6),
    st.integers(-(10**10), 10**11).map(lambda seconds: seconds * 10**9),
)
_id = st.one_of(st.integers(0, 70_000), st.integers(0, 2**32 - 1))


@st.composite
def entries(draw: st.DrawFn) -> tuple[Entry, bytes]:
    kind = draw(st.sampled_from(list(Kind)))
    content = draw(st.binary(max_size=1500)) if kind is Kind.FILE else b""
    entry = Entry(
        path=draw(_path),
        kind=kind,
        mode=draw(st.integers(0, 0o7777)),
        uid=draw(_id),
        gid=draw(_id),
        uname=draw(_owner),
        gname=draw(_owner),
        size=len(content),
        mtime=draw(_mtime),
        link=draw(_path) if kind in (Kind.HARDLINK, Kind.SYMLINK) else "",
        device=draw(st.tuples(st.integers(0, 4095), st.integers(0, 2**20 - 1)))
        if kind in (Kind.CHARACTER, Kind.BLOCK)
        else (0, 0),
        xattrs=draw(_xattrs),
    )
    return entry, content


def written(items: list[tuple[Entry, bytes]]) -> bytes:
    parts = [part for e, content in items for part in (tarwrite.header(e), content, tarwrite.padding(len(content)))]
    return b"".join([*parts, tarwrite.END])


def seconds(nanoseconds: int) -> float:
    return nanoseconds / 10**9


@given(st.lists(entries(), max_size=4))
def test_what_is_written_is_read_back(items: list[tuple[Entry, bytes]]) -> None:
    tar = written(items)
    read = list(TarReader(tar, "it"))
    assert [replace(entry, offset=0) for entry in read] == [entry for entry, _ in items]
    assert [tar[e.offset : e.offset + e.size] for e in read] == [content for _, content in items]


@given(st.lists(entries(), max_size=4))
def test_the_standard_library_reads_what_is_written(items: list[tuple[Entry, bytes]]) -> None:
    with tarfile.open(fileobj=io.BytesIO(written(items)), mode="r:") as archive:
        members = archive.getmembers()
        assert len(members) == len(items)
        for member, (entry, content) in zip(members, items, strict=True):
            assert _KINDS[member.type] is entry.kind
            # tarfile takes a directory's slash off, and a file's name in the PAX record loses its own too
            assert member.name.rstrip("/") == entry.path.rstrip("/")
            assert (member.mode, member.uid, member.gid) == (entry.mode, entry.uid, entry.gid)
            assert (member.uname, member.gname) == (entry.uname, entry.gname)
            assert member.mtime == pytest.approx(seconds(entry.mtime), abs=1e-3)
            assert member.linkname == entry.link
            if entry.kind in (Kind.CHARACTER, Kind.BLOCK):
                assert (member.devmajor, member.devminor) == entry.device
            if entry.kind is Kind.FILE:
                file = archive.extractfile(member)
                assert file is not None
                assert file.read() == content
            for name, value in entry.xattrs:
                found = member.pax_headers[f"SCHILY.xattr.{name}"]
                assert found.encode("utf-8", "surrogateescape") == value


@given(st.lists(entries(), max_size=4), st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]))
def test_what_the_standard_library_writes_is_read(items: list[tuple[Entry, bytes]], form: int) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as archive:
        for entry, content in items:
            archive.addfile(_member(entry, form), io.BytesIO(content))
    read = list(TarReader(buffer.getvalue(), "it"))
    assert len(read) == len(items)
    for found, (entry, content) in zip(read, items, strict=True):
        expected = entry if form == tarfile.PAX_FORMAT else replace(entry, xattrs=())
        if form == tarfile.GNU_FORMAT:  # has no place for more
            short = {"uname": _cut(entry.uname), "gname": _cut(entry.gname)}
            expected = replace(expected, mtime=entry.mtime // 10**9 * 10**9, **short)
        else:  # tarfile keeps a float
            assert seconds(found.mtime) == pytest.approx(seconds(entry.mtime), abs=1e-3)
            expected = replace(expected, mtime=found.mtime)
        assert replace(found, offset=0) == expected
        assert buffer.getvalue()[found.offset : found.offset + found.size] == content


def _cut(owner: str) -> str:
    return os.fsdecode(owner.encode("utf-8", "surrogateescape")[:32])


def _member(entry: Entry, form: int) -> tarfile.TarInfo:
    member = tarfile.TarInfo(entry.path)
    member.type = _TYPES[entry.kind]
    member.size, member.mode, member.uid, member.gid = entry.size, entry.mode, entry.uid, entry.gid
    member.uname, member.gname, member.linkname = entry.uname, entry.gname, entry.link
    member.devmajor, member.devminor = entry.device
    whole = entry.mtime % 10**9 == 0 or form == tarfile.GNU_FORMAT
    member.mtime = entry.mtime // 10**9 if whole else seconds(entry.mtime)
    if form == tarfile.PAX_FORMAT:
        records: Any = {f"SCHILY.xattr.{k}": v.decode("utf-8", "surrogateescape") for k, v in entry.xattrs}
        member.pax_headers = records
    return member


def test_numbers_that_need_more_than_a_header_field() -> None:
    entry = Entry("f", Kind.FILE, 0o644, uid=2**32 - 1, gid=2_097_152, size=8**11, mtime=-(10**9) - 1)
    head = tarwrite.header(entry)
    member = tarfile.TarInfo.frombuf(head[-512:], "utf-8", "strict")
    assert member.size == 0
    for record in (b"size=8589934592", b"uid=4294967295", b"gid=2097152", b"mtime=-1.000000001"):
        assert record in head


def test_names_of_exactly_a_field_need_no_pax() -> None:
    assert len(tarwrite.header(Entry("n" * 100, Kind.FILE, 0o644))) == 512
    assert len(tarwrite.header(Entry("n" * 101, Kind.FILE, 0o644))) == 3 * 512
    assert len(tarwrite.header(Entry("n" * 99, Kind.DIRECTORY, 0o755))) == 512
    assert len(tarwrite.header(Entry("n" * 100, Kind.DIRECTORY, 0o755))) == 3 * 512


@pytest.mark.parametrize("length", [85, 86, 87, 88, 89, 90, 985, 986, 987, 988, 989, 990, 9985, 9990])
def test_a_record_counts_its_own_length(length: int) -> None:
    entry = Entry("f", Kind.FILE, 0o644, xattrs=(("user.a", b"v" * length),))
    tar = written([(entry, b"")])
    assert next(iter(TarReader(tar, "it"))).xattrs == entry.xattrs
    with tarfile.open(fileobj=io.BytesIO(tar)) as archive:
        assert archive.getmembers()[0].pax_headers["SCHILY.xattr.user.a"] == "v" * length


def test_the_root_directory() -> None:
    root = Entry("", Kind.DIRECTORY, 0o700, mtime=5 * 10**9)
    assert [replace(e, offset=0) for e in TarReader(written([(root, b"")]), "it")] == [root]


@pytest.mark.parametrize("device", [(0, 2_097_151), (4095, 1_048_575)])
def test_devices_at_the_limit(device: tuple[int, int]) -> None:
    entry = Entry("null", Kind.CHARACTER, 0o666, device=device)
    header = tarwrite.header(entry)
    assert len(header) == 512
    assert next(iter(TarReader(header, "it"))).device == device


def test_devices_beyond_what_a_header_holds_are_refused() -> None:
    header = bytearray(tarwrite.header(Entry("null", Kind.CHARACTER, 0o666, device=(1, 3))))
    header[329:337] = b"\x80\0\0\xff\xff\xff\xff\xff"
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    with pytest.raises(ImageError, match="device"):
        list(TarReader(bytes(header), "it"))
