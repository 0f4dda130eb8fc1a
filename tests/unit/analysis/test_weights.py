from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import pytest

from slimgpu.analysis import weights
from slimgpu.analysis.claims import claim
from slimgpu.analysis.rules.rule import Effect
from slimgpu.analysis.weights import MIN, WeightFile, find_weights
from tests.support.trees import Hardlink, Symlink, distribution, facts_of, filesystem
from tests.support.weight_files import (
    archive,
    checkpoint,
    entry,
    gguf,
    gguf_info,
    onnx,
    onnx_external,
    onnx_tensor,
    pickled,
    push,
    safetensors,
    storage,
    view,
)

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.trees import Layer, What

_VALUES = bytes(range(256)) * (MIN // 256)
_SMALL = safetensors({"b": entry("F32", [2], 0, 8)}, b"smallest")
_MODEL = safetensors({"a": entry("BF16", [512, 1024], 0, MIN)}, _VALUES)
_FLOATS = len(_VALUES) // 4
_TORCH = checkpoint({"w": view(storage("0", _FLOATS), (4, _FLOATS // 4))}, {"0": _VALUES})
_LEGACY = b"\x80\x02" + push(0x1950A86A20F9469CFC6C) + b"." + _VALUES


def found(tmp_path: Path, layer: Layer, owned: tuple[str, ...] = ()) -> dict[str, WeightFile]:
    with filesystem(tmp_path, layer) as files:
        return find_weights(files, owned)


def kinds(tmp_path: Path, layer: Layer, owned: tuple[str, ...] = ()) -> dict[str, str]:
    """What leaves, by its kind."""
    return {path: file.kind for path, file in found(tmp_path, layer, owned).items() if not file.stays}


@pytest.mark.parametrize(
    ("name", "content", "described"),
    [
        ("m.safetensors", _MODEL, "safetensors, 1 tensor, 524288 parameters (BF16)"),
        ("no-name", _MODEL, "safetensors, 1 tensor, 524288 parameters (BF16)"),
        (
            "m.gguf",
            gguf([gguf_info("t", [_FLOATS], 0, 0), gguf_info("u", [32], 8, MIN)], data=_VALUES + bytes(64)),
            "GGUF, 2 tensors, 262176 parameters (F32, Q8_0)",
        ),
        ("m.bin", _TORCH, "torch checkpoint, 1 tensor, 262144 parameters (F32)"),
        ("0123abcd", _TORCH, "torch checkpoint, 1 tensor, 262144 parameters (F32)"),
        ("m.pth", _LEGACY, "torch checkpoint"),
        (
            "m.onnx",
            onnx(onnx_tensor("w", 1, [_FLOATS], _VALUES)),
            "ONNX, 1 tensor, 262144 parameters (F32)",
        ),
    ],
)
def test_weights_are_told_by_their_content(tmp_path: Path, name: str, content: bytes, described: str) -> None:
    files = found(tmp_path, {f"models/{name}": content})
    assert {path: (file.described, file.stays) for path, file in files.items()} == {f"models/{name}": (described, "")}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("small.safetensors", _SMALL),
        ("m.pt", archive({"other/file": _VALUES})),
        ("m.bin", pickled({"a": 1}) + _VALUES),
        ("m.safetensors", _VALUES),
        ("vocabulary.gguf", gguf(pairs=[], data=_VALUES)),
        ("graph.onnx", onnx(onnx_tensor("w", 1, [1], bytes(4))) + b"\x12" + b"\x80\x80\x80\x01" + bytes(2 * MIN)),
    ],
)
def test_other_files_are_not(tmp_path: Path, name: str, content: bytes) -> None:
    assert found(tmp_path, {name: content}) == {}


def test_a_damaged_file_stays_and_says_why(tmp_path: Path) -> None:
    files = found(tmp_path, {"m.safetensors": _MODEL + b"more"})
    assert "its tensors end at byte" in files["m.safetensors"].stays


def test_parameters_are_written_short() -> None:
    def described(count: int) -> str:
        return WeightFile("GGUF", 2, count, ("Q4_K", "Q6_K", "F32", "F16")).described

    assert described(8_030_000_000) == "GGUF, 2 tensors, 8.03B parameters (Q4_K, Q6_K, F32, ...)"
    assert described(22_700_000).startswith("GGUF, 2 tensors, 22.70M parameters")


def _index(*names: str) -> str:
    return json.dumps({"weight_map": {f"t{number}": name for number, name in enumerate(names)}})


def test_small_shards_go_with_large_ones(tmp_path: Path) -> None:
    layer: dict[str, What] = {
        "m/model.safetensors.index.json": _index("1.safetensors", "2.safetensors", "gone", "config.json"),
        "m/1.safetensors": _MODEL,
        "m/2.safetensors": _SMALL,
        "m/config.json": "{}",
        "m/adapter.safetensors": _SMALL,
        "tiny/model.safetensors.index.json": _index("1.safetensors"),
        "tiny/1.safetensors": _SMALL,
        "bad/model.safetensors.index.json": "{",
    }
    assert kinds(tmp_path, layer) == {"m/1.safetensors": "safetensors", "m/2.safetensors": "safetensors"}


def test_external_data_goes_and_the_graph_stays(tmp_path: Path) -> None:
    large = onnx_external("w", 1, [_FLOATS], location="data/w.bin", offset="0", length=str(MIN))
    small = onnx_external("b", 1, [4], location="b.bin")
    inside = onnx_tensor("c", 1, [_FLOATS], _VALUES)
    layer: dict[str, What] = {
        "m/model.onnx": onnx(large, small),
        "m/data/w.bin": _VALUES,
        "m/b.bin": bytes(16),
        "m/other.bin": _VALUES,
        "mixed/model.onnx": onnx(onnx_external("w", 1, [_FLOATS], location="w"), inside),
        "mixed/w": _VALUES,
        "short/model.onnx": onnx(large),
        "short/data/w.bin": _VALUES[:-1],
        "tiny/model.onnx": onnx(small),
        "tiny/b.bin": bytes(16),
        "out/model.onnx": onnx(onnx_external("w", 1, [1], location="../m/other.bin")),
        "not.onnx": "text",
        "directory.onnx/x": "text",
    }
    external = "ONNX external data"
    assert kinds(tmp_path, layer) == {"m/b.bin": external, "m/data/w.bin": external, "mixed/w": external}
    assert found(tmp_path, layer)["mixed/model.onnx"].stays.startswith("it is the graph")


def test_a_hugging_face_cache_is_read_through_its_links(tmp_path: Path) -> None:
    hub = "root/.cache/huggingface/hub/models--org--name"
    snapshot = f"{hub}/snapshots/0f1e"
    graph = onnx(onnx_external("w", 1, [_FLOATS], location="model.onnx_data"))
    layer: Layer = {
        f"{hub}/refs/main": "0f1e",
        f"{hub}/blobs/aa": _MODEL,
        f"{hub}/blobs/bb": _index("model-1.safetensors", "model-2.safetensors"),
        f"{hub}/blobs/cc": _SMALL,
        f"{hub}/blobs/dd": graph,
        f"{hub}/blobs/ee": _VALUES,
        f"{hub}/blobs/ff": onnx(onnx_tensor("w", 1, [_FLOATS], _VALUES)),
        f"{snapshot}/model-1.safetensors": Symlink("../../blobs/aa"),
        f"{snapshot}/model-2.safetensors": Symlink("../../blobs/cc"),
        f"{snapshot}/model.safetensors.index.json": Symlink("../../blobs/bb"),
        f"{snapshot}/onnx/model.onnx": Symlink("../../../blobs/dd"),
        f"{snapshot}/onnx/model.onnx_data": Symlink("../../../blobs/ee"),
        f"{snapshot}/onnx/whole.onnx": Symlink("../../../blobs/ff"),
        f"{snapshot}/onnx/lost.onnx": Symlink("nowhere"),
    }
    assert kinds(tmp_path, layer) == {
        f"{hub}/blobs/aa": "safetensors",
        f"{hub}/blobs/cc": "safetensors",
        f"{hub}/blobs/ee": "ONNX external data",
        f"{hub}/blobs/ff": "ONNX",
    }


def test_what_a_package_brought_stays_unless_it_is_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layer: Layer = {"site/p/m.pt": _TORCH, "site/p/same": Hardlink("site/p/m.pt")}
    files = found(tmp_path, layer, ("site/p/same",))
    assert {file.stays for file in files.values()} == {
        "a package brought it as a part of its code, and it is no larger than 67.1 MB"
    }
    assert len(files) == 2
    monkeypatch.setattr(weights, "PACKAGED", 1000)
    assert len(kinds(tmp_path, layer, ("site/p/same",))) == 2


def test_a_name_that_is_no_text_stays(tmp_path: Path) -> None:
    name = os.fsdecode(b"m-\xff.safetensors")
    assert found(tmp_path, {name: _MODEL})[name].stays == "its name is not UTF-8"


def test_findings_tell_what_can_leave_from_what_stays(tmp_path: Path) -> None:
    layer = {
        **distribution("whisper", "1.0", {"whisper/base.pt": _TORCH}),
        "models/m.safetensors": _MODEL,
        "models/engine.plan": _VALUES,
    }
    with facts_of(tmp_path, layer) as (_, facts, _context):
        claims = claim(facts)
    rules = {path: item.rule.id for path, item in claims.items()}
    assert rules == {
        "models/engine.plan": "weights.other",
        "models/m.safetensors": "weights.baked",
        "usr/local/lib/python3.11/site-packages/whisper/base.pt": "weights.other",
    }
    assert {item.effect for item in claims.values()} == {Effect.KEEP}
