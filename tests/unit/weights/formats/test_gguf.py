from __future__ import annotations

import struct

import pytest

from slimgpu.errors import ImageError
from slimgpu.weights.formats import read_tensors
from slimgpu.weights.formats.ggml import TYPES
from slimgpu.weights.formats.tensor import Tensor
from tests.support.weight_files import Bytes, gguf, gguf_info, gguf_pair, gguf_text


def read(data: bytes) -> tuple[Tensor, ...]:
    found = read_tensors("m.gguf", Bytes(data))
    assert found is not None
    return found


_NAMES = struct.pack("<IQ", 8, 2) + gguf_text("a") + gguf_text("bc")
_PAIRS = [
    gguf_pair("general.architecture", 8, gguf_text("llama")),
    gguf_pair("general.alignmenz", 4, struct.pack("<I", 8)),  # as long as the key that matters
    gguf_pair("tokenizer.ggml.tokens", 9, _NAMES),
    gguf_pair("scores", 9, struct.pack("<IQ", 6, 3) + bytes(12)),
    gguf_pair("nested", 9, struct.pack("<IQ", 9, 2) + _NAMES + _NAMES),
    *(gguf_pair(f"k{kind}", kind, bytes(size)) for kind, size in [(0, 1), (3, 2), (5, 4), (7, 1), (10, 8), (12, 8)]),
]


@pytest.mark.parametrize("version", [2, 3])
def test_a_file(version: int) -> None:
    infos = [gguf_info("q", [256, 2], 12, 64), gguf_info("f", [3, 5], 0, 0), gguf_info("s", [], 30, 384)]
    data = gguf(infos, _PAIRS, bytes(386), version=version)
    start = len(data) - 386
    assert read(data) == (
        Tensor("f", "F32", (5, 3), start, 60),
        Tensor("q", "Q4_K", (2, 256), start + 64, 288),
        Tensor("s", "BF16", (), start + 384, 2),
    )


def test_its_own_alignment() -> None:
    alignment = gguf_pair("general.alignment", 4, struct.pack("<I", 8))
    data = gguf([gguf_info("a", [1], 24, 0), gguf_info("b", [1], 24, 8)], [alignment], bytes(9), alignment=8)
    assert [tensor.offset for tensor in read(data)] == [len(data) - 9, len(data) - 1]


def test_no_tensors_at_all() -> None:
    assert read(gguf([], _PAIRS)) == ()


def test_a_type_of_the_future_is_bytes_up_to_the_next_tensor() -> None:
    infos = [gguf_info("a", [7], 999, 0), gguf_info("b", [8], 24, 96), gguf_info("c", [2], 4, 128)]
    data = gguf(infos, [], bytes(200))
    start = len(data) - 200
    assert read(data) == (
        Tensor("a", "U8", (96,), start, 96),
        Tensor("b", "I8", (8,), start + 96, 8),
        Tensor("c", "U8", (72,), start + 128, 72),
    )


@pytest.mark.parametrize("kind", TYPES)
def test_every_type_by_its_blocks(kind: int) -> None:
    block = TYPES[kind]
    (tensor,) = read(gguf([gguf_info("x", [3 * block.elements, 2], kind, 0)], [], bytes(6 * block.size)))
    assert (tensor.dtype, tensor.shape, tensor.size) == (block.name, (2, 3 * block.elements), 6 * block.size)


def _with_alignment(*values: tuple[int, bytes]) -> bytes:
    return gguf([gguf_info("x", [4], 24, 0)], [gguf_pair("general.alignment", *value) for value in values], bytes(99))


_X = gguf_info("x", [4], 24, 0)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (gguf(version=1), "version 1, and 2 and 3 are known; convert it again"),
        (gguf(version=4), "version 4"),
        (gguf(version=3 << 24), "it is big-endian; convert it"),
        (gguf(version=2 << 24), "it is big-endian"),
        (b"GGUF", "ends early"),
        (b"GGUF\x03\0\0\0" + struct.pack("<QQ", 2**40, 0), "claims to hold"),
        (b"GGUF\x03\0\0\0" + struct.pack("<QQ", 0, 2**40), "too many values"),
        (gguf([], [gguf_pair("k", 13, b"")]), "a value of the type 13"),
        (gguf([], [gguf_text(b"k" * 9)])[:41], "ends early"),
        (gguf([], [struct.pack("<Q", 2**63)]), "ends early"),
        (gguf([], [gguf_pair("k", 8, struct.pack("<Q", 2**63))]), "ends early"),
        (gguf([], [gguf_pair("k", 9, struct.pack("<IQ", 0, 2**63))]), "ends early"),
        (gguf([], [gguf_pair("k", 9, struct.pack("<IQ", 8, 2**63))]), "too many values"),
        (gguf([], [gguf_pair("k", 9, struct.pack("<IQ", 9, 1) * 20)]), "a value of the type 9"),
        (_with_alignment((4, struct.pack("<I", 0))), "no power of two"),
        (_with_alignment((4, struct.pack("<I", 48))), "no power of two"),
        (_with_alignment((10, struct.pack("<Q", 32))), "no 32-bit number"),
        (_with_alignment((4, struct.pack("<I", 32)), (4, struct.pack("<I", 32))), "comes twice"),
        (gguf([_X], [], bytes(3)), "ends inside the tensor 'x'"),
        (gguf([_X, _X], [], bytes(9)), "the same name"),
        (gguf([_X, gguf_info("y", [4], 24, 0)], [], bytes(9)), "'x' and 'y' overlap"),
        (gguf([gguf_info("x", [40], 24, 0), gguf_info("y", [4], 24, 32)], [], bytes(99)), "overlap"),
        (gguf([gguf_info("x", [4], 99, 0), gguf_info("y", [4], 99, 0)], [], bytes(9)), "overlap"),
        (gguf([gguf_info("x", [4], 24, 3)], [], bytes(99)), "not aligned"),
        (gguf([gguf_info("x", [4], 24, 2**63)], [], bytes(99)), "outside the file"),
        (gguf([gguf_info("x", [4], 99, 2**63)], [], bytes(99)), "outside the file"),
        (gguf([gguf_info("x", [33], 2, 0)], [], bytes(99)), "no whole blocks of Q4_0"),
        (gguf([gguf_info("x", [], 2, 0)], [], bytes(99)), "no whole blocks"),
        (gguf([gguf_info("x", [2**32, 2**32], 24, 0)], [], bytes(99)), "more than 2\\*\\*64"),
        (gguf([gguf_info("x", [1] * 9, 24, 0)], [], bytes(99)), "9 dimensions"),
        (gguf([gguf_info("x" * 1025, [1], 24, 0)], [], bytes(99)), "1025 bytes"),
        (gguf([gguf_info(b"\xff", [1], 24, 0)], [], bytes(99)), "not UTF-8"),
    ],
)
def test_what_breaks_the_format(data: bytes, why: str) -> None:
    with pytest.raises(ImageError, match=rf"^m\.gguf is not a valid GGUF file: .*{why}"):
        read(data)


def test_cut_at_every_byte() -> None:
    whole = gguf([_X, gguf_info("y", [256], 12, 32)], _PAIRS, bytes(176))
    for length in range(4, len(whole)):
        with pytest.raises(ImageError, match="is not a valid GGUF file"):
            read(whole[:length])
    assert len(read(whole)) == 2
