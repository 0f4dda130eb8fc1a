"""Content that is made of stretches of another file."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slimgpu.errors import ImageError
from slimgpu.rootfs.splice import Splice, SpliceBuilder, literal

SOURCE = bytes(range(256)) * 12_000


def read(offset: int, size: int) -> bytes:
    return SOURCE[offset : offset + size]


def text(splice: Splice) -> bytes:
    return b"".join(bytes(piece) for piece in splice.content(read))


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("copy"), st.integers(0, 2000), st.integers(0, 500)),
        st.tuples(st.just("write"), st.binary(max_size=50)),
        st.tuples(st.just("zeros"), st.integers(0, 200_000)),
    ),
    max_size=12,
)


@given(STEPS)
def test_what_is_appended_comes_out(steps: list[tuple[str, object]]) -> None:
    out, expected = SpliceBuilder(), b""
    for step in steps:
        match step:
            case ("copy", int(offset), int(size)):
                out.copy(offset, size)
                expected += SOURCE[offset : offset + size]
            case ("write", bytes(data)):
                out.write(data)
                expected += data
            case ("zeros", int(size)):
                out.zeros(size)
                expected += bytes(size)
        assert out.size == len(expected)
    splice = out.finish()
    assert text(splice) == expected
    assert splice.size == len(expected)
    assert Splice.load(splice.dump()) == splice


def test_runs_that_touch_are_one() -> None:
    out = SpliceBuilder()
    for _ in range(3):
        out.add((out.size, 10))
    out.add(b"ab")
    out.add(b"cd")
    out.zeros(5)
    out.zeros(6)
    out.copy(0, 0)
    assert out.finish() == Splice(((0, 30), (-1, 4), (-2, 11)), b"abcd")


def test_large_stretches_come_in_pieces() -> None:
    splice = Splice(((5, len(SOURCE) - 5),))
    pieces = list(splice.content(read))
    assert max(map(len, pieces)) <= 1024 * 1024
    assert b"".join(pieces) == SOURCE[5:]


def test_short_reads_are_asked_again() -> None:
    splice = Splice(((10, 1000),))
    assert b"".join(splice.content(lambda offset, size: SOURCE[offset : offset + min(size, 7)])) == SOURCE[10:1010]


def test_an_original_that_ends_early_is_an_error() -> None:
    with pytest.raises(ImageError, match="ends early"):
        text(Splice(((len(SOURCE) - 5, 10),)))


@pytest.mark.parametrize("data", [b"", b"own"])
def test_bytes_alone(data: bytes) -> None:
    assert text(literal(data)) == data
    assert literal(data).size == len(data)
