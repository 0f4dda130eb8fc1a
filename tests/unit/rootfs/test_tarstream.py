"""A tar that arrives in pieces is read as one that lies there."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slimgpu.errors import ImageError
from slimgpu.rootfs.tarread import TarReader
from slimgpu.rootfs.tarstream import TarStream
from tests.support.stacks import layers, tar_of_entries
from tests.support.trees import tar_of

if TYPE_CHECKING:
    from slimgpu.rootfs.entry import Entry

BIG = tar_of({"a": b"a" * 5000, "b": b"", "c/" + "long" * 50: bytes(range(256)) * 20, "d": None})


def cut(tar: bytes, sizes: list[int]) -> list[bytes]:
    """The tar in pieces of these sizes, and then of 700 bytes."""
    pieces, at = [], 0
    while at < len(tar):
        size = sizes.pop() if sizes else 700
        pieces.append(tar[at : at + size])
        at += size
    return pieces


def read(stream: TarStream) -> list[tuple[Entry, bytes]]:
    return [(entry, b"".join(stream.stored(entry))) for entry in TarReader(stream, "it")]


@given(st.lists(st.integers(1, 3000)))
def test_pieces_of_any_size(sizes: list[int]) -> None:
    stream = TarStream(cut(BIG, sizes), "it")
    found = read(stream)
    assert [entry for entry, _ in found] == list(TarReader(BIG, "it"))
    assert [content for _, content in found] == [BIG[e.offset : e.offset + e.stored] for e, _ in found]
    assert stream.end() == len(BIG)


@given(layers, st.booleans())
def test_content_need_not_be_read(stack: list[list[Entry]], end: bool) -> None:  # noqa: FBT001
    for entries in stack:
        tar = tar_of_entries(entries)
        stream = TarStream(cut(tar, []), "it")
        assert list(TarReader(stream, "it")) == list(TarReader(tar, "it"))
        if end:
            assert stream.end() == len(tar)


@pytest.mark.parametrize("length", range(512, 512 + 5000, 300))
def test_one_that_ends_inside_a_file(length: int) -> None:
    with pytest.raises(ImageError, match="it ends inside 'a'"):
        read(TarStream(cut(BIG[:length], []), "it"))


@pytest.mark.parametrize("length", range(1024, 5000, 300))
def test_one_that_ends_inside_a_file_that_is_not_read(length: int) -> None:
    with pytest.raises(ImageError, match="it ends inside a file"):
        list(TarReader(TarStream(cut(BIG[:length], []), "it"), "it"))


def test_memory_is_a_piece_and_what_is_asked_for() -> None:
    stream = TarStream((bytes(1000) for _ in range(10**4)), "it")
    assert stream[5_000_000:5_000_010] == bytes(10)
    assert len(stream._window) <= 1000
    assert len(stream[5_000_000:5_003_500]) == 3500
    assert len(stream._window) <= 4500
