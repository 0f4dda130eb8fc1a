"""Initializers of an ONNX model: those in the file, and those that it keeps in files beside it.

Tensors in attributes of nodes and in subgraphs are left out: they are small constants.

Source: https://github.com/onnx/onnx/blob/main/onnx/onnx.proto and docs/ExternalData.md there.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from slimgpu.weights.formats.broken import BrokenError, reading, shown
from slimgpu.weights.formats.paths import beside
from slimgpu.weights.formats.protobuf import LENGTH, Field, Reader
from slimgpu.weights.formats.tensor import MAX_TENSORS, Tensor, bit_size, in_order, opaque

if TYPE_CHECKING:
    from collections.abc import Iterator

    from slimgpu.weights.formats.tensor import Content

KIND: Final = "ONNX model"
_DTYPES: Final = {
    1: "F32",
    2: "U8",
    3: "I8",
    4: "U16",
    5: "I16",
    6: "I32",
    7: "I64",
    9: "BOOL",
    10: "F16",
    11: "F64",
    12: "U32",
    13: "U64",
    14: "C64",
    15: "C128",
    16: "BF16",
    17: "F8_E4M3",
    18: "F8_E4M3FNUZ",
    19: "F8_E5M2",
    20: "F8_E5M2FNUZ",
    21: "U4",
    22: "I4",
    23: "F4",
    24: "F8_E8M0",
    25: "U2",
    26: "I2",
    27: "F6_E2M3",
    28: "F6_E3M2",
}
_MAX_VERSION: Final = 100
"""Of the format; it is 13 after nine years."""
_MODEL_GRAPH: Final = 7
_GRAPH_INITIALIZER: Final = 5
_EXTERNAL: Final = 1
_MAX_TEXT: Final = 4096
_MAX_DIMENSIONS: Final = 64
_MAX_DIGITS: Final = 20


@dataclass(frozen=True, slots=True)
class External:
    """A file beside the model, and the tensors in it."""

    location: str
    """Its path, relative to the model's directory; never outside of it."""
    tensors: tuple[Tensor, ...]
    """Sorted by offset; their ranges have not been compared with the file, and one ends behind it if it's too short."""


@dataclass(slots=True)
class _Initializer:
    """The fields of a TensorProto that say where its values are."""

    name: str = ""
    kind: int = 0
    shape: list[int] = field(default_factory=list)
    raw: Field | None = None
    location: int = 0
    external: dict[str, str] = field(default_factory=dict)


def is_onnx(name: str, head: bytes) -> bool:
    """Whether the name is a model's and the first field a version: protobuf has no magic, so both must agree."""
    return name.lower().endswith(".onnx") and head[:1] == b"\x08" and 0 < int.from_bytes(head[1:2]) < _MAX_VERSION


def read_onnx(content: Content) -> tuple[Tensor, ...] | None:
    """The tensors whose values lie in the file as raw bytes, sorted by offset; None when there is no graph.

    Raises `BrokenError` for a message that breaks its format or a tensor whose bytes don't fit its shape.
    """
    reader = Reader(content)
    graphs = _graphs(reader, content)
    if not graphs:
        return None
    inside = ((item, item.raw) for item in _initializers(reader, graphs) if item.location != _EXTERNAL)
    return in_order(_tensor(item, raw.start, raw.end - raw.start) for item, raw in inside if raw is not None)


def external_data(name: str, content: Content) -> tuple[External, ...]:
    """The files that hold tensors of the model, sorted by location; tensors that share all their bytes are there once.

    Raises `ImageError` naming ``name`` for a broken model, a location outside of its directory, and overlaps.
    """
    with reading(name, KIND):
        reader = Reader(content)
        files: dict[str, dict[tuple[int, int], Tensor]] = {}
        for item in _initializers(reader, _graphs(reader, content)):
            if item.location == _EXTERNAL:
                tensor = _outside(item)
                place = tensor.offset, tensor.size
                files.setdefault(beside(item.external.get("location", "")), {}).setdefault(place, tensor)
        return tuple(External(location, in_order(files[location].values())) for location in sorted(files))


def _graphs(reader: Reader, content: Content) -> list[Field]:
    fields = reader.fields(0, content.size)
    return [one for one in fields if one.number == _MODEL_GRAPH and one.wire == LENGTH]


def _initializers(reader: Reader, graphs: list[Field]) -> Iterator[_Initializer]:
    left = MAX_TENSORS
    for graph in graphs:
        for one in reader.fields(graph.start, graph.end):
            if one.number == _GRAPH_INITIALIZER and one.wire == LENGTH:
                left -= 1
                if left < 0:
                    raise BrokenError(f"it has more than {MAX_TENSORS} tensors")
                yield _initializer(reader, one)


def _initializer(reader: Reader, message: Field) -> _Initializer:
    item = _Initializer()
    for one in reader.fields(message.start, message.end):
        match one.number, one.wire:
            case 1, _:
                item.shape += reader.varints(one, 10 * _MAX_DIMENSIONS)
            case 2, 0:
                item.kind = one.value
            case 8, 2:
                item.name = _text(reader, one)
            case 9, 2:
                item.raw = one
            case 13, 2:
                item.external.update([_pair(reader, one)])
            case 14, 0:
                item.location = one.value
        if len(item.shape) > _MAX_DIMENSIONS:
            raise BrokenError(f"a tensor has more than {_MAX_DIMENSIONS} dimensions")
    return item


def _text(reader: Reader, one: Field) -> str:
    try:
        return reader.data(one, _MAX_TEXT).decode()
    except UnicodeDecodeError as error:
        raise BrokenError("a text is not UTF-8") from error


def _pair(reader: Reader, message: Field) -> tuple[str, str]:
    parts = {one.number: _text(reader, one) for one in reader.fields(message.start, message.end) if one.wire == LENGTH}
    return parts.get(1, ""), parts.get(2, "")


def _tensor(item: _Initializer, offset: int, size: int) -> Tensor:
    dtype = _DTYPES.get(item.kind)
    if dtype is None:
        return opaque(item.name, offset, size)
    if _bytes(item, dtype) != size:
        raise BrokenError(f"the tensor {shown(item.name)} has {size} bytes, which do not fit its type and shape")
    return Tensor(item.name, dtype, tuple(item.shape), offset, size)


def _bytes(item: _Initializer, dtype: str) -> int:
    """Values of less than a byte are packed, and the last byte is filled up."""
    return (bit_size(dtype, item.shape) + 7) // 8


def _outside(item: _Initializer) -> Tensor:
    offset = _number(item, "offset", 0)
    dtype = _DTYPES.get(item.kind)
    if "length" not in item.external and dtype is None:
        raise BrokenError(f"the external tensor {shown(item.name)} has no length and an unknown type")
    size = _number(item, "length", 0 if dtype is None else _bytes(item, dtype))
    return _tensor(item, offset, size)


def _number(item: _Initializer, key: str, default: int) -> int:
    text = item.external.get(key)
    if text is None:
        return default
    if not text.isascii() or not text.isdigit() or len(text) > _MAX_DIGITS:
        raise BrokenError(f"the external tensor {shown(item.name)} has the {key} {shown(text)}")
    return int(text)
