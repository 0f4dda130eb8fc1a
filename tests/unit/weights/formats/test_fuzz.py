"""Changed files of every format: tensors inside the file, none, or an `ImageError` that names it."""

from __future__ import annotations

import struct
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slimgpu.errors import ImageError
from slimgpu.weights.formats import read_tensors
from slimgpu.weights.formats.onnx import external_data
from slimgpu.weights.formats.shards import shard_index
from slimgpu.weights.formats.tensor import DTYPE_BITS, count
from tests.support.fuzz import examples
from tests.support.weight_files import (
    Bytes,
    call,
    checkpoint,
    entry,
    gguf,
    gguf_info,
    gguf_pair,
    gguf_text,
    onnx,
    onnx_external,
    onnx_tensor,
    safetensors,
    storage,
    typed_view,
    view,
    widened,
)

_UNTYPED = storage("2", 8, "torch.storage.UntypedStorage")
_STATE = {
    "model": {"w": view(storage("0", 24), (4, 6)), "half": view(storage("1", 8), (2, 2))},
    "list": [typed_view(_UNTYPED, (4,), "torch.bfloat16"), (view(storage("1", 8), (4,), 4),)],
    "p": call("torch._utils._rebuild_parameter", view(storage("3", 2), (2, 1), 0, (1, 9)), True),
}
_TOKENS = struct.pack("<IQ", 8, 3) + gguf_text("a") + gguf_text("bc") + gguf_text("")
FILES = {
    "m.safetensors": safetensors(
        {
            "__metadata__": {"format": "pt"},
            "w": entry("BF16", [2, 3], 0, 12),
            "f4": entry("F4", [4], 12, 14),
            "e": entry("F32", [0], 14, 14),
        },
        bytes(range(14)),
    ),
    "m.gguf": gguf(
        [gguf_info("q", [256, 1], 12, 0), gguf_info("f", [3], 0, 160), gguf_info("new", [3], 99, 192)],
        [gguf_pair("general.alignment", 4, struct.pack("<I", 32)), gguf_pair("tokens", 9, _TOKENS)],
        bytes(200),
    ),
    "m.pt": checkpoint(_STATE, {"0": bytes(96), "1": bytes(32), "2": bytes(8), "3": bytes(8)}),
    "wide.pt": widened(checkpoint({"w": view(storage("0", 24), (4, 6))}, {"0": bytes(96)})),
    "m.onnx": onnx(
        onnx_tensor("f", 1, (3, 4), bytes(48)),
        onnx_tensor("i4", 22, (5,), bytes(3)),
        onnx_external("x", 1, (2, 3), location="m.data", offset="4096", length="24"),
    ),
    "m.index.json": b'{"metadata":{},"weight_map":{"a":"x.safetensors","b":"y.safetensors"}}',
}


def outcome(name: str, data: bytes) -> None:
    """Reads a file with all that may be read of it; anything but a result or an `ImageError` fails the test."""
    started = time.monotonic()
    content = Bytes(data)
    try:
        found = read_tensors(name, content) or ()
        end = 0
        for tensor in found:
            assert end <= tensor.offset <= tensor.offset + tensor.size <= len(data)
            end = tensor.offset + tensor.size
            if tensor.dtype in DTYPE_BITS:
                assert tensor.size == (count(tensor.shape) * DTYPE_BITS[tensor.dtype] + 7) // 8
            tensor.name.encode()
    except ImageError as error:
        message = str(error)
        assert message.startswith(f"{name} is not a valid ")
        assert len(message) < 500
    for read in (external_data, shard_index):
        try:
            read(name, content)
        except ImageError as error:
            message = str(error)
            assert message.startswith(f"{name} is not a valid ")
    assert time.monotonic() - started < 10


@pytest.mark.parametrize("name", FILES)
def test_the_files_are_valid(name: str) -> None:
    found = read_tensors(name, Bytes(FILES[name]))
    assert (found is None) == name.endswith("json")


@pytest.mark.parametrize("name", FILES)
def test_cut_at_every_byte(name: str) -> None:
    for length in range(len(FILES[name])):
        outcome(name, FILES[name][:length])


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("value", [0x00, 0x01, 0x7F, 0x80, 0xFF])
def test_every_byte(name: str, value: int) -> None:
    for at in range(len(FILES[name])):
        data = bytearray(FILES[name])
        data[at] = value
        outcome(name, bytes(data))


_TOKENS_OF_FORMATS = st.sampled_from(
    [
        b"\xff" * 8,
        b"\x00" * 8,
        b"\xff" * 7 + b"\x7f",
        b"R",
        b"Q",
        b"b",
        b"u",
        b"(",
        b"t",
        b"\x81",
        b"\x93",
        b"cos\nsystem\n",
        b"PK\x05\x06",
        b'"w"',
        b"1e999",
        b"[",
        b"-1",
    ]
)


@given(st.data())
@examples(300)
def test_random_changes(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(FILES)))
    changed = bytearray(FILES[name])
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(0, len(changed)))
        gone = data.draw(st.integers(0, 9))
        changed[at : at + gone] = data.draw(st.binary(max_size=9) | _TOKENS_OF_FORMATS)
    outcome(name, bytes(changed))


@given(st.binary(max_size=300))
@examples(200)
def test_random_pickles(code: bytes) -> None:
    outcome("m.pt", checkpoint(b"\x80\x02" + code, {"0": bytes(96)}))


@given(
    st.sampled_from([b"GGUF\x03\0\0\0", b"\x20\0\0\0\0\0\0\0{", b"\x08\x0a\x3a", b"PK\x03\x04", b""]),
    st.binary(max_size=300),
)
@examples(200)
def test_random_bytes_behind_a_signature(start: bytes, rest: bytes) -> None:
    outcome("m.onnx", start + rest)
