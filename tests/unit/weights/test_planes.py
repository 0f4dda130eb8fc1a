from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from slimgpu.weights import planes as module
from slimgpu.weights.planes import entropy, merge, split
from slimgpu.weights.transforms import TRANSFORMS, Shape

SHAPES = sorted(TRANSFORMS.items())


def round_trip(raw: bytes, shape: Shape) -> tuple[bytes, list[np.ndarray]]:
    planes = [np.empty(len(raw) // shape.width, np.uint8) for _ in range(shape.width)]
    split(memoryview(raw), shape.width, planes, is_float=shape.is_float)
    out = bytearray(len(raw))
    merge(planes, memoryview(out), is_float=shape.is_float)
    return bytes(out), planes


@pytest.mark.parametrize(("name", "shape"), SHAPES)
@given(data=st.data())
def test_merging_undoes_splitting(name: str, shape: Shape, data: st.DataObject) -> None:
    del name
    count = data.draw(st.integers(1, 300))
    raw = data.draw(st.binary(min_size=count * shape.width, max_size=count * shape.width))
    assert round_trip(raw, shape)[0] == raw


@pytest.mark.parametrize(("name", "shape"), SHAPES)
@pytest.mark.parametrize("more", [-1, 0, 1])
def test_pieces_leave_no_seam(name: str, shape: Shape, more: int, monkeypatch: pytest.MonkeyPatch) -> None:
    del name
    monkeypatch.setattr(module, "_PIECE", 64)
    raw = np.random.default_rng(3).bytes((3 * 64 + more) * shape.width)
    assert round_trip(raw, shape)[0] == raw


@pytest.mark.parametrize("is_float", [True, False])
def test_every_number_of_two_bytes_survives(is_float: bool) -> None:  # noqa: FBT001
    """NaN with every payload, both infinities, denormals and both zeros among them."""
    raw = np.arange(65536, dtype="<u2").tobytes()
    assert round_trip(raw, Shape(2, is_float=is_float))[0] == raw


@pytest.mark.parametrize("low", [0x0000, 0x0001, 0x8000, 0xFFFF, 0x7F80])
def test_every_upper_half_of_four_bytes_survives(low: int) -> None:
    raw = ((np.arange(65536, dtype="<u4") << 16) | low).astype("<u4").tobytes()
    assert round_trip(raw, Shape(4, is_float=True))[0] == raw


def test_the_planes_of_floats_are_exponent_and_sign_with_mantissa() -> None:
    numbers = np.array([1.0, -1.0, 0.0, -0.0, np.inf, -2.5], "<f4")
    _, planes = round_trip(numbers.tobytes(), Shape(4, is_float=True))
    assert planes[0].tolist() == [127, 127, 0, 0, 255, 128]
    assert planes[1].tolist() == [0, 0x80, 0, 0x80, 0, 0x80 | 0x20]
    _, planes = round_trip((numbers.view("<u4") >> 16).astype("<u2").tobytes(), Shape(2, is_float=True))
    assert planes[0].tolist() == [127, 127, 0, 0, 255, 128]


def test_the_planes_of_bytes_begin_with_the_highest() -> None:
    _, planes = round_trip(bytes(range(16)), Shape(8, is_float=False))
    assert [plane.tolist() for plane in planes] == [[7 - k, 15 - k] for k in range(8)]


def test_entropy_is_0_for_one_value_and_8_for_all_alike() -> None:
    assert entropy(np.zeros(100, np.uint8)) == 0
    assert entropy(np.arange(256, dtype=np.uint8)) == 8
    assert entropy(np.array([0, 1] * 50, np.uint8)) == 1
