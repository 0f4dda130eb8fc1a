"""Blobs as real tools lay them out: several members or frames, padding, footers."""

from __future__ import annotations

import gzip
import io
import tarfile

import pytest
import zstandard

from slimgpu.errors import ImageError
from slimgpu.store.inflate import inflate

_TAR_SIZE = 3_000_000


def tar_of(**files: bytes) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def pieces(data: bytes, size: int) -> list[bytes]:
    return [data[start : start + size] for start in range(0, len(data), size)]


def estargz(tar: bytes) -> bytes:
    """A gzip member for each piece, and the 51-byte footer: an empty member whose extra field names the table."""
    members = b"".join(gzip.compress(piece) for piece in pieces(tar, 4096))
    extra = b"SG" + (22).to_bytes(2, "little") + f"{len(members):016x}STARGZ".encode()
    header = bytes.fromhex("1f8b08040000000000ff") + len(extra).to_bytes(2, "little") + extra
    footer = header + bytes.fromhex("010000ffff") + bytes(8)
    assert len(footer) == 51
    return members + footer


def zstd_chunked(tar: bytes) -> bytes:
    """A frame for each piece, then skippable frames with the table and the footer."""
    frames = b"".join(zstandard.compress(piece) for piece in pieces(tar, 4096))
    return frames + b"".join(b"\x50\x2a\x4d\x18" + len(d).to_bytes(4, "little") + d for d in (b"{}" * 99, bytes(64)))


@pytest.mark.parametrize("layout", [estargz, zstd_chunked, gzip.compress, zstandard.compress, bytes])
@pytest.mark.parametrize("size", [7, 4096, 1 << 20])
def test_every_layout_gives_the_tar_back(layout: object, size: int) -> None:
    tar = tar_of(a=b"a" * 10_000, b=bytes(range(256)) * 100)
    assert callable(layout)
    assert b"".join(inflate(pieces(layout(tar), size), "a layer")) == tar


def test_zero_padding_after_gzip_is_no_data() -> None:
    assert b"".join(inflate([gzip.compress(b"x" * 1000) + bytes(5000)], "a layer")) == b"x" * 1000


@pytest.mark.parametrize("signature", [b"BZh91AY", b"\xfd7zXZ\x00", b"\x04\x22\x4d\x18ab"])
def test_other_compressions_are_named(signature: bytes) -> None:
    with pytest.raises(ImageError, match=r"a layer is compressed with (bzip2|xz|lz4); layers are gzip, zstd or plain"):
        b"".join(inflate([signature + bytes(100)], "a layer"))


def test_a_bomb_is_stopped_unless_a_bound_is_stated(monkeypatch: pytest.MonkeyPatch) -> None:
    bomb = zstandard.ZstdCompressor().compress(bytes(_TAR_SIZE))
    monkeypatch.setattr("slimgpu.store.inflate._FREE", 1_000_000)
    with pytest.raises(ImageError, match="looks like a decompression bomb"):
        b"".join(inflate([bomb], "a layer"))
    monkeypatch.setenv("SLIMGPU_MAX_LAYER_SIZE", "5MB")
    assert len(b"".join(inflate([bomb], "a layer"))) == _TAR_SIZE
    monkeypatch.setenv("SLIMGPU_MAX_LAYER_SIZE", "2MB")
    with pytest.raises(ImageError, match=r"unpacks to more than 2.00 MB"):
        b"".join(inflate([bomb], "a layer"))
