"""A chunk's bytes as they are stored, and back.

A stored chunk is ``[zstd frames of the planes that compress][planes that do not, as they are]``, planes in their
order (`slimgpu.weights.planes`). Frames are of 128 KiB: that costs under 0.05 %, and many cores, or a GPU's batch
decoder, can work on one chunk. Match finding is off, since it only harms planes of exponents: entropy coding alone
gives 0.333 where level 3 gives 0.35 of an exponent plane, at twice the speed.

Sources: RFC 8878; the settings are those of a measurement that ``benchmarks/codec.py`` repeats.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
import zstandard

from slimgpu.errors import ImageError
from slimgpu.weights.planes import entropy, merge, split
from slimgpu.weights.transforms import RAW, TRANSFORMS, ZSTD

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from slimgpu.weights.planes import Plane
    from slimgpu.weights.transforms import Shape

FRAME: Final = 128 * 1024
_LEVEL: Final = 3
_WORTH: Final = 0.97
"""What takes more of its size than this is stored as it is: reading it back is then free."""
_NUMBERS_FROM: Final = 0.8
"""What zstd alone brings no further than this may be numbers, in a file that doesn't say so."""
_SAMPLE: Final = 16 * 1024
_SAMPLES: Final = 4
_ENTROPY_ONLY: Final = zstandard.ZstdCompressionParameters(
    strategy=zstandard.STRATEGY_FAST,
    window_log=17,
    hash_log=6,
    chain_log=6,
    search_log=1,
    min_match=7,
    compression_level=1,
)


_OPAQUE: Final = ("bytes1", "float2", "float4", "bytes2")
_CANDIDATES: Final = {
    "BF16": ("float2",),
    "F16": ("bytes2",),
    "F32": ("float4",),
    "F64": ("bytes8",),
    "C64": ("float4",),
    "I16": ("bytes2",),
    "U16": ("bytes2",),
    "I32": ("bytes4",),
    "U32": ("bytes4",),
    "I64": ("bytes8",),
    "U64": ("bytes8",),
    "U8": _OPAQUE,
}


@dataclass(frozen=True, slots=True)
class Encoded:
    """A chunk as it is stored."""

    transform: str
    packed: int
    """Bit k: whether plane k is compressed."""
    data: bytes | memoryview


class _Tools(threading.local):
    """What each thread keeps, since neither coders nor buffers can be shared."""

    def __init__(self) -> None:
        self.entropy = zstandard.ZstdCompressor(compression_params=_ENTROPY_ONLY)
        self.general = zstandard.ZstdCompressor(level=_LEVEL)
        self.decoder = zstandard.ZstdDecompressor()
        self._scratch: NDArray[np.uint8] = np.empty(0, np.uint8)

    def planes(self, count: int, length: int) -> Sequence[Plane]:
        """``count`` arrays of ``length`` bytes, overwritten by the next call of this thread."""
        if len(self._scratch) < count * length:
            self._scratch = np.empty(count * length, np.uint8)
        return [self._scratch[k * length : (k + 1) * length] for k in range(count)]


_TOOLS: Final = _Tools()


def encode(raw: memoryview, dtype: str | None) -> Encoded:
    """``raw`` as it is best stored: numbers of ``dtype`` (safetensors' name), or what is no known tensor (None)."""
    if dtype is not None:
        return _encode_numbers(raw, _CANDIDATES.get(dtype, ("bytes1",)))
    plain = _encode_bytes(raw)
    if len(plain.data) < len(raw) * _NUMBERS_FROM:
        return plain
    numbers = _encode_numbers(raw, _OPAQUE)
    return min(plain, numbers, key=lambda encoded: len(encoded.data))


def _encode_bytes(raw: memoryview) -> Encoded:
    data = _TOOLS.general.compress(raw)
    return Encoded(ZSTD, 0, data) if len(data) < len(raw) * _WORTH else Encoded(RAW, 0, raw)


def _encode_numbers(raw: memoryview, candidates: Sequence[str]) -> Encoded:
    fitting = [name for name in candidates if len(raw) % TRANSFORMS[name].width == 0]
    estimates = {name: _estimate(raw, TRANSFORMS[name]) for name in fitting}
    best = min(estimates, key=lambda name: sum(estimates[name]) / len(estimates[name]), default=RAW)
    if best == RAW or min(estimates[best]) > _WORTH:
        return Encoded(RAW, 0, raw)
    wanted = [share <= _WORTH for share in estimates[best]]
    data, packed = _compress(raw, TRANSFORMS[best], wanted)
    return Encoded(best, packed, data) if len(data) < len(raw) * _WORTH else Encoded(RAW, 0, raw)


def _estimate(raw: memoryview, shape: Shape) -> list[float]:
    """The share of its size that each plane should come to, from samples all over the chunk."""
    length = min(_SAMPLE * shape.width, len(raw))
    step = max(length, (len(raw) - length) // _SAMPLES // shape.width * shape.width)
    sample = b"".join(raw[start : start + length] for start in range(0, len(raw) - length + 1, step))
    planes = [np.empty(len(sample) // shape.width, np.uint8) for _ in range(shape.width)]
    split(memoryview(sample), shape.width, planes, is_float=shape.is_float)
    return [entropy(plane) / 8 for plane in planes]


def _compress(raw: memoryview, shape: Shape, wanted: Sequence[bool]) -> tuple[memoryview, int]:
    planes = _TOOLS.planes(shape.width, len(raw) // shape.width)
    split(raw, shape.width, planes, is_float=shape.is_float)
    frames: list[bytes] = []
    packed = 0
    for number, (plane, compresses) in enumerate(zip(planes, wanted, strict=True)):
        if compresses:
            packed |= 1 << number
            frames += [_TOOLS.entropy.compress(plane[at : at + FRAME].data) for at in range(0, len(plane), FRAME)]
    rest = [plane for plane, compresses in zip(planes, wanted, strict=True) if not compresses]
    return _joined([*(np.frombuffer(frame, np.uint8) for frame in frames), *rest]), packed


def _joined(parts: Sequence[Plane]) -> memoryview:
    """The parts one after another; `bytes.join` would have all other threads wait for it."""
    whole = np.empty(sum(map(len, parts)), np.uint8)
    np.concatenate(parts, out=whole)
    return whole.data


def decode(stored: memoryview, transform: str, packed: int, out: memoryview) -> None:
    """Fill ``out``, whose length is that of the raw chunk; `ImageError` when ``stored`` is no such chunk."""
    try:
        if transform == RAW:
            out[:] = stored
        elif transform == ZSTD:
            _decompress(stored, [out])
        else:
            planes = _planes(stored, TRANSFORMS[transform], packed, len(out))
            merge(planes, out, is_float=TRANSFORMS[transform].is_float)
    except (ValueError, zstandard.ZstdError) as error:
        raise _damaged(error) from error


def decode_planes(stored: memoryview, transform: str, packed: int, out: memoryview) -> None:
    """Fill ``out`` with the planes one after another, for a device that merges them itself."""
    length = len(out) // TRANSFORMS[transform].width
    try:
        planes = _planes(stored, TRANSFORMS[transform], packed, len(out))
    except (ValueError, zstandard.ZstdError) as error:
        raise _damaged(error) from error
    for number, plane in enumerate(planes):
        out[number * length : (number + 1) * length] = plane.data


def _damaged(error: Exception) -> ImageError:
    return ImageError(f"a chunk is damaged although its digest is right ({error}); pack the weights again")


def _planes(stored: memoryview, shape: Shape, packed: int, size: int) -> list[Plane]:
    """All planes in order: decompressed ones in this thread's buffers, the others where they are."""
    length, rest = divmod(size, shape.width)
    if rest or not length:
        raise ValueError(f"{size} bytes are no numbers of {shape.width}")
    coded = [k for k in range(shape.width) if packed >> k & 1]
    start = len(stored) - (shape.width - len(coded)) * length
    if start < 0:
        raise ValueError(f"{len(stored)} bytes hold no {shape.width - len(coded)} planes of {length}")
    scratch = _TOOLS.planes(len(coded), length)
    _decompress(stored[:start], [plane.data for plane in scratch])
    decoded = iter(scratch)
    plain = iter(np.frombuffer(stored[start:], np.uint8).reshape(-1, length))
    return [next(decoded) if packed >> k & 1 else next(plain) for k in range(shape.width)]


def _decompress(stored: memoryview, outs: Sequence[memoryview]) -> None:
    """Fill each of ``outs`` from whole frames; ValueError when they hold less or more."""
    reader = _TOOLS.decoder.stream_reader(stored, read_across_frames=True)
    for out in outs:
        filled = 0
        while filled < len(out):
            count = reader.readinto(out[filled:])
            if not count:
                raise ValueError(f"{filled} of {len(out)} bytes")
            filled += count
    if reader.read(1):
        raise ValueError("more bytes than the index says")
