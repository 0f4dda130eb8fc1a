from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slimgpu.weights.order import rank, stage

_ORDERED = [
    "model.embed_tokens.weight",
    "model.layers.0.self_attn.q_proj.weight",
    "model.layers.2.mlp.experts.17.w1.weight",
    "model.layers.10.mlp.weight",
    "lm_head.weight",
    "decoder.embed_tokens.weight",
    "decoder.block.0.layer.1.weight",
    "decoder.final_layer_norm.weight",
]


def test_tensors_come_as_a_model_needs_them() -> None:
    assert sorted(random.Random(0).sample(_ORDERED, len(_ORDERED)), key=rank) == _ORDERED  # noqa: S311


@pytest.mark.parametrize(
    ("name", "layer"),
    [("transformer.h.3.attn.c_attn.weight", 3), ("blk.12.ffn_up.weight", 12), ("encoder.layer.5.output.weight", 5),
     ("layers.7", 7), ("0.auto_model.encoder.layer.1.x", 1), ("features.4.weight", 4)],
)  # fmt: skip
def test_layers_are_known_by_their_number(name: str, layer: int) -> None:
    assert rank(name)[1:] == (1, layer)


@given(st.text(max_size=60) | st.from_regex(r"(layers|h|x)\.[0-9]{1,40}\.w", fullmatch=True))
def test_any_name_has_a_rank(name: str) -> None:
    assert rank(name) == rank(name)


def test_a_number_too_long_for_a_layer_is_none() -> None:
    """Python refuses to read what has more than 4,300 digits."""
    assert rank(f"layers.{'9' * 5000}.w")[1] != 1
    assert stage([f"layers.{'9' * 5000}.w", f"x.{'1' * 5000}.y"], 3)


@given(st.integers(1, 30), st.integers(1, 40))
def test_stages_take_layers_in_order_and_about_as_many_each(layers: int, world: int) -> None:
    names = ["embed.weight", *(f"layers.{number}.w" for number in range(layers)), "lm_head.weight"]
    stages = stage(names, world)
    found = [stages[f"layers.{number}.w"] for number in range(layers)]
    assert found == sorted(found)
    counts = [found.count(number) for number in range(world)]
    assert max(counts) - min(counts) <= 1
    assert (stages["embed.weight"], stages["lm_head.weight"]) == (0, world - 1)


def test_a_model_without_layers_has_its_stages_too() -> None:
    assert stage(["a", "norm.weight"], 3) == {"a": 0, "norm.weight": 2}
    assert stage([], 3) == {}
