from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slimgpu.errors import ImageError, NotFoundError
from slimgpu.rootfs import index
from slimgpu.rootfs.content import PIECE, FileBytes, zeros
from slimgpu.rootfs.entry import Entry, Kind
from slimgpu.rootfs.index import dump, index_layer, load
from tests.support.trees import File, Hardlink, Special, Symlink, digest, filesystem, indexed, tar_of

if TYPE_CHECKING:
    from pathlib import Path

_surrogates = st.binary(max_size=20).map(lambda data: data.decode("utf-8", "surrogateescape"))


@st.composite
def entries(draw: st.DrawFn) -> Entry:
    number = st.integers(0, 2**43)
    return Entry(
        path=draw(_surrogates),
        kind=draw(st.sampled_from(list(Kind))),
        mode=draw(st.integers(0, 0o7777)),
        uid=draw(number),
        gid=draw(number),
        uname=draw(_surrogates),
        gname=draw(_surrogates),
        size=draw(number),
        mtime=draw(st.integers(-(2**70), 2**70)),
        link=draw(_surrogates),
        device=draw(st.tuples(number, number)),
        xattrs=draw(st.lists(st.tuples(_surrogates, st.binary(max_size=20)), max_size=3).map(tuple)),
        offset=draw(number),
        extents=draw(st.none() | st.lists(st.tuples(number, number), max_size=3).map(tuple)),
        digest=draw(st.just("") | st.binary(max_size=5).map(digest)),
        magic=draw(st.binary(max_size=20)),
    )


@given(st.lists(entries(), max_size=5))
def test_an_index_survives_the_cache(items: list[Entry]) -> None:
    assert load(dump(items)) == items


def test_files_have_their_digest_and_first_bytes(tmp_path: Path) -> None:
    held = {f"f{size}": bytes([size % 251]) * size for size in (0, 1, 19, 20, 21, 511, 512, 513, PIECE, PIECE + 1)}
    _, found = indexed(tmp_path, tar_of(held))
    assert {entry.path: entry.digest for entry in found} == {path: digest(data) for path, data in held.items()}
    assert {entry.path: entry.magic for entry in found} == {path: data[:20] for path, data in held.items()}


def test_only_files_have_a_digest(tmp_path: Path) -> None:
    layer = {"d": None, "f": b"x", "l": Symlink("f"), "h": Hardlink("f"), "p": Special(Kind.FIFO)}
    _, found = indexed(tmp_path, tar_of(layer))
    assert [(entry.path, bool(entry.digest)) for entry in found] == [(path, path == "f") for path in layer]


@pytest.mark.parametrize("batch", [1, 700, 5000, 10**9])
def test_the_index_does_not_depend_on_workers_or_batches(
    tmp_path: Path, batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = {
        f"d{n % 7}/f{n}": File(hashlib.sha256(b"%d" % n).digest() * (n % 90), mode=0o600 + n % 64) for n in range(300)
    }
    path = tmp_path / "layer.tar"
    path.write_bytes(tar_of(layer))
    monkeypatch.setattr(index, "_BATCH", batch)
    found = []
    for workers in (1, 2, 7):
        with ThreadPoolExecutor(workers) as pool:
            found.append(dump(index_layer(path, "it", pool)))
    monkeypatch.undo()
    with ThreadPoolExecutor(3) as pool:
        assert set(found) == {dump(index_layer(path, "it", pool))}


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50)), max_size=6), st.integers(0, 40))
def test_sparse_content(gaps: list[tuple[int, int]], tail: int) -> None:
    import tempfile  # noqa: PLC0415 - hypothesis and tmp_path do not mix
    from pathlib import Path  # noqa: PLC0415

    extents, whole, stored = [], b"", b""
    for hole, length in gaps:
        whole += bytes(hole)
        extents.append((len(whole), length))
        piece = bytes(range(1, length + 1))
        whole += piece
        stored += piece
    whole += bytes(tail)
    entry = Entry("f", Kind.FILE, 0o644, size=len(whole), offset=3, extents=tuple(extents))
    with tempfile.NamedTemporaryFile() as file:
        file.write(b"abc" + stored)
        file.flush()
        with FileBytes(Path(file.name)) as data:
            assert b"".join(data.content(entry)) == whole
            assert entry.stored == len(stored)


@pytest.mark.parametrize("count", [-5, 0, 1, PIECE - 1, PIECE, PIECE + 1, 3 * PIECE])
def test_zeros_come_in_bounded_pieces(count: int) -> None:
    pieces = list(zeros(count))
    assert sum(map(len, pieces)) == max(0, count)
    assert all(len(piece) <= PIECE and not any(piece) for piece in pieces)


def test_a_tar_that_became_shorter_is_noticed(tmp_path: Path) -> None:
    path, found = indexed(tmp_path, tar_of({"f": bytes(5000)}))
    with path.open("r+b") as file:
        file.truncate(2000)
    with FileBytes(path) as data, pytest.raises(ImageError, match="ends early"):
        list(data.content(found[0]))


def test_slices_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"0123456789")
    with FileBytes(path) as data:
        assert (len(data), data[2:4], data[8:20], data[20:30], data[5:2]) == (10, b"23", b"89", b"", b"")
        whole = replace(Entry("f", Kind.FILE, 0o644), size=4, offset=6)
        assert b"".join(data.content(whole)) == b"6789"


def test_reading_from_a_file_system(tmp_path: Path) -> None:
    lower = {"usr/x": b"old", "lib": Symlink("usr"), "etc/link": Symlink("/lib/x"), "gone": b"g"}
    upper = {"usr/x": b"new", ".wh.gone": b"", "usr/hard": Hardlink("usr/x")}
    with filesystem(tmp_path, lower, upper) as files:
        assert files.read("etc/link", 10) == b"new"
        assert b"".join(files.content(files.nodes["usr/hard"].inode)) == b"new"
        assert [path for path, _ in files.files()] == ["usr/hard", "usr/x"]
        assert (files.is_first("usr/hard"), files.is_first("usr/x")) == (True, False)
        for missing in ("gone", "usr", "nowhere", "usr/x/y"):
            with pytest.raises(NotFoundError, match=missing):
                files.read(missing, 10)
        with pytest.raises(ImageError, match="more than the 2"):
            files.read("usr/x", 2)
