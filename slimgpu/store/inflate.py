"""From a stored blob to the layer's tar: gzip, zstd and plain, told apart by their first bytes.

eStargz is gzip in several members and zstd:chunked is zstd in several frames with skippable ones between, so
both need nothing of their own. Sources: RFC 1952, RFC 8878,
https://github.com/containerd/stargz-snapshotter/blob/main/docs/estargz.md.
"""

from __future__ import annotations

import os
from itertools import chain
from typing import IO, TYPE_CHECKING, Any, Final, cast

import zstandard
from isal import igzip_lib, isal_zlib

from slimgpu.errors import ImageError, UsageError
from slimgpu.oci.image import CHUNK
from slimgpu.units import format_size, parse_size

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_GZIP: Final = b"\x1f\x8b"
_ZSTD: Final = b"\x28\xb5\x2f\xfd"
_SKIPPABLE: Final = tuple(bytes([0x50 + i, 0x2A, 0x4D, 0x18]) for i in range(16))
_FOREIGN: Final = {b"BZh": "bzip2", b"\xfd7zXZ\x00": "xz", b"\x04\x22\x4d\x18": "lz4"}

_GzipError = cast("type[Exception]", igzip_lib.IsalError)  # its stub says that it is an instance
_MAX_WINDOW: Final = 2**27
"""What ``zstd`` itself accepts unless told otherwise; a frame can ask for any amount of memory."""
_FREE: Final = 1024**3
_MAX_RATIO: Final = 200
_MAX_LAYER_VARIABLE: Final = "SLIMGPU_MAX_LAYER_SIZE"
_MAX_LAYER_DEFAULT: Final = "200GB"


def inflate(chunks: Iterable[bytes], what: str) -> Iterator[bytes]:
    """The uncompressed bytes of a layer blob.

    Raises `ImageError` naming ``what`` for truncated or corrupt data, and for a decompression bomb: more than
    200 GB, or more than 1 GiB that is also over 200 times what was read; with ``SLIMGPU_MAX_LAYER_SIZE`` set,
    more than that.
    """
    source = _Counted(chunks)
    head = b""
    for chunk in source:
        head += chunk
        if len(head) >= 6:  # noqa: PLR2004 - the longest signature
            break
    yield from _bounded(_decoder(head, chain([head], source), what), source, what)


class _Counted:
    """An iterator that knows how many bytes went through it."""

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self._chunks = iter(chunks)
        self.count = 0

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        chunk = next(self._chunks)
        self.count += len(chunk)
        return chunk


def _decoder(head: bytes, chunks: Iterable[bytes], what: str) -> Iterable[bytes]:
    if head.startswith(_GZIP):
        return _gunzip(chunks, what)
    if head.startswith((_ZSTD, *_SKIPPABLE)):
        return _unzstd(chunks, what)
    for signature, name in _FOREIGN.items():
        if head.startswith(signature):
            raise ImageError(f"{what} is compressed with {name}; layers are gzip, zstd or plain tar")
    return chunks


def _bounded(output: Iterable[bytes], source: _Counted, what: str) -> Iterator[bytes]:
    stated = os.environ.get(_MAX_LAYER_VARIABLE)
    limit = _parse_limit(stated or _MAX_LAYER_DEFAULT)
    count = 0
    for chunk in output:
        count += len(chunk)
        if count > limit:
            raise ImageError(
                f"{what} unpacks to more than {format_size(limit)}; set {_MAX_LAYER_VARIABLE} higher if it should"
            )
        if not stated and count > max(_FREE, _MAX_RATIO * source.count):
            raise ImageError(
                f"{what} looks like a decompression bomb, over {_MAX_RATIO} times its size;"
                f" set {_MAX_LAYER_VARIABLE} (like 20GB) if it is none"
            )
        yield chunk


def _parse_limit(text: str) -> int:
    try:
        return parse_size(text)
    except ValueError as error:
        raise UsageError(f"{_MAX_LAYER_VARIABLE}: {error}") from error


def _gunzip(chunks: Iterable[bytes], what: str) -> Iterator[bytes]:
    """All members of a gzip stream; zero bytes after the last one are padding."""
    decoder: Any = None
    try:
        for chunk in chunks:
            data = chunk if decoder else chunk.lstrip(b"\0")
            while data:
                if decoder is None:
                    decoder = isal_zlib.decompressobj(wbits=31)
                yield from _bounded_pieces(decoder, data)
                data = b""
                if decoder.eof:
                    data, decoder = decoder.unused_data.lstrip(b"\0"), None
    except _GzipError as error:
        raise ImageError(f"{what} is not valid gzip ({error}); fetch or copy the image again") from error
    if decoder is not None:
        raise ImageError(f"{what} is truncated gzip; fetch or copy the image again")


def _bounded_pieces(decoder: Any, data: bytes) -> Iterator[bytes]:
    while data and not decoder.eof:
        piece = decoder.decompress(data, 4 * CHUNK)
        data = decoder.unconsumed_tail
        if piece:
            yield piece


def _unzstd(chunks: Iterable[bytes], what: str) -> Iterator[bytes]:
    """All frames of a zstd stream, skippable ones passed over."""
    source = cast("IO[bytes]", _Readable(chunks))
    reader = zstandard.ZstdDecompressor(max_window_size=_MAX_WINDOW).stream_reader(
        source, read_size=CHUNK, read_across_frames=True
    )
    try:
        while piece := reader.read(4 * CHUNK):
            yield piece
    except zstandard.ZstdError as error:
        raise ImageError(f"{what} is not valid zstd ({error}); fetch or copy the image again") from error


class _Readable:
    """Chunks as the file object that zstandard asks for; it may return more than was asked for."""

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self._chunks = iter(chunks)
        self._rest = b""

    def read(self, size: int) -> bytes:
        data = self._rest or next(self._chunks, b"")
        self._rest = data[size:]
        return data[:size]
