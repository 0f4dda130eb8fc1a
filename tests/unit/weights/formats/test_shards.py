from __future__ import annotations

import json
from typing import Any

import pytest

from slimgpu.errors import ImageError
from slimgpu.weights.formats.shards import shard_index
from tests.support.weight_files import Bytes


def test_an_index() -> None:
    places = {"a": "model-00001-of-00002.safetensors", "b": "./sub/model-00002-of-00002.safetensors", "ü": "x"}
    text = json.dumps({"metadata": {"total_size": 5}, "weight_map": places}).encode()
    assert shard_index("it", Bytes(text)) == {**places, "b": "sub/model-00002-of-00002.safetensors"}


@pytest.mark.parametrize(
    ("document", "why"),
    [
        ([], "is no object"),
        ({}, "weight_map"),
        ({"weight_map": []}, "weight_map"),
        ({"weight_map": {"a": 1}}, "weight_map"),
        ({"weight_map": {"a": "\ud800"}}, "weight_map"),
        ({"weight_map": {"a": "../x"}}, "does not lie beside it"),
        ({"weight_map": {"a": "/x"}}, "does not lie beside it"),
        (b"{", "cannot be parsed"),
        (b'{"weight_map":{"a":"x","a":"y"}}', "twice"),
        (b" " * (64 * 1024 * 1024 + 1), "67108865 bytes"),
    ],
)
def test_what_is_no_index(document: Any, why: str) -> None:
    data = document if isinstance(document, bytes) else json.dumps(document).encode()
    with pytest.raises(ImageError, match=f"^it is not a valid index of weight files: .*{why}"):
        shard_index("it", Bytes(data))
