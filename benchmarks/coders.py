"""The codecs of ``codec.py``: slimgpu's own in three ways, ZipNN, and plain zstd."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from slimgpu.weights.codec import decode, encode
from slimgpu.weights.digests import sha256

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from slimgpu.weights.codec import Encoded

_CHUNK = 4 << 20
_ZIPNN_DTYPES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32", "F8_E4M3": "float8_e4m3fn"}


class Codec(Protocol):
    """What a sample times; bytes go in and come out of memory."""

    def pack(self, data: bytearray) -> int:
        """Compress and keep; gives the number of stored bytes. It may overwrite ``data``."""

    def ready(self) -> None:
        """What comes before unpacking and isn't timed: nothing."""

    def unpack(self) -> None:
        """Decompress what was kept."""

    def content(self) -> Any:
        """The bytes that came out, for the digest; not timed."""


class _Chunked(Codec):
    """Whatever works on chunks of 4 MiB, with a pool for as many threads as there should be."""

    def __init__(self, threads: int) -> None:
        self._pool = ThreadPoolExecutor(threads) if threads > 1 else None
        self._length = 0

    def _map(self, function: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
        return list((self._pool.map if self._pool else map)(function, items))

    def _cut(self, data: bytearray) -> list[memoryview]:
        self._length = len(data)
        view = memoryview(data)
        return [view[start : start + _CHUNK] for start in range(0, len(data), _CHUNK)]


class _Slimgpu(_Chunked):
    """The codec alone, into fresh memory as its peers."""

    def __init__(self, dtype: str, threads: int) -> None:
        super().__init__(threads)
        self._dtype = dtype
        self._kept: list[Encoded] = []
        self._out = np.empty(0, np.uint8)

    def pack(self, data: bytearray) -> int:
        """See `Codec.pack`."""
        self._kept = self._map(self._encode, self._cut(data))
        return sum(len(each.data) for each in self._kept)

    def _encode(self, chunk: memoryview) -> Encoded:
        return encode(chunk, self._dtype)

    def unpack(self) -> None:
        """See `Codec.unpack`."""
        self._out = np.empty(self._length, np.uint8)  # a bytearray would be cleared first, by one thread
        view = self._out.data
        self._map(lambda n: self._decode(n, view[n * _CHUNK : (n + 1) * _CHUNK]), range(len(self._kept)))

    def _decode(self, number: int, room: memoryview) -> None:
        kept = self._kept[number]
        decode(memoryview(kept.data), kept.transform, kept.packed, room)

    def content(self) -> np.ndarray:
        """See `Codec.content`."""
        return self._out


class _Touched(_Slimgpu):
    """The codec alone, into memory that is in use already, as a loader's buffers and a GPU's pinned ring are."""

    def pack(self, data: bytearray) -> int:
        """See `Codec.pack`."""
        stored = super().pack(data)
        self._out = np.empty(self._length, np.uint8)
        return stored

    def ready(self) -> None:
        """See `Codec.ready`."""
        self._out.fill(1)

    def unpack(self) -> None:
        """See `Codec.unpack`."""
        view = self._out.data
        self._map(lambda n: self._decode(n, view[n * _CHUNK : (n + 1) * _CHUNK]), range(len(self._kept)))


class _Hashed(_Slimgpu):
    """With all digests, as the packer and the loader work: both hash, and the loader uses its buffers again."""

    def __init__(self, dtype: str, threads: int) -> None:
        super().__init__(dtype, threads)
        self._rooms = threading.local()

    def _encode(self, chunk: memoryview) -> Encoded:
        sha256(chunk)
        encoded = super()._encode(chunk)
        sha256(encoded.data)
        return encoded

    def unpack(self) -> None:
        """See `Codec.unpack`."""
        self._map(self._decode_again, range(len(self._kept)))

    def _decode_again(self, number: int) -> None:
        sha256(memoryview(self._kept[number].data))
        if not hasattr(self._rooms, "room"):
            self._rooms.room = memoryview(bytearray(_CHUNK))
        size = min(_CHUNK, self._length - number * _CHUNK)
        self._decode(number, self._rooms.room[:size])

    def content(self) -> np.ndarray:
        """Once more, as buffers were used again."""
        super().unpack()
        return self._out


class _Zstd(_Chunked):
    """``zstd -3``, a frame a chunk, so that unpacking uses all threads, too."""

    def __init__(self, dtype: str, threads: int) -> None:
        super().__init__(threads)
        del dtype
        self._kept: list[bytes] = []
        self._out: list[bytes] = []

    def pack(self, data: bytearray) -> int:
        """See `Codec.pack`."""
        import zstandard  # noqa: PLC0415

        self._kept = self._map(lambda chunk: zstandard.ZstdCompressor(level=3).compress(chunk), self._cut(data))
        return sum(map(len, self._kept))

    def unpack(self) -> None:
        """See `Codec.unpack`."""
        import zstandard  # noqa: PLC0415

        self._out = self._map(lambda kept: zstandard.ZstdDecompressor().decompress(kept), self._kept)

    def content(self) -> bytes:
        """See `Codec.content`."""
        return b"".join(self._out)


class _ZipNN(Codec):
    """ZipNN as its documentation has it, on all bytes at once."""

    def __init__(self, dtype: str, threads: int) -> None:
        from zipnn import ZipNN  # noqa: PLC0415

        self._codec = ZipNN(input_format="byte", bytearray_dtype=_ZIPNN_DTYPES[dtype], threads=threads)
        self._kept: Any = b""
        self._out: Any = b""

    def pack(self, data: bytearray) -> int:
        """See `Codec.pack`."""
        self._kept = self._codec.compress(data)
        return len(self._kept)

    def unpack(self) -> None:
        """See `Codec.unpack`."""
        self._out = self._codec.decompress(self._kept)

    def content(self) -> Any:
        """See `Codec.content`."""
        return self._out


CODECS: dict[str, Callable[[str, int], Codec]] = {
    "slimgpu": _Slimgpu,
    "slimgpu, memory in use": _Touched,
    "slimgpu, hashed": _Hashed,
    "zipnn": _ZipNN,
    "zstd -3": _Zstd,
}
NEEDS = {"zipnn": "zipnn"}
