"""Cutting files to chunks: a piece of one tensor, or several small tensors whole, about 4 MiB each."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from slimgpu.weights.order import Rank, rank

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from slimgpu.weights.formats.tensor import Tensor

PIECE: Final = 4 * 1024 * 1024
_FIRST: Final[Rank] = (-1, 0, 0)


@dataclass(frozen=True, slots=True)
class Cut:
    """One chunk of a file to be."""

    offset: int
    """Of its first byte in the file."""
    size: int
    dtype: str | None
    """What its numbers are; None for what is no tensor."""
    rank: Rank
    whole: bool
    """Whether it holds tensors as a whole."""


def cut(size: int, tensors: Sequence[Tensor]) -> list[Cut]:
    """The chunks of a file of ``size`` bytes, whose ``tensors`` are sorted by offset and don't overlap.

    They cover the file without gaps, in order. What lies between tensors (headers, padding) gets chunks of its own.
    """
    return list(_joined(_spans(size, tensors)))


def _spans(size: int, tensors: Sequence[Tensor]) -> Iterator[Cut]:
    at = 0
    for tensor in tensors:
        if not tensor.size:
            continue
        yield from _pieces(at, tensor.offset, None, _FIRST)
        at = tensor.offset + tensor.size
        yield from _pieces(tensor.offset, at, tensor.dtype, rank(tensor.name))
    yield from _pieces(at, size, None, _FIRST)


def _pieces(start: int, end: int, dtype: str | None, when: Rank) -> Iterator[Cut]:
    whole = dtype is not None and end - start <= PIECE
    for at in range(start, end, PIECE):
        yield Cut(at, min(PIECE, end - at), dtype, when, whole)


def _joined(cuts: Iterator[Cut]) -> Iterator[Cut]:
    """Neighbours of one type and layer as one chunk, as long as all of them are small."""
    last: Cut | None = None
    for each in cuts:
        if last is not None and _fit(last, each):
            last = replace(last, size=last.size + each.size)
            continue
        if last is not None:
            yield last
        last = each
    if last is not None:
        yield last


def _fit(last: Cut, each: Cut) -> bool:
    alike = (last.dtype, last.rank) == (each.dtype, each.rank)
    return alike and last.whole and each.whole and last.size + each.size <= PIECE
