"""The header of a GGUF file, versions 2 and 3, little-endian.

Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from slimgpu.weights.formats.broken import BrokenError, shown
from slimgpu.weights.formats.cursor import Cursor
from slimgpu.weights.formats.ggml import TYPES
from slimgpu.weights.formats.tensor import MAX_TENSORS, Tensor, count, in_order, opaque

if TYPE_CHECKING:
    from slimgpu.weights.formats.tensor import Content

MAGIC: Final = b"GGUF"
_VERSIONS: Final = (2, 3)
_ALIGNMENT: Final = 32
"""Where the file does not say another."""
_ALIGNMENT_KEY: Final = b"general.alignment"
_VALUE_SIZES: Final = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_UINT32: Final = 4
_STRING: Final = 8
_ARRAY: Final = 9
_MAX_DEPTH: Final = 8
_MAX_VALUES: Final = 2_000_000
"""That are read one by one; the texts of a large vocabulary with its merges are under a million."""
_MAX_DIMENSIONS: Final = 8
"""ggml has 4; the format leaves room for more."""
_MAX_NAME: Final = 1024
"""Bytes of a tensor's name; the format allows 64, and some writers take more."""
_SMALLEST_INFO: Final = 24


def read_gguf(content: Content) -> tuple[Tensor, ...]:
    """The tensors, sorted by offset; dimensions are turned round, since ggml writes the innermost first.

    A tensor of an unknown type is bytes up to the next one. Raises `BrokenError` for another version or byte order,
    and for a header that breaks the format.
    """
    cursor = Cursor(content, len(MAGIC), content.size)
    _check_version(cursor.number(4))
    tensors, pairs = cursor.number(8), cursor.number(8)
    if tensors > min(MAX_TENSORS, cursor.left // _SMALLEST_INFO):
        raise BrokenError(f"it claims to hold {tensors} tensors")
    alignment = _Metadata(cursor).alignment(pairs)
    infos = [_info(cursor) for _ in range(tensors)]
    start = -(-cursor.position // alignment) * alignment
    if len({info.name for info in infos}) != tensors:
        raise BrokenError("two of its tensors have the same name")
    starts = sorted({info.offset for info in infos})
    return in_order(_place(info, start, alignment, starts, content.size) for info in infos)


def _check_version(version: int) -> None:
    if version in _VERSIONS:
        return
    if version in (number << 24 for number in _VERSIONS):
        raise BrokenError("it is big-endian", "convert it to little-endian with the gguf package's gguf-convert-endian")
    raise BrokenError(f"it has the version {version}, and 2 and 3 are known", "convert it again with llama.cpp")


class _Metadata:
    """Steps over the keys and values, of which one matters."""

    def __init__(self, cursor: Cursor) -> None:
        self._cursor = cursor
        self._left = _MAX_VALUES

    def alignment(self, pairs: int) -> int:
        """Of the tensors' offsets, in bytes; the cursor is left behind the metadata."""
        found: int | None = None
        self._pay(pairs)
        for _ in range(pairs):
            length = self._cursor.number(8)
            if length != len(_ALIGNMENT_KEY) or self._cursor.take(length) != _ALIGNMENT_KEY:
                # Other keys may be of any length, and nothing asks for them.
                self._cursor.skip(length if length != len(_ALIGNMENT_KEY) else 0)
                self._skip(self._cursor.number(4), 0)
                continue
            if found is not None or self._cursor.number(4) != _UINT32:
                raise BrokenError("its general.alignment comes twice or is no 32-bit number")
            found = self._cursor.number(4)
            if not found or found & (found - 1):
                raise BrokenError(f"its general.alignment is {found}, which is no power of two")
        return found or _ALIGNMENT

    def _pay(self, values: int) -> None:
        self._left -= values
        if self._left < 0:
            raise BrokenError("its metadata has too many values")

    def _skip(self, kind: int, depth: int) -> None:
        if kind in _VALUE_SIZES:
            self._cursor.skip(_VALUE_SIZES[kind])
        elif kind == _STRING:
            self._cursor.skip(self._cursor.number(8))
        elif kind == _ARRAY and depth < _MAX_DEPTH:
            self._skip_array(depth)
        else:
            raise BrokenError(f"its metadata has a value of the type {kind}")

    def _skip_array(self, depth: int) -> None:
        kind, length = self._cursor.number(4), self._cursor.number(8)
        if kind in _VALUE_SIZES:
            self._cursor.skip(_VALUE_SIZES[kind] * length)
            return
        self._pay(length)
        for _ in range(length):
            self._skip(kind, depth + 1)


@dataclass(frozen=True, slots=True)
class _Info:
    name: str
    shape: tuple[int, ...]
    kind: int
    offset: int
    """From where the tensors start."""


def _info(cursor: Cursor) -> _Info:
    length = cursor.number(8)
    if length > _MAX_NAME:
        raise BrokenError(f"a tensor's name has {length} bytes")
    try:
        name = cursor.take(length).decode()
    except UnicodeDecodeError as error:
        raise BrokenError("a tensor's name is not UTF-8") from error
    dimensions = cursor.number(4)
    if dimensions > _MAX_DIMENSIONS:
        raise BrokenError(f"the tensor {shown(name)} has {dimensions} dimensions")
    lengths = [cursor.number(8) for _ in range(dimensions)]
    return _Info(name, tuple(reversed(lengths)), cursor.number(4), cursor.number(8))


def _place(info: _Info, start: int, alignment: int, starts: list[int], end: int) -> Tensor:
    offset = start + info.offset
    if info.offset % alignment or offset > end:
        raise BrokenError(f"the tensor {shown(info.name)} starts at {info.offset}, outside the file or not aligned")
    block = TYPES.get(info.kind)
    if block is None:
        later = bisect_right(starts, info.offset)
        return opaque(info.name, offset, (start + starts[later] if later < len(starts) else end) - offset)
    elements = count(info.shape)
    if (info.shape[-1] if info.shape else 1) % block.elements:
        raise BrokenError(f"the rows of the tensor {shown(info.name)} are no whole blocks of {block.name}")
    size = elements // block.elements * block.size
    if size > end - offset:
        raise BrokenError(f"it ends inside the tensor {shown(info.name)}")
    return Tensor(info.name, block.name, info.shape, offset, size)
