"""Taking numbers apart into planes of bytes that compress, and putting them together again.

The exponents of trained weights cluster around a few values while signs and mantissas are noise, so a plane of
exponents compresses to a third and the rest is stored as it is. Planes are ordered from the most significant byte
down; two shapes of numbers are known:

``float``
    The top 16 bits are those of a bfloat16 (bf16 and fp32 share them): plane 0 is the exponent, plane 1 the sign in
    its top bit and the seven highest bits of the mantissa below.
``bytes``
    Plane k is the k-th byte as it is (fp16, fp64, integers).

All of it works on pieces that stay in a core's cache, in buffers that each thread keeps: whole-array operations would
cost ten times as much in page faults.
"""

from __future__ import annotations

import threading
from functools import cached_property
from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    Plane = NDArray[np.uint8]
    Words = NDArray[np.uint16]

_PIECE: Final = 1024 * 1024
"""Numbers that are worked on at a time: each operation may have to wait for the interpreter's lock, so not too few."""
_SIGN_AND_MANTISSA: Final = np.int16(-0x8000 | 0x7F)


def memory(size: int) -> memoryview:
    """Memory of ``size`` bytes that nobody clears first, as a bytearray's would be, with all other threads waiting."""
    return np.empty(size, np.uint8).data


class _Buffers(threading.local):
    """Arrays of a piece each, made when they are first needed."""

    @cached_property
    def a(self) -> Words:
        return np.empty(_PIECE, np.uint16)

    @cached_property
    def b(self) -> Words:
        return np.empty(_PIECE, np.uint16)

    @cached_property
    def wide(self) -> NDArray[np.uint32]:
        return np.empty(_PIECE, np.uint32)


_BUFFERS: Final = _Buffers()


def _pieces(count: int) -> Iterator[slice]:
    for start in range(0, count, _PIECE):
        yield slice(start, min(start + _PIECE, count))


def split(raw: memoryview, width: int, planes: Sequence[Plane], *, is_float: bool) -> None:
    """Write the ``width`` planes of the little-endian numbers in ``raw``, each of ``len(raw) // width`` bytes."""
    if not is_float:
        by_byte = np.frombuffer(raw, np.uint8).reshape(-1, width)
        for number, plane in enumerate(planes):
            np.copyto(plane, by_byte[:, width - 1 - number])
        return
    words = np.frombuffer(raw, np.uint16).reshape(-1, width // 2)
    for piece in _pieces(len(planes[0])):
        _split_top(words[piece, -1], planes[0][piece], planes[1][piece])
    if width > 2:  # noqa: PLR2004 - fp32
        split_rest = np.frombuffer(raw, np.uint8).reshape(-1, width)
        for number in range(2, width):
            np.copyto(planes[number], split_rest[:, width - 1 - number])


def _split_top(words: Words, exponents: Plane, rest: Plane) -> None:
    a, b = _BUFFERS.a[: len(words)], _BUFFERS.b[: len(words)]
    np.right_shift(words, 7, out=a)
    exponents[:] = a  # the cast takes the low byte
    np.right_shift(words, 8, out=a)
    np.bitwise_and(a, 0x80, out=a)
    np.bitwise_and(words, 0x7F, out=b)
    np.bitwise_or(a, b, out=a)
    rest[:] = a


def merge(planes: Sequence[Plane], out: memoryview, *, is_float: bool) -> None:
    """The inverse of `split`: fill ``out`` with the numbers whose planes these are."""
    width = len(planes)
    if width == 1:
        np.copyto(np.frombuffer(out, np.uint8), planes[0])
    elif width == 2:  # noqa: PLR2004
        words = np.frombuffer(out, np.uint16)
        for piece in _pieces(len(words)):
            _merge_words(planes[0][piece], planes[1][piece], words[piece], is_float=is_float)
    elif width == 4 and is_float:  # noqa: PLR2004
        numbers = np.frombuffer(out, np.uint32)
        for piece in _pieces(len(numbers)):
            _merge_wide([plane[piece] for plane in planes], numbers[piece])
    else:
        by_byte = np.frombuffer(out, np.uint8).reshape(-1, width)
        for number, plane in enumerate(planes):
            np.copyto(by_byte[:, width - 1 - number], plane)


def _merge_words(high: Plane, low: Plane, out: Words, *, is_float: bool) -> None:
    out[:] = high
    if not is_float:
        a = _BUFFERS.a[: len(out)]
        np.left_shift(out, 8, out=out)
        a[:] = low
        np.bitwise_or(out, a, out=out)
        return
    signed = _BUFFERS.a[: len(out)].view(np.int16)
    np.left_shift(out, 7, out=out)
    signed[:] = low.view(np.int8)  # widened with its sign, which lands in the top bit
    np.bitwise_and(signed, _SIGN_AND_MANTISSA, out=signed)
    np.bitwise_or(out, signed.view(np.uint16), out=out)


def _merge_wide(planes: Sequence[Plane], out: NDArray[np.uint32]) -> None:
    top, low, wide = _BUFFERS.b[: len(out)], _BUFFERS.a[: len(out)], _BUFFERS.wide[: len(out)]
    _merge_words(planes[0], planes[1], top, is_float=True)
    out[:] = top
    np.left_shift(out, 16, out=out)
    low[:] = planes[2]
    np.left_shift(low, 8, out=low)
    wide[:] = low
    np.bitwise_or(out, wide, out=out)
    wide[:] = planes[3]
    np.bitwise_or(out, wide, out=out)


def entropy(plane: Plane) -> float:
    """Bits of information in a byte of the plane (0 to 8), of single bytes, without any context."""
    counts = np.bincount(plane, minlength=256)
    shares = counts[counts > 0] / len(plane)
    return float(-(shares * np.log2(shares)).sum())
