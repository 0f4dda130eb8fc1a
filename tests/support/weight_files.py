"""Small files of weights, built byte by byte, so that tests can break every rule of a format."""

from __future__ import annotations

import io
import json
import struct
import zipfile
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence


class Bytes:
    """A file in memory that fails the test when a reader leaves it."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    @property
    def size(self) -> int:
        return len(self.data)

    def read(self, offset: int, size: int) -> bytes:
        assert 0 <= offset <= offset + size <= len(self.data)
        return self.data[offset : offset + size]


def entry(dtype: str, shape: Sequence[Any], begin: Any, end: Any) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


def safetensors(header: Any, data: bytes = b"") -> bytes:
    """A document, or bytes as they are."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def gguf_text(text: str | bytes) -> bytes:
    data = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(data)) + data


def gguf_pair(key: str, kind: int, value: bytes) -> bytes:
    return gguf_text(key) + struct.pack("<I", kind) + value


def gguf_info(name: str | bytes, dimensions: Sequence[int], kind: int, offset: int) -> bytes:
    """Dimensions as ggml has them, innermost first."""
    shape = struct.pack(f"<I{len(dimensions)}Q", len(dimensions), *dimensions)
    return gguf_text(name) + shape + struct.pack("<IQ", kind, offset)


def gguf(
    infos: Iterable[bytes] = (),
    pairs: Iterable[bytes] = (),
    data: bytes = b"",
    *,
    version: int = 3,
    alignment: int = 32,
) -> bytes:
    infos, pairs = list(infos), list(pairs)
    head = b"GGUF" + struct.pack("<IQQ", version, len(infos), len(pairs)) + b"".join(pairs) + b"".join(infos)
    return head + bytes(-len(head) % alignment) + data


class Code(bytes):
    """Instructions of a pickle that push one value."""

    __slots__ = ()


def push(value: Any) -> bytes:  # noqa: PLR0911 - one for each type
    """Instructions for a value of plain types, with `Code` in between."""
    match value:
        case Code():
            return value
        case None | bool():
            return {None: b"N", True: b"\x88", False: b"\x89"}[value]
        case int():
            size = value.bit_length() // 8 + 1
            return b"\x8a" + bytes([size]) + value.to_bytes(size, "little", signed=True)
        case str():
            return b"X" + struct.pack("<I", len(value.encode())) + value.encode()
        case tuple():
            return b"(" + b"".join(map(push, value)) + b"t"
        case list():
            return b"](" + b"".join(map(push, value)) + b"e"
        case dict():
            return b"}(" + b"".join(push(part) for item in value.items() for part in item) + b"u"
    raise TypeError(value)


def pickled(value: Any) -> bytes:
    return b"\x80\x02" + push(value) + b"."


def named(name: str) -> Code:
    """A global, such as "os.system"."""
    module, _, last = name.rpartition(".")
    return Code(f"c{module}\n{last}\n".encode())


def call(name: str, *arguments: Any) -> Code:
    return Code(named(name) + push(arguments) + b"R")


def storage(key: str, length: int, kind: str = "torch.FloatStorage") -> Code:
    return Code(push(("storage", named(kind), key, "cpu", length)) + b"Q")


def strides(shape: Sequence[int]) -> tuple[int, ...]:
    found = [1]
    for length in reversed(shape[1:]):
        found.append(found[-1] * length)
    return tuple(reversed(found)) if shape else ()


def view(at: Code, shape: Sequence[int], offset: int = 0, stride: Sequence[int] | None = None) -> Code:
    """A tensor of a storage, as torch writes it."""
    steps = strides(shape) if stride is None else tuple(stride)
    hooks = call("collections.OrderedDict")
    return call("torch._utils._rebuild_tensor_v2", at, offset, tuple(shape), steps, False, hooks)


def typed_view(at: Code, shape: Sequence[int], dtype: str) -> Code:
    hooks = call("collections.OrderedDict")
    return call("torch._utils._rebuild_tensor_v3", at, 0, tuple(shape), strides(shape), False, hooks, named(dtype))


def archive(members: Mapping[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    """A zip; the same bytes every time."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as out:
        for name, data in members.items():
            out.writestr(zipfile.ZipInfo(name), data, compress_type=method)
    return file.getvalue()


def widened(data: bytes) -> bytes:
    """The same zip with 64-bit fields wherever there are any: as if all were too large for others."""
    with zipfile.ZipFile(io.BytesIO(data)) as file, pytest.MonkeyPatch.context() as patch:
        patch.setattr(zipfile, "ZIP64_LIMIT", 0)
        patch.setattr(zipfile, "ZIP_FILECOUNT_LIMIT", 0)
        return archive({name: file.read(name) for name in file.namelist()})


def checkpoint(pickle: Any, storages: Mapping[str, bytes], **more: bytes) -> bytes:
    """A file of torch.save; ``pickle`` is a value or the pickle's own bytes."""
    data = pickle if isinstance(pickle, bytes) and not isinstance(pickle, Code) else pickled(pickle)
    inside = {"data.pkl": data, "byteorder": b"little", **{f"data/{key}": value for key, value in storages.items()}}
    return archive({f"m/{name}": content for name, content in {**inside, **more, "version": b"3\n"}.items()})


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def message(*fields: tuple[int, int | bytes | str]) -> bytes:
    """A protobuf message; numbers as varints, everything else with its length."""
    out = b""
    for number, value in fields:
        if isinstance(value, int):
            out += varint(number << 3) + varint(value)
        else:
            data = value.encode() if isinstance(value, str) else value
            out += varint(number << 3 | 2) + varint(len(data)) + data
    return out


def onnx_tensor(name: str, kind: int, shape: Sequence[int], raw: bytes) -> bytes:
    return message(*((1, length) for length in shape), (2, kind), (8, name), (9, raw))


def onnx_external(name: str, kind: int, shape: Sequence[int], **where: str) -> bytes:
    pairs = ((13, message((1, key), (2, value))) for key, value in where.items())
    return message(*((1, length) for length in shape), (2, kind), (8, name), *pairs, (14, 1))


def onnx(*initializers: bytes) -> bytes:
    graph = message((1, message((4, "Relu"))), (2, "graph"), *((5, one) for one in initializers))
    return message((1, 10), (2, "a test"), (7, graph), (8, message((2, 21))))
