from __future__ import annotations

import contextlib
import io
import tarfile
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slimgpu.errors import ImageError
from slimgpu.store import tarindex
from slimgpu.store.tarindex import TarIndex
from tests.support.images import Entry, directory, hardlink, make_tar, symlink

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


def index_of(entries: Sequence[Entry], tmp_path: Path) -> TarIndex:
    path = tmp_path / "a.tar"
    path.write_bytes(make_tar(entries))
    return TarIndex(path, "the archive")


def test_members_are_read_in_place(tmp_path: Path) -> None:
    long = "d/" * 80 + "file"
    index = index_of([directory("d"), Entry("d/a", b"one"), Entry("./b", b"two"), Entry(long, b"three")], tmp_path)
    found = [index.find(name).read() for name in ("d/a", "./d/a", "b", "./b", "/b", long)]
    assert found == [b"one", b"one", b"two", b"two", b"two", b"three"]
    for missing in ("d", "c", "", "d/a/x"):
        with pytest.raises(FileNotFoundError):
            index.find(missing)


def test_the_last_of_equal_names_counts(tmp_path: Path) -> None:
    index = index_of([Entry("a", b"old"), Entry("b", b"x"), Entry("a", b"new"), symlink("b", "a")], tmp_path)
    assert index.find("a").read() == b"new"
    assert index.find("b").read() == b"new"


def test_links_inside_the_archive_are_followed(tmp_path: Path) -> None:
    entries = [Entry("1/layer.tar", b"x"), symlink("2/layer.tar", "../1/layer.tar"), hardlink("3", "1/layer.tar")]
    index = index_of(entries, tmp_path)
    assert index.find("2/layer.tar").read() == b"x"
    assert index.find("3").read() == b"x"


def test_links_out_of_the_archive_lead_nowhere(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    entries = [symlink("up", "../secret"), symlink("root", str(tmp_path / "secret")), symlink("loop", "loop")]
    index = index_of(entries, tmp_path)
    for name in ("up", "root", "loop", "../secret", str(tmp_path / "secret")):
        with pytest.raises(FileNotFoundError):
            index.find(name)


def test_every_truncation_is_an_error_or_lacks_members(tmp_path: Path) -> None:
    data = make_tar([Entry("a", b"1" * 600), Entry("b", b"2" * 600)])
    path = tmp_path / "a.tar"
    for size in range(1, 512 + 1024 + 512 + 600, 37):
        path.write_bytes(data[:size])
        try:
            index = TarIndex(path, "the archive")
        except ImageError as error:
            assert "the archive is not a whole tar archive" in str(error)  # noqa: PT017 - either is right
        else:
            with pytest.raises(FileNotFoundError):
                index.find("b")


def test_not_a_tar(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(b"no tar" * 1000)
    with pytest.raises(ImageError, match="the archive is not a whole tar archive"):
        TarIndex(path, "the archive")


def test_a_header_that_claims_gigabytes(tmp_path: Path) -> None:
    info = tarfile.TarInfo("././@PaxHeader")
    info.type, info.size = tarfile.XHDTYPE, 5 * 1024**3
    path = tmp_path / "a.tar"
    with path.open("wb") as file:
        file.write(info.tobuf(tarfile.GNU_FORMAT))
        file.truncate(6 * 1024**3)
    with pytest.raises(ImageError, match="a header of"):
        TarIndex(path, "the archive")


def test_endless_headers(tmp_path: Path) -> None:
    info = tarfile.TarInfo("././@LongLink")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 3
    path = tmp_path / "a.tar"
    path.write_bytes((info.tobuf(tarfile.GNU_FORMAT) + b"ab\0".ljust(512, b"\0")) * 20_000)
    with pytest.raises(ImageError, match="not a whole tar archive"):
        TarIndex(path, "the archive")


def test_too_many_members(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tarindex, "_MAX_MEMBERS", 3)
    with pytest.raises(ImageError, match="more than 3 members"):
        index_of([Entry(str(i)) for i in range(4)], tmp_path)


def test_sparse_members_are_no_blobs(tmp_path: Path) -> None:
    info = tarfile.TarInfo("sparse")
    info.pax_headers = {"GNU.sparse.map": "0,1", "GNU.sparse.size": "1000000", "GNU.sparse.name": "sparse"}
    info.size = 1
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        tar.addfile(info, io.BytesIO(b"x"))
    with pytest.raises(FileNotFoundError):
        TarIndex(path, "the archive").find("sparse")


SAMPLE = make_tar([Entry("a", b"1" * 600), symlink("b", "a"), Entry("c" * 150, b"2"), hardlink("d", "a")])


@given(st.lists(st.tuples(st.integers(0, len(SAMPLE) - 1), st.integers(0, 255)), min_size=1, max_size=20))
def test_damage_is_an_image_error(tmp_path: Path, changes: list[tuple[int, int]]) -> None:
    data = bytearray(SAMPLE)
    for position, value in changes:
        data[position] = value
    path = tmp_path / "a.tar"
    path.write_bytes(data)
    with contextlib.suppress(ImageError):
        TarIndex(path, "the archive")
