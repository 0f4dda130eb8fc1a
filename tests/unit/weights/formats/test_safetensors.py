from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import safetensors
from safetensors.numpy import save

from slimgpu.errors import ImageError
from slimgpu.weights.formats import read_tensors
from slimgpu.weights.formats import safetensors as reader
from tests.support.weight_files import Bytes, entry
from tests.support.weight_files import safetensors as build

if TYPE_CHECKING:
    from slimgpu.weights.formats.tensor import Tensor


def read(data: bytes) -> tuple[Tensor, ...] | None:
    return read_tensors("m.safetensors", Bytes(data))


def test_files_of_the_original_writer() -> None:
    rng = np.random.default_rng(1)
    kinds = ["f8", "f4", "f2", "i8", "i4", "i2", "i1", "u8", "u4", "u2", "u1", "?"]
    values = {f"layer.{kind}": rng.integers(0, 2, (3, number + 1)).astype(kind) for number, kind in enumerate(kinds)}
    values |= {"scalar": np.array(2, "f4"), "empty": np.zeros((0, 4), "f4")}
    data = save(values, metadata={"format": "pt", "ü": "€"})
    found = read(data)
    assert found is not None
    assert {tensor.name: tensor.shape for tensor in found} == {name: value.shape for name, value in values.items()}
    for tensor in found:
        assert data[tensor.offset : tensor.offset + tensor.size] == values[tensor.name].tobytes()
    assert [tensor.offset for tensor in found] == sorted(tensor.offset for tensor in found)


ONE = entry("U8", [1], 0, 1)
_GOOD: list[tuple[Any, bytes]] = [
    ({}, b""),
    (b"{}      ", b""),
    ({"__metadata__": None}, b""),
    ({"__metadata__": {"a": "b"}, "x": ONE}, b"1"),
    ({"x": {**ONE, "more": 1}}, b"1"),
    ({"x": entry("U8", [], 0, 1)}, b"1"),
    ({"x": entry("F4", [3, 2], 0, 3)}, b"123"),
    ({"x": entry("F6_E2M3", [4], 0, 3)}, b"123"),
    ({"x": entry("F6_E3M2", [4], 0, 3)}, b"123"),
    ({"x": entry("F8_E8M0", [1], 0, 1)}, b"1"),
    ({"x": entry("F8_E4M3FNUZ", [1], 0, 1)}, b"1"),
    ({"x": entry("C64", [1], 0, 8)}, b"12345678"),
    ({"b": entry("U8", [2], 1, 3), "a": ONE}, b"123"),
    ({"a": entry("F32", [0], 0, 0), "b": ONE, "c": entry("F32", [9, 0], 1, 1)}, b"1"),
]
_BAD: list[tuple[Any, bytes, str]] = [
    ({"x": ONE}, b"", "its tensors end at byte"),
    ({"x": ONE}, b"12", "its tensors end at byte"),
    ({"x": entry("U8", [1], 1, 2)}, b"12", "does not start where"),
    ({"x": ONE, "y": entry("U8", [1], 2, 3)}, b"123", "'y' does not start where"),
    ({"x": entry("U8", [2], 0, 2), "y": entry("U8", [2], 1, 3)}, b"123", "does not start where"),
    ({"x": ONE, "y": ONE}, b"1", "does not start where"),
    ({"x": entry("U8", [1], 1, 0)}, b"1", "has -1 bytes"),
    ({"x": entry("U8", [2], 0, 1)}, b"1", "need 16 bits"),
    ({"x": entry("F4", [3], 0, 2)}, b"12", "need 12 bits"),
    ({"x": entry("F32", [2**40, 2**40, 0], 0, 0)}, b"", "more than 2\\*\\*64 elements"),
    ({"x": entry("F32", [2**62], 0, 0)}, b"", "need"),
    ({"x": entry("U8", [2**64], 0, 1)}, b"1", "no valid shape"),
    ({"x": entry("U8", [-1], 0, 1)}, b"1", "no valid shape"),
    ({"x": entry("U8", [1.0], 0, 1)}, b"1", "no valid shape"),
    ({"x": entry("U8", [True], 0, 1)}, b"1", "no valid shape"),
    ({"x": entry("U8", [1], -1, 0)}, b"1", "no valid shape"),
    ({"x": {**ONE, "data_offsets": [0, 1, 1]}}, b"1", "no valid shape"),
    ({"x": {**ONE, "shape": None}}, b"1", "no valid shape"),
    ({"x": {"dtype": "U8", "shape": [1]}}, b"1", "no valid shape"),
    ({"x": entry("U9", [1], 0, 1)}, b"1", "unknown type"),
    ({"x": entry("U4", [2], 0, 1)}, b"1", "unknown type"),
    ({"x": {**ONE, "dtype": ["U8"]}}, b"1", "unknown type"),
    ({"x": ["U8", [1], [0, 1]]}, b"1", "'x' is no tensor"),
    ({"x": None}, b"", "'x' is no tensor"),
    ({"\ud800": ONE}, b"1", "is no tensor"),
    ({"__metadata__": {"a": 1}}, b"", "__metadata__"),
    ({"__metadata__": []}, b"", "__metadata__"),
    ({"__metadata__": {"a": "\udfff"}}, b"", "__metadata__"),
    (b'{"x":1,"x":2}', b"", "the key 'x' twice"),
    (b'{"__metadata__":{"a":"b","a":"c"}}', b"", "the key 'a' twice"),
    (b'{"x":NaN}', b"", "holds NaN"),
    (b'{"x"', b"", "cannot be parsed"),
    (b'{"x":1}}', b"", "cannot be parsed"),
    (b'{"\xff":1}', b"", "cannot be parsed"),
    (b'{"x":' + b"1" * 5000 + b"}", b"", "cannot be parsed"),
    (b'{"x":' + b"[" * 100_000 + b"}", b"", "cannot be parsed"),
    (b'{"x":[' + b"[]," * 4_000_000 + b"0]}", b"", "too many values"),
    (b'{"x":[' + b"1," * 10_000_001 + b"0]}", b"", "too many values"),
]


@pytest.mark.parametrize(("header", "data"), _GOOD)
def test_what_the_format_allows(header: Any, data: bytes) -> None:
    found = read(build(header, data))
    assert found is not None
    places = {name: (len(value.shape), value.size) for value in found for name in [value.name]}
    theirs = dict(safetensors.deserialize(build(header, data)))
    assert places == {name: (len(value["shape"]), len(value["data"])) for name, value in theirs.items()}


@pytest.mark.parametrize(("header", "data", "why"), _BAD)
def test_what_it_does_not_allow(header: Any, data: bytes, why: str) -> None:
    way_out = "(update slimgpu|fetch) or export it again"
    with pytest.raises(ImageError, match=rf"^m\.safetensors is not a valid safetensors file: .*{why}.*; {way_out}$"):
        read(build(header, data))


@pytest.mark.parametrize(
    ("header", "data"), [(header, data) for header, data, why in _BAD if "twice" not in why and "too many" not in why]
)
def test_the_original_reader_agrees_on_what_is_broken(header: Any, data: bytes) -> None:
    strict = isinstance(header, dict) and isinstance(header.get("x"), list)  # theirs takes a list for an object
    if not strict:
        with pytest.raises(safetensors.SafetensorError):
            safetensors.deserialize(build(header, data))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x02",
        b"{}",
        struct.pack("<Q", 2) + b"[]",
        struct.pack("<Q", 200_000_000) + b'{"a":1}',
        b'12345678{"a": 1}',
        struct.pack("<Q", 3) + b"{x}",
    ],
)
def test_what_is_something_else(data: bytes) -> None:
    assert read(data) is None


def test_a_header_that_was_cut() -> None:
    whole = build({"x": ONE}, b"1")
    for length in range(10, len(whole)):
        with pytest.raises(ImageError, match="is not a valid"):
            read(whole[:length])


def test_more_tensors_than_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "MAX_TENSORS", 1)
    with pytest.raises(ImageError, match="it has 2 tensors, and at most 1 are read"):
        read(build({"x": ONE, "y": entry("U8", [1], 1, 2)}, b"12"))


def test_a_file_that_shrinks() -> None:
    class Shrunk(Bytes):
        """Gives less than it is asked for."""

        def read(self, offset: int, size: int) -> bytes:
            return super().read(offset, size)[:10]

    with pytest.raises(ImageError, match="it ends early; fetch or export it again"):
        read_tensors("it", Shrunk(build({"x": ONE}, b"1")))


def test_a_header_longer_than_the_original_reader_takes() -> None:
    class Huge(Bytes):
        """Says that it is larger than its bytes."""

        @property
        def size(self) -> int:
            return 2**40

    with pytest.raises(ImageError, match="its header has 100000001 bytes, and at most 100000000"):
        read_tensors("it", Huge(struct.pack("<Q", 100_000_001) + b'{"' + bytes(100)))
