from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from slimgpu.weights.cut import PIECE, cut
from slimgpu.weights.formats.tensor import Tensor

_SIZES = st.integers(0, 200) | st.integers(PIECE // 3 - 2, PIECE // 3) | st.integers(PIECE - 2, 2 * PIECE + 2)


@st.composite
def files(draw: st.DrawFn) -> tuple[int, list[Tensor]]:
    at, tensors = draw(st.integers(0, 100)), []
    for number in range(draw(st.integers(0, 8))):
        at += draw(st.just(0) | st.integers(0, 50))
        size = draw(_SIZES)
        dtype, name = draw(st.sampled_from(["BF16", "F32"])), draw(st.sampled_from(["layers.0", "layers.1", "x"]))
        tensors.append(Tensor(f"{name}.{number}", dtype, (size,), at, size))
        at += size
    return at + draw(st.integers(0, 30)), tensors


@given(files())
def test_chunks_cover_the_file_and_mix_nothing(file: tuple[int, list[Tensor]]) -> None:
    size, tensors = file
    cuts = cut(size, tensors)
    at = 0
    for each in cuts:
        assert each.offset == at
        assert 0 < each.size <= PIECE
        at += each.size
    assert at == size
    for tensor in (tensor for tensor in tensors if tensor.size):
        end = tensor.offset + tensor.size
        mine = [each for each in cuts if each.offset < end and tensor.offset < each.offset + each.size]
        assert all(each.dtype == tensor.dtype for each in mine)
        if tensor.size > PIECE:
            assert [each.offset for each in mine] == list(range(tensor.offset, tensor.offset + tensor.size, PIECE))
        else:
            assert len(mine) == 1
            assert mine[0].whole


def test_small_neighbours_of_one_layer_and_type_are_one_chunk() -> None:
    names = ["layers.0.a", "layers.0.b", "layers.1.a", "layers.1.b"]
    tensors = [Tensor(name, "F32", (2,), 10 + 8 * number, 8) for number, name in enumerate(names)]
    tensors[3] = Tensor("layers.1.b", "F16", (4,), 34, 8)
    assert [(each.offset, each.size) for each in cut(42, tensors)] == [(0, 10), (10, 16), (26, 8), (34, 8)]


def test_nothing_to_cut() -> None:
    assert cut(0, []) == []
    assert cut(0, [Tensor("a", "F32", (0,), 0, 0)]) == []
