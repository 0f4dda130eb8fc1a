"""A range of a blob to its chunks: each is checked and decoded, and handed on."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Final, NamedTuple

from slimgpu.errors import DestinationError, ImageError
from slimgpu.weights.buffer import PLANES, WHOLE
from slimgpu.weights.codec import decode, decode_planes
from slimgpu.weights.digests import sha256
from slimgpu.weights.planes import memory
from slimgpu.weights.transforms import RAW, ZSTD

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence


class Piece(NamedTuple):
    """A chunk in a range."""

    chunk: int
    start: int
    """Where it begins in the range."""
    stored: int
    digest: str
    transform: str
    packed: int
    size: int
    places: Sequence[int]
    """Of its bytes in the region."""


class Fault(NamedTuple):
    """What is wrong with a range, and which chunk showed it."""

    kind: str
    """`DIGEST`, `DAMAGED` or `FULL`."""
    chunk: int
    text: str


DIGEST: Final = "digest"
"""The bytes are not what the index names."""
DAMAGED: Final = "damaged"
"""They are, but they can't be decoded."""
FULL: Final = "full"
"""There is no room for what they hold."""


class _Room(threading.local):
    """Memory that each thread keeps for a chunk."""

    def __init__(self) -> None:
        self._memory = memory(0)

    def of(self, size: int) -> memoryview:
        if len(self._memory) < size:
            self._memory = memory(size)
        return self._memory[:size]


_ROOM: Final = _Room()


def unpack(
    pieces: Iterable[Piece], data: memoryview, write: Callable[[Piece, memoryview, int], None], *, planes: bool
) -> Fault | None:
    """Write every piece of the range ``data``, with its state, up to the first fault, which is told.

    ``planes`` leaves merging them to whoever reads them.
    """
    for piece in pieces:
        stored = data[piece.start :][: piece.stored]
        if sha256(stored) != piece.digest:
            return Fault(DIGEST, piece.chunk, "")
        room = _ROOM.of(piece.size)
        try:
            write(piece, room, _decode(piece, stored, room, planes=planes))
        except ImageError as error:
            return Fault(DAMAGED, piece.chunk, str(error))
        except DestinationError as error:
            return Fault(FULL, piece.chunk, str(error))
    return None


def _decode(piece: Piece, stored: memoryview, room: memoryview, *, planes: bool) -> int:
    if planes and piece.transform not in (RAW, ZSTD):
        decode_planes(stored, piece.transform, piece.packed, room)
        return PLANES
    decode(stored, piece.transform, piece.packed, room)
    return WHOLE
