from __future__ import annotations

import pytest

from slimgpu.errors import ImageError
from slimgpu.weights.formats import onnx as onnx_reader
from slimgpu.weights.formats import protobuf, read_tensors
from slimgpu.weights.formats.onnx import External, external_data
from slimgpu.weights.formats.tensor import Tensor
from tests.support.weight_files import Bytes, message, onnx, onnx_external, onnx_tensor, varint


def read(data: bytes) -> tuple[Tensor, ...] | None:
    return read_tensors("m.onnx", Bytes(data))


def test_tensors_in_the_file() -> None:
    packed = message((1, varint(300) + varint(2)), (2, 1), (8, "packed"), (9, b"p" * 2400))
    data = onnx(
        onnx_tensor("f", 1, (3, 4), b"f" * 48),
        packed,
        onnx_tensor("half", 16, (), b"hh"),
        onnx_tensor("int4", 22, (5,), b"444"),
        onnx_tensor("new", 99, (7,), b"n" * 9),
        onnx_tensor("none", 1, (0, 3), b""),
        message((1, 2), (2, 1), (4, b"12345678"), (8, "not raw")),
    )
    found = read(data)
    assert found is not None
    assert [(one.name, one.dtype, one.shape, data[one.offset : one.offset + one.size]) for one in found] == [
        ("f", "F32", (3, 4), b"f" * 48),
        ("packed", "F32", (300, 2), b"p" * 2400),
        ("half", "BF16", (), b"hh"),
        ("int4", "I4", (5,), b"444"),
        ("new", "U8", (9,), b"n" * 9),
        ("none", "F32", (0, 3), b""),
    ]


def test_the_name_is_the_hint() -> None:
    data = onnx(onnx_tensor("f", 1, (1,), b"1234"))
    assert read_tensors("M.ONNX", Bytes(data)) is not None
    assert read_tensors("m.bin", Bytes(data)) is None
    assert read(b"\x09" + data) is None
    assert read(b"") is None
    assert read(message((1, 10), (2, "no graph"))) is None


def test_fields_of_every_kind_are_stepped_over() -> None:
    data = onnx() + varint(99 << 3 | 1) + bytes(8) + varint(99 << 3 | 5) + bytes(4) + message((99, 2**64 - 1))
    assert read(data) == ()


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (onnx()[:-1], "ends early"),
        (onnx() + b"\x0b", "the wire type 3"),
        (onnx() + b"\x0f", "the wire type 7"),
        (onnx() + b"\x02\x00", "a field has no number"),
        (onnx() + b"\x80" * 11, "more than ten bytes"),
        (onnx() + b"\x7a" + varint(2**63), "ends early"),
        (onnx(onnx_tensor("x", 1, (3,), b"1234")), "'x' has 4 bytes, which do not fit"),
        (onnx(onnx_tensor("x", 1, (2**63, 2**63), b"1234")), "more than 2\\*\\*64"),
        (onnx(onnx_tensor("x" * 5000, 1, (1,), b"1234")), "a text has 5000 bytes"),
        (onnx(message((8, b"\xff"), (9, b""))), "not UTF-8"),
        (onnx(message(*[(1, 1)] * 65)), "more than 64 dimensions"),
        (onnx(message((1, bytes(65)))), "more than 64 dimensions"),
        (onnx(message((1, bytes(641)))), "too long or none"),
        (onnx(b"\x0d1234"), "too long or none"),
        (onnx(b"\x4a\x05"), "ends early"),
    ],
)
def test_what_breaks_the_format(data: bytes, why: str) -> None:
    with pytest.raises(ImageError, match=f"^m.onnx is not a valid ONNX model: .*{why}.*; fetch or export it again$"):
        read(data)


def test_messages_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protobuf, "_MAX_FIELDS", 1000)
    with pytest.raises(ImageError, match="more than 1000 fields"):
        read(b"\x08\x0a" + b"\x10\x01" * 1000)
    monkeypatch.setattr(onnx_reader, "MAX_TENSORS", 10)
    with pytest.raises(ImageError, match="more than 10 tensors"):
        read(onnx(*[b""] * 11))


def test_tensors_in_other_files() -> None:
    data = onnx(
        onnx_external("b", 1, (2, 3), location="m.data", offset="4096", length="24", checksum="x"),
        onnx_external("a", 10, (4,), location="./m.data"),
        onnx_external("tied", 10, (4,), location="m.data"),
        onnx_external("new", 99, (4,), location="sub//other", length="7"),
        onnx_tensor("inside", 1, (1,), b"1234"),
    )
    assert external_data("m.onnx", Bytes(data)) == (
        External("m.data", (Tensor("a", "F16", (4,), 0, 8), Tensor("b", "F32", (2, 3), 4096, 24))),
        External("sub/other", (Tensor("new", "U8", (7,), 0, 7),)),
    )
    found = read(data)
    assert found is not None
    assert [tensor.name for tensor in found] == ["inside"]


@pytest.mark.parametrize(
    ("where", "why"),
    [
        ({}, "names the file ''"),
        ({"location": "/etc/passwd"}, "'/etc/passwd', which does not lie beside it"),
        ({"location": "../m.data"}, "does not lie beside it"),
        ({"location": "a/../../m"}, "does not lie beside it"),
        ({"location": "a\\b"}, "does not lie beside it"),
        ({"location": "a\0b"}, "does not lie beside it"),
        ({"location": "a\nb"}, "does not lie beside it"),
        ({"location": "."}, "does not lie beside it"),
        ({"location": "m", "offset": "-1"}, "has the offset '-1'"),
        ({"location": "m", "offset": "²"}, "has the offset"),
        ({"location": "m", "offset": "9" * 21}, "has the offset"),
        ({"location": "m", "length": ""}, "has the length ''"),
        ({"location": "m", "length": "5"}, "'x' has 5 bytes, which do not fit"),
    ],
)
def test_places_that_are_none(where: dict[str, str], why: str) -> None:
    with pytest.raises(ImageError, match=f"^m.onnx is not a valid ONNX model: .*{why}"):
        external_data("m.onnx", Bytes(onnx(onnx_external("x", 1, (1,), **where))))


def test_other_errors_of_places() -> None:
    with pytest.raises(ImageError, match="no length and an unknown type"):
        external_data("m.onnx", Bytes(onnx(onnx_external("x", 99, (1,), location="m"))))
    both = [onnx_external(name, 1, (2,), location="m", offset=str(at)) for name, at in (("x", 0), ("y", 4))]
    with pytest.raises(ImageError, match="the tensors 'x' and 'y' overlap"):
        external_data("m.onnx", Bytes(onnx(*both)))
