from __future__ import annotations

import struct
import zipfile
from itertools import pairwise
from typing import Any

import pytest

from slimgpu.errors import ImageError
from slimgpu.weights.formats import read_tensors
from slimgpu.weights.formats.pickles import read_checkpoint
from slimgpu.weights.formats.tensor import DTYPE_BITS
from slimgpu.weights.formats.torchnames import DTYPES, STORAGES
from tests.support.weight_files import (
    Bytes,
    Code,
    archive,
    call,
    checkpoint,
    named,
    pickled,
    push,
    storage,
    strides,
    typed_view,
    view,
)

DATA = bytes(range(96))
WHOLE = storage("0", 24)


def tensors(data: bytes) -> list[tuple[str, str, tuple[int, ...], bytes]]:
    """Name, type, shape and bytes; in the order of the file, without overlaps."""
    found = read_tensors("m.pt", Bytes(data))
    assert found is not None
    for before, after in pairwise(found):
        assert before.offset + before.size <= after.offset
    return [(one.name, one.dtype, one.shape, data[one.offset : one.offset + one.size]) for one in found]


def test_a_state_dict() -> None:
    layers = call("collections.OrderedDict")
    attributes = push({"_metadata": call("collections.OrderedDict")}) + b"b"
    inner = {"w": view(WHOLE, (4, 6)), "b": call("torch._utils._rebuild_parameter", view(storage("1", 2), (2,)), True)}
    model = Code(layers + push(inner)[1:] + attributes)
    value = {
        "model": model,
        "steps": [view(storage("2", 1), ())],
        "epoch": 3,
        "lr": 2**2000,
        7: view(storage("3", 1), (1,)),
    }
    data = checkpoint(value, {"0": DATA, "1": b"12345678", "2": b"1234", "3": b"5678"})
    assert tensors(data) == [
        ("model.w", "F32", (4, 6), DATA),
        ("model.b", "F32", (2,), b"12345678"),
        ("steps.0", "F32", (), b"1234"),
        ("7", "F32", (1,), b"5678"),
    ]


_ROWS = {"a": view(WHOLE, (2, 6)), "b": view(WHOLE, (6,), 12), "c": view(WHOLE, (1, 6), 18, (99, 1))}


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (_ROWS, [("a", (2, 6), 48), ("b", (6,), 24), ("c", (1, 6), 24)]),
        (dict(reversed(_ROWS.items())), [("a", (2, 6), 48), ("b", (6,), 24), ("c", (1, 6), 24)]),
        ({"x": view(WHOLE, (24,)), "tied": view(WHOLE, (4, 6))}, [("x", (24,), 96)]),
        ({"x": _ROWS["a"], "tied": _ROWS["a"], "y": view(WHOLE, (12,), 12)}, [("x", (2, 6), 48), ("y", (12,), 48)]),
        ({"b": _ROWS["b"]}, [("data/0@0", (48,), 48), ("b", (6,), 24), ("data/0@72", (24,), 24)]),
        ({"part": _ROWS["a"], "all": view(WHOLE, (24,))}, [("all", (24,), 96)]),
        ({"turned": view(WHOLE, (6, 4), 0, (1, 6))}, [("turned", (24,), 96)]),
        ({"turned": view(WHOLE, (6, 4), 0, (1, 6)), "plain": view(WHOLE, (4, 6))}, [("plain", (4, 6), 96)]),
        ({"column": view(WHOLE, (4,), 1, (6,))}, [("data/0", (24,), 96)]),
        ({"column": view(WHOLE, (4,), 1, (6,)), "a": _ROWS["a"]}, [("data/0", (24,), 96)]),
        ({"a": _ROWS["a"], "b": view(WHOLE, (12,), 6)}, [("data/0", (24,), 96)]),
        ({"a": _ROWS["a"], "b": view(WHOLE, (11,))}, [("data/0", (24,), 96)]),
        ({"expanded": view(WHOLE, (5,), 0, (0,))}, [("data/0", (24,), 96)]),
        ({"nothing": view(WHOLE, (0, 3))}, [("data/0", (24,), 96)]),
        ({"nothing": view(WHOLE, (0, 3)), "a": view(WHOLE, (24,))}, [("a", (24,), 96)]),
        (view(WHOLE, (24,)), [("data/0", (24,), 96)]),
        ({"itself": WHOLE}, [("itself", (24,), 96)]),
        ({"x" * 600: view(WHOLE, (24,))}, [("data/0", (24,), 96)]),
    ],
)
def test_tensors_that_share_a_storage(value: Any, expected: list[tuple[str, tuple[int, ...], int]]) -> None:
    found = tensors(checkpoint(value, {"0": DATA}))
    assert [(name, shape, len(data)) for name, _, shape, data in found] == expected
    assert b"".join(data for *_, data in found) == DATA


def test_empty_storages() -> None:
    value = {"a": view(storage("0", 0), (0, 3)), "tied": view(storage("0", 0), (0,))}
    assert tensors(checkpoint(value, {"0": b"", "1": b""})) == [("a", "F32", (0, 3), b""), ("data/1", "U8", (0,), b"")]


def test_paths_that_become_the_same() -> None:
    value = {"a.b": view(storage("0", 1), (1,)), "a": {"b": view(storage("1", 1), (1,))}}
    first, second = tensors(checkpoint(value, {"0": b"1234", "1": b"5678"}))
    assert first[0] == "a.b"
    assert second[0].startswith("a.b@")


@pytest.mark.parametrize(("kind", "dtype"), STORAGES.items())
def test_storages_of_every_type(kind: str, dtype: str) -> None:
    data = bytes(5 * DTYPE_BITS[dtype] // 8)
    value = {"x": view(storage("0", 5, kind), (5,))}
    assert tensors(checkpoint(value, {"0": data})) == [("x", dtype, (5,), data)]


@pytest.mark.parametrize(("kind", "dtype"), DTYPES.items())
def test_types_without_a_storage_of_their_own(kind: str, dtype: str) -> None:
    data = bytes(5 * DTYPE_BITS[dtype] // 8)
    value = {"x": typed_view(storage("0", len(data), "torch.storage.UntypedStorage"), (5,), kind)}
    assert tensors(checkpoint(value, {"0": data})) == [("x", dtype, (5,), data)]


def test_a_tensor_with_attributes() -> None:
    arguments = (WHOLE, 0, (4, 6), strides((4, 6)), False, call("collections.OrderedDict"))
    rebuild = named("torch._utils._rebuild_tensor_v2")
    value = call("torch._tensor._rebuild_from_type_v2", rebuild, named("torch.nn.parameter.Parameter"), arguments, {})
    assert tensors(checkpoint({"x": value}, {"0": DATA})) == [("x", "F32", (4, 6), DATA)]


def test_dictionaries_of_python_2() -> None:
    pairs = [["x", view(WHOLE, (24,))], ("odd",), 5]
    assert tensors(checkpoint(call("collections.OrderedDict", pairs), {"0": DATA})) == [("x", "F32", (24,), DATA)]


def test_a_tensor_of_no_storage() -> None:
    value = {"x": call("torch._utils._rebuild_tensor_v2", call("torch.device", "meta"), 0, (24,), (1,))}
    assert tensors(checkpoint(value, {"0": DATA})) == [("data/0", "U8", (96,), DATA)]


def test_what_is_not_interpreted_leaves_its_storage() -> None:
    quantized = call("torch._utils._rebuild_qtensor", WHOLE, 0, (24,), (1,), (), False, None)
    assert tensors(checkpoint({"q": quantized}, {"0": DATA})) == [("data/0", "U8", (96,), DATA)]


@pytest.mark.parametrize(
    "data",
    [
        checkpoint({"x": view(WHOLE, (24,))}, {"0": DATA}, byteorder=b"big"),
        checkpoint(b"\x80\x02" + b"0" * 67_108_863, {"0": DATA}),
        checkpoint(b"\x80\x02" + b"N0" * 1_000_000 + b".", {"0": DATA}),
    ],
    ids=["big-endian", "long", "slow"],
)
def test_pickles_that_say_nothing(data: bytes) -> None:
    assert tensors(data) == [("data/0", "U8", (96,), DATA)]


def test_torchscript() -> None:
    module = Code(named("__torch__.Linear") + b")\x81" + push({"w": view(WHOLE, (24,))}) + b"b")
    members = {
        "m/data.pkl": pickled(module),
        "m/code/x.py": b"1",
        "m/constants/0": b"12",
        "m/data/0": DATA,
        "m/version": b"3",
    }
    found = read_checkpoint("m.pt", Bytes(archive(members)))
    assert found is not None
    assert found.refused == ("__torch__.Linear",)
    assert [tensor.name for tensor in found.tensors] == ["constants/0", "data/0"]


@pytest.mark.parametrize("start", [b"\x80\x02", b"\x80\x04\x95" + struct.pack("<Q", 13)])
def test_before_torch_1_6(start: bytes) -> None:
    data = start + b"\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19." + b"\x80\x02M\xe9\x03." + bytes(50)
    assert tensors(data) == [("data", "U8", (len(data),), data)]


@pytest.mark.parametrize(
    "data",
    [
        pickled({"a": 1}),
        b"\x80\x04\x95" + bytes(40),
        archive({"x.npy": b"1"}),
        archive({"a/data.pkl": b"N."}),
        archive({"data.pkl": b"N.", "version": b"3"}),
        archive({"a/b/data.pkl": b"N.", "a/b/version": b"3"}),
        archive({"x.npy": b"1"})[:-5],
        b"PK\x03\x04",
    ],
)
def test_what_is_something_else(data: bytes) -> None:
    assert read_tensors("m.pt", Bytes(data)) is None
    assert read_checkpoint("m.pt", Bytes(data)) is None


def test_nothing_is_inflated() -> None:
    value = pickled({"x": view(WHOLE, (24,)), "y": view(storage("1", 1), (1,))})
    members = {"m/data.pkl": value, "m/version": b"3", "m/data/0": DATA * 50}
    assert tensors(archive(members, zipfile.ZIP_DEFLATED)) == []


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ({"x": view(storage("9", 24), (24,))}, "the storage 'data/9', which is not in the archive"),
        ({"x": view(storage("0/../1", 24), (24,))}, "which is not in the archive"),
        ({"x": view(WHOLE, (25,))}, "'x' ends outside of its storage"),
        ({"x": view(WHOLE, (24,), 1)}, "ends outside"),
        ({"x": view(WHOLE, (2, 2), 0, (2**62, 2**62))}, "ends outside"),
        ({"x": view(WHOLE, (2**62,) * 3, 0, (0, 0, 0))}, "more than 2\\*\\*64"),
        ({"x": view(storage("0", 23), (23,))}, "has 96 bytes, and its pickle says otherwise"),
        ({"x": view(storage("0", 2**62), (2**62,))}, "its pickle says otherwise"),
        ({"x": view(WHOLE, (24,), -1)}, "without a valid shape"),
        ({"x": view(WHOLE, (-24,))}, "without a valid shape"),
        ({"x": view(WHOLE, (24,), 0, (1, 1))}, "without a valid shape"),
        ({"x": view(WHOLE, (2**70,))}, "without a valid shape"),
        ({"x": view(WHOLE, (1,) * 65)}, "without a valid shape"),
        ({"x": call("torch._utils._rebuild_tensor_v2", WHOLE)}, "a tensor of nothing"),
        ({"x": call("torch._tensor._rebuild_from_type_v2", 1)}, "a tensor of nothing"),
        (Code(push(5) + b"Q"), "what is no storage"),
        (Code(push(("storage", named("torch.Size"), "0", "cpu", 1)) + b"Q"), "what is no storage"),
        (Code(push(("storage", named("torch.FloatStorage"), "0", "cpu", 2**70)) + b"Q"), "what is no storage"),
        (Code(push(5) + b")R"), "calls what is no function"),
        (Code(named("torch.Size") + b"NR"), "calls what is no function"),
        (Code(b"0"), "takes a value where there is none"),
        (Code(b"(R"), "takes a value where there is none"),
        (Code(b"t"), "where there is no mark"),
        (Code(b"}(Nu"), "a key without a value"),
        (Code(b"NNNs"), "no dictionary"),
        (Code(b"NNa"), "no list"),
        (Code(b"NNb"), "gives attributes to what has none"),
        (Code(b"](Nb"), "takes a value where there is none"),
        (Code(b"h\x05"), "the instruction BINGET"),
        (Code(b"P1\n"), "the instruction PERSID"),
        (Code(b"\x97"), "the instruction NEXT_BUFFER"),
        (Code(b"NN\x93"), "a global without a name"),
        (Code(b"\xff"), "is damaged"),
        (Code(b"\x8e" + b"\xff" * 7 + b"\x7f"), "is damaged"),
        (Code(b"B\xff\xff\xff\xff"), "is damaged"),
        (Code(b"I" + b"1" * 5000 + b"\n"), "is damaged"),
        (b"\x80\x02N", "is damaged"),
        (b"", "is damaged"),
    ],
)
def test_what_breaks_the_format(value: Any, why: str) -> None:
    with pytest.raises(ImageError, match=f"^m.pt is not a valid torch checkpoint: .*{why}.*; fetch or export it again"):
        tensors(checkpoint(value, {"0": DATA}))
