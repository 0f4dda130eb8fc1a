"""The names of the ways in which a chunk is stored, see `slimgpu.weights.codec`; reading an index needs no more."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Shape:
    """How a transform takes numbers apart (`slimgpu.weights.planes`)."""

    width: int
    """Bytes of a number, and so the number of planes."""
    is_float: bool


RAW: Final = "raw"
"""The bytes as they are."""
ZSTD: Final = "zstd"
"""One ordinary frame, for what is no tensor."""
TRANSFORMS: Final = {
    "bytes1": Shape(1, is_float=False),
    "bytes2": Shape(2, is_float=False),
    "bytes4": Shape(4, is_float=False),
    "bytes8": Shape(8, is_float=False),
    "float2": Shape(2, is_float=True),
    "float4": Shape(4, is_float=True),
}


def is_known(transform: str, packed: int) -> bool:
    """Whether a chunk that is stored like this can be decoded; ``packed`` has bit k set when plane k is compressed."""
    if transform in (RAW, ZSTD):
        return packed == 0
    return transform in TRANSFORMS and 0 < packed < 1 << TRANSFORMS[transform].width
