from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slimgpu.errors import ImageError
from slimgpu.rootfs import tarsparse
from slimgpu.rootfs.content import FileBytes
from slimgpu.rootfs.entry import Entry, Kind
from slimgpu.rootfs.tarread import TarReader
from tests.support.trees import indexed

if TYPE_CHECKING:
    from pathlib import Path

_FORMS = {
    "old GNU": ["--format=gnu"],
    "0.0": ["--format=posix", "--sparse-version=0.0"],
    "0.1": ["--format=posix", "--sparse-version=0.1"],
    "1.0": ["--format=posix", "--sparse-version=1.0"],
}
_SIZE = 3_000_000


def _sparse_file(path: Path, pieces: list[tuple[int, bytes]], size: int) -> bytes:
    with path.open("wb") as file:
        for position, data in pieces:
            file.seek(position)
            file.write(data)
        file.truncate(size)
    return path.read_bytes()


@pytest.fixture(params=_FORMS, ids=str)
def archive(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, dict[str, bytes]]:
    """A tar of sparse files made by GNU tar, and what the files hold."""
    folder = tmp_path / "in"
    folder.mkdir()
    many = [(100_000 * i, bytes([i + 1]) * 4096) for i in range(29)]
    held = {
        "start": _sparse_file(folder / "start", [(0, b"a" * 5000)], _SIZE),
        "middle": _sparse_file(folder / "middle", [(1_000_000, b"b" * 5000)], _SIZE),
        "end": _sparse_file(folder / "end", [(_SIZE - 100, b"c" * 100)], _SIZE),
        "many": _sparse_file(folder / "many", many, _SIZE),
        "hole": _sparse_file(folder / "hole", [], _SIZE),
        "plain": _sparse_file(folder / "plain", [(0, b"d" * 1000)], 1000),
        "name" * 30: _sparse_file(folder / ("name" * 30), [(500_000, b"e")], _SIZE),
    }
    tar = tmp_path / "sparse.tar"
    subprocess.run(["tar", "--sparse", *_FORMS[request.param], "-cf", tar, "-C", folder, *sorted(held)], check=True)
    assert tar.stat().st_size < 1_000_000, "this file system keeps no holes"
    return tar, held


def test_gnu_tars_sparse_files(archive: tuple[Path, dict[str, bytes]]) -> None:
    tar, held = archive
    with FileBytes(tar) as data:
        entries = list(TarReader(data, "it"))
        assert [entry.path for entry in entries] == sorted(held)
        assert [entry.size for entry in entries] == [len(held[name]) for name in sorted(held)]
        assert sum(entry.extents is not None for entry in entries) >= 6
        assert {e.path: b"".join(data.content(e)) for e in entries} == held


def test_gnu_tars_sparse_files_cut_at_every_block(archive: tuple[Path, dict[str, bytes]]) -> None:
    whole = archive[0].read_bytes()
    for length in range(0, len(whole), 512):
        try:
            list(TarReader(whole[:length], "it"))
        except ImageError:
            continue


def test_mutated_sparse_archives(archive: tuple[Path, dict[str, bytes]]) -> None:
    whole = archive[0].read_bytes()
    headers = [entry.offset for entry in TarReader(whole, "it")][:2]
    for at in [*range(0, max(headers) + 600, 5), *range(0, len(whole), 1009)]:
        for value in (0, 0x39, 0xFF):
            data = bytearray(whole)
            data[at] = value
            start = at - at % 512
            data[start + 148 : start + 156] = b" " * 8
            data[start + 148 : start + 156] = b"%06o\0 " % (sum(data[start : start + 512]) & 0o777777)
            try:
                list(TarReader(bytes(data), "it"))
            except ImageError:
                continue


@pytest.mark.parametrize("form", ["gnu", "oldgnu", "pax", "posix", "ustar", "v7"])
def test_every_format_of_gnu_tar(form: str, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    (folder / "dir").mkdir(parents=True)
    (folder / "dir" / "file").write_bytes(b"content")
    (folder / "dir" / "link").symlink_to("file")
    (folder / "dir" / "zhard").hardlink_to(folder / "dir" / "file")
    if form not in ("ustar", "v7"):
        (folder / "dir" / ("n" * 200)).write_bytes(b"long")
        (folder / "dir" / "zlong").symlink_to("n" * 200)
    tar = tmp_path / "a.tar"
    subprocess.run(["tar", f"--format={form}", "--sort=name", "-cf", tar, "-C", folder, "."], check=True)
    entries = {entry.path: entry for entry in TarReader(tar.read_bytes(), "it")}
    kinds = {path: entry.kind for path, entry in entries.items()}
    assert kinds.pop("") is Kind.DIRECTORY
    assert kinds["dir"] is Kind.DIRECTORY
    assert entries["dir/link"].link == "file"
    assert entries["dir/zhard"].link == "dir/file"
    assert kinds["dir/zhard"] is Kind.HARDLINK
    stamp = (folder / "dir" / "file").stat().st_mtime_ns
    assert entries["dir/file"].mtime // 10**9 == stamp // 10**9
    if form in ("pax", "posix"):
        assert entries["dir/file"].mtime == stamp
    if form not in ("ustar", "v7"):
        assert entries["dir/zlong"].link == "n" * 200
        assert entries["dir/" + "n" * 200].size == 4


extents = st.lists(st.tuples(st.integers(-5, 500), st.integers(-5, 200)), max_size=6)


@given(st.integers(-10, 3000), extents, st.integers(0, 2000))
def test_only_ordered_maps_inside_the_file_pass(size: int, pieces: list[tuple[int, int]], stored: int) -> None:
    sparse = tarsparse.SparseMap(size, tuple(pieces), 0)
    position, right = 0, size >= 0
    for start, length in pieces:
        right = right and start >= position and length >= 0 and start + length <= size
        position = start + length
    right = right and sum(length for _, length in pieces) == stored
    try:
        sparse.check(stored, 10**6)
        passed = True
    except ValueError:
        passed = False
    assert passed == right


@given(
    st.dictionaries(st.sampled_from(["major", "map", "offset", "numbytes", "size", "realsize"]), st.binary(max_size=30))
)
def test_random_maps(records: dict[str, bytes]) -> None:
    pax = {f"GNU.sparse.{key}": value for key, value in records.items()}
    try:
        tarsparse.pax_map(pax, b"1\n0\n5\n".ljust(512, b"\0"))
    except ValueError:
        return


def _block(flag: bytes, size: int) -> bytes:
    block = bytearray(512)
    block[:1] = b"f"
    block[124:136] = b"%011o\0" % size
    block[156:157] = flag
    block[257:265] = b"ustar\00000"
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def test_a_file_of_holes_cannot_keep_the_reader_busy(tmp_path: Path) -> None:
    """Eight terabytes in two kilobytes: hashing them would take an hour."""
    body = b"22 GNU.sparse.map=0,0\n33 GNU.sparse.size=8000000000000\n"
    assert body.index(b"\n") == 21
    with pytest.raises(ImageError, match="the layer has sparse files with 8000000000000 bytes of holes"):
        indexed(tmp_path, _block(b"x", len(body)) + body.ljust(512, b"\0") + _block(b"0", 0))


def test_an_entry_knows_what_it_takes_in_the_tar() -> None:
    assert Entry("f", Kind.FILE, 0o644, size=100).stored == 100
    assert Entry("f", Kind.FILE, 0o644, size=100, extents=((5, 10), (50, 20))).stored == 30
