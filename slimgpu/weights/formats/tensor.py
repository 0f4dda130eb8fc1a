"""Where a tensor lies in a file, and how many bits its elements have."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, Protocol

from slimgpu.weights.formats.broken import BrokenError, shown

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

MAX_TENSORS: Final = 1_000_000
"""In one file; the largest checkpoints have about 100,000 over all their files."""
LIMIT: Final = 2**64
"""Every number of these formats is less."""

DTYPE_BITS: Final[Mapping[str, int]] = MappingProxyType(
    {
        "BOOL": 8,
        **dict.fromkeys(("U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
        **dict.fromkeys(("U16", "I16", "F16", "BF16"), 16),
        **dict.fromkeys(("U32", "I32", "F32"), 32),
        **dict.fromkeys(("U64", "I64", "F64", "C64"), 64),
        "C128": 128,
        **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
        **dict.fromkeys(("F4", "U4", "I4"), 4),
        **dict.fromkeys(("U2", "I2"), 2),
    }
)
"""Bits of one element; the block types of GGUF are in `slimgpu.weights.formats.ggml`."""


class Content(Protocol):
    """A file's bytes by position."""

    @property
    def size(self) -> int:
        """Bytes of the file."""

    def read(self, offset: int, size: int) -> bytes:
        """Exactly ``size`` bytes; the caller stays inside the file."""


@dataclass(frozen=True, slots=True)
class Tensor:
    """A range of a file that holds the values of one tensor."""

    name: str
    dtype: str
    """As safetensors names it, or the name of a GGUF block type ("Q4_K"); "U8" when all that is known are bytes."""
    shape: tuple[int, ...]
    """Elements, outermost dimension first."""
    offset: int
    """Of the first byte, from the file's start."""
    size: int
    """Bytes."""


def opaque(name: str, offset: int, size: int) -> Tensor:
    """A range of which only the bytes are known."""
    return Tensor(name, "U8", (size,), offset, size)


def count(shape: Iterable[int]) -> int:
    """Elements of a shape; `BrokenError` when they would not fit 64 bits, with any zeros left until later."""
    elements = 1
    for length in shape:
        elements *= length
        if elements >= LIMIT:
            raise BrokenError("a tensor has more than 2**64 elements")
    return elements


def bit_size(dtype: str, shape: Iterable[int]) -> int:
    """Bits of a tensor's values, of a type in `DTYPE_BITS`. Raises `BrokenError` for an overflow."""
    return count(shape) * DTYPE_BITS[dtype]


def in_order(tensors: Iterable[Tensor]) -> tuple[Tensor, ...]:
    """Sorted by offset. Raises `BrokenError` when two share bytes."""
    found = sorted(tensors, key=lambda tensor: (tensor.offset, tensor.size))
    for before, after in pairwise(found):
        if before.offset + before.size > after.offset:
            raise BrokenError(f"the tensors {shown(before.name)} and {shown(after.name)} overlap")
    return tuple(found)
