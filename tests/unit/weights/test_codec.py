from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from slimgpu.errors import ImageError
from slimgpu.weights.codec import FRAME, Encoded, decode, decode_planes, encode
from slimgpu.weights.planes import merge
from slimgpu.weights.transforms import RAW, TRANSFORMS, ZSTD, is_known
from tests.support.fuzz import examples
from tests.support.weights import noise, trained

DTYPES = ["BF16", "F16", "F32", "F64", "C64", "I16", "U16", "I32", "U32", "I64", "U64", "U8", "I8", "BOOL", "F8_E4M3",
          "Q4_K", None]  # fmt: skip
_KNOWN = [RAW, ZSTD, *TRANSFORMS]


def decoded(encoded: Encoded, size: int) -> bytes:
    out = bytearray(noise(size, 99))  # nothing that it should be
    decode(memoryview(encoded.data), encoded.transform, encoded.packed, memoryview(out))
    return bytes(out)


def decoded_on_a_device(encoded: Encoded, size: int) -> bytes:
    """As a GPU does it: planes to memory, merged there."""
    shape = TRANSFORMS[encoded.transform]
    planes, out = bytearray(size), bytearray(size)
    decode_planes(memoryview(encoded.data), encoded.transform, encoded.packed, memoryview(planes))
    merge(list(np.frombuffer(planes, np.uint8).reshape(shape.width, -1)), memoryview(out), is_float=shape.is_float)
    return bytes(out)


def check(raw: bytes, dtype: str | None) -> Encoded:
    encoded = encode(memoryview(raw), dtype)
    assert is_known(encoded.transform, encoded.packed)
    assert len(encoded.data) <= len(raw)
    assert decoded(encoded, len(raw)) == raw
    if encoded.transform in TRANSFORMS:
        assert decoded_on_a_device(encoded, len(raw)) == raw
    return encoded


@given(data=st.data())
def test_decoding_undoes_encoding(data: st.DataObject) -> None:
    dtype = data.draw(st.sampled_from(DTYPES))
    pool = data.draw(st.binary(min_size=1, max_size=40))
    check((pool * data.draw(st.integers(1, 3000)))[data.draw(st.integers(0, len(pool) - 1)) :], dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [1, 2, 3, 7, 8, 1023, 16 * 1024 * 8 + 8, FRAME, 2 * FRAME - 1, 4 * FRAME + 6])
@pytest.mark.parametrize("kind", ["zeros", "noise", "few values"])
def test_any_size_of_any_type(dtype: str | None, size: int, kind: str) -> None:
    few = np.random.default_rng(1).integers(0, 9, size, np.uint8).tobytes()
    raw = {"zeros": bytes(size), "noise": noise(size), "few values": few}[kind]
    encoded = check(raw, dtype)
    if kind == "noise":
        assert encoded.transform == RAW
    elif size >= FRAME and size % 8 == 0:
        assert len(encoded.data) < size / 1.8


@pytest.mark.parametrize(
    ("dtype", "transform", "packed", "share"),
    [("BF16", "float2", 0b01, 0.68), ("F16", "bytes2", 0b01, 0.87), ("F32", "float4", 0b0001, 0.85)],
)
def test_trained_weights_are_stored_as_planned(dtype: str, transform: str, packed: int, share: float) -> None:
    raw = trained(dtype, 300_000).data
    encoded = check(raw, dtype)
    assert (encoded.transform, encoded.packed) == (transform, packed)
    assert len(encoded.data) < share * len(raw)


def test_bf16_values_in_fp32_have_two_empty_planes() -> None:
    numbers = np.frombuffer(trained("F32", 100_000).data, "<u4") & 0xFFFF0000
    encoded = check(numbers.astype("<u4").tobytes(), "F32")
    assert encoded.packed & 0b1101 == 0b1101
    assert len(encoded.data) < 0.36 * 400_000


def test_what_lies_as_bytes_is_looked_at_for_numbers() -> None:
    assert check(trained("BF16", 100_000).data, "U8").transform == "float2"


def test_the_same_bytes_are_encoded_the_same() -> None:
    raw = memoryview(trained("F32", 200_000).data)
    first = encode(raw, "F32")
    check(noise(100_000), "BF16")  # leaves something in the thread's buffers
    assert encode(raw, "F32") == first


@pytest.mark.parametrize("name", sorted(TRANSFORMS))
def test_only_what_can_be_undone_is_known(name: str) -> None:
    width = TRANSFORMS[name].width
    assert [packed for packed in range(-1, 300) if is_known(name, packed)] == list(range(1, 2**width))


def test_unknown_ways_are_not_known() -> None:
    assert not is_known("float3", 1)
    assert not is_known(RAW, 1)
    assert not is_known(ZSTD, 1)
    assert not is_known(ZSTD, -1)


def try_decode(stored: bytes, transform: str, packed: int, size: int) -> None:
    """`ImageError`, or something of the right length; both ways of decoding."""
    ways = [decode, decode_planes] if transform in TRANSFORMS else [decode]
    for way in ways:
        try:
            way(memoryview(stored), transform, packed, memoryview(bytearray(size)))
        except ImageError as error:
            assert "damaged" in str(error)  # noqa: PT017 - most don't fail


def _samples() -> list[tuple[Encoded, int]]:
    found = []
    for dtype, raw in (
        ("BF16", trained("BF16", 70_000).data),
        ("F32", trained("F32", 40_000).data),
        ("I64", np.arange(20_000).tobytes()),
        (None, b"some text " * 3000),
        ("U8", bytes(150_000)),
    ):
        found.append((encode(memoryview(raw), dtype), len(raw)))
    return found


_SAMPLES = _samples()


@examples(300)
@given(data=st.data())
def test_damaged_chunks_are_images_errors(data: st.DataObject) -> None:
    encoded, size = _SAMPLES[data.draw(st.integers(0, len(_SAMPLES) - 1))]
    stored = bytearray(encoded.data)
    for _ in range(data.draw(st.integers(0, 4))):
        at = data.draw(st.integers(0, min(len(stored) - 1, 200)) | st.integers(0, len(stored) - 1))
        stored[at] ^= data.draw(st.integers(1, 255))
    stored = stored[: data.draw(st.just(len(stored)) | st.integers(0, len(stored)))]
    stored += data.draw(st.just(b"") | st.binary(max_size=30))
    transform = data.draw(st.just(encoded.transform) | st.sampled_from(_KNOWN))
    width = TRANSFORMS[transform].width if transform in TRANSFORMS else 0
    packed = data.draw(st.just(encoded.packed) | st.integers(1, 2**width - 1)) if width else 0
    size = data.draw(st.just(size) | st.integers(1, 2 * size))
    try_decode(bytes(stored), transform, packed, size)


@given(stored=st.binary(max_size=200), transform=st.sampled_from(_KNOWN), size=st.integers(1, 100), packed=st.data())
def test_any_bytes_are_no_other_error(stored: bytes, transform: str, size: int, packed: st.DataObject) -> None:
    width = TRANSFORMS[transform].width if transform in TRANSFORMS else 0
    try_decode(stored, transform, packed.draw(st.integers(1, 2**width - 1)) if width else 0, size)


@pytest.mark.parametrize("transform", ["bytes2", "bytes4", "bytes8", "float2", "float4"])
@pytest.mark.parametrize("size", [1, 3, 7, 1001])
def test_half_a_number_is_none(transform: str, size: int) -> None:
    width = TRANSFORMS[transform].width
    plane = zstandard.ZstdCompressor().compress(bytes(size // width))
    for way in (decode, decode_planes):
        with pytest.raises(ImageError, match="damaged"):
            way(memoryview(plane * width), transform, 2**width - 1, memoryview(bytearray(size)))


@pytest.mark.parametrize("claims", [True, False])
@pytest.mark.parametrize("transform", [ZSTD, "bytes1"])
def test_a_bomb_takes_no_memory(transform: str, claims: bool) -> None:  # noqa: FBT001
    parameters = zstandard.ZstdCompressionParameters.from_level(1, write_content_size=claims, window_log=22)
    bomb = zstandard.ZstdCompressor(compression_params=parameters).compress(bytes(200_000_000))
    out = memoryview(bytearray(1000))
    tracemalloc.start()
    try:
        with pytest.raises(ImageError, match="more bytes than the index says"):
            decode(memoryview(bomb), transform, int(transform != ZSTD), out)
        assert tracemalloc.get_traced_memory()[1] < 5_000_000
    finally:
        tracemalloc.stop()


def test_a_frame_that_claims_another_size_is_refused() -> None:
    frame = bytearray(zstandard.ZstdCompressor().compress(b"abc" * 1000))
    size = bytes(3000)
    for claimed in (1, 2999 - 256, 3001 - 256, 65535 - 256):
        frame[5:7] = claimed.to_bytes(2, "little")  # the content size of a frame of less than 64 KiB
        assert zstandard.frame_content_size(bytes(frame)) == claimed + 256
        with pytest.raises(ImageError):
            decode(memoryview(bytes(frame)), ZSTD, 0, memoryview(bytearray(size)))


def test_a_thread_decodes_rightly_after_damage() -> None:
    encoded, size = _SAMPLES[0]
    for cut in (1, 10, 1000, len(encoded.data) - 1):
        with pytest.raises(ImageError):
            decode(memoryview(encoded.data)[:cut], encoded.transform, encoded.packed, memoryview(bytearray(size)))
        assert decoded(encoded, size) == trained("BF16", 70_000).data
