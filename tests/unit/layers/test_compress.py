from __future__ import annotations

import gzip
import random
import subprocess
from typing import TYPE_CHECKING

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from slimgpu.layers.compress import Format, compress

if TYPE_CHECKING:
    from collections.abc import Iterator

_RANDOM = random.Random(3)  # noqa: S311 - no secret
_WORDS = [_RANDOM.randbytes(_RANDOM.randrange(3, 40)) for _ in range(500)]
DATA = b"".join(_RANDOM.choice(_WORDS) for _ in range(450_000)) + _RANDOM.randbytes(1_500_000) + bytes(3_000_000)
"""About 14 MB: several jobs of zstd's, and of every kind."""


def cut(data: bytes, seed: int) -> Iterator[bytes]:
    """The data in pieces of random sizes, some of them empty."""
    sizes = random.Random(seed)  # noqa: S311
    position = 0
    while position < len(data):
        size = sizes.choice([0, 1, 511, 4096, 65_537, 1_048_576, 3_000_001])
        yield data[position : position + size]
        position += size


def packed(form: Format, data: bytes, jobs: int, seed: int | None = None) -> bytes:
    chunks = [data] if seed is None else cut(data, seed)
    return b"".join(compress(chunks, form, len(data), jobs))


@pytest.fixture(scope="module", params=[Format.ZSTD, Format.GZIP, Format.TAR], ids=str)
def form(request: pytest.FixtureRequest) -> Format:
    found: Format = request.param
    return found


@pytest.fixture(scope="module")
def once(form: Format) -> bytes:
    return packed(form, DATA, 1)


@pytest.mark.parametrize("jobs", [1, 2, 7])
@pytest.mark.parametrize("seed", [None, 1, 2, 3])
def test_always_the_same_bytes(form: Format, once: bytes, jobs: int, seed: int | None) -> None:
    assert packed(form, DATA, jobs, seed) == once


def test_libraries_decode_it(form: Format, once: bytes) -> None:
    if form is Format.ZSTD:
        decoded = zstandard.ZstdDecompressor().decompress(once)
        assert zstandard.get_frame_parameters(once).content_size == len(DATA)
        assert zstandard.get_frame_parameters(once).has_checksum
    elif form is Format.GZIP:
        decoded = gzip.decompress(once)
    else:
        decoded = once
    assert decoded == DATA


@pytest.mark.parametrize(("form", "tool"), [(Format.ZSTD, "zstd"), (Format.GZIP, "gzip")], indirect=["form"])
def test_command_line_tools_decode_it(once: bytes, tool: str) -> None:
    run = subprocess.run([tool, "-d", "-c"], input=once, capture_output=True, check=True)
    assert run.stdout == DATA
    subprocess.run([tool, "-t"], input=once, capture_output=True, check=True)


def test_it_is_smaller(form: Format, once: bytes) -> None:
    assert len(once) == len(DATA) if form is Format.TAR else len(once) < len(DATA) * 0.7


@given(st.lists(st.binary(max_size=50), max_size=8), st.integers(1, 3))
def test_small_inputs(chunks: list[bytes], jobs: int) -> None:
    data = b"".join(chunks)
    stored = b"".join(compress(chunks, Format.ZSTD, len(data), jobs))
    assert zstandard.ZstdDecompressor().decompress(stored) == data
    assert gzip.decompress(b"".join(compress(chunks, Format.GZIP, len(data), jobs))) == data


def test_a_gzip_header_tells_no_time_or_name() -> None:
    header = packed(Format.GZIP, b"x", 1)[:10]
    assert header[:8] == b"\x1f\x8b\x08\0\0\0\0\0"


def test_media_types() -> None:
    assert [form.media_type.rpartition(".")[2] for form in Format] == ["tar+zstd", "tar+gzip", "tar"]
