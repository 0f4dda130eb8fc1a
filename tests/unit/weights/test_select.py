from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from slimgpu.errors import NotFoundError, UsageError
from slimgpu.weights.select import chunks_of, select
from tests.support.weights import pack_into, safetensors, small_model, trained, write_model

if TYPE_CHECKING:
    from pathlib import Path

    from slimgpu.weights.index import Index


@pytest.fixture
def index(tmp_path: Path) -> Index:
    write_model(tmp_path / "model", shards=3)
    return pack_into(tmp_path / "layout", tmp_path / "model")[1].index


def names(index: Index, only: str | None = None, files: str | None = None, rank: int = 0, world: int = 1) -> list[str]:
    return [tensor.name for tensor in select(index, only, files, rank, world)]


def test_all_tensors_in_load_order(index: Index) -> None:
    found = names(index)
    assert sorted(found) == sorted(small_model())
    assert (found[0], found[-1]) == ("model.embed_tokens.weight", "lm_head.weight")
    assert [int(name.split(".")[2]) for name in found[1:-1]] == sorted(5 * list(range(4)))


def test_names_are_matched_as_in_the_shell(index: Index) -> None:
    assert names(index, "lm_head.*") == ["lm_head.weight"]
    assert len(names(index, "*.mlp.*")) == 4
    assert names(index, "model.layers.[02].scale") == ["model.layers.0.scale", "model.layers.2.scale"]
    for nothing in ("LM_HEAD.*", "lm_head", ""):
        with pytest.raises(NotFoundError, match="no tensor is named like"):
            names(index, nothing)


def test_files_are_matched_as_in_the_shell(index: Index) -> None:
    parts = [names(index, files=f"model-0000{number}*") for number in (1, 2, 3)]
    assert sorted(name for part in parts for name in part) == sorted(small_model())
    with pytest.raises(NotFoundError):
        names(index, files="*.bin")


@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_ranks_share_the_model(index: Index, world: int) -> None:
    parts = [names(index, rank=rank, world=world) for rank in range(world)]
    assert [name for part in parts for name in part] == names(index)
    assert parts[0][0] == "model.embed_tokens.weight"
    assert parts[-1][-1] == "lm_head.weight"
    layers = [{name.split(".")[2] for name in part if ".layers." in name} for part in parts]
    assert not any(a & b for a in layers for b in layers if a is not b)


def test_a_pattern_does_not_change_who_has_which_layer(index: Index) -> None:
    assert names(index, "*.3.scale", rank=1, world=2) == ["model.layers.3.scale"]
    with pytest.raises(NotFoundError):
        names(index, "*.3.scale", rank=0, world=2)


@pytest.mark.parametrize(("rank", "world"), [(-1, 1), (1, 1), (2, 2), (0, 0), (0, -1)])
def test_a_rank_that_is_none_is_a_usage_error(index: Index, rank: int, world: int) -> None:
    with pytest.raises(UsageError, match=f"rank {rank} is not one of {world}"):
        names(index, rank=rank, world=world)


def test_one_tensor_in_two_files_is_one(tmp_path: Path) -> None:
    for file in ("a.safetensors", "b.safetensors"):
        (tmp_path / file).write_bytes(safetensors({"w": trained("F32", 9), file: trained("F32", 3)}))
    index = pack_into(tmp_path / "layout", tmp_path / "a.safetensors", tmp_path / "b.safetensors")[1].index
    assert sorted(names(index)) == ["a.safetensors", "b.safetensors", "w"]


def test_two_tensors_of_one_name_are_told(tmp_path: Path) -> None:
    for seed, file in enumerate(("a.safetensors", "b.safetensors")):
        (tmp_path / file).write_bytes(safetensors({"w": trained("F32", 9, seed=seed)}))
    index = pack_into(tmp_path / "layout", tmp_path / "a.safetensors", tmp_path / "b.safetensors")[1].index
    with pytest.raises(UsageError, match=r"w is another tensor in a\.safetensors than in b\.safetensors"):
        names(index)
    assert names(index, files="b*") == ["w"]


def test_chunks_are_those_of_the_tensors_in_load_order(index: Index) -> None:
    assert chunks_of(index, []) == []
    for tensor in index.tensors:
        found = chunks_of(index, [tensor])
        assert found == sorted(part.chunk for part in index.parts(tensor))
        assert bool(found) == bool(tensor.size)
    everything = chunks_of(index, index.tensors)
    assert everything == sorted(set(everything))
    assert chunks_of(index, list(reversed(index.tensors))) == everything
